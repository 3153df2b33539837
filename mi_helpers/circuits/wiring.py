"""Runs a model with edges removed: every receiver sees its own sum of senders.

A removed edge carries the ablated value of its sender (from the corrupted run, zero, a mean) in
place of the value that the sender has in this run. Write `shift` for a sender's ablated minus its
clean value, and `moved` for the change of its value in this run against the clean one. Then

    a receiver's stream = clean stream + sum of `shift` over its removed edges
                                       + sum of `moved` over its kept edges.

`Wiring.remove` goes through the receivers in the order in which they run: new streams, from them
new queries, keys, values, heads and MLPs, from these new `moved`. A `State` keeps what differs from
the clean run, and only what changes against the state that one starts from is computed:

- a stream changes if one of its edges was removed just now, or a sender moved just now;
- nodes without a path to the output are left out;
- receivers with the same edges share one stream and one norm;
- the last layer's queries and all behind them are needed at the last position alone.

Several sets of edges that start from one state are rows of one batch. The model's own norms,
attention and MLPs do the arithmetic; gradients flow to the removed shares.

One caution: with zero ablation, on a model without biases, a receiver can be left with a stream of
nothing but rounding, which its norm blows up. Pruned circuits have no such receivers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine import unembed
from ..engine.positions import at_each, each_position
from ..models.hooks import first, forward_as, map_leaves, mlp_norm
from .graph import Group
from .runs import (
    CircuitRuns,
    Source,
    Value,
    of_prompts,
    projections,
    sender_shift,
    source_of_prompts,
)

CHUNK = 2**20  # numbers in streams that are made together; more would leave the processor's cache
FEW = 20  # adding one edge's values takes as long as this many multiplied and added in a matrix
LAST = slice(-1, None)
Stream = Float[Tensor, "row prompt pos d_model"]
Streams = Float[Tensor, "row reader prompt pos d_model"]
Heads = Float[Tensor, "row prompt pos head d_head"]


@dataclass(eq=False)
class State:
    """Runs with some edges removed, one a row. What is not listed is as in the clean run, and what
    has one row is the same in all."""

    removed: Float[Tensor, "row sender receiver"]  # on the processor
    streams: dict[int, Stream] = field(default_factory=dict)  # by receiver
    moved: dict[int, Stream] = field(default_factory=dict)  # by sender, against the clean run
    heads: dict[tuple[str, int], Heads] = field(default_factory=dict)  # q, k, v of a layer

    def row(self, number: int) -> "State":
        """One of the runs by itself, without the others' memory."""
        if len(self.removed) == 1:
            return self

        def own(values: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {k: x[[number]] if len(x) > 1 else x for k, x in values.items()}

        return State(self.removed[[number]], own(self.streams), own(self.moved), own(self.heads))


@dataclass(eq=False)
class _Step:
    """What `Wiring.remove` knows on its way from an old state to a new one."""

    old: State
    new: State
    change: Float[Tensor, "row sender receiver"]  # of the removed shares, from old to new
    carries: Bool[Tensor, "row sender receiver"]  # does the edge pass on what its sender does?
    live_senders: Bool[np.ndarray, "sender"]
    live_receivers: Bool[np.ndarray, "receiver"]
    moved: dict[int, Stream] = field(default_factory=dict)  # by sender, against the old state
    beyond: Float[Tensor, "sender prompt pos d_model"] | None = None  # value minus ablated value


class Wiring:
    """Some prompts, ready to be run with any edges removed.

    Args:
        value: what removed edges carry, see `CircuitRuns.ablated`.
        prompts: which of the recorded prompts.
        pos: the positions, numbers or roles, at which removed edges carry it; None: everywhere.
        restore: edit the corrupted run, where removed edges carry clean values.

    Memory: one stream per sender, and in each row of a state one more per sender and receiver that
    changed, each of [prompt, pos, d_model]; `row_memory` bounds a row's.
    """

    def __init__(
        self,
        runs: CircuitRuns,
        value: Value | Source = "resample",
        prompts: slice = slice(None),
        pos: Sequence[int | str] | None = None,
        restore: bool = False,
    ) -> None:
        whole = runs.corrupted if restore else runs.clean
        all_prompts = runs.clean.activation if restore else runs.ablated(value)
        self.graph, self.model, self.base = runs.graph, runs.model, whole.part(prompts)
        self.calls = of_prompts(runs.calls, len(whole.tokens), prompts)
        self.projections = projections(self.model)
        # `inside` is 1 where removed edges carry other values; None: everywhere
        self.inside: Float[Tensor, "prompt pos 1"] | None = None
        shape, device = self.base.tokens.shape, self.base.tokens.device
        if pos is not None:
            where = each_position(pos, self.base.roles, *shape).to(device)
            self.inside = self.base.resid[0].new_zeros(*shape, 1)
            self.inside[torch.arange(len(where), device=device)[:, None], where] = 1
        self.final = each_position(-1, self.base.roles, *shape).to(device)
        one_length = bool((self.final == shape[1] - 1).all())
        self.last = LAST if one_length else slice(None)  # where the last layer is needed
        self.clean = dict(zip(self.graph.groups, self._streams(self.base.activation), strict=True))
        self.write(source_of_prompts(all_prompts, len(whole.tokens), prompts))

    def write(self, source: Source) -> None:
        """From now on, removed edges carry these values."""
        shift = sender_shift(self.graph, self.projections, self.base.activation, source)
        self.shift = shift if self.inside is None else shift.mul_(self.inside)
        self.ablated = dict(zip(self.graph.groups, self._streams(source), strict=True))

    def _streams(self, source: Source) -> Iterator[Float[Tensor, "prompt pos d_model"]]:
        """The stream that each group of receivers reads when all senders have these values."""
        for layer, weights in enumerate(self.projections):
            stream, (weight, bias) = source("resid_pre", layer), weights["o"]
            yield stream
            if self.graph.mlps and self.graph.parallel:
                yield stream
            elif self.graph.mlps:
                z, names = source("z", layer), "prompt pos head d, head d model -> prompt pos model"
                yield stream + einsum(z, weight, names) + bias
        yield source("resid_post", self.graph.n_layers - 1)

    def row_memory(self, group: Group) -> int:
        """Bytes that a row takes at most if its edges are removed at this group or later."""
        graph, end, numbers = self.graph, self.base.resid[0], 0
        for one in graph.groups[graph.groups.index(group) :]:
            at_end = one.layer >= graph.n_layers - 1 and self.last == LAST
            width = end.numel() // (end.shape[1] if at_end else 1)
            if one.kind == "attention":  # queries and outputs; keys and values; all by head
                numbers += 3 * graph.n_heads * width + 2 * graph.n_kv * end.numel()
                numbers += sum(self.base.acts[kind, one.layer].numel() for kind in graph.counts)
            else:
                numbers += 3 * width
        return numbers * end.element_size()

    def start(self) -> State:
        """The clean run: nothing removed."""
        return State(torch.zeros(1, *self.graph.exists.shape))

    def logits(self, state: State) -> Float[Tensor, "row prompt d_vocab"]:
        """Logits at each prompt's last position."""
        end = state.streams.get(len(self.graph.receivers) - 1, self.base.resid[-1][None])
        if self.last != LAST:
            end = torch.stack([at_each(row, self.final) for row in end])
        return unembed(self.model, end[:, :, -1]).expand(len(state.removed), -1, -1)

    def remove(self, removed: Tensor, state: State | None = None) -> State:
        """The runs with exactly these edges removed.

        Args:
            removed: masks, or shares between 0 and 1: [sender, receiver], or one a row;
                [row, sender, 1] where all edges of a sender have one share.
            state: a run of one row, with fewer edges removed, to start from; by default the clean
                run.
        """
        step = self._begin(removed, state)
        for group in self.graph.groups:
            changed = self._changed(group, step)
            if not changed:
                continue
            for positions, alike in self._together(group, changed, step.new.removed):
                streams = self._summed(group, [each[0] for each in alike], positions, step)
                for number, receivers in enumerate(alike):
                    step.new.streams |= dict.fromkeys(receivers, streams[:, number])
                if group.kind == "attention":
                    self._project(group, positions, alike, streams, step)
            for sender, value in self._written(group, changed, step).items():
                before = step.old.moved.get(sender)
                step.moved[sender] = value if before is None else value - before
                step.new.moved[sender] = value
                if step.beyond is not None:
                    step.beyond[sender] += value[0]
        return step.new

    def _begin(self, removed: Tensor, state: State | None) -> _Step:
        """Checks, and a copy of the old state to be changed."""
        old = state or self.start()
        if len(old.removed) > 1:
            raise ValueError("start from one row of a state: state.row(number)")
        removed = removed.to(old.removed)
        removed = removed if removed.ndim == 3 else removed[None]
        change = removed - old.removed
        if (change < 0).any():
            raise ValueError("edges can be removed from a state, not put back; start from another")
        new = State(removed, dict(old.streams), dict(old.moved), dict(old.heads))
        # At other positions than those `inside`, every edge carries what its sender does.
        carries = removed < 1 if self.inside is None else torch.ones_like(removed, dtype=torch.bool)
        step = _Step(
            old, new, change, carries, *self.graph.live(self.graph.exists & carries.any(0))
        )
        if (
            state is None
            and len(removed) == 1
            and self.inside is None
            and not removed.requires_grad
        ):
            step.beyond = -self.shift  # one row from the clean run: see `_from_ablated`
        return step

    def _changed(self, group: Group, step: _Step) -> list[int]:
        """The receivers of a group whose stream changes in some row, and matters."""
        own = slice(group.receivers.start, group.receivers.stop)
        moved = [sender for sender in step.moved if sender < group.parents]
        reads = slice(None) if step.carries.shape[2] == 1 else own  # one share for all, or each its
        changed = (step.change[:, : group.parents, own] != 0).any(0).any(0)
        changed = changed | step.carries[:, moved, reads].any(0).any(0)
        return [r for r, here in zip(group.receivers, changed.tolist(), strict=True)
                if here and step.live_receivers[r]]  # fmt: skip

    def _together(
        self, group: Group, changed: list[int], removed: Tensor
    ) -> Iterator[tuple[slice, list[list[int]]]]:
        """Receivers that are made together: the positions they need, and lists of those that share
        one stream. In the last layer only keys and values need all positions."""
        everywhere, others = changed, list[int]()
        if group.layer >= self.graph.n_layers - 1:
            queries = group.receivers.start + self.graph.n_heads
            everywhere = [r for r in changed if group.kind == "attention" and r >= queries]
            others = [r for r in changed if r not in everywhere]
        for positions, receivers in ((slice(None), everywhere), (self.last, others)):
            lists = with_same_edges(removed[:, : group.parents], receivers)
            size = len(removed) * self.base.resid[0][:, positions].numel()
            most = max(1, CHUNK // size)
            yield from ((positions, lists[i : i + most]) for i in range(0, len(lists), most))

    def _summed(self, group: Group, readers: list[int], positions: slice, step: _Step) -> Streams:
        """The new streams of some receivers: with `removed` the shares of their edges,

        old stream + change of removed · (shift - moved before) + (1 - removed) · moved just now.
        """
        n, old = group.parents, step.old
        removed = shares_of(step.new.removed[:, :n], readers)
        if step.beyond is not None:
            return self._from_ablated(group, 1 - removed[0], positions, step.beyond)
        clean = self.clean[group][None, :, positions]
        streams = stacked([old.streams.get(r, clean) for r in readers])
        change, carries = (shares_of(x[:, :n], readers) for x in (step.change, step.carries))
        # Edges that are removed now carry their sender's shift, …
        now = (change != 0).any(2).any(0).nonzero().flatten().tolist()
        if now:
            few = len(now) < n / 2  # else the whole block as it lies in memory, without a copy
            chosen = now if few else slice(n)
            streams = plus(streams, change[:, chosen], self.shift[chosen][None, :, :, positions])
        # … and no longer what it had moved by in the old state.
        before = [u for u in now if u in old.moved]
        if before:
            values = stacked([old.moved[u][:, :, positions] for u in before])
            streams = plus(streams, -change[:, before], self._masked(values, positions))
        # Edges that are kept pass on by how much their sender moved just now.
        moved = [u for u in step.moved if u < n and carries[:, u].any()]
        if moved:
            values = stacked([step.moved[u][:, :, positions] for u in moved])
            gone = removed[:, moved]
            if self.inside is None:
                streams = plus(streams, 1 - gone, values)
            else:
                streams = plus(streams, torch.ones_like(gone), values)
                streams = plus(streams, -gone, self._masked(values, positions))
        everything = (removed == 1).all(1)
        if self.inside is None and everything.any():  # the ablated stream itself, without rounding
            whole = rearrange(everything, "row reader -> row reader 1 1 1").to(streams.device)
            streams = torch.where(whole, self.ablated[group][:, positions], streams)
        return streams

    def _from_ablated(
        self, group: Group, kept: Float[Tensor, "sender reader"], positions: slice, beyond: Tensor
    ) -> Streams:
        """The same streams from the other end, for one row that starts from the clean run:

        ablated stream + sum over kept edges of (value in this run - ablated value).

        Circuits are small, so few edges are added; each costs `FEW` times what it does in a matrix
        product of all senders by all readers.
        """
        streams = self.ablated[group][:, positions].expand_as(self.clean[group][:, positions])
        streams = repeat(
            streams, "prompt pos model -> 1 reader prompt pos model", reader=kept.shape[1]
        )
        if FEW * int(kept.count_nonzero()) > kept.numel():
            return plus(streams, kept[None], beyond[None, : len(kept), :, positions])
        streams = streams.clone()
        for u in kept.any(1).nonzero().flatten().tolist():
            readers = kept[u].nonzero().flatten()
            share = kept[u, readers].to(streams)[:, None, None, None]
            added = share * beyond[u, :, positions]
            streams[0].index_add_(0, readers.to(streams.device), added)
        return streams

    def _masked(self, values: Tensor, positions: slice) -> Tensor:
        """Values where removed edges carry other ones, zero elsewhere."""
        return values if self.inside is None else values * self.inside[:, positions]

    def _project(
        self,
        group: Group,
        positions: slice,
        alike: list[list[int]],
        streams: Streams,
        step: _Step,
    ) -> None:
        """Write the queries, keys and values that follow from new streams."""
        new, layer = step.new.heads, group.layer
        normed = self.model.blocks[layer].ln1.original_component(streams)
        for number, receivers in enumerate(alike):
            heads: dict[str, list[int]] = {}
            for _, head, kind in (self.graph.receivers[r].split(".") for r in receivers):
                heads.setdefault(kind, []).append(int(head))
            for kind, chosen in heads.items():
                old = step.old.heads.get((kind, layer), self.base.acts[kind, layer][None])
                if new.get((kind, layer), old) is old:  # the old state's: not to be written to
                    new[kind, layer] = old.repeat(len(step.new.removed), 1, 1, 1, 1)
                weight, bias = (x[chosen] for x in self.projections[layer][kind])
                names = "row prompt pos model, head model d -> row prompt pos head d"
                found = einsum(normed[:, number], weight, names) + bias
                new[kind, layer][:, :, positions, chosen] = found

    def _written(self, group: Group, changed: list[int], step: _Step) -> dict[int, Stream]:
        """What the nodes behind these receivers write beyond the clean run, by sender."""
        if group.kind == "out":
            return {}
        graph, layer, heads = self.graph, group.layer, step.new.heads
        if group.kind == "mlp":
            block, streams = self.model.blocks[layer], step.new.streams[group.receivers.start]
            flat = rearrange(streams, "row prompt pos model -> (row prompt) pos model")
            found = first(block.mlp(mlp_norm(block).original_component(flat)))
            found = rearrange(
                found, "(row prompt) pos model -> row prompt pos model", row=len(streams)
            )
            clean = self.base.acts["mlp_out", layer][:, -streams.shape[2] :]
            return {graph.sender_number(layer): found - clean}
        start = graph.sender_number(layer, 0)
        written = [
            head for head in range(graph.n_heads)
            if step.live_senders[start + head]
            and not set(changed).isdisjoint(graph.inputs[start + head])
        ]  # fmt: skip
        if not written:
            return {}
        q, k, v = (heads.get((x, layer), self.base.acts[x, layer][None]) for x in graph.counts)
        at = self.last if layer == graph.n_layers - 1 else slice(None)
        z = attention_from(self.model.blocks[layer].attn, self.calls[layer], q, k, v)
        change = (z[:, :, at] - self.base.acts["z", layer][:, at])[:, :, :, written]
        weight = self.projections[layer]["o"][0][written]
        names = "row prompt pos head d, head d model -> head row prompt pos model"
        by_head = einsum(change, weight, names)
        return {start + head: value for head, value in zip(written, by_head, strict=True)}


# The model's own attention on given inputs, and sums into several receivers' streams


def attention_from(
    attn: Any, call: tuple[tuple, dict[str, Any]], q: Heads, k: Heads, v: Heads
) -> Heads:
    """What attention gives (z) for these queries, keys and values, before rotation; what has one
    row is that of all rows. `call` is what the module was called with in the recorded run."""
    kept, n_rows, n = list[Tensor](), max(map(len, (q, k, v))), q.shape[1]

    def keep(z: Tensor, *_: Any, **__: Any) -> Tensor:
        kept.append(z)
        return z

    def constant(value: Tensor) -> Callable[..., Tensor]:
        return lambda *_, **__: value

    def again(value: Any) -> Any:
        """An argument by prompt, for several rows of these prompts."""
        if n_rows == 1 or not isinstance(value, Tensor) or value.ndim < 2 or len(value) != n:
            return value
        return repeat(value, "prompt ... -> (row prompt) ...", row=n_rows)

    with ExitStack() as stack:
        for name, value in (("q", q), ("k", k), ("v", v)):
            value = value.expand(n_rows, -1, -1, -1, -1)
            flat = rearrange(value, "row prompt pos head d -> (row prompt) pos (head d)")
            stack.enter_context(forward_as(getattr(attn, name), constant(flat)))
        stack.enter_context(forward_as(attn.o, keep))
        args, kwargs = map_leaves(again, call)
        attn(*args, **kwargs)
    (z,) = kept
    return z.reshape(n_rows, *q.shape[1:])


def with_same_edges(
    removed: Float[Tensor, "row sender receiver"], receivers: list[int]
) -> list[list[int]]:
    """Receivers in lists of those with the same removed edges. Equal shares may have gradients of
    their own, and are then kept apart."""
    if removed.shape[2] == 1:
        return [receivers] if receivers else []
    if removed.requires_grad:
        return [[r] for r in receivers]
    lists: dict[bytes, list[int]] = {}
    columns = rearrange(removed[:, :, receivers], "row sender reader -> reader (row sender)")
    for r, edges in zip(receivers, columns.numpy(), strict=True):
        lists.setdefault(edges.tobytes(), []).append(r)
    return list(lists.values())


def shares_of(shares: Tensor, readers: list[int]) -> Tensor:
    """The shares of these receivers' edges, [row, sender, reader]; a single one is that of all."""
    return shares[:, :, readers] if shares.shape[2] > 1 else shares.expand(-1, -1, len(readers))


def stacked(streams: list[Stream]) -> Streams:
    """Several streams as one tensor, without a copy where there is one."""
    if len(streams) == 1:
        return streams[0][:, None]
    n_rows = max(map(len, streams))
    return torch.stack([x.expand(n_rows, -1, -1, -1) for x in streams], 1)


def plus(
    streams: Streams,
    share: Float[Tensor, "row sender reader"],
    values: Float[Tensor, "row sender prompt pos d_model"],
) -> Streams:
    """Streams plus their shares of senders' values; a single row of either is that of all rows."""
    flat, added = (x.flatten(2).expand(len(share), -1, -1) for x in (streams, values))
    weights = rearrange(share, "row sender reader -> row reader sender").to(flat)
    return torch.baddbmm(flat, weights, added).unflatten(2, streams.shape[2:])

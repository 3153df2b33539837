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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine import Run, unembed
from ..engine.recording import at_each, each_position
from ..models.hooks import map_leaves
from .blocks import (
    Heads,
    Stream,
    Streams,
    alike,
    attention_from,
    columns,
    mix,
    mlp_from,
    stack,
)
from .graph import Graph, Group
from .runs import CircuitRuns, Source, Value, projections, rows, sender_shift

CHUNK = 2**20  # numbers in streams that are made together; more would leave the processor's cache
FEW = 20  # adding one edge's values takes as long as this many multiplied and added in a matrix
LAST = slice(-1, None)


@dataclass(eq=False)
class State:
    """Runs with some edges removed, one a row. What is not listed is as in the clean run, and what
    has one row is the same in all."""

    removed: Float[Tensor, "row sender receiver"]  # on the processor
    streams: dict[int, Stream] = field(default_factory=dict)  # by receiver
    moved: dict[int, Stream] = field(default_factory=dict)  # by sender
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
    """From an old state to a new one: the edges removed in between, and by how much each sender
    that was run again moved in between."""

    old: State
    new: State
    change: Float[Tensor, "row sender receiver"]
    live_senders: Bool[np.ndarray, "sender"]
    live_receivers: Bool[np.ndarray, "receiver"]
    moved: dict[int, Stream] = field(default_factory=dict)
    beyond: Float[Tensor, "sender prompt pos d_model"] | None = None  # value minus ablated value


class Wiring:
    """One batch of prompts, ready to be run with any edges removed.

    `base` is the run that is edited, `source` gives what removed edges carry, `pos` says where
    (None: everywhere). Memory: one stream per sender, and in each row of a state one more per
    sender and receiver that changed, each of [prompt, pos, d_model]; `row_memory` bounds a row's.
    """

    def __init__(
        self,
        graph: Graph,
        base: Run,
        calls: list[tuple[tuple, dict[str, Any]]],
        source: Source,
        pos: Sequence[int | str] | None = None,
    ) -> None:
        self.graph, self.base, self.calls, self.model = graph, base, calls, base.model
        self.projections = projections(self.model)
        # `at` is 1 where removed edges carry other values; None: everywhere
        self.at: Float[Tensor, "prompt pos 1"] | None = None
        shape, device = base.tokens.shape, base.tokens.device
        if pos is not None:
            where = each_position(pos, base.roles, *shape).to(device)
            self.at = base.resid[0].new_zeros(*shape, 1)
            self.at[torch.arange(len(where), device=device)[:, None], where] = 1
        self.final = each_position(-1, base.roles, *shape).to(device)
        one_length = bool((self.final == shape[1] - 1).all())
        self.last = LAST if one_length else slice(None)  # where the last layer is needed
        shift = sender_shift(graph, self.projections, base.activation, source)
        self.shift = shift if self.at is None else shift.mul_(self.at)
        self.points = dict(zip(graph.groups, self._streams(base.activation), strict=True))
        self.ends = dict(zip(graph.groups, self._streams(source), strict=True))

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

    def remove(self, removed: Tensor, state: State | None = None) -> State:
        """The runs with exactly these edges removed.

        Args:
            removed: masks, or shares between 0 and 1: [sender, receiver], or one a row;
                [row, sender, 1] where all edges of a sender have one share.
            state: a run of one row, with fewer edges removed, to start from; by default the clean
                run.
        """
        step = self._begin(removed, state or self.start())
        if state is None and len(step.new.removed) == 1 and self.at is None:
            step.beyond = None if removed.requires_grad else -self.shift
        for group in self.graph.groups:
            todo = self._todo(group, step)
            if not todo:
                continue
            if group.kind == "attention":
                self._own_rows(group, todo, step.new)
            for at, same in self._sharing(group, todo, step.new.removed):
                streams = self._update(group, [each[0] for each in same], at, step)
                for number, receivers in enumerate(same):
                    step.new.streams |= dict.fromkeys(receivers, streams[:, number])
                if group.kind == "attention":
                    self._project(group, at, same, streams, step.new)
            for sender, value in self._written(group, todo, step).items():
                before = step.old.moved.get(sender)
                step.moved[sender] = value if before is None else value - before
                step.new.moved[sender] = value
                if step.beyond is not None:
                    step.beyond[sender] += value[0]
        return step.new

    def logits(self, state: State) -> Float[Tensor, "row prompt d_vocab"]:
        """Logits at each prompt's last position."""
        end = state.streams.get(len(self.graph.receivers) - 1, self.base.resid[-1][None])
        if self.last != LAST:
            end = torch.stack([at_each(row, self.final) for row in end])
        return unembed(self.model, end[:, :, -1]).expand(len(state.removed), -1, -1)

    def _begin(self, removed: Tensor, old: State) -> _Step:
        """Checks, and a copy of the old state to be changed."""
        if len(old.removed) > 1:
            raise ValueError("start from one row of a state: state.row(number)")
        removed = removed.to(old.removed)
        removed = removed if removed.ndim == 3 else removed[None]
        change = removed - old.removed
        if (change < 0).any():
            raise ValueError("edges can be removed from a state, not put back; start from another")
        new = State(removed, dict(old.streams), dict(old.moved), dict(old.heads))
        kept = self.graph.exists  # at other positions than `at`, removed edges carry as before
        if self.at is None:
            kept = kept & (removed < 1).any(0)
        return _Step(old, new, change, *self.graph.live(kept))

    def _todo(self, group: Group, step: _Step) -> list[int]:
        """The receivers of a group whose stream changes in some row, and matters."""
        removed, columns = step.new.removed, slice(group.receivers.start, group.receivers.stop)
        own = slice(None) if removed.shape[2] == 1 else columns
        wanted = (step.change[:, : group.parents, columns] != 0).any(0).any(0)
        moved = [sender for sender in step.moved if sender < group.parents]
        full = 1 if self.at is None else 2  # elsewhere than `at`, every edge carries
        wanted = wanted | (removed[:, moved, own] < full).any(0).any(0)
        return [r for r, here in zip(group.receivers, wanted.tolist(), strict=True)
                if here and step.live_receivers[r]]  # fmt: skip

    def _sharing(
        self, group: Group, todo: list[int], removed: Tensor
    ) -> Iterator[tuple[slice, list[list[int]]]]:
        """Receivers that are made together: the positions they need, and lists of those that share
        one stream. In the last layer only keys and values need all positions."""
        everywhere, others = todo, list[int]()
        if group.layer >= self.graph.n_layers - 1:
            queries = group.receivers.start + self.graph.n_heads
            everywhere = [r for r in todo if group.kind == "attention" and r >= queries]
            others = [r for r in todo if r not in everywhere]
        for at, receivers in ((slice(None), everywhere), (self.last, others)):
            lists = alike(removed[:, : group.parents], receivers)
            size = len(removed) * self.base.resid[0][:, at].numel()
            step = max(1, CHUNK // size)
            yield from ((at, lists[i : i + step]) for i in range(0, len(lists), step))

    def _update(self, group: Group, readers: list[int], at: slice, step: _Step) -> Streams:
        """The new streams of some receivers: with `removed` the shares of their edges,

        old stream + change of removed · (shift - moved before) + (1 - removed) · moved just now.
        """
        n, old = group.parents, step.old
        if step.beyond is not None:
            kept = 1 - columns(step.new.removed[0, :n][None], readers)[0]
            return self._from_ablated(group, kept, at, step.beyond)
        point = self.points[group][None, :, at]
        streams = stack([old.streams.get(r, point) for r in readers])
        change, share = (columns(x[:, :n], readers) for x in (step.change, step.new.removed))
        # Edges that are removed now stop carrying what their sender does, and carry its shift.
        used = (change != 0).any(2).any(0).nonzero().flatten().tolist()
        if used:
            few = len(used) < n / 2  # else the whole block as it lies in memory, without a copy
            chosen = used if few else slice(n)
            streams = mix(streams, change[:, chosen], self.shift[chosen][None, :, :, at])
        before = [u for u in used if u in old.moved]
        if before:
            values = stack([old.moved[u][:, :, at] for u in before])
            streams = mix(streams, -change[:, before], self._inside(values, at))
        # Edges that are kept pass on by how much their sender moved just now.
        moved = [
            u for u in step.moved if u < n and (self.at is not None or (share[:, u] < 1).any())
        ]
        if moved:
            values, gone = stack([step.moved[u][:, :, at] for u in moved]), share[:, moved]
            if self.at is None:
                streams = mix(streams, 1 - gone, values)
            else:
                streams = mix(streams, torch.ones_like(gone), values)
                streams = mix(streams, -gone, self._inside(values, at))
        everything = (share == 1).all(1)
        if self.at is None and everything.any():  # the ablated stream itself, without rounding
            whole = rearrange(everything, "row reader -> row reader 1 1 1").to(streams.device)
            streams = torch.where(whole, self.ends[group][:, at], streams)
        return streams

    def _from_ablated(
        self, group: Group, kept: Float[Tensor, "sender reader"], at: slice, beyond: Tensor
    ) -> Streams:
        """The same streams from the other end, for one row that starts from the clean run:

        ablated stream + sum over kept edges of (value in this run - ablated value).

        Circuits are small, so few edges are added; each costs `FEW` times what it does in a matrix
        product of all senders by all readers.
        """
        streams = self.ends[group][:, at].expand_as(self.points[group][:, at])
        streams = repeat(
            streams, "prompt pos model -> 1 reader prompt pos model", reader=kept.shape[1]
        )
        senders = kept.any(1).nonzero().flatten().tolist()
        if FEW * int(kept.count_nonzero()) > kept.numel():
            return mix(streams, kept[None], beyond[None, : len(kept), :, at])
        streams = streams.clone()
        for u in senders:
            where = kept[u].nonzero().flatten().to(streams.device)
            share = kept[u][kept[u] != 0].to(streams)[:, None, None, None]
            streams[0].index_add_(0, where, share * beyond[u, :, at])
        return streams

    def _inside(self, values: Tensor, at: slice) -> Tensor:
        """Values where removed edges carry other ones, zero elsewhere."""
        return values if self.at is None else values * self.at[:, at]

    def _own_rows(self, group: Group, todo: list[int], new: State) -> None:
        """Queries, keys and values that are about to be written get rows of their own."""
        for kind in {self._head(r)[0] for r in todo}:
            value = new.heads.get((kind, group.layer), self.base.acts[kind, group.layer][None])
            new.heads[kind, group.layer] = value.repeat(len(new.removed), 1, 1, 1, 1)

    def _head(self, receiver: int) -> tuple[str, int]:
        """What an input of attention is: "q", "k" or "v", and of which head."""
        _, head, kind = self.graph.receivers[receiver].split(".")
        return kind, int(head)

    def _project(
        self, group: Group, at: slice, same: list[list[int]], streams: Streams, new: State
    ) -> None:
        """Write the queries, keys and values that follow from new streams."""
        normed = self.model.blocks[group.layer].ln1.original_component(streams)
        for number, receivers in enumerate(same):
            heads: dict[str, list[int]] = {}
            for kind, head in (self._head(r) for r in receivers):
                heads.setdefault(kind, []).append(head)
            for kind, chosen in heads.items():
                weight, bias = (x[chosen] for x in self.projections[group.layer][kind])
                names = "row prompt pos model, head model d -> row prompt pos head d"
                found = einsum(normed[:, number], weight, names) + bias
                new.heads[kind, group.layer][:, :, at, chosen] = found

    def _written(self, group: Group, todo: list[int], step: _Step) -> dict[int, Stream]:
        """What the nodes behind these receivers write beyond the clean run, by sender."""
        if group.kind == "out":
            return {}
        if group.kind == "mlp":
            streams = step.new.streams[group.receivers.start]
            found = mlp_from(self.model.blocks[group.layer], streams)
            clean = self.base.acts["mlp_out", group.layer][:, -streams.shape[2] :]
            return {self.graph.sender_number(group.layer): found - clean}
        graph, layer, heads = self.graph, group.layer, step.new.heads
        first_sender = graph.sender_number(layer, 0)
        senders = [
            u for u in range(first_sender, first_sender + graph.n_heads)
            if step.live_senders[u] and not set(todo).isdisjoint(graph.inputs[u])
        ]  # fmt: skip
        if not senders:
            return {}
        q, k, v = (heads.get((x, layer), self.base.acts[x, layer][None]) for x in graph.counts)
        at = self.last if layer == graph.n_layers - 1 else slice(None)
        z = attention_from(self.model.blocks[layer].attn, self.calls[layer], q, k, v)
        written = [u - first_sender for u in senders]
        change = (z[:, :, at] - self.base.acts["z", layer][:, at])[:, :, :, written]
        weight = self.projections[layer]["o"][0][written]
        names = "row prompt pos head d, head d model -> head row prompt pos model"
        return dict(zip(senders, einsum(change, weight, names), strict=True))


def wire(
    runs: CircuitRuns,
    value: Value = "resample",
    prompts: slice = slice(None),
    pos: Sequence[int | str] | None = None,
    restore: bool = False,
) -> Wiring:
    """Some of the prompts, ready to be run with any edges removed (at `pos` only).

    With `restore` the corrupted run is edited, and removed edges carry clean values.
    """
    base = runs.corrupted if restore else runs.clean
    source = runs.clean.activation if restore else runs.ablated(value)
    n = len(base.tokens)
    calls = map_leaves(lambda v: rows(v, n, prompts), runs.calls)
    own = base.part(prompts)
    return Wiring(runs.graph, own, calls, lambda *at: rows(source(*at), n, prompts), pos)

"""Runs a model with edges removed: every receiver sees its own sum of senders.

A removed edge carries the ablated value of its sender (from the corrupted run, zero, a mean) in
place of the value that the sender has in this run. With `shift` the ablated minus the clean value
of a sender, and `moved` the change of its value in this run, a receiver's stream is

    clean stream + sum of `shift` over its removed edges + sum of `moved` over its kept edges.

A `State` keeps what differs from the clean run, and `Wiring.remove` computes only what changes
against another state: it starts at the first receiver whose edges changed, leaves out receivers
whose senders did not move and nodes without a path to the output, takes the last layer's queries
and everything behind them at the last position alone, and computes one norm for all receivers that
see the same stream. Several sets of edges that start from one state are rows of one batch. The
model's own norms, attention and MLPs do the arithmetic; gradients flow to the removed shares.

One caution: with zero ablation, on a model without biases, a receiver can be left with a stream of
nothing but rounding, which its norm blows up. Pruned circuits have no such receivers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..engine.recording import Run, unembed
from .blocks import attention_from, mlp_from
from .graph import Graph, Group
from .senders import Source, projections, sender_shift

Stream = Float[Tensor, "row prompt pos d_model"]

CHUNK = 2**20  # numbers in streams that are made together; more would leave the processor's cache


@dataclass(eq=False)
class State:
    """Runs with some edges removed, one a row. What is not listed is as in the clean run, and what
    has one row is the same in all."""

    removed: Float[Tensor, "row sender receiver"]  # on the processor
    streams: dict[int, Stream] = field(default_factory=dict)  # by receiver
    moved: dict[int, Stream] = field(default_factory=dict)  # by sender
    heads: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # q, k, v of a layer

    def row(self, number: int) -> "State":
        """One of the runs by itself, without the others' memory."""
        if len(self.removed) == 1:
            return self

        def own(values: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {k: x[[number]] if len(x) > 1 else x for k, x in values.items()}

        return State(self.removed[[number]], own(self.streams), own(self.moved), own(self.heads))


class Wiring:
    """One batch of prompts, ready to be run with any edges removed.

    `base` is the run that is edited, `source` gives what removed edges carry. Memory: one stream
    per sender, and in each row of a state one more per sender and receiver that changed, each of
    [prompt, pos, d_model]; `row_memory` bounds a row's.
    """

    def __init__(
        self,
        graph: Graph,
        base: Run,
        calls: list[tuple[tuple, dict[str, Any]]],
        source: Source,
        pos: Sequence[int] | None = None,
    ) -> None:
        self.graph, self.base, self.calls, self.model = graph, base, calls, base.model
        self.projections = projections(self.model)
        self.counts = {"q": graph.n_heads, "k": graph.n_kv, "v": graph.n_kv}
        self.at: Float[Tensor, "pos 1"] | None = None
        if pos is not None:
            self.at = base.resid[0].new_zeros(base.tokens.shape[1], 1)
            self.at[list(pos)] = 1
        self.shift = sender_shift(graph, self.projections, base.activation, source)
        if self.at is not None:
            self.shift *= self.at
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
                yield stream + torch.einsum("bphe,hed->bpd", source("z", layer), weight) + bias
        yield source("resid_post", self.graph.n_layers - 1)

    def row_memory(self, group: Group) -> int:
        """Bytes that a row takes at most if its edges are removed at this group or later."""
        graph, end, numbers = self.graph, self.base.resid[0], 0
        for one in graph.groups[graph.groups.index(group) :]:
            width = end.numel() // (end.shape[1] if one.layer >= graph.n_layers - 1 else 1)
            if one.kind == "attention":  # queries and outputs; keys and values; all by head
                numbers += 3 * graph.n_heads * width + 2 * graph.n_kv * end.numel()
                numbers += sum(self.base.acts[kind, one.layer].numel() for kind in self.counts)
            else:
                numbers += 3 * width
        return numbers * end.element_size()

    def start(self) -> State:
        """The clean run: nothing removed."""
        return State(torch.zeros(1, *self.graph.exists.shape))

    def remove(self, removed: Tensor, state: State | None = None) -> State:
        """The runs with exactly these edges removed.

        Args:
            removed: masks, or shares between 0 and 1: [sender, receiver], or one a row.
            state: a run of one row, with fewer edges removed, to start from; by default the clean
                run.
        """
        old = state or self.start()
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
        live_senders, live = self.graph.live(kept)
        changed = (change != 0).any(0).any(0).nonzero().flatten()
        start = int(changed[0]) if len(changed) else len(self.graph.receivers)
        fresh: dict[int, Stream] = {}
        for group in self.graph.groups:
            if group.receivers.stop <= start:
                continue
            todo = self._todo(group, change, removed, fresh, live)
            if not todo:
                continue
            for kind in self._heads(group, todo) if group.kind == "attention" else ():
                value = new.heads.get((kind, group.layer), self.base.acts[kind, group.layer][None])
                new.heads[kind, group.layer] = value.repeat(len(removed), 1, 1, 1, 1)
            for at, same in self._parts(group, todo, removed):
                readers = [receivers[0] for receivers in same]
                streams = self._update(group, readers, at, old, removed, fresh)
                for number, receivers in enumerate(same):
                    new.streams |= dict.fromkeys(receivers, streams[:, number])
                if group.kind == "attention":
                    self._project(group, at, same, streams, new)
            if group.kind == "attention":
                found = self._attend(group, todo, new, live_senders)
            elif group.kind == "mlp":
                found = self._think(group.layer, streams[:, 0])
            else:
                break
            for sender, value in found.items():
                fresh[sender] = value - old.moved[sender] if sender in old.moved else value
                new.moved[sender] = value
        return new

    def logits(self, state: State) -> Float[Tensor, "row prompt d_vocab"]:
        """Logits at the last position."""
        end = state.streams.get(len(self.graph.receivers) - 1, self.base.resid[-1][None])
        return unembed(self.model, end[:, :, -1]).expand(len(state.removed), -1, -1)

    def _todo(
        self,
        group: Group,
        change: Tensor,
        removed: Tensor,
        fresh: dict[int, Stream],
        live: np.ndarray,
    ) -> list[int]:
        """The receivers of a group whose stream changes in some row, and matters."""
        columns = slice(group.receivers.start, group.receivers.stop)
        wanted = (change[:, : group.parents, columns] != 0).any(0).any(0)
        moved = [sender for sender in fresh if sender < group.parents]
        full = 1 if self.at is None else 2  # elsewhere than `at`, every edge carries
        wanted = wanted | (removed[:, moved, columns] < full).any(0).any(0)
        wanted = wanted.numpy() & live[columns]
        return [r for r, here in zip(group.receivers, wanted.tolist(), strict=True) if here]

    def _parts(
        self, group: Group, todo: list[int], removed: Tensor
    ) -> Iterator[tuple[slice, list[list[int]]]]:
        """Receivers that are made together: the positions they need, and lists of those that have
        the same edges. In the last layer only keys and values need all positions."""
        everywhere, last = slice(None), slice(-1, None)
        parts = [(everywhere, todo)]
        if group.layer >= self.graph.n_layers - 1:
            queries = group.receivers.start + self.graph.n_heads
            others = [r for r in todo if r >= queries and group.kind == "attention"]
            parts = [(last, [r for r in todo if r not in others]), (everywhere, others)]
        columns = removed.detach()[:, : group.parents].numpy()
        for at, receivers in parts:
            same: dict[Any, list[int]] = {}
            for r in receivers:
                key: Any = columns[:, :, r].tobytes()
                if removed.requires_grad:  # equal shares may have gradients of their own
                    key = r if removed.stride(-1) else None
                same.setdefault(key, []).append(r)
            size = len(removed) * self.base.resid[0][:, at].numel()
            step, lists = max(1, CHUNK // size), list(same.values())
            yield from ((at, lists[i : i + step]) for i in range(0, len(lists), step))

    def _update(
        self,
        group: Group,
        readers: list[int],
        at: slice,
        old: State,
        removed: Tensor,
        fresh: dict[int, Stream],
    ) -> Float[Tensor, "row reader prompt pos d_model"]:
        """The new streams of some receivers."""
        point, n = self.points[group][None, :, at], group.parents
        streams = _stack([old.streams.get(r, point) for r in readers])
        share = removed[:, :n, readers]
        change = share - old.removed[:, :n, readers]
        used = (change != 0).any(2).any(0).nonzero().flatten().tolist()
        if used:
            few = len(used) < n / 2  # else the whole block as it lies in memory, without a copy
            chosen = used if few else slice(n)
            streams = _mix(streams, change[:, chosen], self.shift[chosen][None, :, :, at])
        before = [u for u in used if u in old.moved]
        if before:
            values = _stack([old.moved[u][:, :, at] for u in before])
            values = values if self.at is None else values * self.at[at]
            streams = _mix(streams, -change[:, before], values)
        moved = [u for u in fresh if u < n and (self.at is not None or (share[:, u] < 1).any())]
        if moved:
            values = _stack([fresh[u][:, :, at] for u in moved])
            if self.at is None:
                streams = _mix(streams, 1 - share[:, moved], values)
            else:
                streams = _mix(streams, torch.ones_like(share[:, moved]), values)
                streams = _mix(streams, -share[:, moved], values * self.at[at])
        everything = (share == 1).all(1)
        if self.at is None and everything.any():
            whole = everything[:, :, None, None, None].to(streams.device)
            streams = torch.where(whole, self.ends[group][:, at], streams)
        return streams

    def _heads(self, group: Group, receivers: list[int]) -> dict[str, list[int]]:
        """The heads whose q, k or v these receivers are."""
        found: dict[str, list[int]] = {}
        for r in receivers:
            place = r - group.receivers.start
            for kind, count in self.counts.items():
                if place < count:
                    found.setdefault(kind, []).append(place)
                    break
                place -= count
        return found

    def _project(
        self, group: Group, at: slice, same: list[list[int]], streams: Tensor, new: State
    ) -> None:
        """Write the queries, keys and values of new streams [row, reader, prompt, pos, d_model]."""
        normed = self.model.blocks[group.layer].ln1.original_component(streams)
        for number, receivers in enumerate(same):
            for kind, heads in self._heads(group, receivers).items():
                weight, bias = (x[heads] for x in self.projections[group.layer][kind])
                found = torch.einsum("rbpd,hde->rbphe", normed[:, number], weight) + bias
                new.heads[kind, group.layer][:, :, at, heads] = found

    def _attend(
        self, group: Group, todo: list[int], new: State, live: np.ndarray
    ) -> dict[int, Stream]:
        """What the heads of a layer write beyond the clean run, from their new q, k and v."""
        graph, layer = self.graph, group.layer
        changed = {
            head
            for kind, mine in self._heads(group, todo).items()
            for head in range(graph.n_heads)
            if head * self.counts[kind] // graph.n_heads in mine
        }
        written = [h for h in sorted(changed) if live[graph.sender_number(layer, h)]]
        if not written:
            return {}
        q, k, v = (new.heads.get((x, layer), self.base.acts[x, layer][None]) for x in self.counts)
        at = slice(-1, None) if layer == graph.n_layers - 1 else slice(None)
        z = attention_from(self.model.blocks[layer].attn, self.calls[layer], q, k, v)
        change = z[:, :, at] - self.base.acts["z", layer][:, at]
        weight = self.projections[layer]["o"][0][written]
        moved = torch.einsum("rbphe,hed->hrbpd", change[:, :, :, written], weight)
        return {graph.sender_number(layer, h): x for h, x in zip(written, moved, strict=True)}

    def _think(self, layer: int, streams: Stream) -> dict[int, Stream]:
        """What the MLP of a layer writes beyond the clean run."""
        found = mlp_from(self.model.blocks[layer], streams)
        clean = self.base.acts["mlp_out", layer][:, -streams.shape[2] :]
        return {self.graph.sender_number(layer): found - clean}


def _stack(streams: list[Stream]) -> Float[Tensor, "row reader prompt pos d_model"]:
    if len(streams) == 1:
        return streams[0][:, None]
    rows = max(map(len, streams))
    return torch.stack([x.expand(rows, -1, -1, -1) for x in streams], 1)


def _mix(
    streams: Float[Tensor, "row reader prompt pos d_model"],
    share: Float[Tensor, "row sender reader"],
    values: Float[Tensor, "row sender prompt pos d_model"],
) -> Float[Tensor, "row reader prompt pos d_model"]:
    """Streams plus their shares of senders' values; a single row of either is that of all rows."""
    rows = len(share)
    flat, added = (x.flatten(2).expand(rows, -1, -1) for x in (streams, values))
    mixed = torch.baddbmm(flat, share.transpose(1, 2).to(flat), added)
    return mixed.unflatten(2, streams.shape[2:])

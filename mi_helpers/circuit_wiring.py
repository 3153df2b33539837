"""Runs a model with edges removed: every receiver sees its own sum of senders.

A removed edge carries the ablated value of its sender (from the corrupted run, zero, a mean) in
place of the value that the sender has in this run. With `shift` the ablated minus the clean value
of a sender, and `moved` the change of its value in this run, a receiver's stream is

    clean stream + sum of `shift` over its removed edges + sum of `moved` over its kept edges.

A `State` keeps what differs from the clean run, and `Wiring.remove` computes only what changes
against another state: it starts at the first receiver whose edges changed, leaves out receivers
whose senders did not move and nodes without a path to the output, takes the last layer's queries
and everything behind them at the last position alone, and computes one norm for all receivers that
see the same stream. The model's own norms, attention and MLPs do the arithmetic.

One caution: with zero ablation, on a model without biases, a receiver can be left with a stream of
nothing but rounding, which its norm blows up. Pruned circuits have no such receivers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .circuit_graph import Graph, Group
from .circuit_senders import Source, by_head, mlp_norm, projections, sender_shift
from .engine import Run, unembed
from .recording import first, forward_as

Stream = Float[Tensor, "prompt pos d_model"]


@dataclass(eq=False)
class State:
    """A run with some edges removed. What is not listed is as in the clean run."""

    removed: Float[Tensor, "sender receiver"]
    streams: dict[int, Stream] = field(default_factory=dict)  # by receiver
    moved: dict[int, Stream] = field(default_factory=dict)  # by sender
    heads: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # q, k, v of a layer


class Wiring:
    """One batch of prompts, ready to be run with any edges removed.

    `base` is the run that is edited, `source` gives what removed edges carry. Memory: one stream
    per sender, and in each state one more per sender and receiver that changed, each of
    [prompt, pos, d_model].
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
        self.at: Float[Tensor, "pos 1"] | None = None
        if pos is not None:
            self.at = base.resid[0].new_zeros(base.tokens.shape[1], 1)
            self.at[list(pos)] = 1
        self.shift = sender_shift(graph, self.projections, base.activation, source)
        if self.at is not None:
            self.shift *= self.at
        self.points = list(self._streams(base.activation))
        self.ends = list(self._streams(source))

    def _streams(self, source: Source) -> Iterator[Stream]:
        """The stream that each group of receivers reads when all senders have these values."""
        for layer, weights in enumerate(self.projections):
            stream, (weight, bias) = source("resid_pre", layer), weights["o"]
            yield stream
            if self.graph.mlps and self.graph.parallel:
                yield stream
            elif self.graph.mlps:
                yield stream + torch.einsum("bphe,hed->bpd", source("z", layer), weight) + bias
        yield source("resid_post", self.graph.n_layers - 1)

    def start(self) -> State:
        """The clean run: nothing removed."""
        return State(self.base.resid[0].new_zeros(self.graph.exists.shape))

    def remove(self, removed: Tensor, state: State | None = None) -> State:
        """The run with exactly these edges removed: a mask, or shares between 0 and 1.

        `state` is a run with fewer edges removed to start from, by default the clean one.
        """
        old = state or self.start()
        removed = removed.to(old.removed)
        change = removed - old.removed
        if (change < 0).any():
            raise ValueError("edges can be removed from a state, not put back; start from another")
        new = State(removed, dict(old.streams), dict(old.moved), dict(old.heads))
        kept = self.graph.exists  # at other positions than `at`, removed edges carry as before
        if self.at is None:
            kept = kept & (removed < 1).cpu()
        live_senders, live = self.graph.live(kept)
        changed = (change != 0).any(0).nonzero().flatten()
        start = int(changed[0]) if len(changed) else len(self.graph.receivers)
        fresh: dict[int, Stream] = {}
        for group, point, end in zip(self.graph.groups, self.points, self.ends, strict=True):
            if group.receivers.stop <= start:
                continue
            todo = self._todo(group, change, removed, fresh, live)
            if not todo:
                continue
            parts = [self._update(group, part, point, end, old, new, change, fresh)
                     for part in self._parts(group, todo)]  # fmt: skip
            if group.kind == "attention":
                found = self._attend(group.layer, parts, new, live_senders)
            elif group.kind == "mlp":
                found = self._think(group.layer, parts[0].streams[0])
            else:
                break
            for sender, value in found.items():
                fresh[sender] = value - old.moved[sender] if sender in old.moved else value
                new.moved[sender] = value
        return new

    def logits(self, state: State) -> Float[Tensor, "prompt d_vocab"]:
        """Logits at the last position."""
        last = len(self.graph.receivers) - 1
        return unembed(self.model, state.streams.get(last, self.base.resid[-1])[:, -1])

    def _todo(
        self,
        group: Group,
        change: Tensor,
        removed: Tensor,
        fresh: dict[int, Stream],
        live: np.ndarray,
    ) -> list[int]:
        """The receivers of a group whose stream changes, and matters."""
        columns = slice(group.receivers.start, group.receivers.stop)
        wanted = (change[: group.parents, columns] != 0).any(0)
        moved = [sender for sender in fresh if sender < group.parents]
        reach = removed[moved, columns] < 1 if self.at is None else removed[moved, columns] < 2
        wanted = (wanted | reach.any(0)).cpu().numpy() & live[columns]
        return [r for r, here in zip(group.receivers, wanted.tolist(), strict=True) if here]

    def _parts(self, group: Group, todo: list[int]) -> list[list[int]]:
        """Receivers that are read at the same positions: in the last layer, queries stand apart."""
        if group.kind != "attention" or group.layer < self.graph.n_layers - 1:
            return [todo]
        end = group.receivers.start + self.graph.n_heads
        parts = [[r for r in todo if r < end], [r for r in todo if r >= end]]
        return [part for part in parts if part]

    def _read_at(self, group: Group, receiver: int) -> slice:
        """The positions that matter: in the last layer only keys and values need all of them."""
        if group.layer < self.graph.n_layers - 1:
            return slice(None)
        end = group.receivers.start + self.graph.n_heads
        return slice(None) if group.kind == "attention" and receiver >= end else slice(-1, None)

    def _update(
        self,
        group: Group,
        part: list[int],
        point: Stream,
        end: Stream,
        old: State,
        new: State,
        change: Tensor,
        fresh: dict[int, Stream],
    ) -> "Part":
        """The new streams of some receivers; one for all that have the same edges."""
        n, at = group.parents, self._read_at(group, part[0])
        _, inverse = torch.unique(new.removed[:n, part], dim=1, return_inverse=True)
        which = inverse.tolist()
        chosen = [part[which.index(i)] for i in range(max(which) + 1)]
        streams = torch.stack([old.streams.get(r, point[:, at]) for r in chosen])
        share, shift = change[:n, chosen], self.shift[:n, :, at]
        rows = _used(share)
        if rows:
            few = len(rows) < n / 2  # else the whole block as it lies in memory, without a copy
            streams = (
                streams + _mix(share[rows], shift[rows]) if few else streams + _mix(share, shift)
            )
        before = [u for u in rows if u in old.moved]
        if before:
            streams = streams - self._at(at, _mix(share[before], _stack(old.moved, before, at)))
        kept = 1 - new.removed[:n, chosen]
        moved = [u for u in fresh if u < n and (self.at is not None or kept[u].any())]
        if moved:
            values = _stack(fresh, moved, at)
            streams = streams + self._at(at, _mix(kept[moved], values), values.sum(0))
        if self.at is None:
            everything = (new.removed[:n, chosen] == 1).all(0)
            streams = torch.where(everything[:, None, None, None], end[:, at], streams)
        for r, i in zip(part, which, strict=True):
            new.streams[r] = streams[i]
        return Part(part, at, streams, which)

    def _at(self, at: slice, there: Tensor, elsewhere: Tensor | float = 0.0) -> Tensor:
        """`there` where edges are removed, `elsewhere` at the other positions."""
        return there if self.at is None else torch.lerp(elsewhere + 0 * there, there, self.at[at])

    def _attend(
        self, layer: int, parts: list["Part"], new: State, live: np.ndarray
    ) -> dict[int, Stream]:
        """What the heads of a layer write beyond the clean run, from the receivers' new streams."""
        graph, weights, changed = self.graph, self.projections[layer], set[int]()
        groups = {"q": graph.n_heads, "k": graph.n_kv, "v": graph.n_kv}
        for part in parts:
            normed = _norm(self.model.blocks[layer].ln1, part.streams)
            start = graph.groups[layer * (1 + graph.mlps)].receivers.start
            for kind, count in groups.items():
                mine = {r - start: i for r, i in part.items() if start <= r < start + count}
                start += count
                if not mine:
                    continue
                old = new.heads.get((kind, layer), self.base.acts[kind, layer])
                new.heads[kind, layer] = value = old.clone()
                for i in set(mine.values()):
                    heads = [head for head, stream in mine.items() if stream == i]
                    weight, bias = (x[heads] for x in weights[kind])
                    found = torch.einsum("bpd,hde->bphe", normed[i], weight) + bias
                    value[:, part.at, heads] = found
                changed |= {h for h in range(graph.n_heads) if h * count // graph.n_heads in mine}
        written = [h for h in sorted(changed) if live[graph.sender_number(layer, h)]]
        if not written:
            return {}
        at = slice(-1, None) if layer == graph.n_layers - 1 else slice(None)
        q, k, v = (new.heads.get((x, layer), self.base.acts[x, layer]) for x in groups)
        change = self._attention(layer, q, k, v)[:, at] - self.base.acts["z", layer][:, at]
        moved = by_head(change[:, :, written], weights["o"][0][written])
        return {graph.sender_number(layer, h): x for h, x in zip(written, moved, strict=True)}

    def _attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The model's own attention from given q, k and v (before rotation) to z."""
        attn, kept = self.model.blocks[layer].attn, list[Tensor]()

        def keep(z: Tensor, *_: Any, **__: Any) -> Tensor:
            kept.append(z)
            return z

        with ExitStack() as stack:
            for name, value in (("q", q), ("k", k), ("v", v)):
                give = _constant(value.flatten(2))
                stack.enter_context(forward_as(getattr(attn, name), give))
            stack.enter_context(forward_as(attn.o, keep))
            args, kwargs = self.calls[layer]
            attn(*args, **kwargs)
        (z,) = kept
        return z.reshape(q.shape)

    def _think(self, layer: int, stream: Stream) -> dict[int, Stream]:
        """What the MLP of a layer writes beyond the clean run."""
        block = self.model.blocks[layer]
        found = first(block.mlp(_norm(mlp_norm(block), stream)))
        clean = self.base.acts["mlp_out", layer][:, -stream.shape[1] :]
        return {self.graph.sender_number(layer): found - clean}


@dataclass(frozen=True, eq=False)
class Part:
    """New streams of some receivers: stream `which[i]` is that of `receivers[i]`."""

    receivers: list[int]
    at: slice
    streams: Float[Tensor, "stream prompt pos d_model"]
    which: list[int]

    def items(self) -> zip:
        return zip(self.receivers, self.which, strict=True)


def _norm(norm: Any, streams: Tensor) -> Tensor:
    return norm.original_component(streams)


def _constant(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: value


def _used(share: Tensor) -> list[int]:
    return (share != 0).any(1).nonzero().flatten().tolist()


def _mix(
    share: Float[Tensor, "sender stream"], values: Float[Tensor, "sender prompt pos d_model"]
) -> Float[Tensor, "stream prompt pos d_model"]:
    return (share.T @ values.flatten(1)).unflatten(1, values.shape[1:])


def _stack(values: dict[int, Stream], senders: list[int], at: slice) -> Tensor:
    return torch.stack([values[u][:, at] for u in senders])

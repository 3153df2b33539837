"""The graph that circuits are parts of: who writes to the residual stream, and who reads from it.

Senders are the embedding, every head's output and every MLP's output. Receivers are the q, k and v
inputs of every head, the input of every MLP, and the output. Each receiver reads the sum of all
senders before it, so every sender-receiver pair in that order is one edge. Keys and values of
grouped-query models belong to key-value heads, and so do their edges.

Names are as people say them: `"A5.2 -> A7.9.q"`, `"embed -> M0"`, `"M3 -> out"`.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.recording import Run, record

Mask = Bool[Tensor, "sender receiver"]


@dataclass(frozen=True)
class Group:
    """Receivers that read the stream at one point: their kind ("attention", "mlp" or "out"), their
    layer, their numbers, and how many senders come before them."""

    kind: str
    layer: int
    receivers: range
    parents: int


@dataclass(frozen=True)
class Graph:
    """Senders and receivers of a decoder, numbered in the order in which they run.

    `n_kv` is the number of key-value heads. `mlps` is False for attention-only networks. In
    `parallel` blocks (GPT-NeoX, Phi) an MLP does not read the heads of its own layer.
    """

    n_layers: int
    n_heads: int
    n_kv: int
    mlps: bool = True
    parallel: bool = False

    @classmethod
    def of(cls, model: TransformerBridge) -> "Graph":
        """The graph of a model. MLPs that write nothing are no nodes.

        Raises ValueError for architectures in which a head is no summand of the stream (a norm
        behind attention) or reads something else than the norm of the stream.
        """
        cfg, run = model.cfg, _short_run(model)
        return cls(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_kv=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
            mlps=any(bool(run.acts["mlp_out", layer].any()) for layer in range(cfg.n_layers)),
            parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
        )

    @cached_property
    def senders(self) -> list[str]:
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [f"A{layer}.{head}" for head in range(self.n_heads)]
            names += [f"M{layer}"] * self.mlps
        return names

    @cached_property
    def receivers(self) -> list[str]:
        names = []
        for layer in range(self.n_layers):
            for kind, count in (("q", self.n_heads), ("k", self.n_kv), ("v", self.n_kv)):
                names += [f"A{layer}.{head}.{kind}" for head in range(count)]
            names += [f"M{layer}"] * self.mlps
        return [*names, "out"]

    @cached_property
    def groups(self) -> list[Group]:
        """Receivers in the order in which they run: attention, MLP, attention, …, out."""
        width, found = self.n_heads + 2 * self.n_kv, []
        for layer in range(self.n_layers):
            before, start = 1 + layer * (self.n_heads + self.mlps), layer * (width + self.mlps)
            found.append(Group("attention", layer, range(start, start + width), before))
            if self.mlps:
                parents = before if self.parallel else before + self.n_heads
                found.append(Group("mlp", layer, range(start + width, start + width + 1), parents))
        last = len(self.receivers) - 1
        return [*found, Group("out", self.n_layers, range(last, last + 1), len(self.senders))]

    @cached_property
    def exists(self) -> Mask:
        mask = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool)
        for group in self.groups:
            mask[: group.parents, group.receivers] = True
        return mask

    @cached_property
    def index(self) -> tuple[list[int], list[int]]:
        """Sender and receiver number of every edge, receivers in order and their senders."""
        receiver, sender = self.exists.T.nonzero(as_tuple=True)
        return sender.tolist(), receiver.tolist()

    @cached_property
    def edges(self) -> list[str]:
        numbers = zip(*self.index, strict=True)
        return [f"{self.senders[u]} -> {self.receivers[r]}" for u, r in numbers]

    @cached_property
    def number(self) -> dict[str, tuple[int, int]]:
        """Sender and receiver number by the edge's name."""
        return dict(zip(self.edges, zip(*self.index, strict=True), strict=True))

    def sender_number(self, layer: int, head: int | None = None) -> int:
        """The number of a head, or of a layer's MLP where no head is named."""
        return 1 + layer * (self.n_heads + self.mlps) + (self.n_heads if head is None else head)

    def reads(self, sender: int) -> list[int]:
        """The receivers that a sender's node reads with (none for the embedding)."""
        if sender == 0:
            return []
        layer, at = divmod(sender - 1, self.n_heads + self.mlps)
        start = layer * (self.n_heads + 2 * self.n_kv + self.mlps)
        if at == self.n_heads:
            return [start + self.n_heads + 2 * self.n_kv]
        key = start + self.n_heads + at * self.n_kv // self.n_heads
        return [start + at, key, key + self.n_kv]

    def live(self, kept: Mask) -> tuple[Bool[np.ndarray, "sender"], Bool[np.ndarray, "receiver"]]:
        """Which senders and receivers have a path of kept edges to the output."""
        edges = kept.numpy()
        senders, receivers = np.zeros(len(self.senders), bool), np.zeros(len(self.receivers), bool)
        receivers[-1] = True
        for group in reversed(self.groups[:-1]):
            start, count = group.receivers.start, self.n_heads
            first = self.sender_number(group.layer, 0)
            if group.kind == "mlp":
                senders[first + count] = receivers[start] = edges[first + count] @ receivers
                continue
            own = edges[first : first + count] @ receivers
            shared = own.reshape(self.n_kv, -1).any(1)
            senders[first : first + count] = own
            receivers[start : group.receivers.stop] = np.concatenate([own, shared, shared])
        senders[0] = edges[0] @ receivers
        return senders, receivers

    def table(self, values: dict[str, Tensor]) -> pd.DataFrame:
        """One line per edge: edge, sender, receiver, and a column for each [sender, receiver]."""
        sender, receiver = self.index
        columns = {
            "edge": self.edges,
            "sender": [self.senders[u] for u in sender],
            "receiver": [self.receivers[r] for r in receiver],
        }
        found = {name: value[sender, receiver].cpu().numpy() for name, value in values.items()}
        return pd.DataFrame(columns | found)


def _short_run(model: TransformerBridge) -> Run:
    """Six tokens, and whether the stream is what edges take it for: heads and MLPs are its
    summands, and heads read its norm. Six, since a tiny network's MLP may be silent for some."""
    block = model.blocks[0]
    refusal = ValueError(
        f"{model.cfg.architecture} has norms behind its blocks or in unusual places: its heads are "
        "no summands of the residual stream, so edges between them are not defined here"
    )
    if not all(hasattr(block, name) for name in ("ln1", "attn", "mlp")):
        raise refusal
    tokens = torch.arange(6, device=model.cfg.device)[None] % model.cfg.d_vocab
    run = record(model, tokens, sites=("q", "z", "mlp_out"))
    query = projection(block.attn, "q")
    weight, bias = projection(block.attn, "o")
    written = torch.einsum("bphe,hed->bpd", run.acts["z", 0], weight) + bias
    normed = block.ln1.original_component(run.resid[0])
    read = torch.einsum("bpd,hde->bphe", normed, query[0]) + query[1]
    pairs = [(run.resid[0] + written + run.acts["mlp_out", 0], run.resid[1])]
    for found, expected in [*pairs, (read, run.acts["q", 0])]:
        if (found - expected).abs().max() > 1e-3 * expected.abs().max():
            raise refusal
    return run


def projection(attn: Any, name: Literal["q", "k", "v", "o"]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a head's q, k, v ([head, d_model, d_head], [head, d_head]) or output
    ([head, d_head, d_model], [d_model])."""
    weight, bias = getattr(attn, f"W_{name.upper()}"), getattr(attn, f"b_{name.upper()}")
    if bias is None:
        shape = weight.shape[-1:] if name == "o" else (len(weight), weight.shape[-1])
        bias = weight.new_zeros(shape)
    return weight.detach(), bias.detach()


@dataclass(frozen=True, eq=False)
class Circuit:
    """A part of a graph: the edges that are kept. `len` counts them."""

    graph: Graph
    kept: Mask

    def __post_init__(self) -> None:
        if self.kept.shape != self.graph.exists.shape or bool(
            (self.kept & ~self.graph.exists).any()
        ):
            raise ValueError("these edges are not of this graph")

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        return (edge for edge, (u, r) in self.graph.number.items() if self.kept[u, r])

    @property
    def edges(self) -> list[str]:
        return list(self)

    @property
    def nodes(self) -> list[str]:
        """Senders that an edge leaves from, and the output."""
        used = self.kept.any(1).tolist()
        return [name for name, here in zip(self.graph.senders, used, strict=True) if here] + ["out"]

    @classmethod
    def full(cls, graph: Graph) -> "Circuit":
        return cls(graph, graph.exists.clone())

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str]) -> "Circuit":
        """The circuit of these edges. Raises ValueError for names that the graph does not have."""
        kept, names = torch.zeros_like(graph.exists), list(edges)
        unknown = [name for name in names if name not in graph.number]
        if unknown:
            raise ValueError(f"no edge {unknown[0]!r}: write it like {graph.edges[-1]!r}")
        for name in names:
            kept[graph.number[name]] = True
        return cls(graph, kept)

    @classmethod
    def between(cls, graph: Graph, nodes: Iterable[str]) -> "Circuit":
        """All edges among these nodes, the embedding and the output: a circuit of nodes."""
        chosen = {"embed", *nodes}
        unknown = chosen - {*graph.senders, "out"}
        if unknown:
            raise ValueError(f"no node {sorted(unknown)[0]!r}: write it like 'A0.1' or 'M0'")
        inside = [name in chosen for name in graph.senders]
        read = torch.zeros(len(graph.receivers), dtype=torch.bool)
        read[-1] = True
        for u, here in enumerate(inside):
            read[graph.reads(u) if here else []] = True
        return cls(graph, graph.exists & torch.tensor(inside)[:, None] & read)

    def pruned(self) -> "Circuit":
        """Without edges that lie on no path from the embedding to the output."""
        _, receivers = self.graph.live(self.kept)
        kept = self.kept.numpy()
        reached = np.zeros(len(self.graph.senders), bool)
        reached[0] = True
        for u in range(1, len(reached)):
            reached[u] = (reached @ kept[:, self.graph.reads(u)]).any()
        return Circuit(self.graph, torch.from_numpy(kept & reached[:, None] & receivers))


def top(graph: Graph, scores: pd.DataFrame, n: int, column: str = "score") -> Circuit:
    """The `n` edges of largest absolute score."""
    order = scores[column].abs().sort_values(ascending=False, kind="stable").index[:n]
    return Circuit.of(graph, scores.loc[order, "edge"])


def greedy(graph: Graph, scores: pd.DataFrame, n: int, column: str = "score") -> Circuit:
    """`n` edges grown from the output: each time the edge of largest absolute score into a node
    that is in the circuit. Source: Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806, section 2."""
    value = torch.zeros(graph.exists.shape, dtype=torch.float64)
    sender, receiver = graph.index
    value[sender, receiver] = torch.tensor(
        scores.set_index("edge")[column].abs()[graph.edges].to_numpy(float)
    )
    kept, inside = torch.zeros_like(graph.exists), {0}
    queue: list[tuple[float, int, int]] = []

    def open_up(receivers: Sequence[int]) -> None:
        for r in receivers:
            for u in graph.exists[:, r].nonzero().flatten().tolist():
                heapq.heappush(queue, (-float(value[u, r]), r, u))

    open_up([len(graph.receivers) - 1])
    opened = {len(graph.receivers) - 1}
    for _ in range(min(n, int(graph.exists.sum()))):
        if not queue:
            break
        _, r, u = heapq.heappop(queue)
        kept[u, r] = True
        if u not in inside:
            inside.add(u)
            new = [one for one in graph.reads(u) if one not in opened]
            opened.update(new)
            open_up(new)
    return Circuit(graph, kept)

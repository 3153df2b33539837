"""The graph that circuits are parts of: who writes to the residual stream, and who reads from it.

Senders are the embedding, every head's output and every MLP's output. Receivers are the q, k and v
inputs of every head, the input of every MLP, and the output. Each receiver reads the sum of all
senders before it, so every sender-receiver pair in that order is one edge. Keys and values of
grouped-query models belong to key-value heads, and so do their edges.

Names are as people say them: `"A5.2 -> A7.9.q"`, `"embed -> M0"`, `"M3 -> out"`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.recording import Run, record

Mask = Bool[Tensor, "sender receiver"]
Place = tuple[str, int]  # a site and a layer


@dataclass(frozen=True)
class Group:
    """Receivers that read the stream at one point."""

    kind: str  # "attention", "mlp" or "out"
    layer: int
    receivers: range  # their numbers
    parents: int  # how many senders come before them, the first ones: each is one edge


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
        cfg, run = model.cfg, _checked_run(model)
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
    def places(self) -> dict[Place, slice]:
        """Where senders are recorded, and which they are: embeddings, a layer's heads, an MLP."""
        found = {("resid_pre", 0): slice(0, 1)}
        for layer in range(self.n_layers):
            start, end = self.sender_number(layer, 0), self.sender_number(layer, self.n_heads)
            found["z", layer] = slice(start, end)
            if self.mlps:
                found["mlp_out", layer] = slice(end, end + 1)
        return found

    @cached_property
    def receivers(self) -> list[str]:
        names = []
        for layer in range(self.n_layers):
            for kind, count in self.counts.items():
                names += [f"A{layer}.{head}.{kind}" for head in range(count)]
            names += [f"M{layer}"] * self.mlps
        return [*names, "out"]

    @property
    def counts(self) -> dict[str, int]:
        """Heads of each kind of input of a layer."""
        return {"q": self.n_heads, "k": self.n_kv, "v": self.n_kv}

    @cached_property
    def groups(self) -> list[Group]:
        """Receivers in the order in which they run: attention, MLP, attention, …, out."""
        width, found = sum(self.counts.values()), []
        for layer in range(self.n_layers):
            before, start = self.sender_number(layer, 0), layer * (width + self.mlps)
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
    def kinds(self) -> list[tuple[Int[Tensor, "edge"], Int[Tensor, "edge"]]]:
        """Senders and receivers of the edges of one kind: into the queries, keys, values, MLP or
        output of one layer, from heads or from MLPs (the embedding counts with them)."""
        found: dict[tuple, list[tuple[int, int]]] = {}
        for u, r in self.exists.nonzero().tolist():
            layer, *rest = self.receivers[r].split(".")
            found.setdefault((layer, *rest[1:], self.senders[u][0] == "A"), []).append((u, r))
        pairs = (torch.tensor(places).T for places in found.values())
        return [(u, r) for u, r in pairs]

    @cached_property
    def edges(self) -> list[str]:
        numbers = zip(*self.index, strict=True)
        return [f"{self.senders[u]} -> {self.receivers[r]}" for u, r in numbers]

    @cached_property
    def number(self) -> dict[str, tuple[int, int]]:
        """Sender and receiver number by the edge's name."""
        return dict(zip(self.edges, zip(*self.index, strict=True), strict=True))

    def mask(self, edges: Iterable[str]) -> Mask:
        """True at these edges. Raises ValueError for names that the graph does not have."""
        found, places = torch.zeros_like(self.exists), list[tuple[int, int]]()
        for name in edges:
            if name not in self.number:
                raise ValueError(f"no edge {name!r}: write it like {self.edges[-1]!r}")
            places.append(self.number[name])
        found[tuple(torch.tensor(places, dtype=torch.long).view(-1, 2).T)] = True
        return found

    def sender_number(self, layer: int, head: int | None = None) -> int:
        """The number of a head, or of a layer's MLP where no head is named."""
        return 1 + layer * (self.n_heads + self.mlps) + (self.n_heads if head is None else head)

    @cached_property
    def inputs(self) -> list[list[int]]:
        """For every sender the receivers that its node reads with (none for the embedding)."""
        found: list[list[int]] = [[]]
        for group in self.groups[:-1]:
            start = group.receivers.start
            if group.kind == "mlp":
                found.append([start])
                continue
            for head in range(self.n_heads):
                key = start + self.n_heads + head * self.n_kv // self.n_heads
                found.append([start + head, key, key + self.n_kv])
        return found

    def live(self, kept: Mask) -> tuple[Bool[np.ndarray, "sender"], Bool[np.ndarray, "receiver"]]:
        """Which senders and receivers have a path of kept edges to the output."""
        edges = kept.numpy()
        senders, receivers = np.zeros(len(self.senders), bool), np.zeros(len(self.receivers), bool)
        receivers[-1] = True
        for u in reversed(range(len(senders))):
            senders[u] = edges[u] @ receivers
            if senders[u]:
                receivers[self.inputs[u]] = True
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


def _checked_run(model: TransformerBridge) -> Run:
    """A run of six tokens (a tiny network's MLP may be silent for some), in which the stream is
    what edges take it for: heads and MLPs are its summands, and heads read its norm. Raises
    ValueError where it is not."""
    block = model.blocks[0]
    refusal = ValueError(
        f"{model.cfg.architecture} has norms behind its blocks or in unusual places: its heads are "
        "no summands of the residual stream, so edges between them are not defined here"
    )
    if not all(hasattr(block, name) for name in ("ln1", "attn", "mlp")):
        raise refusal
    tokens = torch.arange(6, device=model.cfg.device)[None] % model.cfg.d_vocab
    run = record(model, tokens, sites=("q", "z", "mlp_out"))
    (w_q, b_q), (w_o, b_o) = projection(block.attn, "q"), projection(block.attn, "o")
    heads = einsum(run.acts["z", 0], w_o, "text pos head d, head d model -> text pos model") + b_o
    normed = block.ln1.original_component(run.resid[0])
    query = einsum(normed, w_q, "text pos model, head model d -> text pos head d") + b_q
    after = run.resid[0] + heads + run.acts["mlp_out", 0]
    for found, expected in [(after, run.resid[1]), (query, run.acts["q", 0])]:
        if (found - expected).abs().max() > 1e-3 * expected.abs().max():
            raise refusal
    return run


def projection(attn: Any, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a head's q, k, v ([head, d_model, d_head], [head, d_head]) or output o
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
        exists = self.graph.exists
        if self.kept.shape != exists.shape or bool((self.kept & ~exists).any()):
            raise ValueError("these edges are not of this graph")

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        receiver, sender = self.kept.T.nonzero(as_tuple=True)  # in the order of `Graph.edges`
        names = zip(sender.tolist(), receiver.tolist(), strict=True)
        return (f"{self.graph.senders[u]} -> {self.graph.receivers[r]}" for u, r in names)

    @property
    def edges(self) -> list[str]:
        return list(self)

    @property
    def nodes(self) -> list[str]:
        """Senders that an edge leaves from, and the output."""
        used = self.kept.any(1).tolist()
        return [name for name, here in zip(self.graph.senders, used, strict=True) if here] + ["out"]

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str]) -> "Circuit":
        """The circuit of these edges. Raises ValueError for names that the graph does not have."""
        return cls(graph, graph.mask(edges))

    @classmethod
    def between(cls, graph: Graph, nodes: Iterable[str]) -> "Circuit":
        """All edges among these nodes, the embedding and the output: a circuit of nodes."""
        chosen = {"embed", *nodes}
        unknown = chosen - {*graph.senders, "out"}
        if unknown:
            raise ValueError(f"no node {sorted(unknown)[0]!r}: write it like 'A0.1' or 'M0'")
        inside = torch.tensor([name in chosen for name in graph.senders])
        read = torch.zeros(len(graph.receivers), dtype=torch.bool)
        read[[-1, *(r for u in inside.nonzero().flatten() for r in graph.inputs[u])]] = True
        return cls(graph, graph.exists & inside[:, None] & read)

    def pruned(self) -> "Circuit":
        """Without edges that lie on no path from the embedding to the output."""
        _, receivers = self.graph.live(self.kept)
        kept = self.kept.numpy()
        reached = np.zeros(len(self.graph.senders), bool)
        reached[0] = True
        for u in range(1, len(reached)):
            reached[u] = (reached @ kept[:, self.graph.inputs[u]]).any()
        return Circuit(self.graph, torch.from_numpy(kept & reached[:, None] & receivers))

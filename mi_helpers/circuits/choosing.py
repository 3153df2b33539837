"""Which edges make a circuit: the first by their scores, a ladder of sizes, or random ones."""

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch

from .graph import Circuit, Graph

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # those of MIB
Ranking = Literal["absolute", "signed"]


def ranked(scores: pd.DataFrame, ranking: Ranking = "absolute") -> pd.Series:
    """What edges are ranked by: the size of the score, or with "signed" how far the metric *falls*
    when the edge is removed, so that edges which hold the answer back come last."""
    if ranking not in ("absolute", "signed"):
        raise ValueError(f"ranking is 'absolute' or 'signed', got {ranking!r}")
    return scores["score"].abs() if ranking == "absolute" else -scores["score"]


def top(graph: Graph, scores: pd.DataFrame, n: int, ranking: Ranking = "absolute") -> Circuit:
    """The `n` edges that rank first."""
    order = ranked(scores, ranking).sort_values(ascending=False, kind="stable").index[:n]
    return Circuit.of(graph, scores.loc[order, "edge"])


def greedy(graph: Graph, scores: pd.DataFrame, n: int, ranking: Ranking = "absolute") -> Circuit:
    """`n` edges grown from the output: each time the first-ranked edge into a node that is in the
    circuit. Source: Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806, section 2."""
    rank = dict(zip(scores["edge"], -ranked(scores, ranking), strict=True))
    into: dict[int, list[tuple[float, int, int]]] = {}
    for edge, (u, r) in graph.number.items():
        into.setdefault(r, []).append((rank[edge], r, u))
    kept, opened = torch.zeros_like(graph.exists), {len(graph.receivers) - 1}
    queue = into[len(graph.receivers) - 1]
    heapq.heapify(queue)
    for _ in range(min(n, len(graph.edges))):
        if not queue:
            break
        _, r, u = heapq.heappop(queue)
        kept[u, r] = True
        for new in set(graph.inputs[u]) - opened:  # the sender's node is in the circuit now
            opened.add(new)
            for entry in into[new]:
                heapq.heappush(queue, entry)
    return Circuit(graph, kept)


def ladder(
    graph: Graph,
    scores: pd.DataFrame,
    shares: Sequence[float] = SHARES,
    ranking: Ranking = "absolute",
    select: Literal["greedy", "top"] = "greedy",
) -> dict[float, Circuit]:
    """Circuits of growing size by the same scores, by the share of all edges asked for; without the
    edges that lie on no path, so that fewer may be left."""
    pick = {"greedy": greedy, "top": top}[select]
    sizes = {share: int(share * len(graph.edges)) for share in shares}
    return {share: pick(graph, scores, n, ranking).pruned() for share, n in sizes.items()}


def random_like(circuit: Circuit, seed: int = 0, same_nodes: bool = False) -> Circuit:
    """A circuit of random edges, as many into each layer's queries, keys, values, MLP and output as
    the circuit has, and of each as many from heads and from MLPs (the embedding counts with them);
    with `same_nodes` drawn from the edges among the circuit's own nodes. Raises ValueError for
    `same_nodes` of a circuit that is not pruned, whose edges may end at nodes it does not have."""
    if same_nodes and len(circuit.pruned()) < len(circuit):
        raise ValueError("prune the circuit first: some of its edges lie on no path")
    graph, rng = circuit.graph, np.random.default_rng(seed)
    among = Circuit.between(graph, circuit.nodes).kept if same_nodes else graph.exists
    kept, cells = torch.zeros_like(graph.exists), dict[tuple, list[tuple[int, int]]]()
    for u, r in among.nonzero().tolist():
        layer, *rest = graph.receivers[r].split(".")
        cells.setdefault((layer, *rest[1:], graph.senders[u][0] == "A"), []).append((u, r))
    for places in cells.values():
        n = int(sum(circuit.kept[place] for place in places))
        for chosen in rng.choice(len(places), n, replace=False):
            kept[places[chosen]] = True
    return Circuit(graph, kept)

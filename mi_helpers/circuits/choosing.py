"""What is made of a table of edge scores: circuits (the first edges, a ladder of sizes, and random
ones as a control), scores of nodes, and scores that stay with new prompts."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
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
    return _first(graph, _grown(graph, scores, n, ranking), n)


def _grown(graph: Graph, scores: pd.DataFrame, n: int, ranking: Ranking) -> list[tuple[int, int]]:
    """Sender and receiver of the first `n` edges of `greedy`, in the order in which they enter.

    Every receiver that is reached waits with the first of its edges that are left; of equal ones
    the first receiver's goes first, and then the first sender's."""
    by_name = dict(zip(scores["edge"].tolist(), -ranked(scores, ranking), strict=True))
    sender, receiver = graph.index
    rank = np.zeros(graph.exists.shape[::-1])  # [receiver, sender]
    rank[receiver, sender] = [by_name[edge] for edge in graph.edges]
    before = {r: group.parents for group in graph.groups for r in group.receivers}
    entered, waiting = list[tuple[int, int]](), dict[int, Iterator[int]]()
    queue = list[tuple[float, int, int]]()

    def advance(r: int) -> None:
        """Let the next edge into a receiver wait."""
        if (u := next(waiting[r], None)) is not None:
            heapq.heappush(queue, (rank[r, u], r, u))

    def reach(receivers: Iterable[int]) -> None:
        for r in receivers:
            if r not in waiting:
                waiting[r] = iter(rank[r, : before[r]].argsort(kind="stable").tolist())
                advance(r)

    reach([len(graph.receivers) - 1])
    while queue and len(entered) < n:
        _, r, u = heapq.heappop(queue)
        entered.append((u, r))
        advance(r)
        reach(graph.inputs[u])  # the sender's node is in the circuit now
    return entered


def _first(graph: Graph, edges: list[tuple[int, int]], n: int) -> Circuit:
    """The circuit of the first `n` of these edges, each a sender and a receiver."""
    kept = torch.zeros_like(graph.exists)
    kept[tuple(torch.tensor(edges[:n], dtype=torch.long).view(-1, 2).T)] = True
    return Circuit(graph, kept)


def ladder(
    graph: Graph,
    scores: pd.DataFrame,
    shares: Sequence[float] = SHARES,
    ranking: Ranking = "absolute",
    select: Literal["greedy", "top"] = "greedy",
) -> dict[float, Circuit]:
    """Circuits of growing size by the same scores, by the share of all edges asked for; without the
    edges that lie on no path, so that fewer may be left. Raises ValueError for another `select`."""
    sizes = {share: int(share * len(graph.edges)) for share in shares}
    if select not in ("greedy", "top"):
        raise ValueError(f"select is 'greedy' or 'top', got {select!r}")
    if select == "top":
        return {share: top(graph, scores, n, ranking).pruned() for share, n in sizes.items()}
    order = _grown(graph, scores, max(sizes.values(), default=0), ranking)  # small ones come first
    return {share: _first(graph, order, n).pruned() for share, n in sizes.items()}


def random_like(circuit: Circuit, seed: int = 0, same_nodes: bool = False) -> Circuit:
    """A circuit of random edges, as many into each layer's queries, keys, values, MLP and output as
    the circuit has, and of each as many from heads and from MLPs (the embedding counts with them);
    with `same_nodes` drawn from the edges among the circuit's own nodes. Raises ValueError for
    `same_nodes` of a circuit that is not pruned, whose edges may end at nodes it does not have."""
    if same_nodes and len(circuit.pruned()) < len(circuit):
        raise ValueError("prune the circuit first: some of its edges lie on no path")
    graph, rng = circuit.graph, np.random.default_rng(seed)
    own, kept = circuit.kept.numpy(), np.zeros(graph.exists.shape, bool)
    left = [(u.numpy(), r.numpy()) for u, r in graph.kinds]  # senders, receivers
    if same_nodes:
        among = Circuit.between(graph, circuit.nodes).kept.numpy()
        left = [(u[among[u, r]], r[among[u, r]]) for u, r in left if among[u, r].any()]
    for u, r in sorted(left, key=lambda kind: (kind[0][0], kind[1][0])):  # by their first edges
        chosen = rng.choice(len(u), own[u, r].sum(), replace=False)
        kept[u[chosen], r[chosen]] = True
    return Circuit(graph, torch.from_numpy(kept))


def bootstrapped(
    scores: pd.DataFrame, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Means over prompts of `attribute(..., per_prompt=True)`, and how stable their signs are.

    Prompts are drawn with replacement `draws` times. `same_sign` is the share of draws in which the
    mean has the sign that it has over all prompts; edges below `level` get a score of 0, so that
    circuits made of the table take them last. Returns edge, sender, receiver, score, mean,
    same_sign. Source: Nikankin et al. 2025, arXiv 2510.25786 (bootstrap of edge scores).

    Raises ValueError for scores that are not by prompt.
    """
    if "prompt" not in scores:
        raise ValueError("the bootstrap needs attribute(..., per_prompt=True)")
    edges = scores.loc[scores["prompt"] == scores["prompt"].iloc[0]]
    each = scores["score"].to_numpy().reshape(-1, len(edges))  # [prompt, edge]
    rng, n = np.random.default_rng(seed), len(each)
    mean, same = each.mean(0), np.zeros(len(edges))
    for _ in range(draws):
        drawn = rng.multinomial(n, np.full(n, 1 / n)) @ each  # n times the mean of a draw
        same += np.sign(drawn) == np.sign(mean)
    found = edges[["edge", "sender", "receiver"]].reset_index(drop=True)
    found = found.assign(mean=mean, same_sign=same / draws)
    return found.assign(score=found["mean"].where(found["same_sign"] >= level, 0.0))


def head_importance(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole nodes from the scores of their edges: sender, layer, score, importance.

    `score` is the sum over a node's edges. With "eap" it is exactly the gradient at the node times
    its change, since a node's gradient is the sum of its readers'. `importance` is its absolute
    value over the root of the sum of squares in its layer (the embedding is a layer by itself).
    Source: Michel, Levy & Neubig 2019, arXiv 1905.10650; as in Conmy et al. 2023, appendix D.2.
    """
    table = scores.groupby("sender", sort=False, as_index=False)["score"].sum()
    layer = table["sender"].str.extract(r"[AM](\d+)")[0].astype(float).fillna(-1).astype(int)
    table.insert(1, "layer", layer)
    norm = table["score"].pow(2).groupby(layer).transform("sum").pow(0.5)
    return table.assign(importance=table["score"].abs() / norm.where(norm > 0, 1.0))

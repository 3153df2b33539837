"""How far a layered graph of interactions falls into modules."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import igraph
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

Node = tuple[int, int]  # the layer or boundary, and the feature


@dataclass(frozen=True)
class Modules:
    """``nodes``: a row per feature with an edge (boundary, feature, module), modules by size.
    ``quality``: Newman's modularity of that partition, at resolution 1, on the same weights."""

    nodes: pd.DataFrame
    quality: float


def modules(
    interactions: Sequence[Float[Tensor, "next feature"]],
    smallest: float | Sequence[float],
    seed: int = 0,
) -> Modules:
    """Leiden communities of the graph whose nodes are the features at every boundary.

    An edge's weight is log10(E / smallest), dropped where not positive, as in arXiv 2405.10928;
    ``smallest`` is the least edge that matters, one for all sections or one each: the smallest kept
    when edges are ablated. Raises if no edge is left.
    """
    least = [smallest] * len(interactions) if isinstance(smallest, int | float) else smallest
    rows: list[tuple[Node, Node, float]] = []
    for section, (E, bound) in enumerate(zip(interactions, least, strict=True)):
        if bound <= 0:
            raise ValueError(f"smallest must be positive, got {bound} for section {section}")
        logs = (E / bound).clamp_min(1e-300).log10()
        for i, j in torch.nonzero(logs > 0).tolist():
            rows.append(((section, j), (section + 1, i), logs[i, j].item()))
    if not rows:
        raise ValueError("no edge is larger than `smallest`")
    names, found, quality = leiden(rows, resolution=0.5, seed=seed)
    nodes = pd.DataFrame(names, columns=["boundary", "feature"]).assign(module=found)
    return Modules(nodes, quality)


def leiden(
    edges: Sequence[tuple[Node, Node, float]], resolution: float = 1.0, seed: int = 0
) -> tuple[list[Node], list[int], float]:
    """Leiden communities of weighted edges: (node, node, weight), a node being a pair of numbers.

    Returns the nodes in order, the community of each, numbered by size from 0, and Newman's
    modularity of the partition, at resolution 1, on the same weights (Traag et al. 2019).
    """
    names = sorted({end for a, b, _ in edges for end in (a, b)})
    number = {name: index for index, name in enumerate(names)}
    graph = igraph.Graph(len(names), [(number[a], number[b]) for a, b, _ in edges])
    weights = [weight for *_, weight in edges]
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            "modularity", weights=weights, resolution=resolution, n_iterations=10
        )
    finally:
        igraph.set_random_number_generator(random)
    by_size = pd.Series(found.membership).value_counts(sort=True).index
    rank = {community: rank for rank, community in enumerate(by_size)}
    quality = graph.modularity(found.membership, weights=weights)
    return names, [rank[community] for community in found.membership], quality

"""How far a layered graph of interactions falls into modules."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import igraph
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Modules:
    """``nodes``: a row per feature with an edge (boundary, feature, module), modules by size.
    ``quality``: Newman's modularity of that partition, at resolution 1, on the same weights."""

    nodes: pd.DataFrame
    quality: float


def modules(
    interactions: Sequence[Float[Tensor, "next feature"]],
    smallest: float | Sequence[float],
    *,
    resolution: float = 0.5,
    iterations: int = 10,
    seed: int = 0,
) -> Modules:
    """Leiden communities of the graph whose nodes are the features at every boundary.

    An edge's weight is log10(E / smallest), dropped where not positive, as in arXiv 2405.10928;
    ``smallest`` is the least edge that matters, one for all sections or one each: the smallest kept
    when edges are ablated. Raises if no edge is left.
    """
    least = [smallest] * len(interactions) if isinstance(smallest, int | float) else smallest
    rows: list[tuple[tuple[int, int], tuple[int, int], float]] = []
    for section, (E, bound) in enumerate(zip(interactions, least, strict=True)):
        if bound <= 0:
            raise ValueError(f"smallest must be positive, got {bound} for section {section}")
        logs = (E / bound).clamp_min(1e-300).log10()
        for i, j in torch.nonzero(logs > 0).tolist():
            rows.append(((section, j), (section + 1, i), logs[i, j].item()))
    if not rows:
        raise ValueError("no edge is larger than `smallest`")
    names = sorted({end for source, target, _ in rows for end in (source, target)})
    number = {name: index for index, name in enumerate(names)}
    graph = igraph.Graph(len(names), [(number[a], number[b]) for a, b, _ in rows])
    weights = [weight for _, _, weight in rows]
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            "modularity", weights=weights, resolution=resolution, n_iterations=iterations
        )
    finally:
        igraph.set_random_number_generator(random)
    nodes = pd.DataFrame(names, columns=["boundary", "feature"]).assign(module=found.membership)
    by_size = nodes["module"].value_counts(sort=True).index
    nodes["module"] = nodes["module"].map({m: rank for rank, m in enumerate(by_size)})
    return Modules(nodes, graph.modularity(found.membership, weights=weights))

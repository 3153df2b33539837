"""Communities of a graph."""

import random
from collections.abc import Sequence

import igraph
import pandas as pd

Node = tuple[int, int]  # the layer or boundary, and the feature


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

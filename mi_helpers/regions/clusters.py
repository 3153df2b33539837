"""Clusters of prompts: by stable region, by distance, and by what the model predicts next.

Two prompts are joined where the straight path between their activations stays flat; the connected
components are the regions. Clusters are compared by adjusted mutual information (Vinh, Epps &
Bailey 2010, JMLR 11), which is 0 on average for labels drawn at random and 1 for equal ones.
"""

from collections.abc import Callable, Hashable, Sequence

import igraph
import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from ..engine import Run
from ..stats import LEVEL, Estimate
from .paths import path_rows, sharpness, take, walk

AT_ONCE = 128  # pairs walked together: bounds the copies of keys and values


def near_pairs(acts: Float[Tensor, "prompt d"], k: int) -> Int[Tensor, "pair two"]:
    """Each prompt with its `k` nearest others by Euclidean distance; every pair once, i < j."""
    if not 0 < k < len(acts):
        raise ValueError(f"k is from 1 to {len(acts) - 1} for {len(acts)} prompts, got {k}")
    distance = torch.cdist(acts, acts).fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False).indices.cpu()
    pairs = torch.stack([torch.arange(len(acts)).repeat_interleave(k), near.flatten()], dim=1)
    return pairs.sort(dim=1).values.unique(dim=0)


def walk_pairs(
    run: Run, pairs: Int[Tensor, "pair two"], layer: int = 0, steps: int = 50
) -> dict[str, Float[Tensor, "pair"]]:
    """For each pair (i, j): walk from i's activation to j's in prompt i. `reach` is the farthest
    that the post-norm read-out gets from its start, `sharpness` the steepest slope."""
    found = []
    for part in pairs.split(AT_ONCE):
        start, end = (take(run, column) for column in part.T)
        distance = walk(start, path_rows(start, end, layer, steps)).distance()
        found.append(torch.stack([distance.amax(0), sharpness(distance)]))
    reach, steepest = torch.cat(found, dim=1).cpu()
    return {"reach": reach, "sharpness": steepest}


def components(n: int, edges: Int[Tensor, "pair two"]) -> np.ndarray:
    """The connected component of each of `n` prompts: [n] labels from 0."""
    graph = igraph.Graph(n, edges.tolist())
    return np.array(graph.connected_components().membership)


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Adjusted mutual information: (MI - E[MI]) / (mean of the entropies - E[MI])."""
    return float(adjusted_mutual_info_score(first, second, average_method="arithmetic"))


def over_halves(
    statistic: Callable[[np.ndarray], float], n: int, draws: int = 200, seed: int = 0
) -> Estimate:
    """A statistic of `n` prompts, given by their numbers, with an interval over random halves.

    A statistic varies over halves drawn without replacement as much as over whole samples, and no
    prompt is its own neighbour, which in a bootstrap would make any two clusterings agree.
    """
    rng = np.random.default_rng(seed)
    whole = float(statistic(np.arange(n)))
    halves = [statistic(rng.choice(n, n // 2, replace=False)) for _ in range(draws)]
    spread = np.quantile(halves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(halves)
    return Estimate(whole, whole + float(spread[0]), whole + float(spread[1]), n, "prompts")

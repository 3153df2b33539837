"""Clusters of prompts: by stable region, by distance, and by what the model predicts next.

Two prompts are joined where the straight path between their activations stays flat; the connected
components are the regions. Clusters are compared by adjusted mutual information (Vinh, Epps &
Bailey 2010, JMLR 11), which is 0 on average for labels drawn at random and 1 for equal ones.
"""

from collections.abc import Hashable, Sequence
from math import lgamma

import igraph
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..engine.execution import Run
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


def adjusted_mutual_information(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """(MI - E[MI]) / (mean of the entropies - E[MI]), the expectation over all relabellings."""
    counts = _contingency(first, second)
    n, rows, columns = counts.sum(), counts.sum(1), counts.sum(0)
    expected = _expected_information(rows, columns)
    share = counts[counts > 0] / n
    independent = np.outer(rows, columns)[counts > 0] / n**2
    information = float((share * np.log(share / independent)).sum())
    top = (_entropy(rows / n) + _entropy(columns / n)) / 2 - expected
    return 1.0 if abs(top) < 1e-12 else (information - expected) / top


def permutation_p(
    first: Sequence[Hashable], second: Sequence[Hashable], n: int = 200, seed: int = 0
) -> float:
    """The share of `n` shuffles of `second` (and the labels as they are) that agree with `first`
    at least as well."""
    rng = np.random.default_rng(seed)
    labels = np.unique(np.asarray(second, dtype=str), return_inverse=True)[1]
    observed = adjusted_mutual_information(first, labels.tolist())
    drawn = [adjusted_mutual_information(first, rng.permutation(labels).tolist()) for _ in range(n)]
    return (1 + sum(value >= observed - 1e-12 for value in drawn)) / (1 + n)


def half_samples(n: int, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Random halves of `n` prompts, [draw, n // 2]. A statistic varies over halves drawn without
    replacement as much as over whole samples, and no prompt is its own neighbour, which in a
    bootstrap would make any two clusterings agree."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(n, n // 2, replace=False) for _ in range(draws)])


def _contingency(first: Sequence[Hashable], second: Sequence[Hashable]) -> np.ndarray:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"one label each for the same prompts, got {len(first)} and {len(second)}")
    (n_a, a), (n_b, b) = (_numbered(labels) for labels in (first, second))
    counts = np.zeros((n_a, n_b))
    np.add.at(counts, (a, b), 1)
    return counts


def _numbered(labels: Sequence[Hashable]) -> tuple[int, list[int]]:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return len(numbers), [numbers[label] for label in labels]


def _entropy(share: np.ndarray) -> float:
    return float(-(share * np.log(share)).sum())


def _expected_information(rows: np.ndarray, columns: np.ndarray) -> float:
    """E[MI] of two clusterings with these sizes, over all ways to assign members (Vinh et al.,
    equation 24a). Equal sizes are summed once."""
    n = int(rows.sum())
    log_factorial = np.array([lgamma(k + 1) for k in range(n + 1)])
    total = 0.0
    for a, n_a in zip(*np.unique(rows.astype(int), return_counts=True), strict=True):
        for b, n_b in zip(*np.unique(columns.astype(int), return_counts=True), strict=True):
            both = np.arange(max(1, a + b - n), min(a, b) + 1)
            log_p = log_factorial[[a, b, n - a, n - b]].sum() - (
                log_factorial[n] + log_factorial[both] + log_factorial[a - both]
                + log_factorial[b - both] + log_factorial[n - a - b + both]
            )  # fmt: skip
            gain = both / n * np.log(n * both / (a * b))
            total += n_a * n_b * float((gain * np.exp(log_p)).sum())
    return total

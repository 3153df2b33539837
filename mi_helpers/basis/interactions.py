"""Edges: how much each feature moves each next feature (arXiv 2405.10928)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from ..communities import leiden
from ..engine.stack import Stack
from .fitting import Basis
from .jacobians import integrated_gradients, pull_back, random_signs, wide


def edges(
    basis: Basis,
    inputs: Float[Tensor, "batch ... feature"],
    *,
    points: int | Literal["data"] | Sequence[int | Literal["data"]] = 8,
    sources: int | None = None,
    outputs: int | None = None,
    batch_size: int = 256,
    chunk: int = 16,
    seed: int = 0,
) -> list[Float[Tensor, "next feature"]]:
    """Squared interactions between the features of neighbouring boundaries, one matrix a section.

    E_ij = mean over samples and output positions t of (sum over input positions s of the
    integrated gradient, from zero to the activation, of next feature (t, i) along feature (s, j))
    squared (arXiv 2405.10928). The constant shrinks with the activations along the path
    (in folded sections with every bias, in others with the mean alone); its own edges are free and
    not returned.

    ``points="data"``: the derivative at the data point in place of the integral, as the published
    numbers use. Otherwise points of the integral, by Gauss and Legendre's rule (a section that is
    linear along the path needs one; see :func:`convergence`). One for all sections or one each.
    ``sources``: so many random sign vectors over output positions instead of every position.
    ``outputs``: only the first so many next features. Memory: about ``batch_size * chunk``
    gradients, whatever ``points`` is.
    """
    generator = torch.Generator().manual_seed(seed)
    activations = basis.stack.activations(inputs)
    each = [points] * (len(activations) - 1) if isinstance(points, int | str) else points
    found = []
    for index, (x, n) in enumerate(zip(activations[:-1], each, strict=True)):
        here, there = basis.boundaries[index], basis.boundaries[index + 1]
        C, n_positions = there.C[:, :outputs], activations[index + 1][0, ..., 0].numel()
        signs = None
        if sources is not None and n_positions > 1:
            signs = random_signs(sources, (n_positions,), x, generator)
        function = _next_features(basis.stack, index, C, signs)
        total = torch.zeros(C.shape[1], len(here.importance), dtype=torch.float64)
        for batch in x.split(batch_size if n == "data" else max(batch_size // max(n, 1), 1)):
            features = here.encode(batch)
            # The activation, without what the basis dropped: the path ends there.
            end = here.decode(features)
            if n == "data":
                one = end.new_ones(len(end), *[1] * (end.ndim - 1))
                pulled = pull_back(partial(function, one=one), end, chunk)
            else:
                pulled = integrated_gradients(function, end, n, chunk)
            for rows, gradients in pulled:
                # Along each feature: by the chain rule, and times the feature itself.
                effects = gradients @ here.C_pinv.mT.to(features) * features
                # Summed over input positions, then squared; rows are (position, next feature).
                sums = reduce(effects, "row batch ... feature -> row batch feature", "sum")
                total.index_add_(0, rows.cpu() % len(total), wide(sums).pow(2).sum(1).cpu())
        found.append(total / (len(x) * n_positions * (1 if signs is None else len(signs))))
    return found


def edge_table(interactions: Sequence[Float[Tensor, "next feature"]]) -> pd.DataFrame:
    """Interactions as a long table: section, next, feature, interaction."""
    tables = []
    for section, E in enumerate(interactions):
        wide_table = pd.DataFrame(E.numpy()).rename_axis(index="next", columns="feature")
        table = wide_table.stack().rename("interaction").reset_index()
        tables.append(table.assign(section=section))
    return pd.concat(tables, ignore_index=True)


def inputs_needed(E: Float[Tensor, "next feature"], share: float = 0.9) -> Float[Tensor, " next"]:
    """How many features it takes, largest first, to make up ``share`` of each row's interactions.

    Does not depend on how the next features are scaled, so bases can be compared.
    """
    upto = E.sort(dim=1, descending=True).values.cumsum(1) / E.sum(1, keepdim=True)
    return (upto < share).sum(1).double() + 1


def rewired(
    E: Float[Tensor, "next feature"], smallest: float, swaps: int = 10, seed: int = 0
) -> Float[Tensor, "next feature"]:
    """The edges above ``smallest``, ends exchanged at random: a null for what is between whom.

    Two edges at a time exchange the features they come from, so that every feature keeps its number
    of edges and every next feature the weights of its own (Maslov & Sneppen 2002); ``swaps`` tries
    for each edge, and a try that would double an edge is dropped.
    """
    ends = E.gt(smallest).nonzero().tolist()
    weights = [E[i, j].item() for i, j in ends]
    present = set(map(tuple, ends))
    choose = random.Random(seed)
    for _ in range(swaps * len(ends)):
        a, b = choose.randrange(len(ends)), choose.randrange(len(ends))
        (i, j), (k, n) = ends[a], ends[b]
        if (i, n) in present or (k, j) in present:
            continue
        present -= {(i, j), (k, n)}
        present |= {(i, n), (k, j)}
        ends[a][1], ends[b][1] = n, j
    found = torch.zeros_like(E)
    for (i, j), weight in zip(ends, weights, strict=True):
        found[i, j] = weight
    return found


def _next_features(
    stack: Stack, index: int, C: Tensor, signs: Float[Tensor, "source pos"] | None
) -> Callable[..., Tensor]:
    """From activations and the constant to the next features: [batch, position, feature], or
    [batch, source, feature] where ``signs`` sum over positions."""

    def function(z: Tensor, one: Tensor) -> Tensor:
        y = stack.run(z, index, index + 1, one) @ C.to(z)
        y = rearrange(y, "batch ... feature -> batch (...) feature")
        if signs is None:
            return y
        return einsum(signs, y, "source pos, batch pos feature -> batch source feature")

    return function


def convergence(
    basis: Basis,
    inputs: Float[Tensor, "batch ... feature"],
    points: Sequence[int] = (1, 2, 4, 8, 16),
    **options: Any,
) -> pd.DataFrame:
    """How far the edges at fewer integration points are from those at the most.

    One row per section and number of points; ``difference`` is relative, in Frobenius norm.
    ``options`` go to :func:`edges`.
    """
    best, rows = edges(basis, inputs, points=max(points), **options), []
    for n in sorted(points)[:-1]:
        for section, E in enumerate(edges(basis, inputs, points=n, **options)):
            difference = ((E - best[section]).norm() / best[section].norm()).item()
            rows.append({"section": section, "points": n, "difference": difference})
    return pd.DataFrame(rows)


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
    rows = []
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

"""The interaction basis: features that are uncorrelated, and whose effects downstream are too.

At every boundary between two sections of a network, find the linear coordinates in which (a) the
activations' covariance is diagonal and (b) the Jacobian of what comes next has orthonormal
columns. The basis does not change when the network is rewritten without changing what it computes:
directions that never vary, or that nothing reads, are dropped.

1. covariance of the activations; drop null directions and whiten;
2. covariance, in those coordinates, of the gradients of the next boundary's features (*local*;
   arXiv 2405.10928) or of the output (*global*; arXiv 2405.10927); drop what has no effect;
3. its eigenvectors, scaled by the root of its eigenvalues, are the basis. Last boundary first.
4. edges: how much each feature moves each next feature, by integrated gradients from zero.

The means travel with a constant feature that is kept apart and has no column of its own:
``x = mean + features @ C_pinv``. Row vectors throughout.

>>> basis = fit([layer_1, layer_2], inputs)
>>> interactions = edges(basis, inputs)          # one matrix [next feature, feature] per section
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine.stack import Section, Stack
from .jacobians import (
    activation_gram,
    integrated_gradients,
    jacobian_gram,
    random_signs,
    spectrum,
    wide,
)

Score = Callable[[Tensor], float]


@dataclass(frozen=True)
class Boundary:
    """The basis at one boundary. All matrices float64, on the CPU; columns by importance."""

    mean: Float[Tensor, "width"]
    C: Float[Tensor, "width feature"]
    C_pinv: Float[Tensor, "feature width"]
    importance: Float[Tensor, "feature"]
    """The features' variance, which for an interaction basis is also the size of their effect."""
    silent: int
    """Directions dropped because the activations do not vary along them."""
    ignored: int
    """Directions dropped because nothing downstream changes along them."""
    jacobian_error: float = 0.0
    """Relative standard error of the stochastic Jacobian Gram matrix, 0 if it was exact."""

    def encode(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch feature"]:
        return (x - self.mean.to(x)) @ self.C.to(x)

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch width"]:
        return self.mean.to(features) + features @ self.C_pinv.to(features)


@dataclass(frozen=True)
class Basis:
    """A basis at every boundary of a stack of sections."""

    stack: Stack
    boundaries: list[Boundary]

    def summary(self) -> pd.DataFrame:
        """One row per boundary: width, features kept, directions dropped and why."""
        return pd.DataFrame(
            [
                {
                    "boundary": i,
                    "width": len(b.mean),
                    "features": len(b.importance),
                    "silent": b.silent,
                    "ignored": b.ignored,
                    "jacobian error": b.jacobian_error,
                }
                for i, b in enumerate(self.boundaries)
            ]
        )


def fit(
    sections: Sequence[Section] | Stack,
    inputs: Float[Tensor, "batch ... feature"],
    *,
    folded: bool = False,
    kind: Literal["local", "global", "pca"] = "local",
    last: Literal["pca", "identity"] = "pca",
    threshold: float = 1e-10,
    apart: int = 0,
    sources: int | None = None,
    batch_size: int = 256,
    chunk: int = 16,
    seed: int = 0,
) -> Basis:
    """The interaction basis at every boundary of ``sections``, fitted on ``inputs``.

    ``kind``: Jacobians of the next boundary in its own basis ("local"), of the output ("global"),
    or none ("pca": the baseline, rotation to principal components without scaling).
    ``last``: coordinates of the output. ``threshold``: eigenvalues at or below this share of the
    largest are dropped. ``apart``: trailing features, at every boundary that has a section after
    it, that are not mixed with the others or each other (a norm's scale).
    ``folded``, sections: see :mod:`mi_helpers.sections`; the rest: see
    :func:`mi_helpers.jacobians.jacobian_gram`.
    """
    stack = sections if isinstance(sections, Stack) else Stack(tuple(sections), folded)
    activations = stack.activations(inputs)
    after = _principal(activations[-1], threshold)
    if last == "identity":
        eye = torch.eye(activations[-1].shape[-1], dtype=torch.float64)
        variance = activation_gram(activations[-1])[1].diagonal()
        after = Boundary(torch.zeros_like(variance), eye, eye, variance, 0, 0)
    boundaries, final = [after], after
    for index in reversed(range(len(stack.sections))):
        x = activations[index]
        if kind == "pca":
            after = _principal(x, threshold, apart)
        else:
            local = kind == "local"
            function = _effect(
                stack, index, index + 1 if local else None, after.C if local else final.C
            )
            after = _interaction(
                x,
                function,
                threshold,
                apart,
                sources=sources,
                batch_size=batch_size,
                chunk=chunk,
                seed=seed + index,
            )
        boundaries.insert(0, after)
    return Basis(stack, boundaries)


def _effect(stack: Stack, start: int, stop: int | None, C: Tensor) -> Callable[[Tensor], Tensor]:
    """From activations to the features (up to their mean) of the boundary at ``stop``."""
    return lambda z: stack.run(z, start, stop) @ C.to(z)


def _blocks(width: int, apart: int) -> list[slice]:
    """The coordinates that may be mixed with each other, and each one kept apart."""
    if not 0 <= apart < width:
        raise ValueError(f"apart={apart} must be less than the width {width}")
    free = width - apart
    return [slice(0, free), *(slice(i, i + 1) for i in range(free, width))]


def _principal(x: Tensor, threshold: float, apart: int = 0) -> Boundary:
    mean, gram = activation_gram(x)
    parts = [spectrum(gram[b, b], threshold) for b in _blocks(len(mean), apart)]
    C = torch.block_diag(*(_signed(vectors) for _, vectors in parts))
    variance = torch.cat([values for values, _ in parts])
    return _boundary(mean, C, C.mT, variance, silent=len(mean) - len(variance))


def _interaction(
    x: Tensor, function: Callable[[Tensor], Tensor], threshold: float, apart: int, **options: Any
) -> Boundary:
    mean, gram = activation_gram(x)
    jacobian = jacobian_gram(function, x, **options)
    Cs, pinvs, effects, silent = [], [], [], 0
    for block in _blocks(len(mean), apart):
        variance, U = spectrum(gram[block, block], threshold)
        whiten, colour = U * variance.rsqrt(), variance.sqrt()[:, None] * U.mT
        effect, V = spectrum(colour @ jacobian.matrix[block, block] @ colour.mT, threshold)
        V = _signed(whiten @ V, V)
        Cs.append(whiten @ V * effect.sqrt())
        pinvs.append(effect.rsqrt()[:, None] * (V.mT @ colour))
        effects.append(effect)
        silent += len(gram[block, block]) - len(variance)
    return _boundary(
        mean,
        torch.block_diag(*Cs),
        torch.block_diag(*pinvs),
        torch.cat(effects),
        silent,
        jacobian.error,
    )


def _signed(columns: Tensor, carried: Tensor | None = None) -> Tensor:
    """Flip columns so that the largest entry of each is positive: eigenvectors have no sign."""
    if not columns.numel():
        return columns if carried is None else carried
    top = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return (columns if carried is None else carried) * top.sign()


def _boundary(
    mean: Tensor, C: Tensor, C_pinv: Tensor, importance: Tensor, silent: int, error: float = 0.0
) -> Boundary:
    if not len(importance):
        raise ValueError(
            "no direction is left: the activations do not vary, or nothing "
            "downstream depends on them"
        )
    order = importance.argsort(descending=True, stable=True)
    ignored = len(mean) - silent - len(importance)
    return Boundary(mean, C[:, order], C_pinv[order], importance[order], silent, ignored, error)


def edges(
    basis: Basis,
    inputs: Float[Tensor, "batch ... feature"],
    *,
    points: int | Sequence[int] = 8,
    rule: str = "gauss",
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

    ``points``, ``rule``: of the integral, "gauss" or "midpoint"; one number for all sections or one
    each (a section that is linear along the path needs one); see :func:`convergence`.
    ``sources``: so many random sign vectors over output positions instead of every position.
    ``outputs``: only the first so many next features. Memory: about ``batch_size * chunk``
    gradients, whatever ``points`` is.
    """
    generator = torch.Generator().manual_seed(seed)
    activations = basis.stack.activations(inputs)
    found = []
    each = [points] * (len(activations) - 1) if isinstance(points, int) else points
    for index, (x, n) in enumerate(zip(activations[:-1], each, strict=True)):
        here, there = basis.boundaries[index], basis.boundaries[index + 1]
        C, n_positions = there.C[:, :outputs], activations[index + 1][0, ..., 0].numel()
        signs = None
        if sources is not None and n_positions > 1:
            signs = random_signs(sources, (n_positions,), x, generator)
        function = _next_features(basis.stack, index, C, signs)
        total = torch.zeros(C.shape[1], len(here.importance), dtype=torch.float64)
        for batch in x.split(max(batch_size // max(n, 1), 1)):
            features = here.encode(batch)
            end = here.decode(features)
            for rows, gradients in integrated_gradients(function, end, n, rule, chunk):
                effects = gradients @ here.C_pinv.mT.to(features) * features
                sums = effects.reshape(*effects.shape[:2], -1, effects.shape[-1]).sum(2)
                total.index_add_(0, rows.cpu() % len(total), wide(sums).pow(2).sum(1).cpu())
        found.append(total / (len(x) * n_positions * (1 if signs is None else len(signs))))
    return found


def edge_table(interactions: Sequence[Float[Tensor, "next feature"]]) -> pd.DataFrame:
    """Interactions as a long table: section, next, feature, interaction."""
    return pd.concat(
        [
            pd.DataFrame(E.numpy())
            .rename_axis(index="next", columns="feature")
            .stack()
            .rename("interaction")
            .reset_index()
            .assign(section=index)
            for index, E in enumerate(interactions)
        ],
        ignore_index=True,
    )


def inputs_needed(E: Float[Tensor, "next feature"], share: float = 0.9) -> Float[Tensor, " next"]:
    """How many features it takes, largest first, to make up ``share`` of each row's interactions.

    Does not depend on how the next features are scaled, so bases can be compared.
    """
    upto = E.sort(dim=1, descending=True).values.cumsum(1) / E.sum(1, keepdim=True)
    return (upto < share).sum(1).double() + 1


def _next_features(
    stack: Stack, index: int, C: Tensor, signs: Float[Tensor, "source pos"] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """From activations and the constant to the next boundary's features, positions in front."""

    def function(z: Tensor, one: Tensor) -> Tensor:
        y = stack.run(z, index, index + 1, one) @ C.to(z)
        y = y.reshape(len(y), -1, y.shape[-1])
        return y if signs is None else torch.einsum("nt,bti->bni", signs, y)

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
    best = edges(basis, inputs, points=max(points), **options)
    return pd.DataFrame(
        [
            {"section": index, "points": n, "difference": ((E - B).norm() / B.norm()).item()}
            for n in sorted(points)[:-1]
            for index, (E, B) in enumerate(
                zip(edges(basis, inputs, points=n, **options), best, strict=True)
            )
        ]
    )


@torch.no_grad()
def ablate_nodes(
    basis: Basis,
    inputs: Float[Tensor, "batch ... feature"],
    at: int,
    keep: Iterable[int],
    score: Score,
    batch_size: int = 1024,
) -> pd.DataFrame:
    """Score of the output with all but the ``keep`` most important features at a boundary removed.

    Removed features are set to zero, which is their mean; the constant stays. One row per value of
    ``keep``. ``score`` gets the outputs of all inputs.
    """
    boundary = basis.boundaries[at]
    features = boundary.encode(basis.stack.activations(inputs)[at])
    rows = []
    for n in keep:
        mask = (torch.arange(features.shape[-1], device=features.device) < n).to(features)
        parts = [basis.stack.run(boundary.decode(f * mask), at) for f in features.split(batch_size)]
        rows.append({"boundary": at, "kept": n, "score": score(torch.cat(parts))})
    return pd.DataFrame(rows)


@torch.no_grad()
def ablate_edges(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    section: int,
    keep: Iterable[int],
    score: Score,
    batch_size: int = 1024,
) -> pd.DataFrame:
    """Score of the output with only the ``keep`` largest edges of one section left.

    Every next feature is recomputed from its own copy of the activations, in which the features it
    has no edge from are zero; the rest of the network runs on the result. Edges from the constant
    stay. Features with the same edges share a forward pass. One row per value of ``keep``.
    """
    E, here = interactions[section], basis.boundaries[section]
    features = here.encode(basis.stack.activations(inputs)[section])
    order = E.flatten().argsort(descending=True, stable=True)
    rows = []
    for n in keep:
        mask = torch.zeros(E.numel(), dtype=torch.bool)
        mask[order[:n]] = True
        parts = [
            _run_masked(basis, section, f, mask.view_as(E)) for f in features.split(batch_size)
        ]
        rows.append({"section": section, "kept": n, "score": score(torch.cat(parts))})
    return pd.DataFrame(rows)


def _run_masked(
    basis: Basis,
    section: int,
    features: Float[Tensor, "batch ... feature"],
    mask: Bool[Tensor, "next feature"],
) -> Tensor:
    here, there = basis.boundaries[section], basis.boundaries[section + 1]
    masks, which = torch.unique(mask, dim=0, return_inverse=True)
    columns, parts = [], []
    for row, kept in enumerate(masks):
        y = basis.stack.run(here.decode(features * kept.to(features)), section, section + 1)
        columns.append(torch.nonzero(which == row)[:, 0])
        parts.append((y - there.mean.to(y)) @ there.C[:, columns[-1]].to(y))
    found = torch.cat(parts, dim=-1)[..., torch.cat(columns).argsort().to(features.device)]
    return basis.stack.run(there.decode(found), section + 1)


def fewest(score: Callable[[int], float], most: int, target: float) -> int:
    """A number ``k <= most`` with ``score(k) >= target > score(k - 1)``, by doubling and bisection.

    Where the score is not monotone there are several; doubling from 1 finds a small one. Raises if
    even ``most`` is not enough.
    """
    low, high = 0, 1
    while high < most and score(high) < target:
        low, high = high, 2 * high
    if high >= most:
        high = most
        if score(high) < target:
            raise ValueError(
                f"the score stays below {target:.4g} even with all {most} kept: the "
                "basis itself loses something, so lower `threshold` in fit"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if score(middle) >= target else (middle, high)
    return high


def needed(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    score: Score,
    tolerance: float = 0.001,
) -> pd.DataFrame:
    """Fewest edges, and fewest features, that keep the score within ``tolerance`` of the network's.

    One row per section: edges of that section, features at its input; each ablated alone.
    """
    with torch.no_grad():
        target = score(basis.stack.run(inputs)) - tolerance

    def edges_kept(section: int) -> int:
        return fewest(
            lambda k: ablate_edges(basis, interactions, inputs, section, [k], score)["score"][0],
            interactions[section].numel(),
            target,
        )

    def features_kept(section: int) -> int:
        return fewest(
            lambda k: ablate_nodes(basis, inputs, section, [k], score)["score"][0],
            len(basis.boundaries[section].importance),
            target,
        )

    return pd.DataFrame(
        [
            {"section": i, "edges": edges_kept(i), "features": features_kept(i)}
            for i in range(len(interactions))
        ]
    )

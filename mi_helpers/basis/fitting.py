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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..engine.stack import Section, Stack
from .jacobians import JacobianGram, activation_gram, jacobian_gram, spectrum


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
        columns = ["boundary", "width", "features", "silent", "ignored", "jacobian error"]
        rows = [
            (i, len(b.mean), len(b.importance), b.silent, b.ignored, b.jacobian_error)
            for i, b in enumerate(self.boundaries)
        ]
        return pd.DataFrame(rows, columns=columns)


def fit(
    sections: Sequence[Section] | Stack,
    inputs: Float[Tensor, "batch ... feature"],
    *,
    kind: Literal["local", "global", "pca"] = "local",
    last: Literal["pca", "identity"] = "pca",
    threshold: float = 1e-10,
    relative: bool = True,
    apart: int = 0,
    sources: int | None = None,
    batch_size: int = 256,
    chunk: int = 16,
    seed: int = 0,
) -> Basis:
    """The interaction basis at every boundary of ``sections``, fitted on ``inputs``.

    ``sections``: functions in a list, or a `Stack`, whose sections may be folded.
    ``kind``: Jacobians of the next boundary in its own basis ("local"), of the output ("global"),
    or none ("pca": the baseline, rotation to principal components without scaling).
    ``last``: coordinates of the output.
    ``threshold``: of the covariance (what is dropped is *silent*) and of the effects (*ignored*)
    alike, eigenvalues at or below this share of the largest are dropped, or with ``relative=False``
    at or below this number, as in the published runs (1e-15); `Basis.summary` counts both. Keep it
    well above the rounding of the activations, or directions of noise are kept: as a share of the
    largest eigenvalue about 1e-15 in float32 and float64, 1e-7 in float16, 1e-5 in bfloat16.
    ``apart``: trailing features, at every boundary that has a section after it, that are not mixed
    with the others or each other (a norm's scale).
    The rest: see :func:`mi_helpers.basis.jacobians.jacobian_gram`.
    """
    stack = sections if isinstance(sections, Stack) else Stack(tuple(sections))
    activations = stack.activations(inputs)
    cut = partial(spectrum, threshold=threshold, relative=relative)  # what is dropped
    after = _principal(activations[-1], cut)
    if last == "identity":
        eye = torch.eye(activations[-1].shape[-1], dtype=torch.float64)
        variance = activation_gram(activations[-1])[1].diagonal()
        after = Boundary(torch.zeros_like(variance), eye, eye, variance, 0, 0)
    boundaries, final = [after], after
    for index in reversed(range(len(stack.sections))):
        if kind == "pca":
            after = _principal(activations[index], cut, apart)
        else:
            stop, C = (index + 1, after.C) if kind == "local" else (None, final.C)
            gram = jacobian_gram(
                _effect(stack, index, stop, C), activations[index],
                sources=sources, batch_size=batch_size, chunk=chunk, seed=seed + index,
            )  # fmt: skip
            after = _interaction(activations[index], gram, cut, apart)
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


def _principal(x: Tensor, cut: Callable, apart: int = 0) -> Boundary:
    """Principal components: what an interaction basis is compared with, and ends in."""
    mean, covariance = activation_gram(x)
    parts = [cut(covariance[b, b]) for b in _blocks(len(mean), apart)]
    C = torch.block_diag(*(vectors * _signs(vectors) for _, vectors in parts))
    variance = torch.cat([values for values, _ in parts])
    return _boundary(mean, C, C.mT, variance, silent=len(mean) - len(variance))


def _interaction(x: Tensor, gram: JacobianGram, cut: Callable, apart: int) -> Boundary:
    """Steps 1 to 3 of the module's docstring, for activations and the gradients at them."""
    mean, covariance = activation_gram(x)
    Cs, pinvs, effects, silent = [], [], [], 0
    for b in _blocks(len(mean), apart):
        # Covariance = U D U^T: whiten = U D^-1/2, and colour, its inverse on what varies.
        variance, U = cut(covariance[b, b])
        whiten, colour = U * variance.rsqrt(), variance.sqrt()[:, None] * U.mT
        # The Jacobians' Gram matrix in whitened coordinates: V Lambda V^T.
        effect, V = cut(colour @ gram.matrix[b, b] @ colour.mT)
        V = V * _signs(whiten @ V)
        # C = whiten V Lambda^1/2.
        Cs.append(whiten @ V * effect.sqrt())
        pinvs.append(effect.rsqrt()[:, None] * (V.mT @ colour))
        effects.append(effect)
        silent += len(U) - len(variance)
    C, C_pinv = torch.block_diag(*Cs), torch.block_diag(*pinvs)
    return _boundary(mean, C, C_pinv, torch.cat(effects), silent, gram.error)


def _signs(columns: Tensor) -> Float[Tensor, "column"]:
    """The sign of each column's largest entry: eigenvectors have none, so ours have this one."""
    if not columns.numel():
        return columns.new_ones(columns.shape[1])
    return columns.gather(0, columns.abs().argmax(0, keepdim=True))[0].sign()


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

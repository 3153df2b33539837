"""Gram matrices of activations and of Jacobians, in float64 whatever the network's dtype.

A Jacobian is never held whole. Cotangents are pulled back through the network a chunk at a time
(``torch.func``), and only their Gram matrix is kept, so peak memory is about
``batch_size * chunk`` times what one sample's backward pass needs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in float64, moved to the CPU from devices that have none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def activation_gram(
    x: Float[Tensor, "batch ... feature"],
) -> tuple[Float[Tensor, "feature"], Float[Tensor, "feature feature"]]:
    """Mean, and covariance about it, over samples and positions (float64, on the CPU)."""
    rows = wide(x.flatten(0, -2))
    mean = rows.mean(0)
    centred = rows - mean
    return mean.cpu(), (centred.T @ centred / len(rows)).cpu()


# Without no_grad a module's trainable parameters would be differentiated beside the activations:
# every chunk would then be kept for their sake.
@torch.no_grad()
def _vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable]:
    """The output at ``x``, and what pulls a gradient at the output back to one at ``x``."""
    y, pull, *_ = torch.func.vjp(function, x)
    return y, pull


@torch.no_grad()
def pull_back(
    function: Callable[[Tensor], Tensor], x: Tensor, chunk: int
) -> Iterator[tuple[Int[Tensor, "row"], Float[Tensor, "row batch ... feature"]]]:
    """Gradients of every output of each sample with respect to that sample's input.

    Yields ``chunk`` outputs at a time: their flat indices within a sample, and the gradients.
    """
    y, pull = _vjp(function, x)
    size = y[0].numel()
    for rows in torch.arange(size, device=x.device).split(chunk):
        seeds = torch.zeros(len(rows), len(x), size, dtype=y.dtype, device=y.device)
        seeds[torch.arange(len(rows), device=x.device), :, rows] = 1
        yield rows, torch.func.vmap(pull)(seeds.view(-1, *y.shape))[0]


def random_signs(
    n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator
) -> Float[Tensor, "n ..."]:
    """``n`` tensors of independent random signs, of the dtype and device of ``like``."""
    return (2 * torch.randint(0, 2, (n, *shape), generator=generator) - 1).to(like)


@dataclass(frozen=True)
class JacobianGram:
    """``matrix``: summed J^T J over outputs and input positions, averaged over both samples and
    input positions. ``error``: relative standard error (Frobenius) of a stochastic estimate, 0 if
    exact."""

    matrix: Float[Tensor, "feature feature"]
    error: float = 0.0


@torch.no_grad()
def jacobian_gram(
    function: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch ... feature"],
    *,
    sources: int | None = None,
    batch_size: int = 256,
    chunk: int = 16,
    seed: int = 0,
) -> JacobianGram:
    """Gram matrix of the Jacobian of ``function`` at ``x``, over the input's features.

    M_jk = 1/(samples * input positions) * sum over samples, outputs i and positions s of
    (dy_i/dx_sj)(dy_i/dx_sk): arXiv 2405.10928. ``function`` maps each sample on its own, to any
    shape.

    ``sources``: None for every output in turn (exact); otherwise the number, at least two, of
    random sign vectors over all outputs, whose squared pull-back is M in expectation.
    """
    if sources is not None and sources < 2:
        raise ValueError(f"sources must be None (exact) or at least 2, got {sources}")
    width, n_rows = x.shape[-1], x[..., 0].numel()
    if sources is None:
        total = torch.zeros(width, width, dtype=torch.float64)
        for batch in x.split(batch_size):
            for _, gradients in pull_back(function, batch, chunk):
                flat = wide(gradients.reshape(-1, width))
                total += (flat.T @ flat).cpu()
        return JacobianGram(total / n_rows)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.zeros(sources, width, width, dtype=torch.float64)
    for batch in x.split(batch_size):
        y, pull = _vjp(function, batch)
        for index in torch.arange(sources).split(chunk):
            gradients = torch.func.vmap(pull)(random_signs(len(index), y.shape, y, generator))[0]
            flat = wide(gradients.reshape(len(index), -1, width))
            draws[index] += (flat.mT @ flat).cpu()
    draws /= n_rows
    mean = draws.mean(0)
    error = ((draws - mean).pow(2).sum() / (sources - 1) / sources).sqrt() / mean.norm()
    return JacobianGram(mean, error.item())


def spectrum(
    gram: Float[Tensor, "n n"], threshold: float, relative: bool = True
) -> tuple[Float[Tensor, "kept"], Float[Tensor, "n kept"]]:
    """Eigenvalues above ``threshold`` (times the largest, if relative), descending, and vectors."""
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    keep = values > max(threshold * (values[-1].item() if relative else 1.0), 0.0)
    return values[keep].flip(0), vectors[:, keep].flip(1)


def quadrature(points: int) -> tuple[Float[Tensor, "point"], Float[Tensor, "point"]]:
    """Where to evaluate an integral over [0, 1], and the weights: Gauss and Legendre's rule."""
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@torch.no_grad()
def integrated_gradients(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch ... feature"],
    points: int,
    chunk: int,
) -> Iterator[tuple[Int[Tensor, "row"], Float[Tensor, "row batch ... feature"]]]:
    """Gradients averaged over the straight path from zero to ``x``, a chunk of outputs at a time.

    ``function(path, one)`` also gets the constant feature, ``[row of path, 1, ...]``, which is the
    share of the way. Multiply the result by ``x`` for the integrated gradient itself.
    """
    alphas, weights = (t.to(x) for t in quadrature(points))
    ones = [1] * (x.ndim - 1)
    one = alphas.repeat_interleave(len(x)).view(-1, *ones)
    path = x.repeat(points, *ones) * one
    for rows, gradients in pull_back(lambda z: function(z, one), path, chunk):
        split = rearrange(gradients, "row (point batch) ... -> row point batch ...", point=points)
        yield rows, einsum(weights, split, "point, row point ... -> row ...")

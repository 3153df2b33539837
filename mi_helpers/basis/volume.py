"""How the volume of nearly as good parameters grows: the learning coefficient, by sampling.

In a box around a network's parameters, let V(c) be the volume in which the loss is below c. For
small c it grows as c to a power, the learning coefficient (arXiv 2405.10927, section 2; Watanabe
2009): half the number of parameters where the loss is a full quadratic form, less where directions
are free. Twice that power is the effective number of parameters at cutoff c.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..stats import Estimate, estimate


@torch.no_grad()
def losses_below(
    loss: Callable[[Float[Tensor, "chain parameter"]], Float[Tensor, " chain"]],
    start: Float[Tensor, "chain parameter"],
    cutoff: float,
    *,
    reach: float = 1.0,
    steps: int = 200,
    burn_in: int = 100,
    curvature: Float[Tensor, "*chain parameter parameter"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "step chain"]:
    """Losses at uniform draws from the parameters in a box whose loss is below ``cutoff``.

    Hit-and-run: a step goes along a random line to a uniform point of the line's part below the
    cutoff, found by shrinking an interval towards the present point (Neal 2003, section 4). Every
    other line is along a coordinate, which finds its way around corners.

    ``start``: parameters with a loss below the cutoff, for each chain; its box reaches ``reach`` to
    both sides of each. Chains do not see each other, so ``loss`` may be of another network in each.
    ``curvature``: a quadratic form of the loss around the start, one for all chains or one each;
    lines then prefer directions that are flat in it, and chains mix faster. Steps in ``burn_in``
    are not returned.
    """
    generator = torch.Generator().manual_seed(seed)
    chains, size = start.shape
    directions = _flat_first(curvature, cutoff, reach, start)
    w, most = start, loss(start).max().item()
    if not most < cutoff:
        raise ValueError(f"the loss at start is up to {most:.3g}, not below the cutoff {cutoff:g}")
    found = []
    for step in range(burn_in + steps):
        if step % 2:
            normal = torch.randn(chains, size, generator=generator, dtype=w.dtype)
            line = (normal[:, None] @ directions)[:, 0]
        else:
            which = torch.randint(size, (chains,), generator=generator)
            line = torch.eye(size, dtype=w.dtype)[which]
        w, value = _step(loss, w, line, start, cutoff, reach, generator)
        if step >= burn_in:
            found.append(value)
    return torch.stack(found)


def _flat_first(curvature: Tensor | None, cutoff: float, reach: float, like: Tensor) -> Tensor:
    """Directions scaled by how far the loss stays below the cutoff along them, box at most."""
    if curvature is None:
        return torch.eye(like.shape[-1], dtype=like.dtype)
    values, vectors = torch.linalg.eigh(curvature.to(like))
    width = (cutoff / values.clamp_min(cutoff / reach**2)).sqrt()
    return width[..., None] * vectors.mT


def _step(
    loss: Callable[[Tensor], Tensor],
    w: Tensor,
    line: Tensor,
    centre: Tensor,
    cutoff: float,
    reach: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A uniform point below the cutoff on each chain's line through ``w``, and its loss."""
    # Where the line leaves the box, to both sides.
    ends = torch.stack([(centre - reach - w) / line, (centre + reach - w) / line])
    ends = torch.where(line == 0, torch.tensor([-math.inf, math.inf]).to(w)[:, None, None], ends)
    low, high = ends.amin(0).amax(1), ends.amax(0).amin(1)
    chosen, value = w, torch.full_like(low, math.inf)
    searching = torch.ones_like(low, dtype=torch.bool)
    # Draw; what misses becomes an end of the line on its side, until every chain has hit.
    while searching.any():
        t = low + (high - low) * torch.rand(len(w), generator=generator, dtype=w.dtype)
        trial = w + t[:, None] * line
        found = loss(trial)
        hit = searching & (found < cutoff)
        chosen = torch.where(hit[:, None], trial, chosen)
        value = torch.where(hit, found, value)
        searching = searching & ~hit
        low = torch.where(searching & (t < 0), t, low)
        high = torch.where(searching & (t >= 0), t, high)
    return chosen, value


def learning_coefficient(
    losses: Float[Tensor, "step chain"], cutoff: float, seed: int = 0
) -> Estimate:
    """The power with which volume grows at ``cutoff``, from losses drawn uniformly below it.

    If V(c) is proportional to c^k, then log(cutoff / loss) has mean 1 / k; where the power itself
    changes with c, this is a mean over cutoffs below. The interval is over chains. Twice the power
    is the effective number of parameters.
    """
    means = (cutoff / losses.clamp_min(1e-300)).log().mean(0)
    return estimate(means, lambda m: float(1 / np.mean(m)), over="chains", seed=seed)

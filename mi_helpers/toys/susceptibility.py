"""How samples around a network answer to other data: Langevin draws, and what they covary with.

`draws` samples parameters that are nearly as good as the given ones. How the losses of several
sources vary together there says how the samples would answer to other weights of the sources
(`susceptibilities`), and so which weights to take for a wanted answer (`shift`). Parameters are
flat, [chain, parameter], and any function from them to losses will do.

Source: Wang & Murfet 2026, arXiv 2601.13548.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm


def draws(
    batch_loss: Callable[[Float[Tensor, "chain parameter"], int], Float[Tensor, "chain"]],
    losses: Callable[[Float[Tensor, "chain parameter"]], Float[Tensor, "chain source"]],
    start: Float[Tensor, "chain parameter"],
    *,
    n_beta: float,
    step_size: float,
    steps: int,
    gamma: float = 0.0,
    free: Float[Tensor, "*chain parameter"] | float = 1.0,
    burn_in: int = 20,
    every: int = 1,
    seed: int = 0,
) -> Float[Tensor, "draw chain source"]:
    """Losses at samples of parameters, less those at the start: Langevin dynamics on batches.

    Density: exp(-n_beta loss(w) - gamma |w - start|² / 2). A step follows its slope on a batch,
    `batch_loss(w, step)`, by half the `step_size`, and adds noise of that variance. `free` is 1
    for parameters that move and 0 for those that stay. `losses` are kept `every` so many steps,
    after `burn_in`. Source: Welling & Teh 2011 (SGLD); Lau et al. 2023.
    """
    generator = torch.Generator().manual_seed(seed)
    w, kept = start, []
    for step in tqdm(range(1, burn_in + steps + 1), "sampling", leave=False):
        w = w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(batch_loss(w, step).sum(), w)
        noise = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        with torch.no_grad():
            drift = n_beta * slope + gamma * (w - start)
            w = w + free * (step_size**0.5 * noise - step_size / 2 * drift)
            if step > burn_in and step % every == 0:
                kept.append(losses(w))
    return torch.stack(kept) - losses(start).detach()


def susceptibilities(
    found: Float[Tensor, "draw *chain source"], mixture: Float[Tensor, "source"], n_beta: float
) -> Float[Tensor, "*chain source"]:
    """d λ / d h_k: how the learning coefficient λ = n_beta E[loss] of the samples changes as the
    mixture h moves towards source k: -n_beta² Cov(loss, loss_k - loss). Source: 2601.13548."""
    loss = found @ mixture
    beyond = found - loss[..., None]
    return -(n_beta**2) * (beyond * (loss - loss.mean(0))[..., None]).sum(0) / (len(found) - 1)


def shift(
    chi: Float[Tensor, "observable source"],
    wanted: Float[Tensor, "observable"],
    held: Sequence[int] = (),
) -> Float[Tensor, "source"]:
    """The shortest change of the mixture with the `wanted` response: χ⁺ wanted.

    It sums to zero and leaves the sources in `held` as they are: rows of χ that must answer 0.
    Source: 2601.13548, dh = χ⁺ dμ.
    """
    rows = torch.cat([chi, torch.ones(1, chi.shape[1]), torch.eye(chi.shape[1])[list(held)]])
    return torch.linalg.pinv(rows) @ pad(wanted, (0, len(rows) - len(wanted)))

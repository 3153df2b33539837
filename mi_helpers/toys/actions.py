"""Actions beyond their range: latents that known actions move linearly.

`train_autoencoder` can be held to that, and `extrapolate` says what unseen actions do. All networks
of one call train side by side, [net, ...].

Source: Saengkyongam et al. 2024, arXiv 2310.04295.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import leaky_relu
from tqdm.auto import tqdm

from .identifiability import residual
from .side_by_side import Draws, descend, mlp


class Actions(NamedTuple):
    """z = M a + v, x a bent copy of z in ten dimensions, y = 2 sin z₁ + 2 cos z₂ + v₁ + v₂ + noise.

    The noise v moves z and y alike, so y regressed on z is not the effect of z.
    """

    a: Float[Tensor, "net n 2"]
    z: Float[Tensor, "net n 2"]
    x: Float[Tensor, "net n 10"]
    y: Float[Tensor, "net n"]
    M: Float[Tensor, "net 2 2"]

    def effect(self, a: Float[Tensor, "net m 2"]) -> Float[Tensor, "net m"]:
        """E[y | do(a)]: the mean over v, which is N(0, 1), damps sine and cosine by e^(-1/2)."""
        one, two = (a @ self.M.mT).unbind(-1)
        return 2 * (one.sin() + two.cos()) * math.exp(-0.5)


def action_world(seeds: Sequence[int], n: int = 10_000) -> Actions:
    """Actions between -1 and 1, and what follows from them."""
    draw = Draws(seeds)
    a, M, v = draw.uniform(n, 2), 1.5 * draw.rotation(2, 2), draw.normal(n, 2)
    z = x = a @ M.mT + v
    for _ in range(2):
        x = leaky_relu(x @ draw.rotation(2, 2) + draw.uniform(1, 2) / 2, 0.35)
    y = 2 * (z[..., 0].sin() + z[..., 1].cos()) + v.sum(-1) + 0.2 * draw.normal(n)
    return Actions(a, z, x @ draw.rotation(10, 2).mT, y, M)


def cosines(n: int = 40, width: float = 0.5) -> tuple[Float[Tensor, "2 n"], Float[Tensor, "n"]]:
    """Frequencies and phases with which `moment` stands for a Gaussian kernel of that width."""
    draw = torch.Generator().manual_seed(0)
    frequencies = torch.randn(2, n, generator=draw) / width
    return frequencies, 2 * math.pi * torch.rand(n, generator=draw)


def moment(
    r: Float[Tensor, "net n 2"], a: Float[Tensor, "net n 2"], waves: tuple[Tensor, Tensor]
) -> Float[Tensor, "net"]:
    """n⁻² Σ_{i≠j} r_i·r_j k(a_i, a_j): above zero in the mean where r depends on a.

    k(a, b) = ψ(a)·ψ(b) with cosines ψ, so that the sum over pairs is the square of one over rows.
    Source: the maximum moment restriction of 2310.04295, section 5.
    """
    psi = (2 / len(waves[1])) ** 0.5 * (a @ waves[0] + waves[1]).cos()
    all_pairs = (r.mT @ psi).square().sum((1, 2))
    with_itself = (r.square().sum(-1) * psi.square().sum(-1)).sum(1)
    return (all_pairs - with_itself) / r.shape[1] ** 2


def train_autoencoder(
    x: Float[Tensor, "net n d"],
    a: Float[Tensor, "net n 2"],
    seeds: Sequence[int],
    weight: float,
    steps: int = 800,
) -> Float[Tensor, "net n 2"]:
    """Codes of x, each of variance one. `weight` is that of `moment` beside the squared error."""
    draw, d, waves = Draws([seed + 1 for seed in seeds]), x.shape[-1], cosines()
    x = (x - x.mean(1, keepdim=True)) / x.std((1, 2), keepdim=True)
    encoder, decoder = draw.layers(d, 32, 32, 2), draw.layers(2, 32, 32, d)
    optimiser = torch.optim.Adam([*encoder, *decoder], lr=0.005)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def codes(seen: Tensor) -> Tensor:
        code = mlp(encoder, seen)
        return (code - code.mean(1, keepdim=True)) / code.std(1, keepdim=True)

    pick = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), "autoencoders", leave=False):
        rows = torch.randint(x.shape[1], (1000,), generator=pick)
        code = codes(x[:, rows])
        loss = (mlp(decoder, code) - x[:, rows]).square().mean((1, 2))
        if weight:
            loss = loss + weight * moment(residual(code, a[:, rows])[0], a[:, rows], waves)
        descend(optimiser, loss)
        schedule.step()
    return codes(x).detach()


def smooth(
    x: Float[Tensor, "net n d"], y: Float[Tensor, "net n"], beside: Float[Tensor, "net n e"]
) -> Callable[[Float[Tensor, "net m d"]], Float[Tensor, "net m"]]:
    """Ridge regression on Gaussian bumps at the first hundred rows, with linear columns beside.

    Returns the fit as a function of x, without the columns beside. Inputs are whitened first, so
    that an affine map of them changes nothing.
    """
    mean = x.double().mean(1, keepdim=True)
    centred = x.double() - mean
    factor = torch.linalg.cholesky(centred.mT @ centred / x.shape[1])
    whiten = torch.linalg.inv(factor).mT
    bumps = (centred @ whiten)[:, :100]

    def columns(x: Tensor) -> Float[Tensor, "net m column"]:
        x = (x.double() - mean) @ whiten
        near = (-torch.cdist(x, bumps).square() / 2).exp()
        return torch.cat([torch.ones_like(x[..., :1]), x, near], -1)

    own = columns(x)
    both = torch.cat([own, beside.double()], -1)
    gram = both.mT @ both / x.shape[1] + 1e-4 * torch.eye(both.shape[-1]).double()
    weights = torch.linalg.solve(gram, both.mT @ y.double()[..., None] / x.shape[1])
    weights = weights[:, : own.shape[-1]]
    return lambda x: (columns(x) @ weights)[..., 0]


def extrapolate(
    codes: Float[Tensor, "net n 2"],
    a: Float[Tensor, "net n 2"],
    y: Float[Tensor, "net n"],
    targets: Float[Tensor, "net m 2"],
) -> Float[Tensor, "net m"]:
    """E[y | do(a)] at each target, by way of the codes, with a control function.

    The codes are moved to where the action would put them, Ŵa + b̂ + v̂_i, v̂ being what a linear
    map of the actions leaves of them. y is fitted as s(code) + c·v̂; s is averaged over i.
    Source: 2310.04295, section 5; there the second term may be nonlinear as well.
    """
    noise, linear = residual(codes.double(), a.double())
    fit = smooth(codes, y, noise)
    targets = torch.cat([targets, torch.ones_like(targets[..., :1])], -1).double() @ linear
    return torch.stack([fit(at[:, None] + noise).mean(1) for at in targets.unbind(1)], 1)

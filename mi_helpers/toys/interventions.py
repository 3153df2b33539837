"""Latents that somebody moves: actions beyond their range, and interventions nobody has named.

1. `action_world`: actions move latents linearly. `train_autoencoder` can be held to that, and
   `extrapolate` says what unseen actions do. Source: Saengkyongam et al. 2024, arXiv 2310.04295.
2. `causal_world`: in two of three environments one latent was set, nobody says which. `fit` gives
   each guess its likelihood. Source: after von Kügelgen et al. 2023, arXiv 2306.00542.

All networks of one call train side by side, [net, ...].
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from tqdm.auto import tqdm

from .identifiability import residual
from .side_by_side import Draws, descend, mlp

# Actions beyond their range


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


def bend(u: Tensor) -> Tensor:
    """The y with y + y³ = u, by Cardano: smooth, so that no volume jumps, and odd, so that no sign
    of a start is the wrong one."""
    return 2 / 3**0.5 * ((1.5 * 3**0.5 * u).asinh() / 3).sinh()


def unbend(y: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `bend`, and the log of its slope."""
    return y + y**3, (1 + 3 * y.square()).log()


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


# Unknown interventions


class Guess(NamedTuple):
    """Does the first latent cause the second, and which one (0, 1) is set in which environment?"""

    edge: bool
    targets: tuple[int, int]


def causal_world(
    seeds: Sequence[int], n: int = 2000
) -> tuple[Float[Tensor, "net 3 n 2"], Float[Tensor, "net 3 n 2"]]:
    """v₂ = 2 tanh(1.5 v₁) + noise, seen as it is, with v₁ set, with v₂ set: (v, x).

    x is a rotation of v, bent, and rotated again.
    """
    draw = Draws(seeds)
    first, second = draw.normal(3, n, 2).unbind(-1)
    first[:, 1] = 1 + 0.5 * first[:, 1]
    caused = 2 * (1.5 * first).tanh() + 0.5 * second
    caused[:, 2] = second[:, 2]
    v = torch.stack([first, caused], -1)
    bent = bend(2 * v @ draw.rotation(1, 2, 2) + draw.uniform(1, 1, 2))
    return v, bent @ draw.rotation(1, 2, 2)


class CausalModel(nn.Module):
    """Unmixes x and says how likely it is, under one guess and from one seed for each model.

    z = unbend(x W₁ + b₁) W₂ + b₂. The first latent is N(0, 1), the second N(f(first), σ²) with f a
    small tanh network, or f = 0 without an edge. A latent that was set has a mean and a spread of
    its own in that environment.
    """

    def __init__(self, guesses: Sequence[Guess], seeds: Sequence[int], hidden: int = 8) -> None:
        super().__init__()
        draw, n = Draws(seeds), len(seeds)
        self.W = nn.Parameter(draw.rotation(2, 2, 2) + 0.1 * draw.normal(2, 2, 2))
        self.b = nn.Parameter(0.3 * draw.normal(2, 1, 2))  # [model, layer, 1, column], W likewise
        f = [draw.normal(1, hidden), draw.normal(1, hidden), 0.3 * draw.normal(hidden, 1)]
        self.f = nn.ParameterList([*f, torch.zeros(n, 1, 1)])  # weights and biases in turn
        self.log_sigma = nn.Parameter(torch.zeros(n, 1, 1))
        self.set_mean = nn.Parameter(torch.zeros(n, 2, 1))  # in environments 1 and 2
        self.set_log_sigma = nn.Parameter(torch.zeros(n, 2, 1))
        self.edge = torch.tensor([guess.edge for guess in guesses])
        self.targets = torch.tensor([guess.targets for guess in guesses])  # [model, 2]

    def unmix(
        self, x: Float[Tensor, "model env n 2"]
    ) -> tuple[Float[Tensor, "model env n 2"], Float[Tensor, "model env n"]]:
        """The latents, and log |det dz/dx|."""
        rows = rearrange(x, "model e n d -> model (e n) d")
        unbent, log_slope = unbend(torch.baddbmm(self.b[:, 0], rows, self.W[:, 0]))
        z = torch.baddbmm(self.b[:, 1], unbent, self.W[:, 1])
        volume = log_slope.sum(-1) + self.W.det().abs().log().sum(1, keepdim=True)
        return z.view(x.shape), volume.view(x.shape[:-1])

    def log_likelihood(self, x: Float[Tensor, "model 3 n 2"]) -> Float[Tensor, "model 3 n"]:
        """log p(x) of every row, in nats."""
        z, total = self.unmix(x)
        first = rearrange(z[..., :1], "model e n 1 -> model (e n) 1")
        hidden = torch.baddbmm(self.f[1], first, self.f[0]).tanh()
        caused = torch.baddbmm(self.f[3], hidden, self.f[2])[..., 0] * self.edge[:, None]
        means = torch.zeros_like(total), caused.view(total.shape)
        for latent, spread in enumerate((torch.zeros_like(self.log_sigma), self.log_sigma)):
            own = log_normal(z[..., latent], means[latent], spread)
            put = log_normal(z[:, 1:, :, latent], self.set_mean, self.set_log_sigma)
            here = (self.targets == latent)[..., None]
            total = total + torch.cat([own[:, :1], torch.where(here, put, own[:, 1:])], 1)
        return total


def log_normal(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Log density of N(mean, exp(log_sigma)²)."""
    return -((x - mean) / log_sigma.exp()).square() / 2 - log_sigma - math.log(2 * math.pi) / 2


class Fitted(NamedTuple):
    likelihood: Float[Tensor, "net guess"]  # per held-out row, in nats
    z: Float[Tensor, "net guess 3 n 2"]  # the held-out rows' latents


def fit(
    x: Float[Tensor, "net 3 n 2"],
    guesses: Sequence[Guess],
    seeds: Sequence[int],
    starts: int = 6,
    steps: int = 400,
) -> Fitted:
    """Maximum likelihood under each guess, on the first half of the rows; the rest is held out.

    Of several starts that with the largest likelihood on the first half counts. The starts are the
    same for every guess.
    """
    which = list(product(range(len(x)), guesses, range(starts)))
    model = CausalModel(
        [guess for _, guess, _ in which], [1000 * seeds[net] + start for net, _, start in which]
    )
    each, half = x.repeat_interleave(len(guesses) * starts, 0), x.shape[2] // 2
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    pick = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), "causal models", leave=False):
        rows = torch.randint(half, (128,), generator=pick)
        descend(optimiser, -model.log_likelihood(each[:, :, rows]).mean((1, 2)))
        schedule.step()
    model.requires_grad_(False)
    trained, held_out = (
        model.log_likelihood(part).mean((1, 2)).view(len(x), len(guesses), starts)
        for part in (each[:, :, :half], each[:, :, half:])
    )
    z = model.unmix(each[:, :, half:])[0].unflatten(0, trained.shape)
    best = torch.arange(len(x))[:, None], torch.arange(len(guesses)), trained.argmax(-1)
    return Fitted(held_out[best], z[best])

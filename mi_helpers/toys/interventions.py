"""Interventions that nobody has named: in two of three environments one latent was set.

`causal_world` makes the data, and `fit` gives each guess its likelihood. All models of one call are
fitted side by side, [net, ...].

Source: after von Kügelgen et al. 2023, arXiv 2306.00542.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .side_by_side import Draws, descend


def bend(u: Tensor) -> Tensor:
    """The y with y + y³ = u, by Cardano: smooth, so that no volume jumps, and odd, so that no sign
    of a start is the wrong one."""
    return 2 / 3**0.5 * ((1.5 * 3**0.5 * u).asinh() / 3).sinh()


def unbend(y: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `bend`, and the log of its slope."""
    return y + y**3, (1 + 3 * y.square()).log()


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

    def __init__(self, guesses: Sequence[Guess], seeds: Sequence[int]) -> None:
        super().__init__()
        draw, n, hidden = Draws(seeds), len(seeds), 8
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

"""Latents that somebody moves: actions beyond their range, and interventions nobody has named.

1. `action_world`: actions move latents linearly. `train_autoencoder` can be held to that, and
   `extrapolate` says what unseen actions do. Source: Saengkyongam et al. 2024, arXiv 2310.04295.
2. `causal_world`: in two of three environments one latent was set, nobody says which. `fit` gives
   each guess its likelihood. Source: after von Kügelgen et al. 2023, arXiv 2306.00542.

All networks of one call train side by side, [net, ...], each on random numbers of its own seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import leaky_relu
from tqdm.auto import tqdm

from .identifiability import Draws, mlp, residual

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
    batch: int = 1000,
    hidden: int = 32,
) -> Float[Tensor, "net n 2"]:
    """Codes of x, each of variance one. `weight` is that of `moment` beside the squared error."""
    draw, d, waves = Draws([seed + 1 for seed in seeds]), x.shape[-1], cosines()
    x = (x - x.mean(1, keepdim=True)) / x.std((1, 2), keepdim=True)
    encoder, decoder = draw.layers(d, hidden, hidden, 2), draw.layers(2, hidden, hidden, d)
    optimiser = torch.optim.Adam([*encoder, *decoder], lr=0.005)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def codes(seen: Tensor) -> Tensor:
        code = mlp(encoder, seen)
        return (code - code.mean(1, keepdim=True)) / code.std(1, keepdim=True)

    pick = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), "autoencoders", leave=False):
        rows = torch.randint(x.shape[1], (batch,), generator=pick)
        code = codes(x[:, rows])
        loss = (mlp(decoder, code) - x[:, rows]).square().mean((1, 2))
        if weight:
            loss = loss + weight * moment(residual(code, a[:, rows])[0], a[:, rows], waves)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        schedule.step()
    return codes(x).detach()


class Smooth:
    """Ridge regression on Gaussian bumps at the first hundred rows, beside linear columns.

    Inputs are whitened first, so that an affine map of them changes nothing.
    """

    def __init__(self, x: Tensor, y: Float[Tensor, "net n"], beside: Tensor) -> None:
        x = x.double()
        self.mean = x.mean(1, keepdim=True)
        centred = x - self.mean
        factor = torch.linalg.cholesky(centred.mT @ centred / x.shape[1])
        self.whiten = torch.linalg.inv(factor).mT
        self.bumps = (centred @ self.whiten)[:, :100]
        columns = torch.cat([self.columns(x), beside.double()], -1)
        gram = columns.mT @ columns / x.shape[1] + 1e-4 * torch.eye(columns.shape[-1]).double()
        moments = columns.mT @ y.double()[..., None] / x.shape[1]
        self.weights = torch.linalg.solve(gram, moments)[:, : columns.shape[-1] - beside.shape[-1]]

    def columns(self, x: Tensor) -> Tensor:
        x = (x.double() - self.mean) @ self.whiten
        near = (-torch.cdist(x, self.bumps).square() / 2).exp()
        return torch.cat([torch.ones_like(x[..., :1]), x, near], -1)

    def __call__(self, x: Float[Tensor, "net m d"]) -> Float[Tensor, "net m"]:
        """The fit without the columns beside."""
        return (self.columns(x) @ self.weights)[..., 0]


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
    fit = Smooth(codes, y, noise)
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


@dataclass
class CausalModel:
    """Unmixes x and says how likely it is; one row of every tensor for each model.

    z = unbend(x W₁ + b₁) W₂ + b₂. The first latent is N(0, 1), the second N(f(first), σ²) with f a
    small tanh network, or f = 0 without an edge. A latent that was set has a mean and a spread of
    its own in that environment.
    """

    W: Float[Tensor, "model 2 row column"]
    b: Float[Tensor, "model 2 1 column"]
    f: list[Tensor]  # weights and biases of f
    log_sigma: Float[Tensor, "model 1 1"]
    set_mean: Float[Tensor, "model 2 1"]  # in environments 1 and 2
    set_log_sigma: Float[Tensor, "model 2 1"]
    edge: Bool[Tensor, "model"]
    targets: Int[Tensor, "model 2"]

    @classmethod
    def start(
        cls, guesses: Sequence[Guess], seeds: Sequence[int], hidden: int = 8
    ) -> "CausalModel":
        draw = Draws(seeds)
        zeros = [torch.zeros(len(seeds), 2, 1) for _ in range(2)]
        model = cls(
            W=draw.rotation(2, 2, 2) + 0.1 * draw.normal(2, 2, 2),
            b=0.3 * draw.normal(2, 1, 2),
            f=[draw.normal(1, hidden), draw.normal(1, hidden), 0.3 * draw.normal(hidden, 1)],
            log_sigma=torch.zeros(len(seeds), 1, 1),
            set_mean=zeros[0],
            set_log_sigma=zeros[1],
            edge=torch.tensor([guess.edge for guess in guesses]),
            targets=torch.tensor([guess.targets for guess in guesses]),
        )
        model.f.append(torch.zeros(len(seeds), 1, 1))
        return model

    def weights(self) -> list[Tensor]:
        return [self.W, self.b, *self.f, self.log_sigma, self.set_mean, self.set_log_sigma]

    def unmix(
        self, x: Float[Tensor, "model env n 2"]
    ) -> tuple[Float[Tensor, "model env n 2"], Float[Tensor, "model env n"]]:
        """The latents, and log |det dz/dx|."""
        envs = x.shape[1]
        rows = rearrange(x, "model e n d -> model (e n) d")
        unbent, log_slope = unbend(torch.baddbmm(self.b[:, 0], rows, self.W[:, 0]))
        z = torch.baddbmm(self.b[:, 1], unbent, self.W[:, 1])
        volume = log_slope.sum(-1)
        volume = volume + self.W.det().abs().log().sum(1, keepdim=True)
        z = rearrange(z, "model (e n) d -> model e n d", e=envs)
        return z, rearrange(volume, "model (e n) -> model e n", e=envs)

    def log_likelihood(self, x: Float[Tensor, "model 3 n 2"]) -> Float[Tensor, "model 3 n"]:
        """log p(x) of every row, in nats."""
        z, total = self.unmix(x)
        first = rearrange(z[..., :1], "model e n 1 -> model (e n) 1")
        hidden = torch.baddbmm(self.f[1], first, self.f[0]).tanh()
        caused = torch.baddbmm(self.f[3], hidden, self.f[2])[..., 0] * self.edge[:, None]
        means = torch.zeros_like(total), caused.unflatten(1, total.shape[1:])
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
    batch: int = 128,
) -> Fitted:
    """Maximum likelihood under each guess, on the first half of the rows; the rest is held out.

    Of several starts that with the largest likelihood on the first half counts. The starts are the
    same for every guess.
    """
    which = [
        (net, g, s) for net in range(len(x)) for g in range(len(guesses)) for s in range(starts)
    ]
    nets = torch.tensor([net for net, _, _ in which])
    model = CausalModel.start(
        [guesses[g] for _, g, _ in which], [1000 * seeds[net] + s for net, _, s in which]
    )
    for weight in model.weights():
        weight.requires_grad_()
    half = x.shape[2] // 2
    optimiser = torch.optim.Adam(model.weights(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    pick = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), "causal models", leave=False):
        rows = torch.randint(half, (batch,), generator=pick)
        loss = -model.log_likelihood(x[:, :, rows][nets]).mean((1, 2)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        trained, held_out = (
            rearrange(
                model.log_likelihood(part[nets]).mean((1, 2)),
                "(net g s) -> net g s",
                g=len(guesses),
                s=starts,
            )
            for part in (x[:, :, :half], x[:, :, half:])
        )
        z = rearrange(
            model.unmix(x[nets][:, :, half:])[0],
            "(net g s) e n d -> net g s e n d",
            g=len(guesses),
            s=starts,
        )
    best = trained.argmax(-1, keepdim=True)
    at = best[..., None, None, None].expand(-1, -1, 1, *z.shape[3:])
    return Fitted(held_out.gather(2, best)[..., 0], z.gather(2, at)[:, :, 0])

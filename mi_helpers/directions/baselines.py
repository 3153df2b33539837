"""Sensitive directions: how far the output moves when an activation is pushed along a direction.

The answer depends on what a direction is compared with, so every baseline is defined here, exactly.
With x the residual stream at one token, u(v) = v/‖v‖ and ℓ a length:

- Mixture family, x' = x + ℓ·u(v). `isotropic`: v ~ N(0, I). `covariance`: v ~ N(0, Σ + 0.01·I),
  which is the difference of two draws from N(μ, Σ) up to its length. `real`: v = a - b for two
  other real activations.
- Itself family, x' = x + ℓ·u(t - x), which subtracts x. `isotropic target`: t = m·z, z ~ N(0, I),
  m the median length of activations, so that ‖t‖ ≈ m·√d is far beyond ‖x‖; `isotropic target, same
  length`: the same with ‖t‖ = m. `covariance target`: t ~ N(μ, Σ + 0.01·I). `real target`: t is
  another real activation. `zero`: t = 0.
- An extra, x' = x + ℓ·v: `principal` (one of the ten leading eigenvectors of Σ, either way).

μ and Σ are those of real activations at the same place, position 0 and tokens of extreme norm left
out.

Sources: Lee & Heimersheim 2024, arXiv 2410.12555 (mixture family); Heimersheim & Mendel 2024,
Interim report: activation plateaus & sensitive directions in GPT2 (itself family); Gurnee 2024, SAE
reconstruction errors are (empirically) pathological. SAE directions are in `sae`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

JITTER = 0.01  # added to the diagonal of Σ, as the authors do, in squared units of the stream
N_PRINCIPAL = 10


def generator(seed: int, name: str) -> Generator:
    """Random numbers of their own for each seed and name: what is drawn under two names is
    unrelated, whatever the seed. (Two draws that share a seed share their numbers.)"""
    return Generator().manual_seed(zlib.crc32(f"{name}, {seed}".encode()))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(μ, Σ + 0.01·I), in float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    @staticmethod
    def of(activations: Float[Tensor, "n d"]) -> "Gaussian":
        """The Gaussian with the activations' mean and covariance. Raises ValueError for fewer than
        two activations, or values that are not finite."""
        x = activations.double()
        if len(x) < 2 or not x.isfinite().all():
            raise ValueError(f"a covariance needs two or more finite activations, got {len(x)}")
        return Gaussian(x.mean(0), x.T.cov() + JITTER * torch.eye(x.shape[1]).to(x))

    @cached_property
    def factor(self) -> Float[Tensor, "d d"]:
        return torch.linalg.cholesky(self.covariance)

    def draw(self, n: int, generator: Generator, centred: bool = False) -> Float[Tensor, "n d"]:
        """`n` independent draws, with mean μ or, `centred`, 0."""
        z = torch.randn(n, len(self.mean), dtype=torch.float64, generator=generator)
        return z.to(self.mean) @ self.factor.T + (0 if centred else self.mean)


@dataclass(frozen=True, eq=False)
class Activations:
    """The activations to be pushed, and the real ones that baselines are made of.

    `x` holds the former, `real` all activations at the place; `own[i]` is where x[i] stands among
    them (-1: nowhere), so that "another real activation" is another one.
    """

    x: Float[Tensor, "token d"]
    real: Float[Tensor, "n d"]
    own: Int[Tensor, "token"]

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian.of(self.real)

    @cached_property
    def length(self) -> float:
        """The median length of the real activations."""
        return float(self.real.norm(dim=-1).median())

    @cached_property
    def principal(self) -> Float[Tensor, "k d"]:
        """The leading eigenvectors of Σ, the largest eigenvalue first."""
        return torch.linalg.eigh(self.gaussian.covariance)[1].T.flip(0)[:N_PRINCIPAL]

    def others(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Two other real activations for each activation, not the same ones."""
        n = len(self.real)
        if n < 3:
            raise ValueError(f"two other real activations are needed, there are {n - 1}")
        first = torch.randint(n - 1, self.own.shape, generator=generator)
        second = (first + 1 + torch.randint(n - 2, self.own.shape, generator=generator)) % (n - 1)
        own = self.own.to(self.real.device)
        return self.real[(own + 1 + first.to(own)) % n], self.real[(own + 1 + second.to(own)) % n]


Baseline = Callable[[Activations, Generator], Float[Tensor, "token d"]]


def _normal(a: Activations, generator: Generator) -> Float[Tensor, "token d"]:
    return torch.randn(a.x.shape, dtype=torch.float64, generator=generator).to(a.x)


def _difference(a: Activations, generator: Generator) -> Float[Tensor, "token d"]:
    first, second = a.others(generator)
    return first - second


MIXTURE: dict[str, Baseline] = {
    "isotropic": _normal,
    "covariance": lambda a, g: a.gaussian.draw(len(a.x), g, centred=True).to(a.x),
    "real": _difference,
}
ITSELF: dict[str, Baseline] = {
    "isotropic target": lambda a, g: a.length * _normal(a, g) - a.x,
    "isotropic target, same length": lambda a, g: a.length * unit(_normal(a, g)) - a.x,
    "covariance target": lambda a, g: a.gaussian.draw(len(a.x), g).to(a.x) - a.x,
    "real target": lambda a, g: a.others(g)[0] - a.x,
    "zero": lambda a, g: -a.x,
}
EXTRA: dict[str, Baseline] = {
    "principal": lambda a, g: pick(a.principal.to(a.x), len(a.x), g, signed=True),
}
BASELINES = MIXTURE | ITSELF | EXTRA


def pick(
    among: Float[Tensor, "k d"], n: int, generator: Generator, signed: bool = False
) -> Float[Tensor, "n d"]:
    """`n` of the given directions, drawn with replacement; `signed`: forwards or backwards."""
    chosen = among[torch.randint(len(among), (n,), generator=generator)]
    sign = 1 - 2 * torch.randint(2, (n, 1), generator=generator) if signed else torch.ones(n, 1)
    return chosen * sign.to(chosen)


def unit(v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """v/‖v‖. Raises ValueError for a vector of length zero, which has no direction."""
    length = v.norm(dim=-1, keepdim=True)
    if (length == 0).any():
        raise ValueError(f"{int((length == 0).sum())} of {length.numel()} directions have length 0")
    return v / length

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
- Extras, x' = x + ℓ·v: `principal` (one of the ten leading eigenvectors of Σ, either way) and
  `unembedding` (the direction that one token's logit reads).

μ and Σ are those of real activations at the same place, position 0 left out.

Sources: Lee & Heimersheim 2024, arXiv 2410.12555 (mixture family); Heimersheim & Mendel 2024,
Interim report: activation plateaus & sensitive directions in GPT2 (itself family); Gurnee 2024, SAE
reconstruction errors are (empirically) pathological. SAE directions are in `sae_directions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ..engine.execution import Run
from ..engine.rows import Place, Write

JITTER = 0.01  # added to the diagonal of Σ, as the authors do, in squared units of the stream
N_PRINCIPAL = 10


# --- Real activations and the Gaussian with their mean and covariance -----------------------------


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


# --- Baselines ----------------------------------------------------------------------------------

Baseline = Callable[[Activations, Generator], Float[Tensor, "token d"]]


def _normal(like: Activations, generator: Generator) -> Float[Tensor, "token d"]:
    return torch.randn(like.x.shape, dtype=torch.float64, generator=generator).to(like.x)


def _isotropic(a: Activations, generator: Generator) -> Tensor:
    return _normal(a, generator)


def _covariance(a: Activations, generator: Generator) -> Tensor:
    return a.gaussian.draw(len(a.x), generator, centred=True).to(a.x)


def _real(a: Activations, generator: Generator) -> Tensor:
    first, second = a.others(generator)
    return first - second


def _isotropic_target(a: Activations, generator: Generator) -> Tensor:
    return a.length * _normal(a, generator) - a.x


def _isotropic_target_same_length(a: Activations, generator: Generator) -> Tensor:
    return a.length * unit(_normal(a, generator)) - a.x


def _covariance_target(a: Activations, generator: Generator) -> Tensor:
    return a.gaussian.draw(len(a.x), generator).to(a.x) - a.x


def _real_target(a: Activations, generator: Generator) -> Tensor:
    return a.others(generator)[0] - a.x


def _zero(a: Activations, generator: Generator) -> Tensor:
    return -a.x


def _principal(a: Activations, generator: Generator) -> Tensor:
    return pick(a.principal.to(a.x), len(a.x), generator, signed=True)


MIXTURE: dict[str, Baseline] = {
    "isotropic": _isotropic,
    "covariance": _covariance,
    "real": _real,
}
ITSELF: dict[str, Baseline] = {
    "isotropic target": _isotropic_target,
    "isotropic target, same length": _isotropic_target_same_length,
    "covariance target": _covariance_target,
    "real target": _real_target,
    "zero": _zero,
}
BASELINES = MIXTURE | ITSELF | {"principal": _principal}


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


# --- On a recorded run --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spot:
    """Where the stream is pushed: before `layer`, at the positions `pos` of every prompt of `run`.

    Tensors over the spot are [prompt, k, d]: one vector for each prompt and position.
    """

    run: Run
    layer: int
    pos: list[int]
    real: Float[Tensor, "n d"] | None = None

    @cached_property
    def x(self) -> Float[Tensor, "prompt k d"]:
        return self.run.resid[self.layer][:, self.pos]

    @cached_property
    def activations(self) -> Activations:
        x = self.x.flatten(0, 1)
        if self.real is not None:
            return Activations(x, self.real, torch.full((len(x),), -1))
        stream = self.run.resid[self.layer][:, 1:]
        n_prompts, n_pos = stream.shape[:2]
        own = torch.arange(n_prompts)[:, None] * n_pos + torch.tensor(self.pos) - 1
        return Activations(x, stream.flatten(0, 1), own.flatten())

    @property
    def length(self) -> float:
        """The median length of the stream before `layer`, position 0 left out."""
        return self.activations.length

    def baseline(self, name: str, seed: int = 0) -> Float[Tensor, "prompt k d"]:
        """Unit vectors along one of BASELINES, drawn anew for each token."""
        if name not in BASELINES:
            raise ValueError(f"unknown baseline {name!r}: choose one of {', '.join(BASELINES)}")
        generator = Generator().manual_seed(seed * 1000 + list(BASELINES).index(name))
        return unit(BASELINES[name](self.activations, generator)).unflatten(0, self.x.shape[:2])

    def unembedding(self, seed: int = 0) -> Float[Tensor, "prompt k d"]:
        """Unit vectors along the unembedding of tokens drawn at random."""
        language_model: Any = self.run.model.original_model
        head = language_model.get_output_embeddings().weight
        generator = Generator().manual_seed(seed)
        return self._each(head.detach(), generator, signed=False)

    def _each(self, among: Float[Tensor, "k d"], generator: Generator, signed: bool) -> Tensor:
        chosen = pick(among, len(self.activations.x), generator, signed)
        return unit(chosen).unflatten(0, self.x.shape[:2]).to(self.x)


def spot(
    run: Run,
    layer: int,
    pos: int | Sequence[int] | None = -1,
    real: Float[Tensor, "n d"] | None = None,
) -> Spot:
    """Push at one position (the paper's single-position variant), at several, or, None, at all but
    position 0 at once (the paper's protocol; there the push is small beside a residual that long).

    Baselines are made of the run's own activations, or of `real`, from other texts. Raises
    ValueError for position 0, and for a layer or a position that does not exist.
    """
    n_pos, n_layers = run.tokens.shape[1], run.model.cfg.n_layers
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} does not exist: there are {n_layers}")
    given = range(1, n_pos) if pos is None else [pos] if isinstance(pos, int) else pos
    found = sorted({p % n_pos for p in given if -n_pos <= p < n_pos})
    if not found or len(found) != len(given) or found[0] == 0:
        raise ValueError(f"positions are 1 to {n_pos - 1}, each once; got {pos}")
    return Spot(run, layer, found, real)


def rows(
    where: Spot,
    directions: Mapping[str, Float[Tensor, "prompt k d"]],
    lengths: Sequence[float],
    relative: bool = False,
) -> pd.DataFrame:
    """Rows for the engine: x + ℓ·v for each direction v and length ℓ, columns `direction` and
    `length`. `relative`: lengths are in units of each token's own ‖x‖, otherwise of the stream."""
    own = where.x.norm(dim=-1, keepdim=True) if relative else 1.0
    tables = []
    for name, direction in directions.items():
        writes = [shift(where, length * own * direction) for length in lengths]
        tables.append(_rows(where, name, writes).assign(length=list(lengths)))
    return pd.concat(tables, ignore_index=True)


def rows_from(
    where: Spot,
    starts: Mapping[str, Float[Tensor, "prompt k d"]],
    direction: Float[Tensor, "prompt k d"],
    lengths: Sequence[float],
) -> pd.DataFrame:
    """Rows that step away from other points than x: columns `start`, `length`, and `against`, the
    row of the same start and length 0, for `text_outputs.measure`."""
    steps, table = [0.0, *lengths], []
    for n, (name, start) in enumerate(starts.items()):
        writes = [shift(where, start - where.x + length * direction) for length in steps]
        part = _rows(where, name, writes).rename(columns={"direction": "start"})
        table.append(part.assign(length=steps, against=n * len(steps)))
    return pd.concat(table, ignore_index=True)


def moves(where: Spot, to: Mapping[str, Float[Tensor, "prompt k d"]]) -> pd.DataFrame:
    """Rows for the engine that write the points `to`, one row each; column `direction`."""
    tables = [_rows(where, name, [shift(where, point - where.x)]) for name, point in to.items()]
    return pd.concat(tables, ignore_index=True)


def shift(where: Spot, by: Float[Tensor, "prompt k d"]) -> Write:
    """Add one vector at each prompt and position of the spot."""
    if by.shape != where.x.shape:
        raise ValueError(f"the shift has shape {tuple(by.shape)}, the spot {tuple(where.x.shape)}")
    column = {p: i for i, p in enumerate(where.pos)}

    def new(current: Tensor, place: Place) -> Tensor:
        return current + by[place.prompts][:, [column[p] for p in place.pos]]

    return Write("shift", new)


def _rows(where: Spot, name: str, writes: list[Write]) -> pd.DataFrame:
    table = pd.DataFrame({"direction": name, "write": writes})
    return table.assign(site="resid_pre", layer=where.layer, pos=[where.pos] * len(writes))

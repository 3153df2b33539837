"""Bilinear layers, which are quadratic forms: compared exactly, and taken apart exactly.

f(x) = D ((L x̃) ∘ (R x̃)) with x̃ = (1, x) has one symmetric matrix for each output, and nothing but
these matrices decides what it computes. `inner` compares two layers over all Gaussian inputs in
closed form; `parts` writes a layer as a sum of squares, and `Squares` can be intervened on.

Sources: Nissen Gonzalez et al. 2026, arXiv 2605.15183 (tensor similarity); Gauderis et al. 2026,
arXiv 2605.08934 (compositional interpretability). The closed form is derived here; the networks
learn modular addition, as in Gromov 2023, arXiv 2301.02679.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from .side_by_side import shipped

P = 23  # of the shipped networks, which add modulo P


@dataclass(frozen=True)
class Bilinear:
    """D [*, out, hidden], L and R [*, hidden, 1 + d_in]; `*`: any number of layers side by side."""

    D: Float[Tensor, "*net out hidden"]
    L: Float[Tensor, "*net hidden d"]
    R: Float[Tensor, "*net hidden d"]

    def __call__(self, x: Float[Tensor, "*net batch d_in"]) -> Float[Tensor, "*net batch out"]:
        x = with_one(x)
        return ((x @ self.L.mT) * (x @ self.R.mT)) @ self.D.mT

    def forms(self) -> Float[Tensor, "*net out d d"]:
        """The symmetric matrix T_o of each output: f_o(x) = x̃ᵀ T_o x̃. Source: 2605.15183."""
        T = einsum(self.D, self.L, self.R, "... o h, ... h i, ... h j -> ... o i j")
        return (T + T.mT) / 2

    def rounded(self) -> "Bilinear":
        """Every weight `on_grid`."""
        return Bilinear(*(on_grid(weight) for weight in (self.D, self.L, self.R)))

    def __getitem__(self, at: int | tuple[int, ...]) -> "Bilinear":
        return Bilinear(self.D[at], self.L[at], self.R[at])


def with_one(x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d"]:
    """x̃ = (1, x)."""
    return torch.cat([torch.ones_like(x[..., :1]), x], -1)


def inner(
    A: Float[Tensor, "*net out d d"], B: Float[Tensor, "*net out d d"]
) -> Float[Tensor, "*net"]:
    """E⟨f_A(x), f_B(x)⟩ over x ~ N(0, 1)^d_in, from the forms alone.

    With T = [[t₀, tᵀ], [t, T₂]]: Σ_o (a₀ + tr A₂)(b₀ + tr B₂) + 4 a·b + 2 tr(A₂ B₂).
    """
    (a0, a, A2), (b0, b, B2) = ((T[..., 0, 0], T[..., 0, 1:], T[..., 1:, 1:]) for T in (A, B))
    traces = [T.diagonal(dim1=-2, dim2=-1).sum(-1) for T in (A2, B2)]
    means = (a0 + traces[0]) * (b0 + traces[1])
    return (means + 4 * (a * b).sum(-1) + 2 * (A2 * B2).sum((-2, -1))).sum(-1)


def similarity(A: Float[Tensor, "*net out d d"], B: Float[Tensor, "*net out d d"]) -> Tensor:
    """Cosine of two functions over Gaussian inputs: 1 for equal ones up to a positive factor."""
    return inner(A, B) / (inner(A, A) * inner(B, B)).sqrt()


@dataclass(frozen=True)
class Squares:
    """A layer as squares: f_o(x) = Σ_i value[o, i] (vector[o, i] · x̃)², largest |value| first."""

    values: Float[Tensor, "out part"]
    vectors: Float[Tensor, "out part d"]

    def __call__(
        self, x: Float[Tensor, "batch d_in"], scale: Float[Tensor, "out part"] | None = None
    ) -> Float[Tensor, "batch out"]:
        """`scale` multiplies each part's contribution: 0 takes it out."""
        values = self.values if scale is None else self.values * scale
        read = einsum(with_one(x), self.vectors, "b d, o i d -> b o i")
        return (read.square() * values).sum(-1)

    def first(self, k: int) -> "Squares":
        """The k largest parts of each output."""
        return Squares(self.values[:, :k], self.vectors[:, :k])

    def forms(self) -> Float[Tensor, "out d d"]:
        return einsum(self.values, self.vectors, self.vectors, "o i, o i d, o i e -> o d e")

    def bits(self) -> int:
        """Length of a description with 8 bits for each number."""
        return 8 * (self.values.numel() + self.vectors.numel())

    def rounded(self) -> "Squares":
        """Values and vectors `on_grid`."""
        return Squares(on_grid(self.values), on_grid(self.vectors))


def on_grid(x: Float[Tensor, "*shape"], bits: int = 8) -> Float[Tensor, "*shape"]:
    """Every number at that precision: steps of the largest |number| / 2^(bits - 1)."""
    step = x.abs().amax() / 2 ** (bits - 1)
    return (x / step).round() * step


def parts(forms: Float[Tensor, "out d d"]) -> Squares:
    """The eigenvectors of each form: an exact refinement. Source: 2605.08934, 2410.08417."""
    values, vectors = torch.linalg.eigh(forms)
    order = values.abs().argsort(dim=-1, descending=True)
    return Squares(values.gather(1, order), vectors.mT.take_along_dim(order[..., None], 1))


# Networks that add, by data/bilinear/make.py

CHECKPOINTS = (
    *(0, 25, 50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000, 2500, 3000, 3500, 4000),
    *(5000, 6000, 8000, 10000, 12000),
)


def sums() -> tuple[Float[Tensor, "pair d_in"], Int[Tensor, "pair"]]:
    """All pairs (a, b), each number one-hot, with a + b modulo P."""
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    return one_hot(pairs, P).flatten(1).float(), pairs.sum(1) % P


def seen(net: int) -> Int[Tensor, "pair"]:
    """The pairs that a network is trained on, three fifths of all."""
    order = torch.randperm(P * P, generator=torch.Generator().manual_seed(net))
    return order[: int(0.6 * P * P)].sort().values


def trained() -> Bilinear:
    """Eight networks after the training steps `CHECKPOINTS`, [checkpoint, net]."""
    stored = shipped("bilinear")
    return Bilinear(*(stored[name].float() for name in ("D", "L", "R")))

"""When must learned latents be the true ones? Sparse decoders, and how latents are compared.

In `sparse_world` each feature reads few latents; a `VAE` has a decoder that has to be sparse, or a
plain one. `matched` compares learned latents with true ones. Training stands beside the networks
that it made, in data/identifiability/make.py.

Source: Moran et al. 2022, arXiv 2110.10804, and the authors' code, for sizes and losses.
"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import relu

from .side_by_side import Draws, mlp, shipped

SPIKE, SLAB = 10.0, 1.0  # rates of the two exponential priors on |W|
# What data/identifiability/make.py trained: at each correlation and seed, one of each kind.
RHOS, KINDS, SEEDS = (0.0, 0.4, 0.8), {"sparse decoder": True, "VAE": False}, range(1000, 1012)


def matched(
    found: Float[Tensor, "n latent"], true: Float[Tensor, "n true"]
) -> tuple[float, Int[np.ndarray, "true"]]:
    """Mean |correlation| of each true latent with a found one of its own, and which one that is.

    The pairs are those with the largest sum. Known as MCC.
    """
    both = np.corrcoef(found.T.numpy(), true.T.numpy())
    size = np.abs(both[: found.shape[1], found.shape[1] :])
    rows, columns = linear_sum_assignment(-size)
    return float(size[rows, columns].mean()), rows[columns.argsort()]


def residual(
    of: Float[Tensor, "net n out"], given: Float[Tensor, "net n in"]
) -> tuple[Float[Tensor, "net n out"], Float[Tensor, "net in_and_1 out"]]:
    """What least squares leave of `of`, and the coefficients (the constant last)."""
    given = torch.cat([given, torch.ones_like(given[..., :1])], -1)
    coefficients = torch.linalg.lstsq(given, of).solution
    return of - given @ coefficients, coefficients


# Which of the two latents each of the seven features reads.
SUPPORT = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 1]]).bool()


def sparse_world(
    rho: float, seeds: Sequence[int], n: int = 1000
) -> tuple[Float[Tensor, "net n 2"], Float[Tensor, "net n 7"]]:
    """Two latents of correlation `rho`, and noisy features of them: (z, x). Source: section 4."""
    draw = Draws(seeds)
    one, other = draw.normal(n, 2).unbind(-1)
    two = rho * one + (1 - rho**2) ** 0.5 * other
    clean = one, 2 * one, 3 * one**2, 4 * two, 5 * two, 6 * two.sin(), 7 * one * two
    return torch.stack([one, two], -1), torch.stack(clean, -1) + 0.5 * draw.normal(n, 7)


class VAE(nn.Module):
    """x_j = head_j(generator(z ∘ W_j)): `W` says how much of each latent feature j may read.

    None for W is the plain decoder, in which every feature reads all. `slab` is the probability
    that an entry of W is one of the few large ones.
    """

    slab: Float[Tensor, "net feature latent"]

    def __init__(self, draw: Draws, d: int, sparse: bool, n_latents: int = 5) -> None:
        super().__init__()
        nets, hidden = len(draw.streams), 50
        self.encoder = nn.ParameterList(draw.layers(d, hidden, hidden, 2 * n_latents))
        self.generator = nn.ParameterList(draw.layers(n_latents, hidden, hidden))
        nn.init.zeros_(self.generator[1]).requires_grad_(False)  # the first layer has no bias
        self.heads = nn.Parameter(draw.uniform(d, hidden) / hidden**0.5)  # [net, feature, hidden]
        self.bias = nn.Parameter(draw.uniform(1, d) / hidden**0.5)
        self.log_sigma = nn.Parameter(torch.zeros(nets, d))  # of each feature's noise
        self.W = nn.Parameter(draw.normal(d, n_latents)) if sparse else None
        self.register_buffer("slab", torch.full((nets, d, n_latents), 0.5))

    def encode(self, x: Float[Tensor, "net n feature"]) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each latent, both [net, n, latent]."""
        mean, log_var = mlp(self.encoder, x).chunk(2, -1)
        return mean, log_var

    def decode(self, z: Float[Tensor, "net n latent"]) -> Float[Tensor, "net n feature"]:
        read = z[:, :, None] if self.W is None else z[:, :, None] * self.W[:, None]
        hidden = relu(mlp(self.generator, rearrange(read, "net n j k -> net (n j) k")))
        hidden = rearrange(hidden, "net (n j) h -> net n j h", n=z.shape[1])
        return (hidden * self.heads[:, None]).sum(-1) + self.bias


def trained_vaes(n: int = len(SEEDS)) -> dict[tuple[float, str], VAE]:
    """The shipped networks of the first `n` of `SEEDS`, by correlation and kind.

    Single networks depend on the last digit of every step of their training, so that another
    processor trains others. Each saw the first 500 rows of `sparse_world(rho, SEEDS)`.
    Raises ValueError when fewer ship.
    """
    if n > len(SEEDS):
        raise ValueError(f"networks of {len(SEEDS)} seeds ship, not {n}; make.py trains more")
    stored = shipped("identifiability")
    vaes = {(rho, kind): VAE(Draws(SEEDS[:n]), 7, KINDS[kind]) for rho in RHOS for kind in KINDS}
    for (rho, kind), vae in vaes.items():
        own = {name: stored[f"{rho} {kind} {name}"][:n] for name in vae.state_dict()}
        vae.requires_grad_(False).load_state_dict(own)
    return vaes


def slab_probability(
    W: Float[Tensor, "net feature latent"], share: Float[Tensor, "net 1 latent"]
) -> Float[Tensor, "net feature latent"]:
    """That an entry is of the slab, where a `share` of its column is: the code's E step."""
    slab, spike = share * (-SLAB * W.abs()).exp(), (1 - share) * (-SPIKE * W.abs()).exp()
    return slab / (slab + spike)

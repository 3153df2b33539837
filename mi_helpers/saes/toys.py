"""A toy with known features, on which a sparse autoencoder can be marked right or wrong.

More features than dimensions, each a fixed direction, few on at a time: superposition (Elhage et
al. 2022, Toy Models of Superposition). An SAE that works finds the directions again.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .training import unit


@dataclass(frozen=True, eq=False)
class Toy:
    """Features with the unit vectors `directions`, each on with the same probability."""

    directions: Float[Tensor, "feature d"]
    on: float  # features on at a time, on average
    seed: int

    def draw(self, n: int) -> Float[Tensor, "n d"]:
        """`n` activations: sums of the directions of the features that are on, sizes 1 ± 0.3."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (n, len(self.directions))
        fires = torch.rand(shape, generator=generator) < self.on / shape[1]
        sizes = (1 + 0.3 * torch.randn(shape, generator=generator)).relu()
        return (fires * sizes) @ self.directions


def toy(features: int = 64, width: int = 24, on: float = 2.0, seed: int = 0) -> Toy:
    """`features` random directions in `width` dimensions, `on` of them on at a time on average."""
    if not 0 < on <= features:
        raise ValueError(f"between 0 and {features} features can be on on average, got {on}")
    own = 1000 * (seed + 1)  # no autoencoder, which begins from `seed`, begins at these directions
    generator = torch.Generator().manual_seed(own)
    return Toy(unit(torch.randn(features, width, generator=generator)), on, own)


def recovery(
    found: Float[Tensor, "k d"], true: Float[Tensor, "feature d"]
) -> Float[Tensor, "feature"]:
    """For each true direction, its cosine with the found one that is assigned to it, sign left
    aside. No found direction serves twice; the assignment is the one of the largest sum, and a true
    direction that gets none has 0."""
    cosines = (unit(true) @ unit(found.detach().to(true)).T).abs().nan_to_num()
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    scores = torch.zeros(len(true)).to(true)
    scores[rows] = cosines[rows, columns]
    return scores

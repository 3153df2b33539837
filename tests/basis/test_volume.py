"""The learning coefficient of losses whose volume is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mi_helpers.basis import learning_coefficient, losses_below


def origin(size: int) -> Tensor:
    return torch.zeros(256, size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("flat", [0, 2])
def test_a_quadratic_counts_half_its_steep_directions(size: int, flat: int) -> None:
    steep = torch.logspace(0, -2, size, dtype=torch.float64)
    curvature = torch.diag(torch.cat([steep, torch.zeros(flat, dtype=torch.float64)]))

    def loss(w: Tensor) -> Tensor:
        return (w**2 * curvature.diagonal()).sum(1)

    drawn = losses_below(loss, origin(size + flat), 1e-5, curvature=curvature)
    found = learning_coefficient(drawn, 1e-5)
    assert found.value == pytest.approx(size / 2, rel=0.05)
    assert found.n == drawn.shape[1] == 256


@pytest.mark.parametrize("cutoff", [1e-2, 1e-6])
def test_a_product_grows_as_its_integral_says(cutoff: float) -> None:
    """|w1 w2| < s has the area 4 s (1 + log 1/s), whose mean power is in closed form."""

    def loss(w: Tensor) -> Tensor:
        return w.prod(1) ** 2

    a = math.log(cutoff**-0.5)
    found = learning_coefficient(losses_below(loss, origin(2), cutoff, steps=400), cutoff)
    assert found.value == pytest.approx(0.5 * (1 + a) / (2 + a), rel=0.05)


def test_chains_keep_to_their_own_loss() -> None:
    """Half of the chains on one square, half on three, each with its own curvature."""
    used = torch.tensor([[1.0, 0, 0], [1, 1, 1]], dtype=torch.float64).repeat_interleave(128, 0)
    drawn = losses_below(
        lambda w: (used * w**2).sum(1), origin(3), 1e-4, curvature=used.diag_embed()
    )
    for half, known in zip(drawn.split(128, dim=1), (0.5, 1.5), strict=True):
        assert learning_coefficient(half, 1e-4).value == pytest.approx(known, rel=0.07)


def test_a_quartic_counts_a_quarter() -> None:
    found = learning_coefficient(losses_below(lambda w: w[:, 0] ** 4, origin(1), 1e-6), 1e-6)
    assert found.value == pytest.approx(0.25, rel=0.05)


def test_draws_are_uniform_in_the_box_where_the_loss_is_no_bound() -> None:
    """With every point below the cutoff, the loss |w1| of a uniform point is uniform itself."""

    def loss(w: Tensor) -> Tensor:
        return w[:, 0].abs()

    drawn = losses_below(loss, origin(3), 2.0, reach=0.5)
    assert drawn.max() <= 0.5
    for share in (0.25, 0.5, 0.75):
        assert (drawn < share * 0.5).double().mean().item() == pytest.approx(share, abs=0.02)


def test_a_start_above_the_cutoff_is_named() -> None:
    loss: Callable[[Tensor], Tensor] = lambda w: w.pow(2).sum(1) + 1  # noqa: E731
    with pytest.raises(ValueError, match="not below the cutoff"):
        losses_below(loss, origin(2), 0.5)

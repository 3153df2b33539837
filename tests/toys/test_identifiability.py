"""Sparse decoders and moved latents against loops, exact identities and known answers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_helpers.data.identifiability import make
from mi_helpers.toys import actions, side_by_side
from mi_helpers.toys import identifiability as toys
from mi_helpers.toys import interventions as moves


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_matching_finds_a_permutation_and_ignores_sign_and_scale() -> None:
    true = normal(200, 2)
    noise = normal(200, 3, seed=1)
    found = torch.stack([noise[:, 0], -3 * true[:, 1], noise[:, 1], 0.5 * true[:, 0] + 1], 1)
    mcc, which = toys.matched(found, true)
    assert mcc == pytest.approx(1)
    assert which.tolist() == [3, 1]
    both = np.corrcoef(noise.T, true.T)[:3, 3:]
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    best = max((abs(both[a, 0]) + abs(both[b, 1])) / 2 for a, b in pairs)
    assert toys.matched(noise, true)[0] == pytest.approx(best)


def test_a_residual_has_nothing_linear_left() -> None:
    a, of = normal(2, 50, 3).double(), normal(2, 50, 2, seed=1).double()
    left, coefficients = toys.residual(of, a)
    assert (left.mT @ a).abs().max() < 1e-9
    assert left.mean(1).abs().max() < 1e-9
    assert torch.allclose(a @ coefficients[:, :3] + coefficients[:, 3:] + left, of)


def test_features_read_what_the_support_says() -> None:
    z, x = toys.sparse_world(0.8, [0, 1], n=20_000)
    assert torch.corrcoef(z[0].T)[0, 1] == pytest.approx(0.8, abs=0.02)
    noise = x[..., 1] - 2 * z[..., 0], x[..., 5] - 6 * z[..., 1].sin()
    for left in noise:
        assert left.std() == pytest.approx(0.5, abs=0.01)
    assert toys.SUPPORT.sum(0).tolist() == [4, 4]


def test_a_decoder_reads_through_its_mask() -> None:
    _, x = toys.sparse_world(0.0, [0, 1], n=200)
    sparse = make.train_vae(x, [0, 1], sparse=True, epochs=1)
    plain = make.train_vae(x, [0, 1], sparse=False, epochs=1)
    assert plain.W is None
    assert sparse.W is not None
    z = normal(2, 6, 5)
    sparse.W[:, 3, 2] = 0  # feature 3 does not read latent 2
    moved = z.clone()
    moved[..., 2] += 1
    change = (sparse.decode(moved) - sparse.decode(z)).abs()
    assert change[..., 3].max() < 1e-6
    assert change[..., 4].max() > 0
    without = plain.decode(z)
    plain.W = torch.nn.Parameter(torch.ones(2, 7, 5))
    assert torch.allclose(plain.decode(z), without, atol=1e-5)


def test_large_weights_are_of_the_slab() -> None:
    W = torch.tensor([[[0.0], [3.0], [-3.0]]])
    found = toys.slab_probability(W, torch.full((1, 1, 1), 0.5))[0, :, 0]
    assert found[0] == 0.5
    assert found[1] == found[2] > 0.999
    assert toys.slab_probability(W, torch.zeros(1, 1, 1)).max() == 0


def test_decoders_do_not_depend_on_those_beside_them() -> None:
    _, x = toys.sparse_world(0.0, [0, 1], n=100)
    both = make.train_vae(x, [0, 1], sparse=True, epochs=2)
    alone = make.train_vae(x[1:], [1], sparse=True, epochs=2)
    assert both.W is not None
    assert alone.W is not None
    assert torch.allclose(both.W[1], alone.W[0], atol=1e-4)
    assert not torch.allclose(both.W[0], alone.W[0], atol=1e-2)


def test_effects_are_means_over_the_noise() -> None:
    """By Gauss-Hermite quadrature."""
    world = actions.action_world([0], n=10)
    a = torch.tensor([[[2.0, -1.0]]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    moved = (a @ world.M.mT)[0, 0].numpy()[:, None] + nodes
    mean = (2 * (np.sin(moved[0]) + np.cos(moved[1])) * weights).sum() / math.sqrt(2 * math.pi)
    assert world.effect(a)[0, 0] == pytest.approx(mean, abs=1e-5)


def test_the_moment_is_the_sum_over_pairs() -> None:
    r, a = normal(2, 12, 2), normal(2, 12, 2, seed=1)
    frequencies, phases = actions.cosines(5)
    psi = (2 / 5) ** 0.5 * (a @ frequencies + phases).cos()
    total = torch.zeros(2)
    for i in range(12):
        for j in range(12):
            if i != j:
                total += (r[:, i] * r[:, j]).sum(-1) * (psi[:, i] * psi[:, j]).sum(-1)
    assert torch.allclose(total / 144, actions.moment(r, a, (frequencies, phases)), atol=1e-5)


def test_many_cosines_are_a_gaussian_kernel() -> None:
    a = normal(2, 20, 2)[0] / 2
    frequencies, phases = actions.cosines(200_000, width=0.7)
    psi = (2 / 200_000) ** 0.5 * (a @ frequencies + phases).cos()
    kernel = (-torch.cdist(a, a).square() / (2 * 0.7**2)).exp()
    assert (psi @ psi.T - kernel).abs().max() < 0.02


def test_extrapolation_ignores_affine_maps_and_is_right_for_a_line() -> None:
    world = actions.action_world([0])
    targets = torch.tensor([[[1.0, 1.0], [-3.0, 2.0]]])
    found = actions.extrapolate(world.z, world.a, world.y, targets)
    turned = world.z.double() @ torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).double() + 3
    assert torch.allclose(actions.extrapolate(turned, world.a, world.y, targets), found, atol=1e-3)
    noise = world.z - world.a @ world.M.mT
    line = world.z @ torch.tensor([1.0, -2.0]) + noise.sum(-1)  # the noise confounds
    exact = (targets @ world.M.mT) @ torch.tensor([1.0, -2.0])
    found = actions.extrapolate(world.z, world.a, line, targets)
    assert (found - exact).abs().max() < 0.5
    uncontrolled = actions.smooth(world.z, line, torch.zeros(1, 10_000, 0))
    assert (uncontrolled(targets @ world.M.mT) - exact).abs().max() > 2


def test_autoencoders_give_codes_of_variance_one() -> None:
    world = actions.action_world([0, 1], n=200)
    codes = actions.train_autoencoder(world.x, world.a, [0, 1], weight=1.0, steps=3)
    assert codes.shape == (2, 200, 2)
    assert torch.allclose(codes.std(1), torch.ones(2, 2), atol=1e-4)


def test_environments_set_one_latent_each() -> None:
    v, x = moves.causal_world([0], n=20_000)
    assert x.shape == v.shape == (1, 3, 20_000, 2)
    seen, first, second = v[0]
    assert seen[:, 0].mean() == pytest.approx(0, abs=0.03)
    assert first[:, 0].mean() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(seen.T)[0, 1] > 0.8
    assert abs(torch.corrcoef(second.T)[0, 1]) < 0.03


def test_bending_is_undone() -> None:
    u = torch.linspace(-9, 9, 50).double().requires_grad_()
    back, log_slope = moves.unbend(moves.bend(u))
    assert torch.allclose(back, u)
    (slope,) = torch.autograd.grad(moves.bend(u).sum(), u)
    assert torch.allclose(slope.log(), -log_slope)


@pytest.mark.parametrize("targets", [(0, 1), (1, 0), (0, 0)])
def test_likelihoods_are_densities(targets: tuple[int, int]) -> None:
    """The sum of exp(log p) over a fine grid of x is one, in every environment."""
    model = moves.CausalModel([moves.Guess(True, targets)], [1]).requires_grad_(False)
    side = torch.linspace(-8, 8, 501)
    grid = torch.cartesian_prod(side, side).expand(1, 3, -1, 2)
    total = model.log_likelihood(grid).exp().sum(-1) * (side[1] - side[0]) ** 2
    assert torch.allclose(total, torch.ones(1, 3), atol=0.02)


def test_without_an_arrow_the_latents_are_independent() -> None:
    guesses = [moves.Guess(True, (0, 1)), moves.Guess(False, (0, 1))]
    model = moves.CausalModel(guesses, [1, 1])
    x = normal(3, 50, 2).expand(2, -1, -1, -1)
    z, volume = model.unmix(x)
    alone = volume - z.square().sum(-1) / 2 - math.log(2 * math.pi)
    found = model.log_likelihood(x)
    assert torch.allclose(found[1], alone[1], atol=1e-4)
    assert not torch.allclose(found[0], alone[0], atol=1e-1)


def test_an_arrow_turned_round_is_targets_swapped() -> None:
    """Names mean nothing: of three free likelihoods, swapping environments swaps targets."""
    model = moves.CausalModel([moves.Guess(True, (0, 1))], [2])
    other = moves.CausalModel([moves.Guess(True, (1, 0))], [2])
    x = normal(1, 3, 20, 2)
    swapped = other.log_likelihood(x[:, [0, 2, 1]])[:, [0, 2, 1]]
    assert torch.allclose(model.log_likelihood(x), swapped, atol=1e-5)


def test_fitting_keeps_the_best_start() -> None:
    _, x = moves.causal_world([0, 1], n=100)
    guesses = [moves.Guess(True, (0, 1)), moves.Guess(False, (0, 1))]
    one = moves.fit(x, guesses, [0, 1], starts=1, steps=5)
    two = moves.fit(x, guesses, [0, 1], starts=2, steps=5)
    assert two.z.shape == (2, 2, 3, 50, 2)
    assert two.likelihood.shape == (2, 2)
    assert torch.isfinite(two.likelihood).all()
    alone = moves.fit(x[1:], guesses, [1], starts=1, steps=5)
    assert torch.allclose(alone.likelihood[0], one.likelihood[1], atol=1e-4)


def test_the_shipped_networks_are_whole_and_learned_something() -> None:
    shipped = toys.trained_vaes(2)
    assert set(shipped) == {(rho, kind) for rho in toys.RHOS for kind in toys.KINDS}
    for (rho, kind), vae in shipped.items():
        _, x = toys.sparse_world(rho, toys.SEEDS[:2])
        assert (vae.W is not None) == toys.KINDS[kind]
        left = (vae.decode(vae.encode(x)[0]) - x)[:, 500:].square().mean((1, 2))
        assert (left < 0.5 * x[:, 500:].var(1).mean(1)).all()
    with pytest.raises(ValueError, match="12 seeds ship, not 13"):
        toys.trained_vaes(13)


def test_the_maker_writes_what_the_loader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.main(["--out", str(tmp_path / "data/identifiability"), "--nets", "1", "--epochs", "1"])
    monkeypatch.setattr(side_by_side, "__file__", str(tmp_path / "toys/side_by_side.py"))
    vae = toys.trained_vaes(1)[0.8, "sparse decoder"]
    _, x = toys.sparse_world(0.8, toys.SEEDS[:1])
    again = make.train_vae(x[:, :500], toys.SEEDS[:1], True, epochs=1)
    torch.testing.assert_close(vae.state_dict(), again.state_dict())

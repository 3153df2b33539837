"""Bilinear layers against loops, Monte Carlo and known answers."""

from pathlib import Path

import pytest
import torch

from mi_helpers.data.bilinear import make
from mi_helpers.toys import bilinear
from mi_helpers.toys.bilinear import Bilinear, inner, parts, similarity


def random_layer(seed: int, *nets: int, d_in: int = 4, hidden: int = 3, out: int = 2) -> Bilinear:
    g = torch.Generator().manual_seed(seed)
    shapes = (out, hidden), (hidden, d_in + 1), (hidden, d_in + 1)
    return Bilinear(*(torch.randn(*nets, *shape, generator=g).double() for shape in shapes))


def inputs(n: int, d_in: int = 4, seed: int = 9) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)).double()


def test_the_forms_are_the_function() -> None:
    layer, x = random_layer(0), inputs(20)
    tilde = torch.cat([torch.ones(20, 1), x], 1)
    for row, found in zip(tilde, layer(x), strict=True):
        by_hand = layer.D @ ((layer.L @ row) * (layer.R @ row))
        assert torch.allclose(found, by_hand)
        assert torch.allclose(torch.stack([row @ T @ row for T in layer.forms()]), by_hand)


def test_the_inner_product_is_the_mean_over_gaussian_inputs() -> None:
    """Exactly, by Gauss-Hermite quadrature: four nodes are exact up to degree seven."""
    A, B = random_layer(1, d_in=2), random_layer(2, d_in=2)
    nodes = torch.tensor([-1.0, 1.0]).double() * (3 + 6**0.5) ** 0.5
    inside = torch.tensor([-1.0, 1.0]).double() * (3 - 6**0.5) ** 0.5
    points = torch.cat([nodes, inside])
    weights = torch.tensor([1 / (4 * (3 + 6**0.5))] * 2 + [1 / (4 * (3 - 6**0.5))] * 2).double()
    x = torch.cartesian_prod(points, points)
    weight = torch.outer(weights, weights).flatten()
    assert weight.sum() == pytest.approx(1)
    mean = ((A(x) * B(x)).sum(-1) * weight).sum()
    assert inner(A.forms(), B.forms()) == pytest.approx(mean.item())


def test_similarity_knows_functions_and_not_weights() -> None:
    A, B = random_layer(3), random_layer(4)
    same = Bilinear(A.D * 2, A.R * 3, A.L / 3)
    assert similarity(A.forms(), same.forms()) == pytest.approx(1)
    negative = Bilinear(-A.D, A.L, A.R)
    assert similarity(A.forms(), negative.forms()) == pytest.approx(-1)
    assert abs(similarity(A.forms(), B.forms())) < 0.95
    many = random_layer(5, 2, 3)
    batched = similarity(many.forms(), many.forms()[:, :1])
    one = similarity(many[1, 2].forms(), many[1, 0].forms())
    assert batched[1, 2] == pytest.approx(one.item())


def test_parts_are_exact_sorted_and_can_be_taken_out() -> None:
    layer, x = random_layer(6), inputs(30)
    found = parts(layer.forms())
    assert torch.allclose(found(x), layer(x))
    assert torch.allclose(found.forms(), layer.forms())
    assert (found.values.abs().diff(dim=1) <= 1e-12).all()
    scale = torch.ones_like(found.values)
    scale[1, 2] = 0
    gone = layer(x) - found(x, scale)
    assert gone[:, 0].abs().max() < 1e-12
    square = found.values[1, 2] * (bilinear.with_one(x) @ found.vectors[1, 2]).square()
    assert torch.allclose(gone[:, 1], square)
    assert found.first(2).vectors.shape == (2, 2, 5)
    assert found.first(2).bits() == 8 * (2 * 2 + 2 * 2 * 5)


def test_rounding_keeps_to_its_grid() -> None:
    layer = random_layer(7)
    for exact in (layer.D, layer.L, layer.R):
        steps = bilinear.on_grid(exact, bits=4) / (exact.abs().max() / 8)
        assert torch.allclose(steps, steps.round(), atol=1e-9)
        assert torch.allclose(bilinear.on_grid(exact, bits=20), exact, atol=1e-5)
    found = parts(layer.forms())
    assert torch.equal(layer.rounded().L, bilinear.on_grid(layer.L))
    assert torch.equal(found.rounded().vectors, bilinear.on_grid(found.vectors))


def test_all_sums_are_there_and_some_are_trained_on() -> None:
    x, y = bilinear.sums()
    assert x.shape == (529, 46)
    assert (x.sum(1) == 2).all()
    a, b = x[:, :23].argmax(1), x[:, 23:].argmax(1)
    assert torch.equal((a + b) % 23, y)
    rows = bilinear.seen(0)
    assert len(rows) == len(set(rows.tolist())) == 317
    assert not torch.equal(rows, bilinear.seen(1))


def test_networks_do_not_depend_on_those_beside_them() -> None:
    both, alone = make.train([0, 1], [0, 3]), make.train([1], [0, 3])
    assert both.D.shape == (2, 2, 23, 48)
    assert torch.allclose(both.L[:, 1], alone.L[:, 0], atol=1e-5)


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "1", "--steps", "25"])
    assert (tmp_path / "nets.safetensors").is_file()
    model = bilinear.trained()
    assert model.D.shape[:2] == (len(bilinear.CHECKPOINTS), 8)
    x, y = bilinear.sums()
    right = (model[-1](x).argmax(-1) == y).float()
    for net in range(8):
        assert right[net, bilinear.seen(net)].mean() > 0.99

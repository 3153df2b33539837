"""The toy networks are what they say, and degeneracies are counted right."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from mi_helpers.basis import degeneracy
from mi_helpers.data.addition import make
from mi_helpers.engine.stack import from_sequential
from mi_helpers.toys import networks
from mi_helpers.toys.addition import Trainer
from mi_helpers.toys.networks import (
    Degeneracy,
    ModularAddition,
    addition_accuracy,
    addition_pairs,
    block_network,
    degenerate_mlp,
    frequencies,
    linear_network,
    trained_addition,
)


def small(seed: int = 0) -> ModularAddition:
    return ModularAddition(p=11, d_model=16, n_heads=2, d_mlp=32, seed=seed)


def test_table_logits_equal_the_plain_forward() -> None:
    model, (pairs, _) = small().double(), addition_pairs(11, 0.9)
    torch.testing.assert_close(model.table_logits(pairs), model(pairs), atol=1e-12, rtol=1e-12)


def test_modular_addition_equals_loops_over_heads() -> None:
    model, pairs = small().double(), torch.tensor([[3, 9], [0, 10]])
    for pair, logits in zip(pairs, model(pairs), strict=True):
        x = torch.stack([model.W_E[t] + model.W_pos[i] for i, t in enumerate([*pair, 11])])
        resid = x[2].clone()
        for h in range(2):
            scores = torch.stack([(x[2] @ model.W_Q[h]) @ (x[k] @ model.W_K[h]) for k in range(3)])
            for k, weight in enumerate((scores / 8**0.5).softmax(0)):
                resid = resid + weight * (x[k] @ model.W_V[h] @ model.W_O[h])
        hidden = (resid @ model.W_in + model.b_in).clamp_min(0)
        torch.testing.assert_close((resid + hidden @ model.W_out + model.b_out) @ model.W_U, logits)


def test_pairs_are_split_without_overlap() -> None:
    train, test = addition_pairs(11, 0.3, seed=1)
    everything = {tuple(pair) for pair in torch.cat([train, test]).tolist()}
    assert len(train) == 36
    assert len(everything) == 121


def test_accuracy_counts_right_sums() -> None:
    pairs = torch.tensor([[1, 2], [10, 3]])
    logits = torch.zeros(2, 12)
    logits[0, 3] = logits[1, 5] = 1.0  # 10 + 3 is 2 mod 11
    assert addition_accuracy(logits, pairs, 11) == 0.5


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        return Trainer(small(), *addition_pairs(11, 0.6))

    through, first = trainer(), trainer()
    through.fit(20, every=5)
    first.fit(10, every=5, progress=tmp_path / "state.pt")
    second = trainer()
    second.load(tmp_path / "state.pt")
    second.fit(20, every=5)
    assert second.history == through.history
    for a, b in zip(second.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_stops_only_once_stable() -> None:
    trainer = Trainer(small(), *addition_pairs(11, 0.6))
    trainer.epoch, trainer.history = 300, [(100, 1.0, 0.2), (200, 1.0, 1.0), (300, 1.0, 1.0)]
    assert trainer.stable(0.99, patience=200)
    assert not trainer.stable(0.99, patience=300)


def test_shipped_networks_add() -> None:
    model, about = trained_addition(seed=0)
    _, test = addition_pairs(113, float(about["train_fraction"]), seed=0)
    accuracy = addition_accuracy(model.table_logits(test), test, 113)
    assert accuracy >= 0.998
    assert abs(accuracy - float(about["test_accuracy"])) < 1e-4
    with pytest.raises(FileNotFoundError, match="seed0"):
        trained_addition(seed=99)


def test_frequencies_of_a_cosine() -> None:
    t = torch.arange(11) * 2 * torch.pi / 11
    values = torch.stack([(3 * t).cos(), (2 * t).sin() + (4 * t).cos() * 0.5], dim=1)
    found = frequencies(values)
    assert found["frequency"].tolist() == [3, 2]
    assert found["share"].tolist() == pytest.approx([1.0, 0.8], abs=1e-6)


def test_linear_network_is_linear() -> None:
    stack, x = linear_network((4, 3, 2), n=5)
    zero = stack.run(torch.zeros_like(x))
    torch.testing.assert_close(stack.run(2 * x) - zero, 2 * (stack.run(x) - zero))
    torch.testing.assert_close(stack.run(0 * x, one=0.0), torch.zeros(5, 2).double())


@pytest.mark.parametrize("mix", ["none", "rotation", "invertible"])
def test_blocks_do_not_interact(mix: Literal["none", "rotation", "invertible"]) -> None:
    toy = block_network(mix, n=6)
    y = toy.stack.run(toy.inputs).view(6, 6, 8)  # states of block 0, of block 1
    torch.testing.assert_close(y[:, :1, :4].expand(-1, 6, -1), y[..., :4])
    torch.testing.assert_close(y[:1, :, 4:].expand(6, -1, -1), y[..., 4:])
    plain = block_network("none", n=6)
    torch.testing.assert_close(plain.stack.run(plain.inputs) * 0, y.flatten(0, 1) * 0)


def test_purity_of_the_hidden_coordinates_is_one() -> None:
    toy = block_network("invertible", n=6)
    assert toy.purity([S.inverse() for S in toy.mixers])["purity"].min() == pytest.approx(1)


# Degeneracies.


def slow_spectrum(network: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the behavioural loss from gradients taken one output at a time."""
    network.requires_grad_(True)
    rows = []
    for sample in x:
        for value in network(sample):
            grads = torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    network.requires_grad_(False)
    J = torch.stack(rows)
    return torch.linalg.eigvalsh(J.T @ J / len(x)).flip(0)


def test_behavioural_spectrum_equals_the_loops() -> None:
    network, x = degenerate_mlp(n=60)
    found = degeneracy.behavioural_spectrum(network, x)
    torch.testing.assert_close(found, slow_spectrum(network, x), atol=1e-10, rtol=1e-8)


def test_behavioural_loss_is_the_quadratic_form() -> None:
    network, x = degenerate_mlp(n=200)
    values = degeneracy.behavioural_spectrum(network, x)
    out, step, generator = network(x), 1e-5, torch.Generator().manual_seed(0)
    losses = []
    for _ in range(300):  # the mean over random directions is the trace over parameters
        moved, _ = degenerate_mlp(n=1)
        for p, q in zip(moved.parameters(), network.parameters(), strict=True):
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_(q + step * noise)
        losses.append((moved(x) - out).pow(2).sum(1).mean().item() / step**2)
    assert sum(losses) / len(losses) == pytest.approx(values.sum().item(), rel=0.1)


@pytest.mark.parametrize(
    ("plant", "lost"),
    [
        ("none", 16),  # one scale per hidden unit
        ("activations", 24),  # and one null direction read by eight units
        ("gradients", 24),  # and a unit's nine weights, whose scale was counted
        ("synchronised", 22),  # and 3 * 2
    ],
)
def test_planted_degeneracies_free_what_the_theory_says(plant: Degeneracy, lost: int) -> None:
    network, x = degenerate_mlp(plant)
    values = degeneracy.behavioural_spectrum(network, x)
    assert len(values) - degeneracy.effective_parameters(values) == lost


def test_planted_degeneracies_are_found() -> None:
    found = {
        plant: degeneracy.layers(*degenerate_mlp(plant))
        for plant in ("none", "activations", "gradients", "synchronised")
    }
    assert found["none"]["free"].tolist() == [0, 0, 0]
    assert found["activations"]["inputs"].tolist() == [7, 8, 9]
    assert found["gradients"]["gradients"].tolist() == [8, 7, 4]
    assert found["synchronised"]["groups"].tolist() == [[[0, 1, 2]], [], []]
    assert degeneracy.extra_free([[0, 1, 2], [4, 5]]) == 8


def test_free_directions_of_a_layer_do_nothing() -> None:
    network, x = degenerate_mlp("activations")
    out, layer = network(x), network[2]
    assert isinstance(layer, nn.Linear)
    hidden = network[:2](x)
    read = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    null = torch.linalg.svd(read).Vh[-1]
    layer.weight.add_(3.0 * torch.randn(8, 1, dtype=torch.float64) * null[:-1])
    assert abs(null[-1]) < 1e-9  # the planted combination needs no constant
    torch.testing.assert_close(network(x), out, atol=1e-9, rtol=1e-9)


def test_ranks_at_boundaries() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(200, 6, dtype=torch.float64)
    table = degeneracy.ranks(from_sequential(mlp.double().requires_grad_(False)), x)
    assert table["activations"].tolist() == [6, 4, 8, 3]
    assert table["gradients"].tolist() == [4, 4, 3, 3]
    some = degeneracy.ranks(from_sequential(mlp), x, sources=4)
    assert some["gradients"].tolist() == [4, 4, 3, 3]


def test_synchrony_is_of_firing_not_of_values() -> None:
    z = torch.tensor([[1.0, 2.0, -1.0, -1.0], [-1.0, -3.0, 1.0, -1.0], [2.0, 1.0, 1.0, -2.0]])
    assert degeneracy.synchronised(z) == [[0, 1]]
    assert degeneracy.synchronised(z, tolerance=0.7) == [[0, 1, 2]]


def test_an_unknown_plant_is_named() -> None:
    with pytest.raises(ValueError, match="plant must be"):
        degenerate_mlp("nothing")  # type: ignore[arg-type]


def test_the_maker_writes_what_the_loader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--p", "11", "--epochs", "2", "--patience", "1", "--work", str(tmp_path / "work")]
    make.main([*arguments, "--out", str(tmp_path / "data" / "addition")])
    monkeypatch.setattr(networks, "__file__", str(tmp_path / "toys" / "networks.py"))
    network, about = networks.trained_addition(0, p=11)
    assert about["epochs"] == "2"
    assert network.W_E.shape == (12, 128)

"""The theory's invariants, and agreement with a slow reference written with loops."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mi_helpers import basis as ib
from mi_helpers.basis import modules
from mi_helpers.basis.jacobians import activation_gram, jacobian_gram, pull_back
from mi_helpers.engine.stack import Stack, from_sequential
from mi_helpers.toys.networks import (
    ModularAddition,
    addition_accuracy,
    addition_pairs,
    block_network,
    linear_network,
    trained_addition,
)

Kind = Literal["local", "global"]
Mix = Literal["rotation", "invertible"]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def network(seed: int = 0, widths: tuple[int, ...] = (5, 7, 6, 4)) -> tuple[Stack, Tensor]:
    """A smooth MLP with biases, narrower than its data in one layer, and inputs."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    stack = from_sequential(nn.Sequential(*layers[:-1]).double().requires_grad_(False))
    return stack, torch.randn(40, widths[0], dtype=torch.float64)


def sequence_network(seed: int = 0) -> tuple[list, Tensor]:
    """Two sections that mix positions, the second reading out at the last; 3 positions."""
    torch.manual_seed(seed)
    W, A = torch.randn(4, 5).double(), torch.randn(3, 3).double()
    V = torch.randn(5, 3).double()
    return (
        [lambda x: torch.tanh(A @ x @ W + 0.3), lambda x: (x.softmax(1) * x)[:, -1:] @ V],
        torch.randn(20, 3, 4, dtype=torch.float64),
    )


# The reference: one sample, one output, one gradient at a time.


def slow_jacobian(function: Callable, x: Tensor) -> Tensor:
    """Jacobian [output, input] of one sample's outputs, by one backward pass each."""
    x = x.detach()[None].requires_grad_()
    y = function(x).flatten()
    return torch.stack(
        [torch.autograd.grad(y[i], x, retain_graph=True)[0].flatten() for i in range(len(y))]
    )


def slow_jacobian_gram(function: Callable, x: Tensor) -> Tensor:
    width, total = x.shape[-1], torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64)
    for sample in x:
        for row in slow_jacobian(function, sample):
            for position in row.view(-1, width):
                total += position.outer(position)
    return total / x[..., 0].numel()


def slow_edges(section: Callable, C_next: Tensor, b: ib.Boundary, x: Tensor, points: int) -> Tensor:
    """Integrated gradients by Gauss and Legendre's rule, feature by feature."""
    total, count = torch.zeros(C_next.shape[1], len(b.importance), dtype=torch.float64), 0
    for sample in x:
        features = ((sample - b.mean) @ b.C).view(-1, len(b.importance))
        end = b.mean + features @ b.C_pinv
        jacobian = torch.zeros(1)
        for node, weight in zip(*np.polynomial.legendre.leggauss(points), strict=True):
            alpha = (node + 1) / 2
            at = (alpha * end).view(sample.shape)
            jacobian = jacobian + slow_jacobian(lambda z: section(z) @ C_next, at) * weight / 2
        per_feature = jacobian.view(-1, C_next.shape[1], *features.shape[:1], len(b.mean))
        for t in range(per_feature.shape[0]):
            count += 1
            for i in range(per_feature.shape[1]):
                effect = torch.zeros(len(b.importance), dtype=torch.float64)
                for s in range(per_feature.shape[2]):
                    effect += (b.C_pinv @ per_feature[t, i, s]) * features[s]
                total[i] += effect**2
    return total / count


def gram_of_next(basis: ib.Basis, index: int, x: Tensor, stop: int | None = None) -> Tensor:
    """Reference Jacobian Gram of the next features with respect to this boundary's features."""
    here = basis.boundaries[index]
    there = basis.boundaries[-1 if stop is None else stop]
    return slow_jacobian_gram(
        lambda f: there.encode(basis.stack.run(here.decode(f), index, stop)), here.encode(x)
    )


# Against the reference.


@pytest.mark.parametrize(("batch_size", "chunk"), [(3, 1), (7, 4), (256, 64)])
def test_jacobian_gram_is_the_sum_over_single_gradients(batch_size: int, chunk: int) -> None:
    sections, x = sequence_network()
    found = jacobian_gram(sections[0], x, batch_size=batch_size, chunk=chunk)
    close(found.matrix, slow_jacobian_gram(sections[0], x))
    assert found.error == 0


def test_stochastic_jacobian_gram_is_unbiased_and_states_its_error() -> None:
    sections, x = sequence_network()
    exact = slow_jacobian_gram(sections[0], x)
    misses = []
    for seed in range(20):
        found = jacobian_gram(sections[0], x, sources=64, seed=seed)
        misses.append((found.matrix - exact).norm().item() / exact.norm().item() / found.error)
    # The root mean square of (distance / stated standard error) is 1 if the error is honest.
    assert 0.7 < math.sqrt(sum(m**2 for m in misses) / len(misses)) < 1.3
    many = jacobian_gram(sections[0], x, sources=4096)
    assert (many.matrix - exact).norm() < 4 * many.error * exact.norm()
    assert many.error < found.error / 4


@pytest.mark.parametrize("make", [network, sequence_network])
def test_edges_equal_the_loops(make: Callable) -> None:
    sections, x = make()
    stack = Stack(tuple(sections)) if isinstance(sections, list) else sections
    plain = Stack(stack.sections)  # biases not folded: the reference calls section(x)
    basis = ib.fit(plain, x)
    activations = plain.activations(x)
    found = ib.edges(basis, x, points=3, batch_size=11, chunk=5)
    for index, E in enumerate(found):
        close(
            E,
            slow_edges(
                plain.sections[index],
                basis.boundaries[index + 1].C,
                basis.boundaries[index],
                activations[index],
                points=3,
            ),
        )


def test_edges_do_not_depend_on_chunking() -> None:
    sections, x = sequence_network()
    basis = ib.fit(sections, x)
    for a, b in zip(ib.edges(basis, x, batch_size=8, chunk=2), ib.edges(basis, x), strict=True):
        close(a, b)


def test_edges_converge_in_the_number_of_points() -> None:
    stack, x = network()
    table = ib.convergence(ib.fit(stack, x), x, points=(2, 4, 8, 32))
    worst = table.groupby("points")["difference"].max()
    assert worst[2] > worst[4] > worst[8]
    assert worst[8] < 1e-6


def test_folded_relu_sections_need_one_point() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    basis = ib.fit(from_sequential(mlp.requires_grad_(False)), x)
    for a, b in zip(ib.edges(basis, x, points=1), ib.edges(basis, x, points=16), strict=True):
        close(a, b)
    mixed = ib.edges(basis, x, points=(16, 1))
    close(mixed[1], ib.edges(basis, x, points=1)[1])


def test_edge_estimate_over_positions_approaches_the_exact_edges() -> None:
    sections, x = sequence_network()
    basis = ib.fit(sections, x)
    exact = ib.edges(basis, x)[0]
    some = ib.edges(basis, x, sources=200, points=4, chunk=256)[0]
    assert (some - exact).norm() < 0.1 * exact.norm()
    close(ib.edges(basis, x, outputs=2)[0], exact[:2])


def test_edges_at_the_data_point_of_a_linear_network_equal_the_integral() -> None:
    stack, x = linear_network((5, 6, 4), n=50)
    basis = ib.fit(stack, x)
    for a, b in zip(ib.edges(basis, x, points="data"), ib.edges(basis, x), strict=True):
        close(a, b)


def test_edges_at_the_data_point_equal_the_chain_rule() -> None:
    sections, x = sequence_network()
    basis = ib.fit(sections, x)
    here, there = basis.boundaries[:2]
    total = torch.zeros(len(there.importance), len(here.importance), dtype=torch.float64)
    for sample in x:
        J = slow_jacobian(lambda z: sections[0](z) @ there.C, sample).view(3, -1, 3, 4)
        effect = torch.einsum("tisw,jw,sj->tij", J, here.C_pinv, here.encode(sample))
        total += effect.pow(2).sum(0)
    close(ib.edges(basis, x, points="data")[0], total / (3 * len(x)))


def test_trainable_parameters_get_no_gradient_and_keep_nothing() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x = torch.randn(30, 5, dtype=torch.float64)
    sections = [lambda z: mlp[:2](z), lambda z: mlp[2](z)]
    basis = ib.fit(sections, x)
    E = ib.edges(basis, x)
    for index, gradients in pull_back(sections[0], x, 2):
        assert not gradients.requires_grad, index
    assert not any(e.requires_grad for e in E)
    assert all(p.grad is None and p.requires_grad for p in mlp.parameters())
    mlp.requires_grad_(False)
    for a, b in zip(E, ib.edges(ib.fit(sections, x), x), strict=True):
        close(a, b)


def test_an_absolute_threshold_does_not_move_with_scale() -> None:
    x = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1.0, 1e-2, 1e-4]).double()
    kept = {}
    for scale in (1.0, 100.0):
        for relative in (True, False):
            basis = ib.fit([lambda z: z], scale * x, kind="pca", threshold=1e-6, relative=relative)
            kept[scale, relative] = basis.summary()["features"][0]
    assert kept == {(1.0, True): 2, (100.0, True): 2, (1.0, False): 2, (100.0, False): 3}


def test_settled_is_past_the_last_fall() -> None:
    curve = pd.DataFrame({"kept": [1, 2, 3, 4, 5], "score": [0.1, 1.0, 0.5, 1.0, 1.0]})
    assert ib.settled(curve, 0.9) == 4
    assert ib.settled(curve, 2.0) is None


# Invariants.


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["local", "global"]))
@settings(max_examples=10, deadline=None)
def test_features_are_uncorrelated_and_their_effects_orthonormal(seed: int, kind: Kind) -> None:
    stack, x = network(seed)
    basis = ib.fit(stack, x, kind=kind)
    activations = stack.activations(x)
    for index, b in enumerate(basis.boundaries):
        mean, covariance = activation_gram(b.encode(activations[index]))
        close(mean, torch.zeros_like(mean))
        close(covariance, torch.diag(b.importance))
        close(b.C_pinv @ b.C, torch.eye(len(b.importance), dtype=torch.float64))
        if index < len(stack.sections):
            gram = gram_of_next(
                basis, index, activations[index], index + 1 if kind == "local" else None
            )
            close(gram, torch.eye(len(b.importance), dtype=torch.float64))


def test_invariants_hold_over_positions() -> None:
    sections, x = sequence_network()
    basis = ib.fit(sections, x)
    for index, activation in enumerate(basis.stack.activations(x)[:-1]):
        close(
            gram_of_next(basis, index, activation, index + 1),
            torch.eye(len(basis.boundaries[index].importance), dtype=torch.float64),
        )


def test_without_dropped_effects_C_times_its_inverse_projects_on_the_span() -> None:
    stack, x = network(widths=(6, 6, 6, 6))
    x[:, 4:] = x[:, :2] @ torch.randn(2, 2, dtype=torch.float64)  # rank 4
    basis = ib.fit(stack, x)
    for b, activation in zip(basis.boundaries, stack.activations(x), strict=True):
        projector = b.C @ b.C_pinv
        close(projector @ projector, projector)
        centred = activation - activation.mean(0)
        close(centred @ projector, centred)
        assert round(projector.trace().item()) == torch.linalg.matrix_rank(centred)
        close(b.decode(b.encode(activation)), activation)
    assert basis.summary()["silent"].tolist() == [2, 0, 0, 0]


def test_dropped_effects_change_nothing_downstream() -> None:
    stack, x = linear_network((6, 6, 3))
    basis = ib.fit(stack, x)
    assert basis.summary()["ignored"].tolist() == [3, 3, 0]
    b = basis.boundaries[0]
    close(stack.run(b.decode(b.encode(x))), stack.run(x))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_linear_networks_have_diagonal_edges(seed: int) -> None:
    stack, x = linear_network((5, 6, 4), n=50, seed=seed)
    for E in ib.edges(ib.fit(stack, x), x, points=2):
        assert (E - torch.diag(E.diagonal())).abs().max() < 1e-12 * E.max()
    pca = ib.edges(ib.fit(stack, x, kind="pca"), x, points=2)[0]
    assert (pca - torch.diag(pca.diagonal())[: len(pca)]).abs().max() > 1e-3 * pca.max()


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["local", "global"]))
@settings(max_examples=10, deadline=None)
def test_an_invertible_change_of_hidden_coordinates_changes_nothing(seed: int, kind: Kind) -> None:
    stack, x = network(seed)
    torch.manual_seed(seed + 1)
    A = torch.eye(7, dtype=torch.float64) + 0.4 * torch.randn(7, 7, dtype=torch.float64)
    first, second, third = stack.sections
    changed = Stack(
        (lambda z, one: first(z, one) @ A, lambda z, one: second(z @ A.inverse(), one), third),
        folded=True,
    )
    before, after = ib.fit(stack, x, kind=kind), ib.fit(changed, x, kind=kind)
    pairs = zip(
        before.boundaries,
        stack.activations(x),
        after.boundaries,
        changed.activations(x),
        strict=True,
    )
    for b, xb, a, xa in pairs:
        torch.testing.assert_close(b.encode(xb).abs(), a.encode(xa).abs(), atol=1e-6, rtol=1e-5)


def test_an_affine_shift_of_the_constant_changes_nothing() -> None:
    stack, x = network()
    first, second, third = stack.sections
    moved = Stack(
        (lambda z, one: first(z, one) + 5 * one, lambda z, one: second(z - 5 * one, one), third),
        folded=True,
    )
    before, after = ib.fit(stack, x), ib.fit(moved, x)
    for E, F in zip(ib.edges(before, x), ib.edges(after, x), strict=True):
        close(E, F)


@pytest.mark.parametrize("mix", ["rotation", "invertible"])
@pytest.mark.parametrize("kind", ["local", "global"])
def test_planted_blocks_are_recovered(mix: Mix, kind: Kind) -> None:
    toy = block_network(mix, n=20)
    basis = ib.fit(toy.stack, toy.inputs, kind=kind)
    assert toy.purity([b.C for b in basis.boundaries])["purity"].min() > 1 - 1e-6


def test_correlated_blocks_are_mixed() -> None:
    lowest = []
    for correlation in (0.0, 0.3, 0.9):
        toy = block_network("invertible", n=20, correlation=correlation)
        first = toy.inputs @ toy.mixers[0].inverse()
        found = torch.corrcoef(first.T)[[0, 1, 2, 3], [4, 5, 6, 7]]
        assert found.mean() == pytest.approx(correlation, abs=0.1)
        basis = ib.fit(toy.stack, toy.inputs)
        lowest.append(toy.purity([b.C for b in basis.boundaries])["purity"].min())
    assert lowest[0] > 0.999
    assert lowest[1] < 0.9
    with pytest.raises(ValueError, match="below 1"):
        block_network(correlation=1.0)


def test_pca_does_not_recover_blocks_behind_maps_that_are_not_rotations() -> None:
    toy = block_network("invertible", n=20)
    basis = ib.fit(toy.stack, toy.inputs, kind="pca")
    hidden = toy.purity([b.C for b in basis.boundaries]).query("boundary < 4")
    assert hidden["purity"].min() < 0.7


def test_degenerate_spectra_are_compared_as_subspaces() -> None:
    """Equal eigenvalues leave the vectors free, not their span, and every invariant still holds."""
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64)).Q
    x = 8 * (Q - Q.mean(0))
    x = torch.linalg.qr(x).Q * 8  # covariance exactly the identity
    W = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    R = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    found = [
        ib.fit([lambda z: z @ W, lambda z: z * 1.0], x).boundaries[0],
        ib.fit([lambda z: z @ R.T @ W, lambda z: z * 1.0], x @ R).boundaries[0],
    ]
    for top in (slice(0, 2), slice(2, 4)):
        projectors = [b.C[:, top] @ b.C_pinv[top] for b in found]
        close(R.T @ projectors[0] @ R, projectors[1])


def test_float32_networks_get_a_float64_basis() -> None:
    _, x = network()
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).requires_grad_(False)
    single = ib.fit(from_sequential(mlp), x.float())
    double = ib.fit(from_sequential(mlp.double()), x)
    assert single.boundaries[0].C.dtype == torch.float64
    torch.testing.assert_close(
        single.boundaries[0].importance, double.boundaries[0].importance, rtol=1e-4, atol=0
    )


def test_features_kept_apart_are_not_mixed() -> None:
    sections, x = sequence_network()
    for kind in ("local", "pca"):
        b = ib.fit(sections, x, apart=2, kind=kind).boundaries[0]
        for column in (2, 3):
            own = b.C[column].abs() > 1e-12
            assert own.sum() == 1
            assert (b.C[:, own].abs() > 1e-12).sum() == 1


# Ablation.


def keep_output(where: list[Tensor]) -> Callable[[Tensor], float]:
    def score(y: Tensor) -> float:
        where.append(y)
        return 0.0

    return score


def test_ablating_no_node_or_edge_leaves_the_output() -> None:
    stack, x = network()
    basis = ib.fit(stack, x, last="identity")
    out = stack.run(x)
    interactions = ib.edges(basis, x)

    def distance(y: Tensor) -> float:
        return (y - out).abs().max().item()

    for index in range(3):
        most = len(basis.boundaries[index].importance)
        assert ib.ablate_nodes(basis, x, index, [most], distance)["score"][0] < 1e-9
        table = ib.ablate_edges(
            basis, interactions, x, index, [interactions[index].numel()], distance
        )
        assert table["score"][0] < 1e-9


def test_nodes_ablated_by_hand() -> None:
    stack, x = network()
    basis = ib.fit(stack, x)
    found: list[Tensor] = []
    ib.ablate_nodes(basis, x, 1, [2], keep_output(found))
    b, activation = basis.boundaries[1], stack.activations(x)[1]
    expected = torch.stack(
        [
            stack.run(
                (b.mean + sum(((row - b.mean) @ b.C[:, k]) * b.C_pinv[k] for k in range(2)))[None],
                1,
            )[0]
            for row in activation
        ]
    )
    close(found[0], expected)


def test_each_output_is_recomputed_from_its_own_masked_input() -> None:
    stack, x = network()
    basis = ib.fit(stack, x)
    found: list[Tensor] = []
    E = ib.edges(basis, x)
    kept = 9
    ib.ablate_edges(basis, E, x, 1, [kept], keep_output(found))
    here, there = basis.boundaries[1], basis.boundaries[2]
    threshold = E[1].flatten().sort(descending=True).values[kept - 1]
    for row, got in zip(stack.activations(x)[1], found[0], strict=True):
        features, new = (row - here.mean) @ here.C, []
        for i in range(len(there.importance)):
            masked = torch.stack(
                [f if E[1][i, j] >= threshold else f * 0 for j, f in enumerate(features)]
            )
            y = stack.run((here.mean + masked @ here.C_pinv)[None], 1, 2)[0]
            new.append((y - there.mean) @ there.C[:, i])
        expected = stack.run((there.mean + torch.stack(new) @ there.C_pinv)[None], 2)[0]
        close(got, expected)


def test_a_walk_through_masks_gives_what_each_gives_alone() -> None:
    stack, x = network()
    basis = ib.fit(stack, x)
    E = ib.edges(basis, x)
    walk, together, alone = [9, 30, 2, 2, 10, E[1].numel()], list[Tensor](), list[Tensor]()
    ib.ablate_edges(basis, E, x, 1, walk, keep_output(together), batch_size=16)
    for kept in walk:
        ib.ablate_edges(basis, E, x, 1, [kept], keep_output(alone))
    for found, expected in zip(together, alone, strict=True):
        close(found, expected)


def test_giving_up_early_changes_no_count() -> None:
    stack, x = network()
    basis = ib.fit(stack, x)
    E = ib.edges(basis, x)
    out = stack.run(x)
    middle = out.mean(0)

    def score(y: Tensor) -> float:
        return ((y > middle) == (out > middle)[: len(y)]).double().mean().item()

    whole = ib.ablate_edges(basis, E, x, 1, range(1, 12), score)["score"]
    early = ib.ablate_edges(basis, E, x, 1, range(1, 12), score, batch_size=4, give_up=0.95)[
        "score"
    ]
    assert (early >= whole).all()
    assert ((early >= 0.95) == (whole >= 0.95)).all()
    assert (early > whole).any()
    few = ib.needed(basis, E, x, score, 0.05)
    for first in (1, 7, 1024):
        found = ib.needed(basis, E, x, score, 0.05, partial=True, first=first)
        pd.testing.assert_frame_equal(few, found)


@given(st.integers(1, 300), st.integers(1, 300))
def test_fewest_finds_the_step(step: int, extra: int) -> None:
    calls = []

    def score(k: int) -> float:
        calls.append(k)
        return float(k >= step)

    assert ib.fewest(score, step + extra, 1.0) == step
    assert len(calls) <= 2 * math.log2(step + 1) + 3
    for start in (1, (step + 1) // 2, step):
        calls.clear()
        assert ib.fewest(score, step + extra, 1.0, start) == step
        assert min(calls) >= start


def test_fewest_refuses_what_cannot_be_reached() -> None:
    with pytest.raises(ValueError, match="all 10 kept"):
        ib.fewest(lambda k: 0.0, 10, 0.5)


def test_needed_edges_and_features() -> None:
    """An output that is one input feature needs one edge and one feature."""
    torch.manual_seed(0)
    x = torch.randn(200, 4, dtype=torch.float64) * torch.tensor([3.0, 2, 1, 1]).double()
    basis = ib.fit([lambda z: torch.tanh(z), lambda z: z[:, :1]], x, kind="pca", last="identity")
    label = x[:, 0] > 0
    table = ib.needed(
        basis,
        ib.edges(basis, x),
        x,
        lambda y: ((y[:, 0] > 0) == label).double().mean().item(),
        tolerance=0.05,
    )
    assert table["edges"].tolist() == [1, 1]
    assert table["features"].tolist() == [1, 1]


def test_recomputed_counts_what_a_next_feature_is_made_of() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 4, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * 20  # uncorrelated, variance 1
    W = torch.tensor([[1.0, 3, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    here = ib.Boundary(x.mean(0), eye, eye, eye.diagonal(), 0, 0)
    there = ib.Boundary((x @ W).mean(0), eye[:3, :3], eye[:3, :3], eye[:3, 0], 0, 0)
    basis = ib.Basis(Stack((lambda z: z @ W,)), [here, there])
    E = ib.edges(basis, x, points="data")[0]
    # Without its smaller input, the second loses a tenth of its variance, the third half.
    assert ib.recomputed(basis, E, x, error=0.11).tolist() == [1, 1, 2]
    assert ib.recomputed(basis, E[:2], x, error=0.09).tolist() == [1, 2]
    assert ib.recomputed(basis, E, x, error=0.11, at_once=2).tolist() == [1, 1, 2]


def test_inputs_needed() -> None:
    E = torch.tensor([[8.0, 1, 1, 0], [1, 1, 1, 1]])
    assert ib.inputs_needed(E, 0.75).tolist() == [1, 3]
    assert ib.inputs_needed(7 * E, 0.85).tolist() == [2, 4]
    long = ib.edge_table([E, E[:1]])
    assert long.query("section == 0 and next == 0 and feature == 0")["interaction"].item() == 8
    assert len(long) == 12


# Modules, and a whole transformer.


def test_rewiring_keeps_what_each_feature_has() -> None:
    torch.manual_seed(0)
    E = torch.rand(9, 12).double()
    found = ib.rewired(E, 0.6, seed=1)
    kept = E * (E > 0.6)
    assert not torch.equal(found, kept)
    assert torch.equal((found > 0).sum(0), (kept > 0).sum(0))
    close(found.sort(1).values, kept.sort(1).values)  # every next feature has its own weights
    assert torch.equal(found, ib.rewired(E, 0.6, seed=1))


def test_planted_blocks_are_the_modules() -> None:
    toy = block_network("invertible", n=20)
    basis = ib.fit(toy.stack, toy.inputs)
    E = ib.edges(basis, toy.inputs, points=1)
    found = modules(E, smallest=1e-8)
    crossing = modules(
        ib.edges(ib.fit(toy.stack, toy.inputs, kind="pca"), toy.inputs, points=1), smallest=1e-8
    )
    assert found.quality > 0.45 > crossing.quality
    share = toy.purity([b.C for b in basis.boundaries])
    assert set(found.nodes["module"]) == {0, 1}
    assert len(share) == len(found.nodes)
    again = modules(E, smallest=1e-8)
    pd.testing.assert_frame_equal(found.nodes, again.nodes)


def test_modules_refuse_an_empty_graph() -> None:
    with pytest.raises(ValueError, match="no edge"):
        modules([torch.ones(2, 2)], smallest=2.0)


def test_modular_addition_sections_compute_the_network() -> None:
    model = ModularAddition(p=7, d_model=8, n_heads=2, d_mlp=16).double().requires_grad_(False)
    pairs, _ = addition_pairs(7, 0.9)
    stack = model.sections()
    close(stack.run(model.embed(pairs))[:, 0], model(pairs))
    basis = ib.fit(stack, model.embed(pairs), last="identity")
    activations = stack.activations(model.embed(pairs))
    for index in range(3):
        close(
            gram_of_next(basis, index, activations[index], index + 1),
            torch.eye(len(basis.boundaries[index].importance), dtype=torch.float64),
        )


def test_counts_on_a_shipped_network_are_crossings() -> None:
    """The protocol of arXiv 2405.10928 at a small size: each count is enough, one less is not."""
    network, about = trained_addition(seed=0)
    network = network.double()
    train, test = addition_pairs(network.p, float(about["train_fraction"]), seed=0)
    x, inputs = network.embed(train[:60]), network.embed(test[:100])
    basis = ib.fit(network.sections(), x, last="identity", threshold=1e-15, relative=False)
    E = ib.edges(basis, x, points="data")

    def score(y: Tensor) -> float:
        return addition_accuracy(y[:, 0], test[: len(y)], network.p)

    target = score(basis.stack.run(inputs)) - 0.05
    for section, found in enumerate(ib.needed(basis, E, inputs, score, 0.05)["edges"]):
        curve = ib.ablate_edges(basis, E, inputs, section, [found - 1, found], score)["score"]
        assert curve[0] < target <= curve[1]


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sections": [], "inputs": torch.randn(3, 2)}, "non-empty list"),
        ({"sections": [torch.relu], "inputs": torch.arange(6).view(3, 2)}, "floating-point"),
        ({"sections": [torch.relu], "inputs": torch.ones(3, 2)}, "no direction is left"),
        ({"sections": [lambda x: x[:1]], "inputs": torch.randn(3, 2)}, "number of samples"),
        ({"sections": [lambda x: x / 0], "inputs": torch.randn(3, 2)}, "not finite"),
        ({"sections": [torch.tanh], "inputs": torch.randn(3, 2), "apart": 2}, "apart=2"),
        ({"sections": [torch.tanh], "inputs": torch.randn(3, 2), "sources": 1}, "sources"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ib.fit(**arguments)


def test_no_points_are_refused() -> None:
    basis = ib.fit([torch.tanh], torch.randn(9, 2))
    with pytest.raises(ValueError, match="at least 1"):
        ib.edges(basis, torch.randn(9, 2), points=0)


def test_only_mlps_are_cut_by_from_sequential() -> None:
    with pytest.raises(ValueError, match="LayerNorm"):
        from_sequential(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))

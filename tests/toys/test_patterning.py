"""Sampling against closed forms; the networks and their data against loops."""

import math
from pathlib import Path

import pytest
import torch
from einops import einsum, repeat
from torch import Tensor

from mi_helpers.data.patterning import make
from mi_helpers.toys import patterning
from mi_helpers.toys.susceptibility import draws, shift, susceptibilities

A = torch.diag_embed(torch.tensor([[1.0, 0.5, 0.2], [0.2, 1.0, 0.6]])).double()
A[1, 0, 1] = A[1, 1, 0] = 0.3
MIXED = torch.tensor([0.75, 0.25]).double()
N_BETA, GAMMA = 100.0, 10.0


def quadratics(w: Tensor) -> Tensor:
    """Two losses, ½ wᵀ A_k w."""
    return einsum(w, A, w, "chain i, k i j, chain j -> chain k") / 2


def around_the_origin(chains: int = 256, **options: float) -> Tensor:
    start = torch.zeros(chains, 3, dtype=torch.double)
    settings = {"n_beta": N_BETA, "gamma": GAMMA, "step_size": 2e-3, "steps": 600, "every": 5}
    mean = lambda w, _: quadratics(w) @ MIXED  # noqa: E731
    return draws(mean, quadratics, start, burn_in=100, **(settings | options))  # type: ignore[arg-type]


def covariance(h: Tensor) -> Tensor:
    """Of the Gaussian that the samples should come from."""
    precision = N_BETA * einsum(h, A, "k, k i j -> i j") + GAMMA * torch.eye(3).double()
    return torch.linalg.inv(precision)


def test_a_quadratic_without_localisation_counts_half_its_parameters() -> None:
    loss = around_the_origin(gamma=0) @ MIXED
    assert N_BETA * loss.mean().item() == pytest.approx(3 / 2, rel=0.06)


def test_a_step_that_is_too_long_adds_what_the_formula_says() -> None:
    """One parameter at a step size s: variance 1 / (H (1 - s H / 4)) instead of 1 / H."""
    start = torch.zeros(512, 1, dtype=torch.double)
    square = lambda w: w**2 / 2  # noqa: E731
    found = draws(
        lambda w, _: square(w)[:, 0], square, start, n_beta=100, step_size=0.02, steps=500
    )
    assert 100 * found.mean().item() == pytest.approx(0.5 / (1 - 0.02 * 100 / 4), rel=0.06)


def test_a_product_counts_less_than_one_parameter() -> None:
    """Against the integral over both parameters; for large n_beta this goes to one half."""
    start = torch.zeros(256, 2, dtype=torch.double)
    product = lambda w: w.prod(1, keepdim=True) ** 2  # noqa: E731
    found = draws(
        lambda w, _: product(w)[:, 0],
        product,
        start,
        n_beta=100,
        gamma=2,
        step_size=1e-3,
        steps=3000,
        burn_in=600,
        every=5,
    )
    w1 = torch.linspace(-6, 6, 20001).double()
    weight = (-(w1**2)).exp() / (100 * w1**2 + 1).sqrt()
    inner = 0.5 * 100 * w1**2 / (100 * w1**2 + 1)
    known = float((weight * inner).sum() / weight.sum())
    assert 0.2 < known < 0.5
    assert 100 * found.mean().item() == pytest.approx(known, rel=0.1)


def test_susceptibilities_of_quadratics_are_those_of_the_gaussian() -> None:
    chi = susceptibilities(around_the_origin(), MIXED, N_BETA).mean(0)
    S, mean = covariance(MIXED), einsum(MIXED, A, "k, k i j -> i j")
    known = [-(N_BETA**2) * float((mean @ S @ (A_k - mean) @ S).trace()) / 2 for A_k in A]
    # The closed form is the derivative that it should be: of n_beta E[loss], towards each source.
    for k, of_k in enumerate(known):
        towards = torch.eye(2).double()[k] - MIXED
        ends = [
            N_BETA * float((mean @ covariance(MIXED + s * 1e-4 * towards)).trace()) / 2
            for s in (1, -1)
        ]
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(of_k, rel=1e-3)
    assert chi.tolist() == pytest.approx(known, rel=0.1)


def test_susceptibilities_are_a_covariance_and_weigh_up_to_zero() -> None:
    found = around_the_origin(4, steps=100)
    chi = susceptibilities(found, MIXED, N_BETA)
    loss = found[:, 2] @ MIXED
    by_hand = [torch.stack([loss, found[:, 2, k] - loss]).cov()[0, 1] for k in range(2)]
    assert torch.allclose(chi[2], -(N_BETA**2) * torch.stack(by_hand))
    assert (chi @ MIXED).abs().max() < 1e-9


def test_what_is_not_free_stays_and_batches_are_numbered() -> None:
    seen = []

    def batch(w: Tensor, step: int) -> Tensor:
        seen.append(step)
        return quadratics(w) @ MIXED

    start = torch.ones(2, 3, dtype=torch.double)
    free = torch.tensor([1.0, 0, 0]).double()
    settings = {"n_beta": 1, "step_size": 0.1, "steps": 6, "burn_in": 2, "free": free}
    found = draws(batch, lambda w: w, start, every=2, **settings)  # type: ignore[arg-type]
    assert seen == list(range(1, 9))
    assert found.shape == (3, 2, 3)
    assert (found[:, :, 1:] == 0).all()
    assert (found[:, :, 0] != 0).all()


def test_a_shift_does_what_is_wanted_and_no_more() -> None:
    chi = torch.tensor([[3.0, -5, 1, 2], [1.0, 1, -2, 0]])
    wanted = torch.tensor([-1.0, 0.5])
    for held in ((), (1,)):
        found = shift(chi, wanted, held)
        assert torch.allclose(chi @ found, wanted, atol=1e-5)
        assert abs(found.sum()) < 1e-5
        assert found[list(held)].abs().sum() < 1e-5
    one = shift(chi[:1], wanted[:1])  # along the centred row: no other change is shorter
    centred = chi[0] - chi[0].mean()
    assert torch.allclose(one, -centred / centred.square().sum(), atol=1e-6)


def test_sources_are_what_they_say() -> None:
    bigrams, repeats, echoes, skip = patterning.sequences(400, torch.Generator().manual_seed(0))
    for row in repeats[:50].tolist():
        period = row.index(row[0], 1)
        assert 5 <= period <= 10
        assert len(set(row[:period])) == period
        assert row[period:] == row[:-period]
    assert torch.equal(echoes[:, 7:], echoes[:, :-7])
    assert echoes.max() == 3
    for row in skip.tolist():
        assert row[0] < 4
        after = [row[i + 1] for i in range(23) if row[i] == 15]
        assert len(after) >= 7
        assert set(after) == {row[0] + 4}
    table = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    likely = (3 * table).softmax(-1)[bigrams[:, :-1].flatten(), bigrams[:, 1:].flatten()]
    assert likely.mean() > 0.3  # against 1/16 for tokens at random


def test_known_is_where_induction_looks() -> None:
    repeats = patterning.sequences(20, torch.Generator().manual_seed(1))[1]
    found = patterning.known(repeats)
    for row, mask in zip(repeats.tolist(), found.tolist(), strict=True):
        for q in range(24):
            assert mask[q] == [0 < k <= q and row[k - 1] == row[q] for k in range(24)]


def test_a_network_equals_its_loops() -> None:
    w = patterning.start([0, 1])
    w = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(5))  # biases too
    tokens = torch.randint(16, (2, 3, 9), generator=torch.Generator().manual_seed(6))
    logits, patterns = patterning.forward(w, tokens)
    p = {name: matrix[1] for name, matrix in patterning.unpack(w).items()}
    x = p["E"][tokens[1, 2]]
    for layer in range(2):
        new = x.clone()
        for head in range(2):
            q, k, v = (x @ p["QKV"][layer, head]).split(8, dim=1)
            for i in range(9):
                bias = p["bias"][layer, head, : i + 1].flip(0)
                look = (k[: i + 1] @ q[i] / math.sqrt(8) + bias).softmax(0)
                assert torch.allclose(patterns[1, layer, 2, head, i, : i + 1], look, atol=1e-5)
                new[i] += look @ v[: i + 1] @ p["O"][layer, head]
        x = new
    assert torch.allclose(logits[1, 2], x @ p["U"], atol=1e-4)


def test_losses_and_scores_are_means_over_tokens() -> None:
    w, tokens = patterning.start([0]), patterning.sequences(6, torch.Generator().manual_seed(2))
    found = patterning.losses(w, tokens[None])[0]
    score = patterning.in_context(w, tokens[1]).item()
    new: list[float] = []
    old: list[float] = []
    for row, loss in zip(tokens, found, strict=True):
        log_probs = patterning.forward(w, row[None])[0][0, :, :-1].log_softmax(-1)
        each = -log_probs.gather(-1, row[:, 1:, None])[..., 0]
        assert loss.item() == pytest.approx(each.mean().item(), rel=1e-4)
    repeats, log_probs = tokens[1], patterning.forward(w, tokens[1][None])[0][0].log_softmax(-1)
    for s, row in enumerate(repeats.tolist()):
        for i in range(23):
            (old if row[i] in row[:i] else new).append(-log_probs[s, i, row[i + 1]].item())
    by_hand = (sum(new) / len(new) - sum(old) / len(old)) / math.log(16)
    assert score == pytest.approx(by_hand, abs=1e-4)


def test_networks_differ_by_seed_and_mixture_alone() -> None:
    mixed = patterning.MIXTURE
    other = torch.tensor([0.4, 0.2, 0.2, 0.2])
    w, scores = patterning.train(torch.stack([mixed, mixed, other]), [0, 1, 1], 12, settle=3)
    alone, _ = patterning.train(mixed[None], [1], 12, settle=3)
    assert scores.shape == (2, 3)
    assert torch.allclose(w[1], alone[0], atol=1e-4)
    assert (w[1] - w[2]).abs().max() > 1e-3
    assert torch.equal(patterning.start([1, 1])[0], patterning.start([1])[0])


def test_a_network_stops_above_the_level_and_the_others_go_on() -> None:
    mixed = patterning.MIXTURE.expand(2, -1)
    ends = patterning.train(mixed, [0, 1], 11)[1]
    assert ends.shape == (2, 2)
    level = float(ends[1].sort().values.mean())  # one of the two is above it at the second check
    w, scores = patterning.train(mixed, [0, 1], 19, level=level)
    assert torch.allclose(scores, ends, atol=1e-4)
    first = int(ends[1].argmax())
    for net, steps in ((first, 10), (1 - first, 19)):
        assert torch.allclose(w[net], patterning.train(mixed[:1], [net], steps)[0][0], atol=1e-4)
    all_stop = patterning.train(mixed, [0, 1], 35, level=-1.0)
    assert torch.equal(all_stop[0], patterning.start([0, 1]))
    assert torch.equal(all_stop[1], scores[:1].expand(4, -1))


def test_crossings_are_found_between_checks() -> None:
    columns = [[0.0, 0.4, 0.6, 0.2], [0.6, 0.7, 0.8, 0.9], [0.0, 0.1, 0.2, 0.3]]
    found = patterning.crossing(torch.tensor(columns).T)
    assert found.tolist() == pytest.approx([15, 0, 40], abs=1e-4)


def test_parameters_of_one_head_a_layer() -> None:
    free = patterning.parameters_of(torch.tensor([[0, 1], [1, 1]]))
    assert free.sum(1).tolist() == [2 * (16 * 24 + 8 * 16 + 24)] * 2
    parts = patterning.unpack(free)
    assert parts["QKV"][0, 0, 0].all()
    assert parts["QKV"][0, 1, 1].all()
    assert not parts["QKV"][0, 0, 1].any()
    assert not parts["E"].any()
    w = patterning.start([3, 4])
    moved, tokens = w + free, repeat(torch.arange(12), "t -> n s t", n=2, s=1)
    before, after = (patterning.forward(x, tokens)[1][:, 0, 0] for x in (w, moved))
    assert torch.equal(before[0, 1], after[0, 1])
    assert not torch.allclose(before[0, 0], after[0, 0])


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "1", "--steps", "11"])
    assert (tmp_path / "nets.safetensors").is_file()
    made = patterning.trained()
    assert made["w"].shape == (8, 2656)
    assert made["shifted"].shape == made["drawn"].shape == (150, 8, 4, 2)
    assert made["directions"].sum(-1).abs().max() < 1e-6
    held_out = patterning.sequences(64, torch.Generator().manual_seed(11))
    assert (patterning.in_context(made["w"], held_out[1]) > 0.9).all()
    # Where the roles say: the heads look at the previous token, and after earlier copies.
    roles, net = patterning.roles(made["w"]), torch.arange(8)
    pattern = patterning.forward(made["w"], repeat(held_out[1], "s t -> n s t", n=8))[1]
    looks = pattern[net, 1, :, roles[:, 1]] * patterning.known(held_out[1])
    can = patterning.known(held_out[1]).any(-1)
    assert (looks.sum(-1)[:, can].mean(1) > 0.5).all()

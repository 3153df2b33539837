"""Planted copies, gates, special and lost features are found; in shuffled data nothing is."""

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers.features import kinds
from mi_helpers.features import relations as features
from mi_helpers.features.firing import Firing, gather

DOCUMENTS, POS, UP, DOWN = 300, 20, 24, 30


@pytest.fixture(scope="module")
def planted():
    """Upstream: independent features. Downstream: 0-5 copies, 6-8 ANDs, 9-11 ORs, 12-14 special
    versions (they fire on one of three kinds of token), others independent."""
    rng = np.random.default_rng(0)
    shape = (DOCUMENTS, POS)

    def independent(density, width):
        fires = rng.random((*shape, width)) < density
        return fires * (0.1 + rng.exponential(size=(*shape, width)))

    contexts = rng.integers(0, 30, shape)
    up, down = independent(0.1, UP), independent(0.05, DOWN)
    up[..., 6:12] = independent(0.3, 6)  # the ANDs' inputs fire often, to meet often
    down[..., :6] = up[..., :6] * rng.uniform(0.95, 1.05, size=(*shape, 6))
    for k in range(3):
        a, b = up[..., 6 + 2 * k], up[..., 7 + 2 * k]
        down[..., 6 + k] = np.minimum(a, b)
        a, b = up[..., 12 + 2 * k], up[..., 13 + 2 * k]
        down[..., 9 + k] = np.maximum(a, b)
        down[..., 12 + k] = up[..., 18 + k] * (contexts < 10)
    streams = [gather([torch.tensor(x, dtype=torch.float32)]) for x in (up, down)]
    return *streams, contexts.ravel()


@pytest.fixture(scope="module")
def table(planted):
    return features.pairs(*planted[:2])


@pytest.fixture(scope="module")
def shuffled(planted):
    return features.pairs(planted[0], planted[1].rolled(11))


def test_copies_are_passed_on_and_the_rest_appears(planted, table):
    up, down, _ = planted
    found = kinds.flow(table, up, down)
    assert found["passed"] == 6 / DOWN
    related = set(table[table["pearson"] >= 0.4]["down"])
    assert related == {*range(6), *range(9, 15)}  # an AND of frequent inputs is like neither
    assert found["appearing"] == 18 / DOWN
    assert found["disappearing"] == 9 / UP  # the ANDs' inputs, and 21 to 23


def test_nothing_is_found_in_shuffled_data(planted, shuffled):
    up, down, _ = planted
    found = kinds.flow(shuffled, up, down.rolled(11))
    assert found == {"passed": 0, "appearing": 1, "disappearing": 1}
    assert shuffled["pearson"].max() < 0.1
    for kind in ("and", "or"):
        assert kinds.gates(shuffled, kind).empty
        loose = kinds.gates(shuffled, kind, at_least=0.9, exactly_two=False)
        assert loose.empty
    assert kinds.specialised(shuffled).empty


def test_the_interval_of_related_share_covers_it(planted, table):
    up, down, _ = planted
    found = kinds.related_share(table, up, down, 0.95, n=50)
    value, low, high = found.value, found.low, found.high
    assert value == 6 / DOWN
    assert (low, high) == pytest.approx((value, value))
    found = kinds.related_share(table, up, down, 0.55, side="up", n=50)
    value, low, high = found.value, found.low, found.high
    assert 0 < low <= value <= high < 1
    assert low < high
    assert value == (features.best(table, "up", UP) >= 0.55).mean()


def test_node_table_names_what_is_true_of_each_feature(planted, table):
    up, down, _ = planted
    nodes = kinds.node_table({(3, 4): table}, {3: up, 4: down}, {4: {7, 9}})
    found = nodes.set_index(["layer", "feature"])["kinds"]
    assert len(found) == UP + DOWN
    assert found[3, 0] == ("passed through",)
    assert found[4, 0] == ("passed through",)
    assert found[3, 6] == ("disappearing",)
    assert found[4, 7] == ("gate", "appearing")
    assert found[4, 9] == ("gate",)
    assert found[4, 12] == ()
    assert found[4, 20] == ("appearing",)


@pytest.mark.parametrize(("kind", "first_down", "first_up"), [("and", 6, 6), ("or", 9, 12)])
def test_planted_gates_are_found_and_survive(planted, table, kind, first_down, first_up):
    up, down, _ = planted
    halves = [(s.part(0, 150), s.part(150, 300)) for s in (up, down)]
    found = kinds.gates(features.pairs(halves[0][0], halves[1][0]), kind)
    expected = [(first_down + k, first_up + 2 * k, first_up + 2 * k + 1) for k in range(3)]
    assert list(found.itertuples(index=False, name=None)) == expected
    held_out = kinds.truth(found, halves[0][1], halves[1][1], kind)
    assert (held_out["gate"] == 1).all()
    assert (held_out["single"] < 0.8).all()
    assert (held_out["p_both"] == 1).all()
    assert (held_out["p_one"] == (0 if kind == "and" else 1)).all()
    assert (held_out["p_neither"] == 0).all()


def test_a_gate_of_three_is_found_only_if_not_exactly_two(planted):
    rng = np.random.default_rng(1)
    up = torch.tensor(rng.random((50, POS, 3)) < 0.5).float()
    three = gather([up]), gather([up.prod(-1, keepdim=True)])
    table = features.pairs(*three)
    assert kinds.gates(table, "and").empty
    loose = kinds.gates(table, "and", exactly_two=False)
    assert sorted(loose[["a", "b"]].itertuples(index=False, name=None)) == [(0, 1), (0, 2), (1, 2)]
    assert (kinds.truth(loose, *three, "and")["p_both"] < 0.7).all()


def test_truth_table_by_hand():
    up = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0]]).float()
    down = torch.tensor([[1.0, 0, 0, 0, 0, 1]])
    firing = gather([up.T[None]]), gather([down.T[None]])
    row = kinds.truth(pd.DataFrame({"down": [0], "a": [0], "b": [1]}), *firing, "and").iloc[0]
    assert row[["p_both", "p_one", "p_neither"]].tolist() == [1 / 2, 0, 1 / 2]
    assert row[["fires", "texts", "gate", "single"]].tolist() == [2, 1, 1 / 3, 1 / 4]


@pytest.mark.parametrize("kind", ["and", "or"])
def test_truth_tables_are_those_of_sets_of_tokens(kind, monkeypatch):
    monkeypatch.setattr(kinds, "AT_ONCE", 7)
    rng = np.random.default_rng(2)
    streams = [torch.tensor(rng.random((12, 9, 5)) * (rng.random((12, 9, 5)) < 0.3)) for _ in "ab"]
    up, down = (gather([x]) for x in streams)
    chosen = pd.DataFrame(rng.integers(5, size=(30, 3)), columns=["down", "a", "b"])
    found = kinds.truth(chosen, up, down, kind, (0.2, 0.4))
    u, v = (set(zip(*np.nonzero(x.flatten(0, 1).numpy() > t), strict=True)) for x, t in
            zip(streams, (0.2, 0.4), strict=True))  # fmt: skip

    def share(of, among):
        return len(of & among) / len(among) if among else np.nan

    for row in found.itertuples():
        a, b = ({int(t) for t, f in u if f == of} for of in (row.a, row.b))
        d = {int(t) for t, f in v if f == row.down}
        gate = a & b if kind == "and" else a | b
        alone = [share(d, x) for x in (a - b, b - a) if x]
        worst = (max if kind == "and" else min)(alone) if alone else np.nan
        expected = [share(d, a & b), worst, share(d, set(range(108)) - a - b), len(d)]
        expected += [len({t // 9 for t in d}), len(d & gate) / len(d | gate)]
        expected += [max(len(d & x) / len(d | x) for x in (a, b))]
        np.testing.assert_allclose([*row][4:], expected)


def test_specialised_features_are_found(table):
    found = kinds.specialised(table)
    pairs = set(zip(found["up"], found["down"], strict=True))
    assert {(18 + k, 12 + k) for k in range(3)} <= pairs
    ands = {(6 + 2 * k + side, 6 + k) for k in range(3) for side in (0, 1)}
    assert pairs <= ands | {(18 + k, 12 + k) for k in range(3)}


def test_error_slopes_find_the_lost_share():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(3, 8, generator=generator)
    decoder = torch.linalg.qr(decoder.T).Q.T * torch.tensor([[1.0], [2.0], [0.5]])
    fires = (torch.rand(1, 2000, 3, generator=generator) < 0.2).float()
    activations = fires * torch.rand(1, 2000, 3, generator=generator)
    share = torch.tensor([0.0, 0.4, 1.0])
    errors = (activations[0] * share) @ decoder + 0.01 * torch.randn(2000, 8, generator=generator)
    found = kinds.error_slopes(gather([activations]), errors, decoder)
    np.testing.assert_allclose(found, share, atol=0.02)
    silent = Firing(gather([activations * torch.tensor([0.0, 1, 1])]).values, np.zeros(2000, int))
    assert np.isnan(kinds.error_slopes(silent, errors, decoder)[0])
    with pytest.raises(ValueError, match=r"\(2000, 8\)"):
        kinds.error_slopes(silent, errors[:5], decoder)


def test_refusals(planted, table):
    up, down, _ = planted
    with pytest.raises(ValueError, match="'and' or 'or'"):
        kinds.gates(table, "xor")
    with pytest.raises(ValueError, match="more text"):
        kinds.flow(table, up, down, at_least=10**6)


def test_a_matched_input_fires_as_often_alone_and_together_and_foretells_less(planted, table):
    up, down, _ = planted
    found = kinds.gates(table, "and", at_least=0.9)
    drawn = kinds.matched_inputs(found, up, among=4)
    on = up.values.toarray() > 0
    for a, b, c in zip(found["a"], found["b"], drawn["b"], strict=True):
        assert c not in (a, b)
        assert on[:, c].sum() == pytest.approx(on[:, b].sum(), rel=0.1)
        assert (on[:, a] & on[:, c]).sum() == pytest.approx((on[:, a] & on[:, b]).sum(), rel=0.1)
    gate, null = (kinds.truth(x, up, down, "and")["gate"].mean() for x in (found, drawn))
    assert gate > null + 0.2


def test_a_matched_input_prefers_one_that_meets_the_first_as_often():
    on = torch.zeros(1, 40, 4)
    on[0, :20, 0] = on[0, 10:30, 1] = on[0, 10:30, 2] = on[0, 20:, 3] = 1
    drawn = kinds.matched_inputs(
        pd.DataFrame({"down": [0], "a": [0], "b": [1]}), gather([on]), among=1
    )
    assert drawn["b"].tolist() == [2]


def test_several_draws_are_those_of_as_many_seeds(planted, table):
    up = planted[0]
    found = kinds.gates(table, "and", at_least=0.9)
    alone = pd.concat([kinds.matched_inputs(found, up, seed=seed) for seed in (3, 4, 5)])
    pd.testing.assert_frame_equal(kinds.matched_inputs(found, up, seed=3, draws=3), alone)

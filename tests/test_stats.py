"""Intervals cover as often as they say; pairs stay paired; what has no interval is refused."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mi_helpers import stats


@pytest.mark.parametrize("n", [3, 5, 40])
def test_an_interval_covers_the_mean_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = stats.estimate(rng.normal(2.0, 1.0, n), seed=trial)
        assert found.low <= found.value <= found.high
        assert found.n == n
        hits += found.low <= 2.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_samples_are_drawn_whole_and_any_statistic_is_taken() -> None:
    x = np.arange(1.0, 21.0)
    pairs = torch.tensor(np.stack([x, 3 * x], axis=1))
    found = stats.estimate(pairs, lambda rows: rows[:, 1].sum() / rows[:, 0].sum())
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    both = stats.ratio(3 * x, x)
    assert (both.value, both.low, both.high) == pytest.approx((3.0, 3.0, 3.0))


@settings(deadline=None)  # the first call imports
@given(arrays(float, st.integers(10, 14), elements=st.floats(-1e3, 1e3)), st.integers(0, 9))
def test_the_bootstrap_is_seeded_and_stays_in_range(values: Any, seed: int) -> None:
    first = stats.estimate(values, seed=seed)
    assert first == stats.estimate(values, seed=seed)
    slack = 1e-9 * (1 + abs(values).max())
    assert values.min() - slack <= first.low <= first.high <= values.max() + slack


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "two seeds"), ([1.0], "two seeds"), (3.0, "two seeds"), ([1, math.nan], "NaN")],
)
def test_what_has_no_interval_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.estimate(values, over="seeds")


def test_a_paired_effect_leaves_the_differences_between_prompts_out() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(5, 10, 40)  # prompts differ by far more than the patch does
    effect = stats.paired_effect(clean, clean - 0.2, clean - 2.0)
    assert effect == pytest.approx(np.full(40, 0.1))
    with pytest.raises(ValueError, match="no effect"):
        stats.paired_effect([1.0, 2.0], [0.0, 0.0], [2.0, 1.0])
    with pytest.raises(ValueError, match="one number per prompt"):
        stats.paired_effect([1.0, 2.0], [0.0], [2.0, 1.0])


def test_the_mean_paired_effect_is_the_ratio_of_means() -> None:
    rng = np.random.default_rng(1)
    clean, patched, corrupted = rng.normal([[5.0], [3.0], [1.0]], 1.0, (3, 30))
    plain = (clean.mean() - patched.mean()) / (clean.mean() - corrupted.mean())
    assert stats.paired_effect(clean, patched, corrupted).mean() == pytest.approx(plain)


def test_a_paired_ratio_is_that_of_a_typical_sample() -> None:
    below = np.array([1e-3, 1.0, 1e3, 50.0, np.nan])
    found = stats.paired_ratio(below * [2, 2, 2, 2, 2], below)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2.0, 2.0, 2.0, 4))
    mixed = stats.paired_ratio(below[:4] * [1, 1, 4, 4], below[:4])
    assert mixed.value == pytest.approx(2.0)
    assert mixed.low < 2 < mixed.high


def test_a_share_has_wilsons_interval() -> None:
    found = stats.share(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927
    with pytest.raises(ValueError, match="a share"):
        stats.share(3, 2)


def test_correlations_of_known_columns() -> None:
    x = np.arange(30.0)
    assert stats.correlation(x, np.exp(x / 5)).value == pytest.approx(1)
    assert stats.correlation(x, -x, "pearson").low == pytest.approx(-1)
    noise = np.random.default_rng(0).normal(size=30)
    assert stats.correlation(x, noise).low < 0 < stats.correlation(x, noise).high
    assert stats.correlation(x, np.zeros(30)).value == 0


def test_quartiles_by_group() -> None:
    table = pd.DataFrame({"kind": ["a"] * 5 + ["b"] * 5, "x": [1.0, 2, 3, 4, 5] * 2})
    assert stats.quartiles(table, ["kind"], "x").to_numpy().tolist() == [
        ["a", 2, 3, 4],
        ["b", 2, 3, 4],
    ]


@pytest.mark.parametrize(
    ("mean", "depth"),
    [
        ([0.0, 0.0, 0.25, 0.75], 0.625),  # half way between layers 2 and 3 of 4
        ([0.0, 1.0, 0.0, 1.0], 0.125),  # the first of two
        ([0.6, 0.7, 0.8, 0.9], 0.0),
        ([0.0, 0.1, 0.4, 0.5], 1.0),  # never above
    ],
)
def test_crossing_is_of_the_mean_curve(mean: list[float], depth: float) -> None:
    curves = np.array([mean, mean]) + np.array(
        [[0.3], [-0.3]]
    )  # prompts apart, their mean the same
    assert stats.crossing(curves) == pytest.approx(depth)

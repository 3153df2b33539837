"""Comparisons of pushes on tables whose ratios, slopes and bends are known."""

import numpy as np
import pandas as pd
import pytest

from mi_helpers.directions import compare


def pushes(n_texts: int = 12, k: int = 3) -> pd.DataFrame:
    """Tokens of very unequal KL; `b` is twice `a`, but ten times for one position of each text, and
    `c` is `a` times one plus its length."""
    rng = np.random.default_rng(0)
    lines = []
    for prompt in range(n_texts):
        for at in range(k):
            base = float(rng.lognormal(0, 2))
            for length in (0.1, 0.4):
                kl = base * length**2
                more = {"a": 1.0, "b": 10.0 if at == 0 else 2.0, "c": 1 + length}
                lines += [
                    {"direction": name, "length": length, "prompt": prompt, "at": at,
                     "kl": kl * times} for name, times in more.items()
                ]  # fmt: skip
    return pd.DataFrame(lines)


def test_ratios_of_each_average() -> None:
    table = pushes()
    exact = compare.ratio(table, ["b", "a"], "geometric mean")
    assert (exact.value, exact.low, exact.high) == pytest.approx((np.cbrt(40),) * 3)
    wide = table.pivot(index=["prompt", "at"], columns=["direction", "length"], values="kl")
    mean = wide["b"].mean() / wide["a"].mean()
    assert compare.ratio(table, ["b", "a"]).value == pytest.approx(mean.mean())
    median = wide["b"].median() / wide["a"].median()
    assert compare.ratio(table, ["b", "a"], "median", np.min).value == pytest.approx(median.min())
    assert compare.ratio(table, ["c", "a"], pick=np.max).value == pytest.approx(1.4)
    assert compare.ratio(table, ["c", "a"], pick=np.min).value == pytest.approx(1.1)
    four = compare.ratio(table, ["b", "a", "c", "a"], "geometric mean", np.min)
    assert four.value == pytest.approx(np.cbrt(40) / 1.4)


def test_excess_is_a_share_of_the_log_ratio() -> None:
    table = pushes()
    lines = table[table["direction"] == "a"]
    for name, times in {"four": 4.0, "two": 2.0}.items():
        more = lines.assign(direction=name, kl=times * lines["kl"])
        table = pd.concat([table, more])
    half = compare.excess(table, ["two", "four", "a"])
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert compare.excess(table, ["a", "four", "a"]).value == pytest.approx(0)
    mean = table.groupby(["length", "direction"])["kl"].mean().unstack()
    logs = np.log(mean).sum()
    found = compare.excess(table, ["c", "b", "a"])
    assert found.value == pytest.approx((logs["c"] - logs["a"]) / (logs["b"] - logs["a"]))
    assert found.low < found.value < found.high


def test_positions_left_out_and_repeated_draws() -> None:
    table = pushes()
    without = table[~((table["prompt"] == 2) & (table["at"] == 1))]
    assert np.isnan(compare.by_token(without, ["b", "a"])[2, 1]).all()
    expected = compare.by_token(table, ["b", "a"])[:, 0].mean(0)
    assert np.nanmean(compare.by_token(without, ["b", "a"])[:, 0], axis=0) == pytest.approx(
        expected
    )
    assert compare.ratio(without, ["c", "a"], pick=np.max).value == pytest.approx(1.4)
    draws = pd.concat([table, table.assign(kl=3 * table["kl"])])
    assert compare.by_token(draws, ["a"]) == pytest.approx(2 * compare.by_token(table, ["a"]))
    with pytest.raises(ValueError, match="no direction \\['d'\\]"):
        compare.by_token(table, ["d"])


def test_ratios_for_a_figure() -> None:
    table = pushes()
    found = compare.ratios({"trained": table, "untrained": table}, {"c / a": ["c", "a"]})
    assert found["ratio"].tolist() == pytest.approx([1.1, 1.4, 1.1, 1.4])
    assert (found["low"] <= found["ratio"]).all()


def test_averages_see_the_tail() -> None:
    kl = np.array([1.0] * 38 + [81.0] * 2)
    found = compare.averages(pd.DataFrame({"direction": "a", "kl": kl})).loc["a"]
    assert found["mean"] == pytest.approx(5.0)
    assert found["median"] == 1
    assert found["geometric mean"] == pytest.approx(81 ** (2 / 40))
    assert found["share of the top 5 %"] == pytest.approx(162 / 200)


def test_slope_of_a_power_law_within_tokens() -> None:
    rng = np.random.default_rng(0)
    table = pushes()[["prompt", "at", "kl"]].iloc[::2].reset_index(drop=True)
    scale = table.groupby(["prompt", "at"])["kl"].transform("first")
    table["l0"] = rng.uniform(5, 300, len(table))
    table["kl"] = scale * table["l0"] ** -0.3
    found = compare.slope(table, "l0")
    assert (found.value, found.low, found.high) == pytest.approx((-0.3, -0.3, -0.3))


def test_where_a_way_bends() -> None:
    alpha = np.linspace(0, 1, 21)
    heights = {
        "straight": alpha,
        "jump": np.where(alpha < 0.61, 0.1 * alpha, 0.9 + 0.1 * alpha),
        "late": np.where(alpha < 0.31, alpha, 0.3 + 2 * (alpha - 0.3)),
    }
    table = pd.concat(
        pd.DataFrame({"direction": n, "prompt": 0, "at": 1, "length": alpha, "l2": h})
        for n, h in heights.items()
    )
    found = compare.blow_up(table).set_index("direction")
    assert found.loc["straight", "leaves"] == 1
    assert found.loc["jump", "steepest"] == pytest.approx(0.625)
    assert found.loc["jump", "leaves"] == pytest.approx(0.65)
    assert found.loc["late", "leaves"] == pytest.approx(0.35)
    with pytest.raises(ValueError, match="even steps"):
        compare.blow_up(table[table["length"] != alpha[3]])

"""What pushes did, compared within texts: ratios over lengths, slopes, and the shape of a way.

Tables are those of `push`, with the columns `direction`, `length`, `prompt`, `at` and what was
measured. The same tokens are pushed in every way, so every ratio is paired; texts are resampled,
since positions of one text are not independent. KL has a long tail over tokens, so a mean, a
geometric mean and a median can say different things: `average` chooses.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..stats import Estimate, estimate

SMALLEST = 1e-9  # nats; below it a KL in float32 is rounding
AVERAGES = ("mean", "geometric mean", "median")


def by_token(
    table: pd.DataFrame, names: Sequence[str], value: str = "kl"
) -> Float[np.ndarray, "text k direction length"]:
    """One measure of each text and position, for some directions at all their lengths; NaN for a
    position that was left out. Several draws of one direction are averaged."""
    if missing := set(names) - set(table["direction"]):
        raise ValueError(f"no direction {sorted(missing)}: {sorted(set(table['direction']))}")
    part = table[table["direction"].isin(names)]
    cells = part.groupby(["prompt", "at", "direction", "length"])[value].mean()
    axes = [
        sorted(part["prompt"].unique()),
        sorted(part["at"].unique()),
        list(dict.fromkeys(names)),
    ]
    lengths = sorted(part["length"].unique())
    full = pd.MultiIndex.from_product([*axes, lengths])
    values = cells.reindex(full).to_numpy().reshape(*map(len, axes), len(lengths))
    return values[:, :, [axes[2].index(name) for name in names]].clip(SMALLEST)


def ratio(
    table: pd.DataFrame,
    names: Sequence[str],
    average: str = "mean",
    pick: Callable[[np.ndarray], float] = np.mean,
    seed: int = 0,
) -> Estimate:
    """The average KL of the first direction over that of the second, with an interval over texts.

    Four names give (first / second) / (third / fourth). `pick` makes one number of those of all
    lengths: np.mean, np.min for "at each length", np.max.
    """

    if average not in AVERAGES:
        raise ValueError(f"an average is one of {', '.join(AVERAGES)}, got {average!r}")
    data = by_token(table, names)  # NaN where a position was left out, so texts by number
    sign = np.array([1, -1, -1, 1])[: len(names), None]
    whole = not np.isnan(data).any()
    centre = np.nanmedian if average == "median" else np.mean if whole else np.nanmean
    geometric = average == "geometric mean"
    data = np.log(data) if geometric else data

    def of(texts: np.ndarray) -> float:
        each = centre(data[texts], axis=(0, 1))
        return float(pick(np.exp((sign * (each if geometric else np.log(each))).sum(0))))

    return estimate(np.arange(len(data)), of, "texts", "×", seed)


def excess(table: pd.DataFrame, names: Sequence[str], seed: int = 0) -> Estimate:
    """How much of the second direction's excess over the third the first has too: log(first /
    third) over log(second / third), of mean KLs, logs summed over lengths, with an interval over
    texts. 0 is none, 1 all."""
    data = by_token(table, names)

    def of(texts: np.ndarray) -> float:
        first, second, third = np.log(np.nanmean(data[texts], axis=(0, 1))).sum(-1)
        return float((first - third) / (second - third))

    return estimate(np.arange(len(data)), of, "texts", "", seed)


def ratios(
    tables: dict[str, pd.DataFrame],
    pairs: dict[str, Sequence[str]],
    average: str = "mean",
    seed: int = 0,
) -> pd.DataFrame:
    """`ratio` at each length, for named tables (column `weights`) and named pairs of directions
    (column `direction`): columns `ratio`, `low`, `high` as well, ready for `plots.lines`."""
    lines = []
    for weights, table in tables.items():
        for name, pair in pairs.items():
            part = table[table["direction"].isin(pair)]
            for length, at in part.groupby("length"):
                found = ratio(at, pair, average, seed=seed)
                lines.append({
                    "weights": weights, "direction": name, "length": length,
                    "ratio": found.value, "low": found.low, "high": found.high,
                })  # fmt: skip
    return pd.DataFrame(lines)


def averages(table: pd.DataFrame, value: str = "kl") -> pd.DataFrame:
    """Mean, geometric mean and median over tokens, and the share of the mean that the largest
    twentieth of the tokens makes, a line for each direction."""
    lines = {}
    for name, part in table.groupby("direction", sort=False)[value]:
        sorted_ = np.sort(part.to_numpy().clip(SMALLEST))
        top = sorted_[-max(1, len(sorted_) // 20) :]
        lines[name] = {
            "mean": sorted_.mean(), "geometric mean": np.exp(np.log(sorted_).mean()),
            "median": np.median(sorted_), "share of the top 5 %": top.sum() / sorted_.sum(),
        }  # fmt: skip
    return pd.DataFrame(lines).T


def slope(table: pd.DataFrame, x: str, seed: int = 0) -> Estimate:
    """The slope of log KL on log x over lines, each token (`prompt`, `at`) compared with itself,
    with an interval over texts."""
    logs = table[["prompt", "at"]].assign(x=np.log(table[x]), y=np.log(table["kl"].clip(SMALLEST)))
    within = logs[["x", "y"]] - logs.groupby(["prompt", "at"])[["x", "y"]].transform("mean")
    products = pd.DataFrame({
        "prompt": logs["prompt"], "xy": within["x"] * within["y"], "xx": within["x"] ** 2
    }).groupby("prompt").sum()  # fmt: skip
    return estimate(
        products.to_numpy(), lambda p: float(p[:, 0].sum() / p[:, 1].sum()), "texts", "", seed
    )


def blow_up(table: pd.DataFrame) -> pd.DataFrame:
    """Of each way to a target, [0, 1] in even steps of `length`: where the slope of `l2` is
    `steepest`, and where it first `leaves` by a tenth the line through its start and the end of its
    first tenth.

    One line for each direction, text and position. Source: Heimersheim & Mendel 2024, Interim
    report (step of maximal slope, non-linearity step).
    """
    index = ["direction", "prompt", "at"]
    ways = table.pivot_table(index=index, columns="length", values="l2")
    alpha, height = ways.columns.to_numpy(), ways.to_numpy()
    if len(alpha) < 4 or not np.allclose(np.diff(alpha), alpha[1] - alpha[0]):
        raise ValueError(f"a way needs four or more even steps, got {alpha.tolist()}")
    first = max(2, round(0.1 * (len(alpha) - 1)))
    line = height[:, [first]] / alpha[first] * alpha
    left = np.abs(height - line) > 0.1 * line
    left[:, : first + 1] = False
    step = np.diff(height, axis=1).argmax(1)
    return pd.DataFrame({
        "steepest": (alpha[step] + alpha[step + 1]) / 2,
        "leaves": np.where(left.any(1), alpha[left.argmax(1)], alpha[-1]),
    }, ways.index).reset_index()  # fmt: skip

"""Numbers with their uncertainty: estimates over prompts or seeds, paired effects, spreads."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """A statistic with its percentile bootstrap interval over the first axis.

    Args:
        values: `[sample]` or `[sample, ...]`; samples (prompts, seeds) are drawn with replacement
            and whole, so that columns of one sample stay paired.
        statistic: array -> number.
        n: number of resamples.
        level: the interval's nominal coverage.

    Returns:
        value, low, high: the statistic of all samples and the two quantiles of the resampled one.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    data = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if data.ndim == 0 or len(data) < 2:
        raise ValueError(f"an interval needs at least two samples, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{(~np.isfinite(data)).sum()} of {data.size} values are NaN or infinite")
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95, got {level}")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(data), size=(n, len(data)))
    resampled = np.array([float(statistic(data[draw])) for draw in draws])
    if not np.isfinite(resampled).all():
        raise ValueError("the statistic is NaN or infinite on some resamples; use more samples")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(data)), float(low), float(high)


def ratio(
    table: pd.DataFrame,
    above: str,
    below: str,
    by: str = "direction",
    value: str = "kl",
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of `value` where `by` is `above`, over that where it is `below`, with its bootstrap
    interval over prompts; lines of one prompt are averaged first, so that prompts stay paired."""
    means = table.pivot_table(index="prompt", columns=by, values=value)[[above, below]]
    return bootstrap(means.to_numpy(float), lambda x: x[:, 0].mean() / x[:, 1].mean(), seed=seed)


def spread(table: pd.DataFrame, by: list[str], value: str = "kl") -> pd.DataFrame:
    """Median and quartiles of `value` over prompts: columns `by`, `low`, `median`, `high`."""
    quartiles = table.groupby(by, sort=False)[value].quantile([0.25, 0.5, 0.75]).unstack()
    return quartiles.set_axis(["low", "median", "high"], axis=1).reset_index()

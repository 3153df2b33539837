"""Numbers with their uncertainty: estimates over prompts or seeds, paired effects, correlations.

`estimate` is the one way to an interval: samples are resampled whole, so that whatever belongs to
one prompt stays together. What is compared within a prompt is subtracted within it first
(`paired_effect`), never between two averages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # the command line, which imports this, answers at once
    import pandas as pd

N_RESAMPLES = 1000
LEVEL = 0.95  # nominal coverage of every interval
FEW = 10  # below this many samples, resampling a mean understates its spread


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and what was resampled to get it: `n` of `over`."""

    value: float
    low: float
    high: float
    n: int
    over: str
    unit: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]{unit} ({self.n} {self.over})"


def estimate(
    samples: ArrayLike,
    statistic: Callable[[np.ndarray], float] = np.mean,
    over: str = "prompts",
    unit: str = "",
    seed: int = 0,
) -> Estimate:
    """A statistic of samples, with its interval over the first axis.

    The interval is the percentile bootstrap's; that of the mean of fewer than ten numbers (seeds,
    networks) is Student's t, since so few resampled among themselves look too much alike.

    Args:
        samples: [sample] or [sample, ...]; drawn with replacement and whole, so that the columns of
            one sample stay paired.
        statistic: array -> number.
        over: what a sample is: "prompts", "seeds", "texts".
        unit: of the value, such as "nats".

    Raises ValueError for fewer than two samples and for NaN or infinite ones.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; Student 1908.
    """
    data = _array(samples)
    if data.ndim == 0 or len(data) < 2:
        raise ValueError(f"an interval needs at least two {over}, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{(~np.isfinite(data)).sum()} of {data.size} values are NaN or infinite")
    if statistic is np.mean and data.ndim == 1 and len(data) < FEW:
        from scipy import stats as scipy_stats

        mean = float(data.mean())
        reach = scipy_stats.t.ppf((1 + LEVEL) / 2, len(data) - 1) * scipy_stats.sem(data)
        return Estimate(mean, mean - float(reach), mean + float(reach), len(data), over, unit)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(data), size=(N_RESAMPLES, len(data)))
    resampled = np.array([float(statistic(data[draw])) for draw in draws])
    if not np.isfinite(resampled).all():
        raise ValueError("the statistic is NaN or infinite on some resamples; use more samples")
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(data)), float(low), float(high), len(data), over, unit)


def paired_effect(
    clean: ArrayLike, patched: ArrayLike, corrupted: ArrayLike
) -> Float[np.ndarray, "prompt"]:
    """What a patch takes away, prompt by prompt: (clean_i - patched_i) / mean(clean - corrupted).

    Each prompt is compared with itself, so that differences between prompts do not enter; the
    shared span makes the mean over prompts the usual ratio of means. 0: nothing, 1: all of it.

    Raises ValueError for columns of unequal length, and where clean and corrupted do not differ.
    """
    whole, after, nothing = (_array(x).astype(float) for x in (clean, patched, corrupted))
    if not whole.shape == after.shape == nothing.shape:
        raise ValueError(
            f"one number per prompt each: got {whole.shape}, {after.shape}, {nothing.shape}"
        )
    span = (whole - nothing).mean()
    if span == 0:
        raise ValueError("clean and corrupted have the same mean: there is no effect to share out")
    return (whole - after) / span


def ratio(
    above: ArrayLike, below: ArrayLike, over: str = "prompts", unit: str = "×", seed: int = 0
) -> Estimate:
    """Mean of `above` over mean of `below`, both [sample]; a sample's two numbers stay paired."""
    both = np.stack([_array(above), _array(below)], axis=1).astype(float)
    return estimate(both, lambda x: float(x[:, 0].mean() / x[:, 1].mean()), over, unit, seed)


def paired_ratio(
    above: ArrayLike, below: ArrayLike, over: str = "pairs", seed: int = 0
) -> Estimate:
    """The typical ratio, exp of the mean of log(above_i / below_i), both [sample], above 0.

    Each sample is compared with itself and no sample counts for its size, unlike in `ratio`.
    Samples that are NaN in either column are left out.
    """
    log = np.log(_array(above).astype(float) / _array(below).astype(float))
    log = log[~np.isnan(log)]
    return estimate(log, lambda x: float(np.exp(x.mean())), over, "×", seed)


def share(hits: int, n: int, over: str = "pairs") -> Estimate:
    """`hits` of `n` as a share, with Wilson's score interval (Wilson 1927)."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"a share is of at least one, got {hits} of {n}")
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(n)).proportion_ci(LEVEL, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), int(n), over)


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    method: Literal["spearman", "pearson"] = "spearman",
    over: str = "pairs",
    seed: int = 0,
) -> Estimate:
    """Correlation of two columns, with its bootstrap interval over the pairs (x_i, y_i).

    A resample in which one column is constant counts as no correlation.
    """
    if method not in ("spearman", "pearson"):
        raise ValueError(f"method is 'spearman' or 'pearson', got {method!r}")

    from scipy.stats import rankdata

    def of(both: np.ndarray) -> float:
        if (both == both[0]).all(0).any():
            return 0.0
        ranks = rankdata(both, axis=0) if method == "spearman" else both
        return float(np.corrcoef(ranks, rowvar=False)[0, 1])

    return estimate(np.stack([_array(x), _array(y)], axis=1).astype(float), of, over, "", seed)


def crossing(curves: Float[np.ndarray, "prompt layer"]) -> float:
    """The depth, as a share of the layers, at which the mean curve first exceeds one half.

    Between the two layers on either side it is read off a straight line; 0 where the first layer
    is above already, 1 where no layer is. A statistic for `estimate`.
    """
    mean = np.asarray(curves).mean(0)
    above = mean > 0.5
    if not above.any():
        return 1.0
    at = int(above.argmax())
    if at == 0:
        return 0.0
    step = (0.5 - mean[at - 1]) / (mean[at] - mean[at - 1])  # from the layer below, 0 to 1
    return float((at - 1 + step) / len(mean))


def quartiles(table: "pd.DataFrame", by: Sequence[str], value: str) -> "pd.DataFrame":
    """Median and quartiles of a column within groups: columns `by`, `low`, `median`, `high`."""
    found = table.groupby(list(by), sort=False)[value].quantile([0.25, 0.5, 0.75]).unstack()
    return found.set_axis(["low", "median", "high"], axis=1).reset_index()


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)

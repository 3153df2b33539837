"""Statistics of every pair of two layers' features, at the cost of the few that fire together.

A sparse autoencoder's features are nearly always silent. With k of a layer's features firing on a
token, a token adds to k_up × k_down pairs, not to width × width of them. So `pairs` takes what
fires alone (`Firing`), multiplies sparse matrices, and works in blocks of upstream
features that fit a memory budget. The sums are exact and in float64.

All that is asked of two layers is that they have seen the same tokens in the same order; widths
may differ. "Up" is the earlier layer, "down" the later one.

Source: Balcells et al. 2024, arXiv 2410.08869 (Pearson, Jaccard, sufficiency, necessity, mutual
information; firing thresholds).
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from .firing import Firing

MEMORY = 1 << 29  # bytes for the pairs of one block
AT_ONCE = 1 << 18  # pairs whose statistics are taken together
STATISTICS = (
    "pearson", "jaccard", "sufficiency", "necessity", "mutual_information", "cosine",
)  # fmt: skip


class Totals(NamedTuple):
    """One layer's sums over tokens, one number a feature."""

    fires: np.ndarray  # tokens above the threshold
    total: np.ndarray
    squares: np.ndarray
    largest: np.ndarray


Threshold = float | np.ndarray
Thresholds = tuple[Threshold, Threshold]  # of the earlier layer, and of the later one


def totals(stream: Firing, threshold: Threshold = 0.0) -> Totals:
    """How often each feature fires (above `threshold`), its sum, sum of squares and maximum."""
    width, of, data = stream.width, stream.values.indices, stream.values.data.astype(np.float64)
    fires = np.bincount(of[data > np.broadcast_to(threshold, width)[of]], minlength=width)
    total, squares = (np.bincount(of, x, width) for x in (data, data**2))
    largest = stream.values.max(axis=0).toarray().ravel() if len(data) else np.zeros(width)
    return Totals(fires, total, squares, largest)


def relative_threshold(stream: Firing, share: float = 0.2) -> Float[np.ndarray, "feature"]:
    """A threshold for each feature: `share` of its maximum over the stream (the paper's is 0.2)."""
    return share * totals(stream).largest


def pairs(
    up: Firing,
    down: Firing,
    *,
    thresholds: Thresholds = (0.0, 0.0),
    min_together: int = 20,
    keep: Mapping[str, float] | None = None,
    decoders: tuple[Float[Tensor, "up d"], Float[Tensor, "down d"]] | None = None,
    max_memory: int = MEMORY,
) -> pd.DataFrame:
    """One row for each pair of features that fire together on at least `min_together` tokens.

    Columns: up, down, together (tokens on which both are above their threshold), those of
    `statistics`, and with `decoders` the cosine of decoder rows, decoder_cosine. `keep` maps names
    of statistics to bounds; a pair stays if it reaches one of them. A feature fires where it is
    above its layer's threshold, one number or one a feature; Pearson and cosine are of the
    activations themselves. The rarer a feature, the higher its best correlation by chance:
    `min_together`, and `Firing.rolled` as a null, are there for that.

    `max_memory` is in bytes and bounds a block of pairs; what is returned comes on top. Raises
    ValueError for streams of unequal lengths and for an unknown statistic.
    """
    n_tokens = up.n_tokens
    if n_tokens != down.n_tokens:
        raise ValueError(
            f"both layers must see the same tokens, got {n_tokens} and {down.n_tokens}"
        )
    if unknown := set(keep or ()) - set(STATISTICS):
        raise ValueError(f"keep names {sorted(unknown)}; there are {', '.join(STATISTICS)}")
    if min_together < 1:
        raise ValueError(f"min_together is at least 1, got {min_together}")
    of_up, of_down = totals(up, thresholds[0]), totals(down, thresholds[1])
    found = []
    for i, j, together, product in _blocks(up, down, thresholds, min_together, max_memory):
        table = {"up": i, "down": j, "together": together}
        table |= statistics(n_tokens, _take(of_up, i), _take(of_down, j), together, product)
        block = pd.DataFrame(table)
        if keep:
            block = block[np.any([block[name] >= bound for name, bound in keep.items()], axis=0)]
        found.append(block)
    result = pd.concat(found, ignore_index=True)
    if decoders is not None:
        result["decoder_cosine"] = _row_cosines(decoders, result)
    return result


def statistics(
    n_tokens: int, up: Totals, down: Totals, together: np.ndarray, product: np.ndarray
) -> dict[str, np.ndarray]:
    """The statistics of pairs, elementwise, from their sums.

    `together` counts tokens on which both fire; `product` is the sum of the product of activations.
    Sufficiency is P(down fires | up fires), necessity P(up fires | down fires); mutual information
    is that of the two firings, in bits. What is undefined, for a silent feature, is 0.
    """
    both, a, b = np.broadcast_arrays(together.astype(np.float64), up.fires, down.fires)
    covariance = n_tokens * product - up.total * down.total
    spread = [n_tokens * one.squares - one.total**2 for one in (up, down)]
    information = sum(
        _term(cell, row, column, n_tokens)
        for cell, row, column in (
            (both, a, b),
            (a - both, a, n_tokens - b),
            (b - both, n_tokens - a, b),
            (n_tokens - a - b + both, n_tokens - a, n_tokens - b),
        )
    )
    return {
        "pearson": _ratio(covariance, np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0))),
        "jaccard": _ratio(both, a + b - both),
        "sufficiency": _ratio(both, a),
        "necessity": _ratio(both, b),
        "mutual_information": np.asarray(information),
        "cosine": _ratio(product, np.sqrt(up.squares * down.squares)),
    }


def best(table: pd.DataFrame, side: str, width: int, statistic: str = "pearson") -> np.ndarray:
    """For each of `width` features of one side ("up" or "down"), its highest value over the other
    side's features: [width], 0 where the table has no pair of it."""
    if side not in ("up", "down"):
        raise ValueError(f"side is 'up' or 'down', got {side!r}")
    found = np.zeros(width)
    np.maximum.at(found, table[side].to_numpy(), table[statistic].to_numpy())
    return found


def resampled_pearson(
    up: Firing, down: Firing, table: pd.DataFrame, n: int = 200, seed: int = 0
) -> Float[np.ndarray, "resample pair"]:
    """Pearson's r of the pairs of a table over `n` resamples of the documents, drawn with
    replacement and whole, as neighbouring tokens are no independent draws."""
    if table.empty:
        return np.zeros((n, 0))
    group, weights = _resamples(up, n, seed)
    x, y = up.values.astype(np.float64), down.values.astype(np.float64)
    bounds = [*up.starts(), up.n_tokens]
    spans = [slice(*ends) for ends in pairwise(bounds)]
    lengths = weights @ group.sum(1)[:, None]

    def over(per_token: sparse.csr_array) -> np.ndarray:
        return weights @ (group @ per_token).toarray()

    one, two = ([over(v), lengths * over(v.power(2)) - over(v) ** 2] for v in (x, y))
    i, j = table["up"].to_numpy(), table["down"].to_numpy()
    product, at_once = np.zeros((n, len(table))), max(1, MEMORY // (8 * len(table)))
    for first in range(0, len(spans), at_once):
        some = slice(first, first + at_once)
        product += weights[:, some] @ np.stack([(x[o].T @ y[o])[i, j] for o in spans[some]])
    scale = np.sqrt(np.maximum(one[1][:, i], 0) * np.maximum(two[1][:, j], 0))
    return _ratio(lengths * product - one[0][:, i] * two[0][:, j], scale)


def resampled_fires(
    stream: Firing, n: int = 200, seed: int = 0
) -> Float[np.ndarray, "resample feature"]:
    """On how many tokens each feature fires in each of the resamples of `resampled_pearson`."""
    group, weights = _resamples(stream, n, seed)
    return weights @ (group @ firing_pattern(stream, 0.0)).toarray()


def _resamples(stream: Firing, n: int, seed: int) -> tuple[sparse.csr_array, np.ndarray]:
    """What sums each document's tokens, [document, token], and how often each of them is drawn,
    [resample, document]."""
    number = np.unique(stream.documents, return_inverse=True)[1]
    group = sparse.csr_array((np.ones(len(number)), (number, np.arange(len(number)))))
    size = group.shape[0]
    draws = np.random.default_rng(seed).integers(size, size=(n, size))
    return group, np.stack([np.bincount(draw, minlength=size) for draw in draws])


# --- Sums of pairs ------------------------------------------------------------------------------


def _blocks(
    up: Firing, down: Firing, thresholds: Thresholds, min_together: int, max_memory: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that fire together often enough, of some upstream features at a time."""
    fires = [firing_pattern(s, t).tocsc() for s, t in zip((up, down), thresholds, strict=True)]
    values = [s.values.astype(np.float64).tocsc() for s in (up, down)]
    size = max(1, max_memory // (40 * down.width))  # bytes of a pair, at worst
    for low in range(0, up.width, size):
        together, product = (
            (one[:, low : low + size].T @ other).toarray() for one, other in (fires, values)
        )
        rows = max(1, AT_ONCE // down.width)  # the statistics of a pair take more than its sums
        for first in range(0, len(together), rows):
            i, j = np.nonzero(together[first : first + rows] >= min_together)
            yield i + low + first, j, together[i + first, j], product[i + first, j]


def firing_pattern(stream: Firing, threshold: Threshold) -> sparse.csr_array:
    """1 where a feature fires, as int32: [token, feature]."""
    values = stream.values
    fires = values.data > np.broadcast_to(threshold, stream.width)[values.indices]
    pattern = sparse.csr_array(
        (fires.astype(np.int32), values.indices, values.indptr), values.shape
    )
    if not fires.all():
        pattern = pattern.copy()
        pattern.eliminate_zeros()
    return pattern


def _take(of: Totals, features: np.ndarray) -> Totals:
    return Totals(*(column[features] for column in of))


def _term(cell: np.ndarray, row: np.ndarray, column: np.ndarray, n: int) -> np.ndarray:
    """p(a, b) log2(p(a, b) / p(a) p(b)), 0 where p(a, b) is."""
    expected = np.where(cell > 0, row * column, 1.0)
    return cell / n * np.log2(np.where(cell > 0, n * cell, 1.0) / expected) * (cell > 0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.broadcast_arrays(top, bottom)
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)


def _row_cosines(
    decoders: tuple[Tensor, Tensor], table: pd.DataFrame, part: int = 1 << 11
) -> np.ndarray:
    """The cosine of the two decoder rows of each pair of a table."""
    up, down = (torch.nn.functional.normalize(rows.detach().float().cpu()) for rows in decoders)
    i, j = (torch.tensor(table[side].to_numpy()) for side in ("up", "down"))
    parts = zip(i.split(part), j.split(part), strict=True)
    found = [(up[a] * down[b]).sum(1) for a, b in parts]
    return torch.cat(found).numpy() if found else np.zeros(0)

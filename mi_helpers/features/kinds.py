"""What becomes of features from one layer to the next: passed on, combined, made special, lost.

Everything here reads the tables of `features.pairs` and the streams they came from.

Source: Balcells et al. 2024, arXiv 2410.08869 (pass-through, gates, disappearing features in the
next autoencoder's error). Gates on held-out text are ours.
"""

from collections.abc import Collection, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from ..stats import Estimate
from .firing import Firing
from .relations import (
    Threshold,
    Thresholds,
    best,
    firing_pattern,
    resampled_fires,
    resampled_pearson,
    totals,
)

AT_ONCE = 1 << 10  # candidates for a gate whose tokens are counted together

# --- Passed on, appearing, disappearing ---------------------------------------------------------


def alive(firing: Firing, at_least: int = 20) -> np.ndarray:
    """Which features fire on at least so many tokens: [feature] booleans."""
    return totals(firing).fires >= at_least


def flow(
    table: pd.DataFrame, up: Firing, down: Firing, passed: float = 0.95, related: float = 0.4,
    at_least: int = 20,
) -> dict[str, float]:  # fmt: skip
    """Shares of the features that fire on at least `at_least` tokens.

    passed: downstream features with an upstream one of r ≥ `passed`; appearing: downstream
    features without one of r ≥ `related`; disappearing: upstream features without a downstream
    one of r ≥ `related`. `table` must hold all pairs of r ≥ `related`.
    """
    from_up = best(table, "down", down.width)[alive(down, at_least)]
    to_down = best(table, "up", up.width)[alive(up, at_least)]
    if not len(from_up) or not len(to_down):
        raise ValueError(f"no feature fires on {at_least} tokens: use more text")
    return {
        "passed": float((from_up >= passed).mean()),
        "appearing": float((from_up < related).mean()),
        "disappearing": float((to_down < related).mean()),
    }


def related_share(
    table: pd.DataFrame, up: Firing, down: Firing, at_least_r: float, side: str = "down",
    min_fires: int = 20, n: int = 200, seed: int = 0,
) -> Estimate:  # fmt: skip
    """The share of one side's live features with a partner of r ≥ `at_least_r`, and its 95 %
    interval over resampled documents.

    A resample counts the features that are live in it, and takes the best of each one's three
    strongest partners, not of all. Noise carries more features over the bound on one side than on
    the other, so the interval is the spread of the resampled shares about the share itself.
    """
    stream = down if side == "down" else up
    live = alive(stream, min_fires)
    kept = table[live[table[side]]]
    kept = kept.sort_values("pearson", ascending=False).groupby(side).head(3)
    reached = np.zeros((n, len(live)), bool)
    r = resampled_pearson(up, down, kept, n, seed)
    resample, pair = np.nonzero(r >= at_least_r)
    reached[resample, kept[side].to_numpy()[pair]] = True
    also_live = live & (resampled_fires(stream, n, seed) >= min_fires)
    shares = (reached & also_live).sum(1) / also_live.sum(1)
    value = float((best(table, side, len(live))[live] >= at_least_r).mean())
    low, high = value + np.quantile(shares - shares.mean(), [0.025, 0.975])
    return Estimate(value, max(0.0, low), min(1.0, high), stream.n_documents, "texts")


def node_table(
    tables: Mapping[tuple[int, int], pd.DataFrame], firing: Mapping[int, Firing],
    found_gates: Mapping[int, Collection[int]] | None = None, passed: float = 0.95,
    related: float = 0.4, at_least: int = 20,
) -> pd.DataFrame:  # fmt: skip
    """One row for each live feature: layer, feature, and `kinds`, the tuple of what is true of it.

    passed through: a feature of the layer before or after has r ≥ `passed`; appearing, and
    disappearing: none of the layer before, or after, has r ≥ `related`; gate: it is among
    `found_gates` of its layer.
    """
    parts = []
    for layer, stream in firing.items():
        before = [best(t, "down", stream.width) for (_, b), t in tables.items() if b == layer]
        after = [best(t, "up", stream.width) for (a, _), t in tables.items() if a == layer]
        is_gate = np.isin(np.arange(stream.width), list((found_gates or {}).get(layer, ())))
        masks = {
            "passed through": np.any([r >= passed for r in before + after], axis=0),
            "gate": is_gate,
            "appearing": np.any([r < related for r in before], axis=0) & bool(before),
            "disappearing": np.any([r < related for r in after], axis=0) & bool(after),
        }
        live = np.flatnonzero(alive(stream, at_least))
        held = {kind: np.broadcast_to(mask, stream.width) for kind, mask in masks.items()}
        kinds = [tuple(kind for kind, mask in held.items() if mask[f]) for f in live]
        parts.append(pd.DataFrame({"layer": layer, "feature": live, "kinds": kinds}))
    return pd.concat(parts, ignore_index=True)


# --- Gates --------------------------------------------------------------------------------------

_GATES = {"and": "necessity", "or": "sufficiency"}


def gates(
    table: pd.DataFrame, kind: str, at_least: float = 0.999, exactly_two: bool = True, most: int = 6
) -> pd.DataFrame:
    """Candidates for downstream features that are a gate of two upstream ones: down, a, b.

    AND: two upstream features fire (nearly) whenever the downstream one does, necessity ≥
    `at_least`. OR: it fires whenever either of the two does, sufficiency ≥ `at_least`. The paper
    asks for exactly two such features, which depends on the amount of text; otherwise every two of
    the `most` best (by Jaccard) are candidates. Test them on other text: `truth`.
    """
    if kind not in _GATES:
        raise ValueError(f"kind is 'and' or 'or', got {kind!r}")
    found = []
    fit = table[table[_GATES[kind]] >= at_least].sort_values("jaccard", ascending=False)
    for down, part in fit.groupby("down"):
        if not exactly_two or len(part) == 2:
            inputs = part["up"].head(most)
            found += [(down, *sorted(two)) for two in combinations(inputs, 2)]
    return pd.DataFrame(found, columns=["down", "a", "b"]).astype(int)


def truth(
    candidates: pd.DataFrame, up: Firing, down: Firing, kind: str,
    thresholds: Thresholds = (0.0, 0.0),
) -> pd.DataFrame:  # fmt: skip
    """Each candidate's truth table on a stream, and how well the gate foretells the feature.

    Columns beside down, a, b: p_both, p_one (the larger of a alone and b alone for AND, the
    smaller for OR), p_neither: how often the downstream feature fires in each case, NaN where a
    case does not occur; fires, the number of tokens on which it does, and texts, that of
    documents; gate: the Jaccard similarity of the feature and the gate of its inputs; single: that
    of the feature and its better input.
    """
    if kind not in _GATES:
        raise ValueError(f"kind is 'and' or 'or', got {kind!r}")
    at_up, at_down = (firing_pattern(s, t) for s, t in zip((up, down), thresholds, strict=True))
    sides, named = (at_up.tocsc(), at_down.tocsc(), kind), candidates[["down", "a", "b"]]
    named, place = named.reset_index(drop=True), np.arange(down.n_tokens)
    parts = [_truth(named[i : i + AT_ONCE], *sides) for i in range(0, max(1, len(named)), AT_ONCE)]
    by_text = sparse.csr_array((np.ones_like(place), (down.documents, place))) @ at_down
    texts = np.diff(by_text.tocsc().indptr)[named["down"]]
    found = pd.concat(parts)
    found.insert(found.columns.get_loc("gate"), "texts", texts)
    return found


def _truth(
    named: pd.DataFrame, up: sparse.csc_array, down: sparse.csc_array, kind: str
) -> pd.DataFrame:
    """What `truth` gives but for texts, from counts of tokens: where each fires, and both do."""
    of_a, of_b, of_d = up[:, named["a"]], up[:, named["b"]], down[:, named["down"]]
    together = of_a.multiply(of_b)
    a, b, both, d = (x.sum(0) for x in (of_a, of_b, together, of_d))
    d_a, d_b, d_both = (x.multiply(of_d).sum(0) for x in (of_a, of_b, together))
    either, d_either = a + b - both, d_a + d_b - d_both
    alone = _share(d_a - d_both, a - both), _share(d_b - d_both, b - both)
    met, all_of_it = (d_both, both) if kind == "and" else (d_either, either)
    return named.assign(
        p_both=_share(d_both, both),
        p_one=np.fmax(*alone) if kind == "and" else np.fmin(*alone),
        p_neither=_share(d - d_either, up.shape[0] - either),
        fires=d,
        gate=_jaccard(d, all_of_it, met),
        single=np.maximum(_jaccard(d, a, d_a), _jaccard(d, b, d_b)),
    )


def matched_inputs(
    candidates: pd.DataFrame, up: Firing, threshold: Threshold = 0.0, seed: int = 0,
    among: int = 20, draws: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """The null of a gate: each candidate with its second input `b` drawn at random out of the
    `among` upstream features that are most like it in how often they fire, and fire together with
    `a` (the sum of both log ratios); inputs of the candidate left out. All candidates, `draws`
    times, of which draw k begins from `seed` + k."""
    pattern = firing_pattern(up, threshold).tocsc()
    fires = np.log1p(pattern.sum(0))
    firsts, place = np.unique(candidates["a"], return_inverse=True)
    together = (pattern[:, firsts].T @ pattern).tocsr()
    near = []
    for row, (a, b) in zip(place, candidates[["a", "b"]].to_numpy(), strict=True):
        met = np.log1p(together[[row]].toarray().ravel())
        away = np.abs(fires - fires[b]) + np.abs(met - met[b])
        away[[a, b]] = np.inf
        near.append(np.argsort(away, kind="stable")[: min(among, up.width - 2)])
    drawn = []
    for rng in map(np.random.default_rng, range(seed, seed + draws)):
        drawn.append(candidates.assign(b=[int(rng.choice(features)) for features in near]))
    return pd.concat(drawn)


def _share(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to have a share of."""
    return np.divide(of, among, out=np.full(len(of), np.nan), where=among > 0)


def _jaccard(a: np.ndarray, b: np.ndarray, both: np.ndarray) -> np.ndarray:
    return both / np.maximum(1, a + b - both)


# --- Specialisation -----------------------------------------------------------------------------


def specialised(
    table: pd.DataFrame, necessity: float = 0.9, sufficiency: float = 0.5
) -> pd.DataFrame:
    """Pairs in which the downstream feature fires inside the upstream one's firings, on at most a
    part of them: necessity at least, sufficiency at most as given."""
    return table[(table["necessity"] >= necessity) & (table["sufficiency"] <= sufficiency)]


# --- Where lost features go ---------------------------------------------------------------------


def error_slopes(
    up: Firing, errors: Float[Tensor, "token d_model"], decoder: Float[Tensor, "up d_model"],
    share: float = 0.1, at_least: int = 20,
) -> Float[np.ndarray, "up"]:  # fmt: skip
    """How much of each upstream feature lies in the next autoencoder's reconstruction error.

    The error along the feature's decoder row, as a multiple of that row, regressed (with a
    constant) on its activation, over tokens where it is above `share` of its maximum: 1 if the
    error holds the whole feature, 0 if none of it. NaN for features with too few such tokens, or
    of one activation only.
    """
    if errors.shape != (up.n_tokens, decoder.shape[1]):
        raise ValueError(
            f"errors must be [token, d_model] = {(up.n_tokens, decoder.shape[1])}, got "
            f"{tuple(errors.shape)}"
        )
    values, found = up.values.tocsc(), np.full(up.width, np.nan)
    rows = (decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12).pow(2)).detach()
    for feature in np.flatnonzero(np.diff(values.indptr)):
        span = slice(*values.indptr[feature : feature + 2])
        activation, tokens = values.data[span].astype(np.float64), values.indices[span]
        strong = activation > share * activation.max()
        if strong.sum() < at_least or np.ptp(activation[strong]) == 0:
            continue
        along = (errors[torch.tensor(tokens[strong])] @ rows[feature]).double().cpu().numpy()
        x = activation[strong] - activation[strong].mean()
        found[feature] = x @ along / (x @ x)
    return found

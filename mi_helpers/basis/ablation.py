"""Ablation of features and of edges, and how few of them keep what the network does."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial as bound

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .fitting import Basis

Score = Callable[[Tensor], float]


@torch.no_grad()
def ablate_nodes(
    basis: Basis,
    inputs: Float[Tensor, "batch ... feature"],
    at: int,
    keep: Iterable[int],
    score: Score,
    batch_size: int = 1024,
) -> pd.DataFrame:
    """Score of the output with all but the ``keep`` most important features at a boundary removed.

    Removed features are set to zero, which is their mean; the constant stays. One row per value of
    ``keep``. ``score`` gets the outputs of all inputs.
    """
    features = basis.boundaries[at].encode(basis.stack.activations(inputs)[at])
    rows = [
        {
            "boundary": at,
            "kept": n,
            "score": _with_nodes(basis, features, at, n, score, batch_size),
        }
        for n in keep
    ]
    return pd.DataFrame(rows)


def _with_nodes(
    basis: Basis,
    features: Float[Tensor, "batch ... feature"],
    at: int,
    n: int,
    score: Score,
    batch_size: int = 1024,
) -> float:
    """The score with the first ``n`` features of a boundary alone."""
    boundary = basis.boundaries[at]
    mask = (torch.arange(features.shape[-1], device=features.device) < n).to(features)
    parts = [basis.stack.run(boundary.decode(f * mask), at) for f in features.split(batch_size)]
    return score(torch.cat(parts))


@torch.no_grad()
def ablate_edges(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    section: int,
    keep: Iterable[int],
    score: Score,
    batch_size: int = 1024,
    give_up: float | None = None,
) -> pd.DataFrame:
    """Score of the output with only the ``keep`` largest edges of one section left.

    Every next feature is recomputed from its own copy of the activations, in which the features it
    has no edge from are zero; the rest of the network runs on the result. Edges from the constant
    stay. Features with the same edges share a forward pass. One row per value of ``keep``.

    ``give_up``: stop at the batch after which a score can no longer reach this, and return the most
    that it could still be. Only for a score that is a mean over samples of numbers of at most 1,
    and that takes the outputs of the first so many inputs as well as those of all.
    """
    features = basis.boundaries[section].encode(basis.stack.activations(inputs)[section])
    masks = _largest(interactions[section])
    rows = [
        {
            "section": section,
            "kept": n,
            "score": _with_edges(basis, section, features, masks(n), score, batch_size, give_up),
        }
        for n in keep
    ]
    return pd.DataFrame(rows)


def _largest(
    E: Float[Tensor, "next feature"],
) -> Callable[[int], Bool[Tensor, "next feature"]]:
    """Masks of the so many largest edges."""
    order = E.flatten().argsort(descending=True, stable=True)

    def largest(n: int) -> Tensor:
        mask = torch.zeros(E.numel(), dtype=torch.bool)
        mask[order[:n]] = True
        return mask.view_as(E)

    return largest


def _with_edges(
    basis: Basis,
    section: int,
    features: Float[Tensor, "batch ... feature"],
    mask: Bool[Tensor, "next feature"],
    score: Score,
    batch_size: int = 1024,
    give_up: float | None = None,
) -> float:
    """The score with these edges of a section alone, or, below ``give_up``, the most it can be."""
    parts = list[Tensor]()
    for f in features.split(batch_size):
        parts.append(_run_masked(basis, section, f, mask))
        if give_up is not None:
            done = sum(map(len, parts)) / len(features)
            most = done * score(torch.cat(parts)) + 1 - done
            if most < give_up:
                return most
    return score(torch.cat(parts))


def _run_masked(
    basis: Basis,
    section: int,
    features: Float[Tensor, "batch ... feature"],
    mask: Bool[Tensor, "next feature"],
) -> Tensor:
    here, there = basis.boundaries[section], basis.boundaries[section + 1]
    masks, which = torch.unique(mask, dim=0, return_inverse=True)
    columns, parts = [], []
    for row, kept in enumerate(masks):
        x = here.mean.to(features) + features[..., kept] @ here.C_pinv[kept].to(features)
        y = basis.stack.run(x, section, section + 1)
        columns.append(torch.nonzero(which == row)[:, 0])
        parts.append((y - there.mean.to(y)) @ there.C[:, columns[-1]].to(y))
    found = torch.cat(parts, dim=-1)[..., torch.cat(columns).argsort().to(features.device)]
    return basis.stack.run(there.decode(found), section + 1)


@torch.no_grad()
def recomputed(
    basis: Basis,
    E: Float[Tensor, "next feature"],
    inputs: Float[Tensor, "batch ... feature"],
    section: int = 0,
    error: float = 0.1,
) -> Float[Tensor, " next"]:
    """From how few features each next feature can be computed, those of its largest edges first.

    The others are zero. Few enough is a mean squared error below ``error`` of the next feature's
    variance, found as in `fewest`. ``E``: edges of the section, or only its first rows. Does not
    depend on how features are scaled, so bases can be compared.
    """
    here, there = basis.boundaries[section], basis.boundaries[section + 1]
    activations = basis.stack.activations(inputs)
    features, after = here.encode(activations[section]), there.encode(activations[section + 1])

    def kept_variance(next_feature: int, order: Tensor, k: int) -> float:
        f, kept = after[..., next_feature], order[:k]
        x = here.mean.to(features) + features[..., kept] @ here.C_pinv[kept].to(features)
        found = there.encode(basis.stack.run(x, section, section + 1))[..., next_feature]
        return 1 - ((found - f).pow(2).mean() / f.var(correction=0)).item()

    orders = E.argsort(dim=1, descending=True, stable=True)
    return torch.tensor(
        [
            fewest(bound(kept_variance, i, order), len(order), 1 - error)
            for i, order in enumerate(orders)
        ],
        dtype=torch.float64,
    )


def fewest(score: Callable[[int], float], most: int, target: float, start: int = 1) -> int:
    """A number ``k <= most`` with ``score(k) >= target > score(k - 1)``, by doubling and bisection.

    Where the score is not monotone there are several; doubling finds a small one. ``start``: a
    number below which the score is known to be too low. Raises if even ``most`` is not enough.
    """
    # Grow until the score is high enough: low is always too few.
    low, step = start - 1, 1
    while (high := min(start - 1 + step, most)) < most and score(high) < target:
        low, step = high, 2 * step
    if high == most and score(most) < target:
        raise ValueError(
            f"the score stays below {target:.4g} even with all {most} kept: the "
            "basis itself loses something, so lower `threshold` in fit"
        )
    # Halve what is between too few and enough.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if score(middle) >= target else (middle, high)
    return high


def settled(curve: pd.DataFrame, target: float) -> int | None:
    """The smallest ``kept`` of a curve from which on the score never falls below ``target`` again.

    ``curve``: columns ``kept`` and ``score``, as the ablations return; the answer is only as fine
    as its grid. `fewest` stops at one crossing, and a curve that is not monotone has several. None
    where even the largest ``kept`` is below the target.
    """
    ordered = curve.sort_values("kept", ascending=False)
    enough = (ordered["score"] >= target).cummin()
    return int(ordered.loc[enough, "kept"].min()) if enough.any() else None


@torch.no_grad()
def needed(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    score: Score,
    tolerance: float = 0.001,
    partial: bool = False,
    first: int = 1024,
) -> pd.DataFrame:
    """Fewest edges, and fewest features, that keep the score within ``tolerance`` of the network's.

    One row per section: edges of that section, features at its input; each ablated alone.
    ``partial``: the score is one that `ablate_edges` may give up on early. What is too few for the
    ``first`` inputs alone is then never tried on all, which saves most of the time: put the inputs
    first on which ablation does harm.
    """
    target = score(basis.stack.run(inputs)) - tolerance

    def features_of(inputs: Tensor) -> list[Tensor]:
        activations = basis.stack.activations(inputs)
        return [b.encode(x) for b, x in zip(basis.boundaries, activations[:-1], strict=False)]

    whole = features_of(inputs)
    some = features_of(inputs[:first]) if partial else whole

    def edges_kept(section: int) -> int:
        masks = _largest(interactions[section])

        def kept(k: int, features: list[Tensor], give_up: float | None = None) -> float:
            return _with_edges(basis, section, features[section], masks(k), score, give_up=give_up)

        most, start = interactions[section].numel(), 1
        if partial:
            # If all others were right: what fails even so fails on all inputs.
            share = len(inputs[:first]) / len(inputs)
            start = fewest(lambda k: 1 - share * (1 - kept(k, some)), most, target)
        give_up = target if partial else None
        return fewest(lambda k: kept(k, whole, give_up), most, target, start)

    def features_kept(section: int) -> int:
        return fewest(
            lambda k: _with_nodes(basis, whole[section], section, k, score),
            len(basis.boundaries[section].importance),
            target,
        )

    return pd.DataFrame(
        [
            {"section": i, "edges": edges_kept(i), "features": features_kept(i)}
            for i in range(len(interactions))
        ]
    )

"""Ablation of features and of edges, and how few of them keep what the network does.

A removed feature is zero, which is its mean (`_with_nodes`); a removed edge is a feature that is
zero for one next feature alone (`_with_edges`). Enough is what `fewest` finds: the smallest number,
largest first, with a score of at least the target.
"""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
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
    rows = []
    for n in keep:
        value = _with_nodes(basis, features, at, n, score, batch_size)
        rows.append({"boundary": at, "kept": n, "score": value})
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
    place = _places(interactions[section])
    rows = []
    for n in keep:
        value = _with_edges(basis, section, features, place < n, score, batch_size, give_up)
        rows.append({"section": section, "kept": n, "score": value})
    return pd.DataFrame(rows)


def _places(E: Float[Tensor, "next feature"]) -> Int[Tensor, "next feature"]:
    """Each edge's place among all, the largest first: those below n are the n largest."""
    return E.flatten().argsort(descending=True, stable=True).argsort().view_as(E)


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
    """The output where every next feature sees the features that its row of the mask keeps."""
    there = basis.boundaries[section + 1]
    masks, which = torch.unique(mask, dim=0, return_inverse=True)
    columns, parts = [], []
    for number, kept in enumerate(masks):  # one forward pass for the next features that it serves
        y = _next_of(basis, section, features, kept)
        columns.append(torch.nonzero(which == number)[:, 0])
        parts.append((y - there.mean.to(y)) @ there.C[:, columns[-1]].to(y))
    order = torch.cat(columns).argsort().to(features.device)  # back to that of the next features
    found = torch.cat(parts, dim=-1)[..., order]
    return basis.stack.run(there.decode(found), section + 1)


def _next_of(basis: Basis, section: int, features: Tensor, kept: Tensor) -> Tensor:
    """A section's outcome with these features alone (a mask or numbers), the others zero."""
    here = basis.boundaries[section]
    x = here.mean.to(features) + features[..., kept] @ here.C_pinv[kept].to(features)
    return basis.stack.run(x, section, section + 1)


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
    orders = E.argsort(dim=1, descending=True, stable=True)

    def enough(next_feature: int) -> int:
        f, order = after[..., next_feature], orders[next_feature]

        def kept_variance(k: int) -> float:
            found = there.encode(_next_of(basis, section, features, order[:k]))[..., next_feature]
            return 1 - ((found - f).pow(2).mean() / f.var(correction=0)).item()

        return fewest(kept_variance, len(order), 1 - error)

    return torch.tensor([enough(i) for i in range(len(E))], dtype=torch.float64)


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
            f"the score stays below {target:.4g} even with all {most} kept: the basis itself "
            "loses something, so lower `threshold` in fit"
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
    share = len(inputs[:first]) / len(inputs)

    def edges_kept(section: int) -> int:
        place, most = _places(interactions[section]), interactions[section].numel()

        def of_first(k: int) -> float:  # on all inputs, if all but the first were right
            value = _with_edges(basis, section, some[section], place < k, score)
            return 1 - share * (1 - value)

        def of_all(k: int) -> float:
            give_up = target if partial else None
            return _with_edges(basis, section, whole[section], place < k, score, give_up=give_up)

        start = fewest(of_first, most, target) if partial else 1
        return fewest(of_all, most, target, start)

    def features_kept(section: int) -> int:
        most = len(basis.boundaries[section].importance)
        return fewest(lambda k: _with_nodes(basis, whole[section], section, k, score), most, target)

    rows = [(i, edges_kept(i), features_kept(i)) for i in range(len(interactions))]
    return pd.DataFrame(rows, columns=["section", "edges", "features"])

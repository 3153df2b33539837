"""Ablation of features and of edges, and how few of them keep what the network does.

A removed feature is zero, which is its mean (`_with_nodes`); a removed edge is a feature that is
zero for one next feature alone (`_with_edges`). Enough is what `fewest` finds: the smallest number,
largest first, with a score of at least the target.
"""

from collections.abc import Callable, Generator, Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .fitting import Basis

Score = Callable[[Tensor], float]
Kept = Callable[[int], float]  # the score with so many kept
Search = Generator[int, float, int]


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
    masked = _Masked(basis, section, features.split(batch_size))
    place = _places(interactions[section])
    rows = []
    for n in keep:
        value = _with_edges(masked, place < n, score, give_up)
        rows.append({"section": section, "kept": n, "score": value})
    return pd.DataFrame(rows)


def _places(E: Float[Tensor, "next feature"]) -> Int[Tensor, "next feature"]:
    """Each edge's place among all, the largest first: those below n are the n largest."""
    return E.flatten().argsort(descending=True, stable=True).argsort().view_as(E)


class _Masked:
    """What comes out where every next feature of a section sees some of the features alone.

    Remembers each batch's last mask and its next features: a mask that differs in few rows, as they
    do in a search, costs few forward passes.
    """

    def __init__(
        self, basis: Basis, section: int, batches: Sequence[Float[Tensor, "batch ... feature"]]
    ) -> None:
        self.basis, self.section, self.batches = basis, section, batches
        self.last: dict[int, tuple[Tensor, Tensor]] = {}

    def output(self, batch: int, mask: Bool[Tensor, "next feature"]) -> Tensor:
        """The network's output for a batch; a row of ``mask`` says what a next feature sees."""
        there = self.basis.boundaries[self.section + 1]
        before, found = self.last.get(batch, (~mask, torch.empty(0)))
        new = torch.nonzero((mask != before).any(1))[:, 0]
        masks, which = torch.unique(mask[new], dim=0, return_inverse=True)
        for number, kept in enumerate(masks):  # one pass for the next features that it serves
            y = _next_of(self.basis, self.section, self.batches[batch], kept)
            found = found if len(found) else y.new_empty(*y.shape[:-1], len(mask))
            columns = new[which == number]
            found[..., columns] = (y - there.mean.to(y)) @ there.C[:, columns].to(y)
        self.last[batch] = mask, found
        return self.basis.stack.run(there.decode(found), self.section + 1)


def _with_edges(
    masked: _Masked,
    mask: Bool[Tensor, "next feature"],
    score: Score,
    give_up: float | None = None,
) -> float:
    """The score with these edges of a section alone, or, below ``give_up``, the most it can be."""
    parts, total = list[Tensor](), sum(map(len, masked.batches))
    for batch in range(len(masked.batches)):
        parts.append(masked.output(batch, mask))
        if give_up is not None:
            done = sum(map(len, parts)) / total
            most = done * score(torch.cat(parts)) + 1 - done
            if most < give_up:
                return most
    return score(torch.cat(parts))


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
    at_once: int = 16,
) -> Float[Tensor, " next"]:
    """From how few features each next feature can be computed, those of its largest edges first.

    The others are zero. Few enough is a mean squared error below ``error`` of the next feature's
    variance, found as in `fewest`. ``E``: edges of the section, or only its first rows. Does not
    depend on how features are scaled, so bases can be compared. Memory: ``at_once`` times what
    the section needs for the inputs.
    """
    here, there = basis.boundaries[section], basis.boundaries[section + 1]
    activations = basis.stack.activations(inputs)
    features, after = here.encode(activations[section]), there.encode(activations[section + 1])
    places = E.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    variance = after.flatten(0, -2).var(0, correction=0)

    def kept_variance(kept: dict[int, int]) -> dict[int, float]:
        """The share of next feature i that its kept[i] largest edges leave; one pass for all."""
        which = list(kept)
        masks = places[which] < places.new_tensor(list(kept.values()))[:, None]
        x = torch.cat([here.decode(features * mask.to(features)) for mask in masks])
        y = basis.stack.run(x, section, section + 1) - there.mean.to(x)
        found = zip(which, y.chunk(len(which)), strict=True)
        errors = {i: (part @ there.C[:, i].to(x) - after[..., i]) for i, part in found}
        return {i: 1 - (e.pow(2).mean() / variance[i]).item() for i, e in errors.items()}

    counts = list[int]()
    for block in torch.arange(len(E)).split(at_once):
        searches = {i: _search(E.shape[1], 1 - error) for i in block.tolist()}
        counts += _side_by_side(searches, kept_variance)
    return torch.tensor(counts, dtype=torch.float64)


def _side_by_side(
    searches: dict[int, Search], scores: Callable[[dict[int, int]], dict[int, float]]
) -> list[int]:
    """What each search finds; each step scores the numbers that all of them ask for."""
    asked = {i: next(search) for i, search in searches.items()}
    found = dict[int, int]()
    while asked:
        for i, score in scores(asked).items():
            try:
                asked[i] = searches[i].send(score)
            except StopIteration as end:
                found[i] = end.value
                del asked[i]
    return [found[i] for i in searches]


def fewest(score: Kept, most: int, target: float, start: int = 1) -> int:
    """A number ``k <= most`` with ``score(k) >= target > score(k - 1)``, by doubling and bisection.

    Where the score is not monotone there are several; doubling finds a small one. ``start``: a
    number below which the score is known to be too low. Raises if even ``most`` is not enough.
    """
    return _side_by_side({0: _search(most, target, start)}, lambda k: {0: score(k[0])})[0]


def _search(most: int, target: float, start: int = 1) -> Search:
    """The steps of `fewest`: yields the number to score next, is sent the score."""
    # Grow until the score is high enough: low is always too few.
    low, step = start - 1, 1
    while (high := min(start - 1 + step, most)) < most and (yield high) < target:
        low, step = high, 2 * step
    if high == most and (yield most) < target:
        raise ValueError(
            f"the score stays below {target:.4g} even with all {most} kept: the basis itself "
            "loses something, so lower `threshold` in fit"
        )
    # Halve what is between too few and enough.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if (yield middle) >= target else (middle, high)
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
    activations = basis.stack.activations(inputs)
    whole = [b.encode(x) for b, x in zip(basis.boundaries, activations[:-1], strict=False)]
    share = len(inputs[:first]) / len(inputs)

    def search(of_first: Kept, of_all: Kept, most: int) -> int:
        """``of_first`` scores the first inputs alone: what the score is if the rest are right."""
        if not partial:
            return fewest(of_all, most, target)
        start = fewest(lambda k: 1 - share * (1 - of_first(k)), most, target)
        return fewest(of_all, most, target, start)

    def edges_kept(section: int) -> int:
        place = _places(interactions[section])
        masked = _Masked(basis, section, whole[section].split(first))
        give_up = target if partial else None
        return search(
            lambda k: score(masked.output(0, place < k)),
            lambda k: _with_edges(masked, place < k, score, give_up),
            interactions[section].numel(),
        )

    def features_kept(section: int) -> int:
        features = whole[section]
        return search(
            lambda k: _with_nodes(basis, features[:first], section, k, score),
            lambda k: _with_nodes(basis, features, section, k, score),
            len(basis.boundaries[section].importance),
        )

    rows = [(i, edges_kept(i), features_kept(i)) for i in range(len(interactions))]
    return pd.DataFrame(rows, columns=["section", "edges", "features"])

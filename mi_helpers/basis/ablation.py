"""Ablation of features and of edges, and how few of them keep what the network does."""

from collections.abc import Callable, Iterable, Sequence

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
    boundary = basis.boundaries[at]
    features = boundary.encode(basis.stack.activations(inputs)[at])
    rows = []
    for n in keep:
        mask = (torch.arange(features.shape[-1], device=features.device) < n).to(features)
        parts = [basis.stack.run(boundary.decode(f * mask), at) for f in features.split(batch_size)]
        rows.append({"boundary": at, "kept": n, "score": score(torch.cat(parts))})
    return pd.DataFrame(rows)


@torch.no_grad()
def ablate_edges(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    section: int,
    keep: Iterable[int],
    score: Score,
    batch_size: int = 1024,
) -> pd.DataFrame:
    """Score of the output with only the ``keep`` largest edges of one section left.

    Every next feature is recomputed from its own copy of the activations, in which the features it
    has no edge from are zero; the rest of the network runs on the result. Edges from the constant
    stay. Features with the same edges share a forward pass. One row per value of ``keep``.
    """
    E, here = interactions[section], basis.boundaries[section]
    features = here.encode(basis.stack.activations(inputs)[section])
    order = E.flatten().argsort(descending=True, stable=True)
    rows = []
    for n in keep:
        mask = torch.zeros(E.numel(), dtype=torch.bool)
        mask[order[:n]] = True
        parts = [
            _run_masked(basis, section, f, mask.view_as(E)) for f in features.split(batch_size)
        ]
        rows.append({"section": section, "kept": n, "score": score(torch.cat(parts))})
    return pd.DataFrame(rows)


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
        y = basis.stack.run(here.decode(features * kept.to(features)), section, section + 1)
        columns.append(torch.nonzero(which == row)[:, 0])
        parts.append((y - there.mean.to(y)) @ there.C[:, columns[-1]].to(y))
    found = torch.cat(parts, dim=-1)[..., torch.cat(columns).argsort().to(features.device)]
    return basis.stack.run(there.decode(found), section + 1)


def fewest(score: Callable[[int], float], most: int, target: float) -> int:
    """A number ``k <= most`` with ``score(k) >= target > score(k - 1)``, by doubling and bisection.

    Where the score is not monotone there are several; doubling from 1 finds a small one. Raises if
    even ``most`` is not enough.
    """
    low, high = 0, 1
    while high < most and score(high) < target:
        low, high = high, 2 * high
    if high >= most:
        high = most
        if score(high) < target:
            raise ValueError(
                f"the score stays below {target:.4g} even with all {most} kept: the "
                "basis itself loses something, so lower `threshold` in fit"
            )
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


def needed(
    basis: Basis,
    interactions: Sequence[Float[Tensor, "next feature"]],
    inputs: Float[Tensor, "batch ... feature"],
    score: Score,
    tolerance: float = 0.001,
) -> pd.DataFrame:
    """Fewest edges, and fewest features, that keep the score within ``tolerance`` of the network's.

    One row per section: edges of that section, features at its input; each ablated alone.
    """
    with torch.no_grad():
        target = score(basis.stack.run(inputs)) - tolerance

    def edges_kept(section: int) -> int:
        return fewest(
            lambda k: ablate_edges(basis, interactions, inputs, section, [k], score)["score"][0],
            interactions[section].numel(),
            target,
        )

    def features_kept(section: int) -> int:
        return fewest(
            lambda k: ablate_nodes(basis, inputs, section, [k], score)["score"][0],
            len(basis.boundaries[section].importance),
            target,
        )

    return pd.DataFrame(
        [
            {"section": i, "edges": edges_kept(i), "features": features_kept(i)}
            for i in range(len(interactions))
        ]
    )

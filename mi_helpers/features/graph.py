"""The graph of similar features across layers: its communities, and whether they mean anything.

A node is a feature of one layer, an edge joins features of adjacent layers that are similar
enough. Leiden finds the communities (Traag, Waltman & van Eck 2019). Any graph has some, so there
are two checks: the same degrees joined at random, and a likeness that the edges do not know of,
that of decoder rows within one layer.

Source: Balcells et al. 2024, arXiv 2410.08869; the checks are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..communities import leiden
from ..stats import Estimate
from .firing import Firing
from .relations import resampled_pearson

Chain = list[tuple[int, int, float]]


def edges(
    tables: Mapping[tuple[int, int], pd.DataFrame],
    at_least: float,
    statistic: str = "pearson",
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """One row for each pair similar enough: layer, up, next, down, weight (the statistic), and the
    columns that `keep` names. `tables` maps a layer and the next one to their `features.pairs`."""
    parts = []
    for (layer, following), table in sorted(tables.items()):
        kept = table.loc[table[statistic] >= at_least, ["up", "down", *keep]]
        weight = table.loc[kept.index, statistic]
        parts.append(kept.assign(layer=layer, next=following, weight=weight))
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise ValueError(f"no pair reaches {statistic} ≥ {at_least}")
    return found[["layer", "up", "next", "down", "weight", *keep]]


@dataclass(frozen=True)
class Communities:
    """`nodes`: layer, feature, community, numbered by size. `modularity`: Newman's, weighted."""

    nodes: pd.DataFrame
    modularity: float

    def spans(self) -> pd.DataFrame:
        """One row a community, largest first: features, and the number of layers they lie in."""
        grouped = self.nodes.groupby("community")
        return pd.DataFrame({"features": grouped.size(), "layers": grouped["layer"].nunique()})


def communities(joined: pd.DataFrame, seed: int = 0) -> Communities:
    """Leiden communities of a table of `edges`, by weighted modularity."""
    rows = joined[["layer", "up", "next", "down", "weight"]].itertuples(index=False)
    weighted = [((a, up), (b, down), weight) for a, up, b, down, weight in rows]
    names, found, quality = leiden(weighted, seed=seed)
    nodes = pd.DataFrame(names, columns=["layer", "feature"]).assign(community=found)
    return Communities(nodes, quality)


def rewired(joined: pd.DataFrame, seed: int = 0, rounds: int = 5) -> pd.DataFrame:
    """The null: each feature keeps its number of edges to the next layer and from the one before,
    but whom it is joined to is drawn at random; no pair is joined twice.

    `rounds` times as many pairs of edges as there are edges swap their downstream ends, unless
    that joined a pair twice (Maslov & Sneppen 2002).
    """
    rng = np.random.default_rng(seed)
    parts = []
    for _, part in joined.groupby("layer"):
        up, down = part["up"].tolist(), part["down"].tolist()
        taken = set(zip(up, down, strict=True))
        for i, j in rng.integers(len(up), size=(rounds * len(up), 2)).tolist():
            new = (up[i], down[j]), (up[j], down[i])
            if taken.isdisjoint(new):
                taken -= {(up[i], down[i]), (up[j], down[j])}
                taken.update(new)
                down[i], down[j] = down[j], down[i]
        parts.append(part.assign(down=down))
    return pd.concat(parts)


def modularity_gain(
    tables: Mapping[tuple[int, int], pd.DataFrame],
    firing: Mapping[int, Firing],
    at_least: float,
    n: int = 20,
    seed: int = 0,
) -> Estimate:
    """Modularity of the graph of pairs with r ≥ `at_least`, less that of a rewired copy, and its
    95 % interval over `n` resamples of the texts.

    A resample draws whole documents, takes r anew for all pairs of r ≥ half of `at_least`, joins
    those that reach it, and finds the communities of that graph and of its rewired copy.
    """
    near = {gap: t[t["pearson"] >= at_least / 2] for gap, t in tables.items()}
    r = {(a, b): resampled_pearson(firing[a], firing[b], t, n, seed) for (a, b), t in near.items()}
    draws = [{gap: t.assign(pearson=r[gap][k]) for gap, t in near.items()} for k in range(n)]
    value = _gain(edges(tables, at_least), seed)
    gains = np.array([_gain(edges(draw, at_least), seed) for draw in draws])
    low, high = value + np.quantile(gains - gains.mean(), [0.025, 0.975])
    documents = next(iter(firing.values())).n_documents
    return Estimate(value, float(low), float(high), documents, "texts")


def _gain(joined: pd.DataFrame, seed: int) -> float:
    return communities(joined).modularity - communities(rewired(joined, seed)).modularity


def likeness(
    found: Communities, decoders: Mapping[int, Float[Tensor, "feature d_model"]]
) -> pd.DataFrame:
    """One row for each community and layer in which it has two features or more: features, and
    the mean cosine of their decoder rows, `inside`; `outside` is that of all pairs of nodes of the
    layer. Edges join different layers only, so nothing makes `inside` larger but meaning."""
    rows = []
    for layer, part in found.nodes.groupby("layer"):
        unit = torch.nn.functional.normalize(decoders[int(layer)].detach().float().cpu())
        of_all = _mean_cosine(unit[part["feature"].tolist()])
        for community, members in part.groupby("community"):
            if len(members) > 1:
                inside = _mean_cosine(unit[members["feature"].tolist()])
                rows.append((layer, community, len(members), inside, of_all))
    return pd.DataFrame(rows, columns=["layer", "community", "features", "inside", "outside"])


def _mean_cosine(unit: Float[Tensor, "n d"]) -> float:
    """Over pairs of different rows, from the length of their sum."""
    n = len(unit)
    return float((unit.sum(0).double().square().sum() - n) / (n * (n - 1))) if n > 1 else 0.0


def chain(joined: pd.DataFrame, layer: int, feature: int) -> Chain:
    """From a feature to its strongest relative in each next layer, and on: (layer, feature,
    weight of the edge that led there), as far as edges go."""
    found, weight = [(layer, feature, 1.0)], joined["weight"]
    while True:
        layer, feature, _ = found[-1]
        after = weight[(joined["layer"] == layer) & (joined["up"] == feature)]
        if after.empty:
            return found
        row = joined.loc[after.idxmax()]
        found.append((int(row["next"]), int(row["down"]), float(row["weight"])))


def longest_chains(joined: pd.DataFrame, most: int = 10) -> list[Chain]:
    """Chains from the first layer that go farthest, those of the strongest weakest link first."""
    first = joined[joined["layer"] == joined["layer"].min()]
    strongest = first.groupby("up")["weight"].max().sort_values(ascending=False)
    chains = [chain(joined, int(first["layer"].iloc[0]), int(f)) for f in strongest.index]
    return sorted(chains, key=lambda c: (-len(c), -min(w for _, _, w in c)))[:most]

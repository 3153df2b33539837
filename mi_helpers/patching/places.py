"""Which layers, positions and heads a sweep visits."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import pandas as pd

from ..engine.positions import index
from ..models.hooks import HEAD_SITES, n_heads
from .runs import BaseRuns

Positions = Literal["each", "all"] | Sequence[int | str]


def coordinates(
    runs: BaseRuns,
    site: str,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
) -> pd.DataFrame:
    """One line per place, layers first: site, layer, pos (a number, a role such as "S2", or None
    for all), head (None where the site has none).

    Raises ValueError for a site, layer, position or role that does not exist.
    """
    cfg, by_head = runs.model.cfg, site in HEAD_SITES
    runs.clean.hook(site, 0)  # raises for a site that the model does not offer
    chosen: Sequence[Any] = range(cfg.n_layers)
    if layers is not None:
        chosen = [index(layer, cfg.n_layers, "layer") for layer in layers]
    where = _positions(runs, "all" if by_head and positions is None else positions)
    every = range(n_heads(runs.model, site)) if by_head else [None]
    rows = list(product([site], chosen, where, every))
    if not rows:
        raise ValueError("nothing to patch: layers or positions is an empty list")
    table = pd.DataFrame(rows, columns=["site", "layer", "pos", "head"], dtype=object)
    return table.astype({"layer": int})


def _positions(runs: BaseRuns, positions: Positions | None) -> list[int | str | None]:
    ends = runs.pairs.roles["END"]
    n_pos, one_length = int(ends.min()) + 1, bool((ends == ends[0]).all())
    if positions is None:
        positions = "each" if one_length else list(runs.pairs.roles)
    if positions == "all":
        return [None]
    if positions == "each":
        if not one_length:
            raise ValueError(
                f"these prompts have {n_pos} to {int(ends.max()) + 1} tokens, so a position is not "
                f"the same place in all: name roles, of {', '.join(runs.pairs.roles)}"
            )
        return list(range(n_pos))
    if isinstance(positions, str):
        raise ValueError(f"positions is 'each', 'all', numbers or roles in a list: {positions!r}")
    found: list[int | str | None] = []
    for pos in positions:
        if isinstance(pos, str) and pos not in runs.clean.roles:
            known = ", ".join(runs.clean.roles) or "none"
            raise ValueError(f"no role {pos!r}: these prompts have {known}")
        if isinstance(pos, str):
            found.append(pos)
        else:  # where lengths differ, negative numbers stay: they count from each prompt's end
            place = index(pos, n_pos, "position")
            found.append(place if one_length else int(pos))
    return found

"""Which layers, positions and heads a sweep visits."""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ..models.sites import HEAD_SITES, hook_name, n_heads
from ..tasks.pairs import PromptPairs


def coordinates(
    model: TransformerBridge,
    pairs: PromptPairs,
    site: str,
    layers: Sequence[int] | None = None,
    positions: Literal["each", "all"] | Sequence[int] | None = None,
    heads: Literal["each", "all"] = "each",
) -> pd.DataFrame:
    """One line per place, layers first: site, layer, pos (None: all), head (None: all or none).

    Raises ValueError for a site, layer, position or head choice that the model does not have.
    """
    n_layers, n_pos = model.cfg.n_layers, pairs.clean_tokens.shape[1]
    if hook_name(site, 0) not in model.hook_dict:
        raise ValueError(f"{model.cfg.architecture} has no site {site!r}")
    if heads not in ("each", "all"):
        raise ValueError(f"heads is 'each' or 'all', got {heads!r}")
    if positions is None:
        positions = "all" if site in HEAD_SITES else "each"
    if isinstance(positions, str) and positions not in ("each", "all"):
        raise ValueError(f"positions is 'each', 'all' or a list of numbers, got {positions!r}")
    chosen: Sequence[int | None]
    if isinstance(positions, str):
        chosen = [None] if positions == "all" else range(n_pos)
    else:
        chosen = [_index(pos, n_pos, "position") for pos in positions]
    found = range(n_layers) if layers is None else [_index(x, n_layers, "layer") for x in layers]
    each_head = site in HEAD_SITES and heads == "each"
    every: Sequence[int | None] = range(n_heads(model, site)) if each_head else [None]
    rows = list(product([site], found, chosen, every))
    table = pd.DataFrame(rows, columns=["site", "layer", "pos", "head"], dtype=object)
    if table.empty:
        raise ValueError("nothing to patch: layers or positions is an empty list")
    return table.astype({"layer": int})


def _index(value: int, size: int, what: str) -> int:
    if not -size <= value < size:
        raise ValueError(f"{what} {value} does not exist: there are {size}")
    return int(value) % size

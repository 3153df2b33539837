"""Activation patching: replace one run's activations by another's and see what the answer does.

`sweep` patches a site at every layer, position and head; `path_patch` (paths.py) patches what one
component tells another; `attribution` (attribution.py) estimates a whole sweep from gradients.
Rows in, table out: each makes a table of interventions, and the engine carries it out.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..tasks.pairs import PromptPairs
from .places import coordinates
from .runs import BaseRuns, Direction, Metrics, ensure, measure


def sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    site: str = "resid_pre",
    direction: Direction = "denoise",
    metrics: Metrics = ("logit_diff",),
    layers: Sequence[int] | None = None,
    positions: Literal["each", "all"] | Sequence[int] | None = None,
    heads: Literal["each", "all"] = "each",
    window: int = 1,
    normalise: bool = True,
    per_prompt: bool = False,
    runs: BaseRuns | None = None,
) -> pd.DataFrame:
    """Patch a site at every layer, position and head, one at a time.

    Args:
        direction: "denoise" writes clean activations into the corrupted run, "noise" the reverse.
        metrics: names of metrics.METRICS (`kl` is measured from the clean run), or functions by
            name as the engine takes them.
        layers: all by default.
        positions: "each" alone, "all" together, or a list (each alone). By default "each" at
            residual sites and "all" at head sites.
        heads: "each" alone or "all" together, at head sites. Keys and values of grouped-query
            models have one head per group: a patch of one reaches all query heads of its group.
        window: patch this many neighbouring layers at once, centred on `layer` and cut off at the
            first and last layer.
        normalise: 0 is the corrupted run, 1 the clean run, else raw metrics.
        per_prompt: one line for each row and prompt.
        runs: base runs of `record`, so that several sweeps share them.

    Returns:
        site, layer, pos, head, write, one column per metric, direction.

    Source: Heimersheim & Nanda 2024, arXiv 2404.15255; windows as in Zhang & Nanda 2023,
    arXiv 2309.16042, section 5.
    """
    places = coordinates(model, pairs, site, layers, positions, heads)
    n_layers = model.cfg.n_layers
    if not 1 <= window <= n_layers:
        raise ValueError(f"window is {window}; it must be between 1 and {n_layers}, the layers")
    runs = ensure(model, pairs, runs, [site])
    _, source = runs.ordered(direction)
    write = engine.patch(source, "clean" if direction == "denoise" else "corrupted")

    def rows() -> Iterator[dict[str, Any]]:
        for number, place in enumerate(places.to_dict("records")):
            first = place["layer"] - (window - 1) // 2
            for layer in range(max(first, 0), min(first + window, n_layers)):
                yield {**place, "row": number, "layer": layer, "write": write}

    table = measure(runs, direction, pd.DataFrame(rows()), metrics, normalise, per_prompt)
    centres = places["layer"].repeat(len(pairs)) if per_prompt else places["layer"]
    return table.assign(layer=centres.to_numpy()).drop(columns="row")

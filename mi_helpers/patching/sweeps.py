"""A sweep: one site patched at every layer, position and head, one at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from .. import engine
from .places import Positions, coordinates
from .runs import BaseRuns, Direction, Metrics, measure


def sweep(
    runs: BaseRuns,
    site: str = "resid_pre",
    direction: Direction = "denoise",
    metrics: Metrics = ("logit_diff",),
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    window: int = 1,
    normalise: bool = True,
    per_prompt: bool = False,
) -> pd.DataFrame:
    """Patch a site at every layer, position and head, one at a time.

    Args:
        runs: the two recorded runs (`record`), with the activations of this site.
        direction: "denoise" writes clean activations into the corrupted run, "noise" the reverse.
        metrics: names of metrics.METRICS (`kl` is measured from the clean run), or functions by
            name as the engine takes them.
        layers: all by default.
        positions: "each" alone, "all" together, or a list of numbers and roles (each alone). By
            default "each" at residual sites, or each role where prompts differ in length, and "all"
            at head sites. Keys and values of grouped-query models have one head per group: a patch
            of one reaches all query heads of its group.
        window: patch this many neighbouring layers at once, centred on `layer` and cut off at the
            first and last layer.
        normalise: 0 is the corrupted run, 1 the clean run, else raw metrics.
        per_prompt: one line for each row and prompt.

    Returns:
        site, layer, pos, head, write, one column per metric, direction; and `scored`, where the
        answers have several tokens.

    Source: Heimersheim & Nanda 2024, arXiv 2404.15255; windows as in Zhang & Nanda 2023,
    arXiv 2309.16042, section 5.
    """
    places, n_layers = coordinates(runs, site, layers, positions), runs.model.cfg.n_layers
    if not 1 <= window <= n_layers:
        raise ValueError(f"window is {window}; it must be between 1 and {n_layers}, the layers")

    def lines(these: BaseRuns) -> Iterator[dict[str, Any]]:
        _, source = these.ordered(direction)
        write = engine.patch(source, "clean" if direction == "denoise" else "corrupted")
        for number, place in enumerate(places.to_dict("records")):
            first = place["layer"] - (window - 1) // 2
            for layer in range(max(first, 0), min(first + window, n_layers)):
                yield {**place, "row": number, "layer": layer, "write": write}

    def rows(these: BaseRuns) -> pd.DataFrame:
        return pd.DataFrame(lines(these))

    table = measure(runs, direction, rows, metrics, normalise, per_prompt)
    centres = places["layer"].repeat(len(runs.pairs)) if per_prompt else places["layer"]
    return table.assign(layer=centres.to_numpy()).drop(columns="row")

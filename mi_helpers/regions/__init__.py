"""Stable regions: does the output follow an activation, or stay and jump? Read in this order:

1. `paths`: points between two prompts' activations are written one by one (`path_rows`, and the
   controls `arc_rows`, `toward_rows`, `random_rows`); `walk` keeps what leaves the last block;
   `sharpness` is the steepest slope of how far that has moved.
2. `maps`: a plane through three activations, coloured by the output it leads to.
3. `clusters`: prompts joined by flat paths, and how their clusters agree with other ones.
4. `mechanism`: gates, norms and the local Jacobian along a path.
5. `suites`: checkpoints over training and size, and the untrained copy that every claim needs.

Source: Janiak et al. 2024, arXiv 2409.17113.
"""

from .clusters import agreement, components, near_pairs, over_halves, walk_pairs
from .maps import explorer, slice_figure, slice_map
from .mechanism import (
    flip_density,
    flips,
    gate_signs,
    held_sharpness,
    jacobian_norm,
    line,
)
from .paths import (
    activation,
    arc_rows,
    chain,
    curves,
    jumps,
    path_rows,
    random_rows,
    sharpness,
    slopes,
    summary,
    take,
    toward_rows,
    walk,
    with_frozen_patterns,
)
from .suites import (
    chained_sharpness,
    loss_curves,
    shared_last_token,
    suite,
    suite_sharpness,
    untrained,
)

__all__ = [
    "activation",
    "agreement",
    "arc_rows",
    "chain",
    "chained_sharpness",
    "components",
    "curves",
    "explorer",
    "flip_density",
    "flips",
    "gate_signs",
    "held_sharpness",
    "jacobian_norm",
    "jumps",
    "line",
    "loss_curves",
    "near_pairs",
    "over_halves",
    "path_rows",
    "random_rows",
    "shared_last_token",
    "sharpness",
    "slice_figure",
    "slice_map",
    "slopes",
    "suite",
    "suite_sharpness",
    "summary",
    "take",
    "toward_rows",
    "untrained",
    "walk",
    "walk_pairs",
    "with_frozen_patterns",
]

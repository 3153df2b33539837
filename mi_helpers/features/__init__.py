"""What becomes of a feature from one layer to the next."""

from .contexts import cards
from .effects import ablations, sample_bins
from .explore import explorer
from .firing import RandomDirections, adjacent, collect, gather, residuals
from .graph import communities, edges, likeness, longest_chains, rewired, spanning_share
from .kinds import (
    alive,
    context_entropy,
    error_slopes,
    flow,
    gates,
    node_table,
    share_interval,
    specialised,
    truth,
)
from .relations import best, pairs, relative_threshold, totals

__all__ = [
    "RandomDirections",
    "ablations",
    "adjacent",
    "alive",
    "best",
    "cards",
    "collect",
    "communities",
    "context_entropy",
    "edges",
    "error_slopes",
    "explorer",
    "flow",
    "gates",
    "gather",
    "likeness",
    "longest_chains",
    "node_table",
    "pairs",
    "relative_threshold",
    "residuals",
    "rewired",
    "sample_bins",
    "share_interval",
    "spanning_share",
    "specialised",
    "totals",
    "truth",
]

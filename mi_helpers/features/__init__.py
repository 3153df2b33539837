"""What becomes of a feature from one layer to the next.

In reading order: `firing` runs texts through the model and keeps what fires, sparse, tokens of
extreme norm left out; `relations` takes the statistics of all pairs of two layers' features;
`kinds` names what becomes of features (passed on, gates, special cases, lost); `effects` takes a
feature out and reads the next layer's; `graph` joins similar features into communities; `contexts`
and `explore` show them to a reader. After Balcells et al. 2024, arXiv 2410.08869.
"""

from ..engine.stream import residuals
from .contexts import cards, levels
from .effects import ablations, sample_bins
from .explore import explorer, flow_chart
from .firing import RandomDirections, adjacent, collect, encoded, gather, ordinary
from .graph import (
    Communities,
    communities,
    edges,
    likeness,
    longest_chains,
    modularity_gain,
    rewired,
)
from .kinds import (
    alive,
    error_slopes,
    flow,
    gates,
    matched_inputs,
    node_table,
    related_share,
    specialised,
    truth,
)
from .relations import best, pairs, relative_threshold, totals

__all__ = [
    "Communities",
    "RandomDirections",
    "ablations",
    "adjacent",
    "alive",
    "best",
    "cards",
    "collect",
    "communities",
    "edges",
    "encoded",
    "error_slopes",
    "explorer",
    "flow",
    "flow_chart",
    "gates",
    "gather",
    "levels",
    "likeness",
    "longest_chains",
    "matched_inputs",
    "modularity_gain",
    "node_table",
    "ordinary",
    "pairs",
    "related_share",
    "relative_threshold",
    "residuals",
    "rewired",
    "sample_bins",
    "specialised",
    "totals",
    "truth",
]

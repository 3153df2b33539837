"""Sensitive directions: how far a step along a direction moves the output. Read in this order:

1. `baselines`: what "a random direction" can mean, each defined exactly.
2. `spots`: where in a recorded run to push (`spot`), tables of steps (`rows`, `moves`,
   `rows_from`), and `push`, which carries them out.
3. `sae`: the directions that a sparse autoencoder gives, and their controls.
4. `compare`: what pushes did, as paired ratios, slopes and the shape of a way.
5. `explore`: widgets for a live notebook.

`concepts` stands on its own: directions of word pairs in the unembedding, and their inner product
(Park et al. 2024, arXiv 2311.03658).

Sources: Lee & Heimersheim 2024, arXiv 2410.12555; Heimersheim & Mendel 2024; Gurnee 2024.
"""

from .baselines import BASELINES, MIXTURE, Gaussian, generator, unit
from .compare import averages, blow_up, by_token, excess, ratio, ratios, slope
from .concepts import alignment, concept_pairs, direction, left_out, steps, whiten
from .explore import explorer
from .sae import error, feature_directions, points
from .spots import moves, push, rows, rows_from, spot

__all__ = [
    "BASELINES",
    "MIXTURE",
    "Gaussian",
    "alignment",
    "averages",
    "blow_up",
    "by_token",
    "concept_pairs",
    "direction",
    "error",
    "excess",
    "explorer",
    "feature_directions",
    "generator",
    "left_out",
    "moves",
    "points",
    "push",
    "ratio",
    "ratios",
    "rows",
    "rows_from",
    "slope",
    "spot",
    "steps",
    "unit",
    "whiten",
]

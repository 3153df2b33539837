"""Sensitive directions: how far a step along a direction moves the output."""

from .baselines import BASELINES, ITSELF, MIXTURE, Gaussian, moves, rows, rows_from, spot, unit
from .explore import explorer
from .sae import error, feature_directions, points

__all__ = [
    "BASELINES",
    "ITSELF",
    "MIXTURE",
    "Gaussian",
    "error",
    "explorer",
    "feature_directions",
    "moves",
    "points",
    "rows",
    "rows_from",
    "spot",
    "unit",
]

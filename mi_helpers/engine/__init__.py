"""Run a table of interventions: where to intervene, what to write there, and what came out."""

from .execution import run
from .recording import Run, record, record_noised, unembed
from .rows import Metric, add, interpolate, mean, patch, replace, zero
from .text import measure

__all__ = [
    "Metric",
    "Run",
    "add",
    "interpolate",
    "mean",
    "measure",
    "patch",
    "record",
    "record_noised",
    "replace",
    "run",
    "unembed",
    "zero",
]

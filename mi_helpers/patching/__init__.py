"""Activation patching: replace one run's activations by another's and see what the answer does."""

from .explore import explorer, patch_figure
from .gradients import attribution
from .heads import attention, by_prompt, split
from .path import path_patch
from .runs import BaseRuns, gaussian, record
from .sweeps import sweep

__all__ = [
    "BaseRuns",
    "attention",
    "attribution",
    "by_prompt",
    "explorer",
    "gaussian",
    "patch_figure",
    "path_patch",
    "record",
    "split",
    "sweep",
]

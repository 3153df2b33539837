"""Activation patching: replace one run's activations by another's and see what the answer does.

In reading order: `runs` records a clean and a corrupted run and scores them; `places` lists layers,
positions, roles and heads; `sweeps` patches each of them; `path` patches what one component tells
another; `gradients` estimates a whole sweep from one backward pass; `heads` looks at single heads
(what they attend to, what they copy); `knockout` reduces a model to some heads; `roles` finds the
circuit of indirect object identification; `explore` is a figure and widgets for two prompts.

    runs = record(model, pairs)
    sweep(runs, site="z", direction="noise", positions=["END"])
    path_patch(runs, "heads", ["9.6.q"], pos="END")
    attribution(runs, site="z", direction="noise", positions=["END"])

Source: Heimersheim & Nanda 2024, arXiv 2404.15255; Zhang & Nanda 2023, arXiv 2309.16042.
"""

from .explore import explorer, patch_figure
from .gradients import attribution
from .heads import attention, by_prompt, copying, repeat_scores, split
from .knockout import HeadCircuit, random_like, reduce_to, without
from .path import direct_effects, path_patch
from .roles import classes, falls, gains_without, writers
from .runs import BaseRuns, gaussian, record
from .sweeps import sweep

__all__ = [
    "BaseRuns",
    "HeadCircuit",
    "attention",
    "attribution",
    "by_prompt",
    "classes",
    "copying",
    "direct_effects",
    "explorer",
    "falls",
    "gains_without",
    "gaussian",
    "patch_figure",
    "path_patch",
    "random_like",
    "record",
    "reduce_to",
    "repeat_scores",
    "split",
    "sweep",
    "without",
    "writers",
]

"""Circuits: which edges between a model's parts carry a behaviour, and how well they do it alone.

An edge runs from what a part writes (embedding, head, MLP) to what another reads (q, k or v of a
head, MLP input, output). To remove an edge is to let its reader see the writer's value from the
corrupted prompt, or zero, or a mean, while all other readers see the real one.

1. `attribute` scores every edge: estimated from gradients (`eap`, `eap-ig`) or measured (`exact`).
   `head_importance` sums the scores of a node's edges.
2. `top` and `greedy` make a `Circuit` of scores; `acdc` finds one by removing edges (or whole
   heads) one at a time, `subnetwork_probing` by training masks.
3. `evaluate` and `summary` say how faithful a circuit is, under an `Ablation` that is spelt out;
   `curve` does so over sizes, `completeness` and `minimality` look for missing and idle parts.
4. `draw` shows it.
"""

from .acdc import Discovery, acdc
from .attribution import attribute, head_importance
from .drawing import draw
from .evaluation import (
    Ablation,
    area,
    completeness,
    curve,
    evaluate,
    minimality,
    overlap,
    random_like,
    roc,
    summary,
)
from .graph import Circuit, Graph, greedy, top
from .probing import Probing, subnetwork_probing
from .runs import CircuitRuns, record_runs

__all__ = [
    "Ablation",
    "Circuit",
    "CircuitRuns",
    "Discovery",
    "Graph",
    "Probing",
    "acdc",
    "area",
    "attribute",
    "completeness",
    "curve",
    "draw",
    "evaluate",
    "greedy",
    "head_importance",
    "minimality",
    "overlap",
    "random_like",
    "record_runs",
    "roc",
    "subnetwork_probing",
    "summary",
    "top",
]

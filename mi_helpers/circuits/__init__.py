"""Circuits: which edges between a model's parts carry a behaviour, and how well they do it alone.

An edge runs from what a part writes (embedding, head, MLP) to what another reads (q, k or v of a
head, MLP input, output). To remove an edge is to let its reader see the writer's value from the
corrupted prompt, or zero, or a mean, while all other readers see the real one. In reading order:

1. `graph`: `Graph` names senders, receivers and edges; a `Circuit` is a part of it.
2. `runs`: `record` runs the prompt pairs once; all that follows takes what it returns.
3. `attribution`: `attribute` scores every edge, estimated from gradients (`eap`, `eap-ig`, …) or
   measured (`exact`). `choosing` makes circuits of the scores: `top`, `greedy` and `ladder`, and
   `random_like` as a control; `head_importance` sums the scores of a node's edges, `bootstrapped`
   keeps those whose sign does not hang on the prompts.
4. `discovery`, `probing`: `acdc` finds a circuit by removing edges (or whole heads) one at a time,
   `subnetwork_probing` by training masks.
5. `evaluation`: `evaluate` and `summary` say how faithful a circuit is, under an `Ablation` that is
   spelt out; `curve` does so over sizes, `cpr` and `cmd` make one number of that; `completeness`
   and `minimality` look for missing and idle parts. `optimal` finds the constants to ablate with.
6. `drawing`: `draw` shows it. `files`: `save` and `load` in the MIB benchmark's format.
   `literature`: `published`, circuits of papers, to compare with.

`wiring` runs a model with edges removed; only 3 to 5 call it. What a
removed edge carries is decided in one place, `CircuitRuns.ablated`; which edges are removed when a
circuit is evaluated, in `Ablation.overwritten`; by which threshold ACDC removes one, in `acdc`.
"""

from .attribution import attribute
from .choosing import SHARES, bootstrapped, greedy, head_importance, ladder, random_like, top
from .constants import optimal
from .discovery import Discovery, acdc
from .drawing import draw
from .evaluation import (
    Ablation,
    cmd,
    completeness,
    cpr,
    curve,
    evaluate,
    gains,
    greedy_completeness,
    minimality,
    overlap,
    roc,
    summary,
)
from .files import load, save
from .graph import Circuit, Graph
from .literature import published
from .probing import Probing, subnetwork_probing
from .runs import CircuitRuns, record

__all__ = [
    "SHARES", "Ablation", "Circuit", "CircuitRuns", "Discovery", "Graph", "Probing", "acdc",
    "attribute", "bootstrapped", "cmd", "completeness", "cpr", "curve", "draw", "evaluate",
    "gains", "greedy", "greedy_completeness", "head_importance", "ladder", "load", "minimality",
    "optimal", "overlap", "published", "random_like", "record", "roc", "save",
    "subnetwork_probing", "summary", "top",
]  # fmt: skip

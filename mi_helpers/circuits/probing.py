"""Subnetwork probing: learn by gradient which nodes or edges to keep.

Every unit has a mask between 0 (it carries the ablated value) and 1 (it is kept), drawn from a hard
concrete distribution, which is exactly 0 or 1 much of the time and yet has a gradient. The masks'
parameters are trained on the loss of the masked model plus a penalty on the share of units kept.

Source: Cao, Sanh & Rush 2021, arXiv 2104.03514, as Conmy et al. 2023, arXiv 2304.14997, appendix
D.1, compare with it: corrupted values in place of zeros, no probe, a constant learning rate. Hard
concrete masks: Louizos, Welling & Kingma 2018, arXiv 1712.01312.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from .graph import Circuit, Graph
from .runs import CircuitRuns, Metric, Value
from .wiring import Wiring

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # the stretch, and how soft the masks are
START = math.log(0.9 / 0.1)  # masks start mostly kept


@dataclass(frozen=True, eq=False)
class Probing:
    """What subnetwork probing found, for each penalty.

    Attributes:
        circuits: by penalty. Units whose log-odds end above 0 (a mask above a half) are kept; of
            nodes, all edges among those that are kept.
        scores: penalty, unit (a node or an edge), log_odds of being kept, kept.
        history: penalty, step, loss (with drawn masks, mean over prompts), kept (expected share).
    """

    circuits: dict[float, Circuit]
    scores: pd.DataFrame
    history: pd.DataFrame


def subnetwork_probing(
    runs: CircuitRuns,
    penalty: float | Sequence[float],
    metric: Metric = "kl",
    value: Value = "resample",
    units: Literal["nodes", "edges"] = "nodes",
    steps: int = 200,
    rate: float = 0.1,
    seed: int = 0,
) -> Probing:
    """Train a mask over heads and MLPs ("nodes", as in the papers; the embedding stays), or over
    all edges, to keep the loss low with few units.

    Args:
        penalty: what keeping every unit costs, in the loss's unit; times the expected share of
            units kept. Several are trained side by side in one batch, with masks of their own.
        metric: a name or a function of logits, see `CircuitRuns.loss`.
        value: what removed units carry, see `CircuitRuns.ablated`.
        steps: of Adam, at the constant learning `rate`; each draws one mask for all prompts.
        seed: of the draws.

    Memory: every step keeps what backward needs, per penalty several times what `Wiring.row_memory`
    says; edges take more than nodes, since every receiver then has a stream of its own.

    Raises:
        ValueError: a negative penalty, no steps, unknown units, or a metric without a gradient.
    """
    penalties = [float(x) for x in (penalty if isinstance(penalty, Sequence) else [penalty])]
    if not penalties or min(penalties) < 0 or len(set(penalties)) < len(penalties):
        raise ValueError(f"penalties are different numbers of at least 0, got {penalties}")
    if steps < 1 or units not in ("nodes", "edges"):
        raise ValueError(f"needs a step or more, of 'nodes' or 'edges', got {steps} and {units!r}")
    wiring, function = Wiring(runs, value), runs.loss(metric)
    names = runs.graph.senders[1:] if units == "nodes" else runs.graph.edges
    odds = torch.full((len(penalties), len(names)), START, requires_grad=True)
    optimizer, weight = torch.optim.Adam([odds], rate), torch.tensor(penalties)
    generator, lines = torch.Generator().manual_seed(seed), []
    for step in tqdm(range(steps), desc="masks", leave=False, disable=steps < 50):
        removed = 1 - drawn(odds, torch.rand(odds.shape, generator=generator))
        logits = wiring.logits(wiring.remove(shares(runs.graph, removed)))
        losses = function(logits).mean(-1).cpu()
        if not losses.requires_grad and bool((removed < 1).any()):
            raise ValueError("this metric has no gradient; take one that is smooth")
        kept = expected(odds).mean(-1)
        optimizer.zero_grad()
        (losses + weight * kept).sum().backward()
        optimizer.step()
        for row, (loss, share) in enumerate(zip(losses.tolist(), kept.tolist(), strict=True)):
            lines.append({"penalty": penalties[row], "step": step, "loss": loss, "kept": share})
    make = Circuit.between if units == "nodes" else Circuit.of
    circuits, tables = {}, []
    for one, row in zip(penalties, odds.detach().numpy(), strict=True):
        table = pd.DataFrame({"penalty": one, "unit": names, "log_odds": row, "kept": row > 0})
        circuits[one] = make(runs.graph, table.loc[table["kept"], "unit"])
        tables.append(table)
    return Probing(circuits, pd.concat(tables, ignore_index=True), pd.DataFrame(lines))


def drawn(
    log_odds: Float[Tensor, "*units"], uniform: Float[Tensor, "*units"]
) -> Float[Tensor, "*units"]:
    """Hard concrete masks from uniform noise: a stretched, clipped sigmoid."""
    noise = uniform.clamp(1e-6, 1 - 1e-6).logit()
    return (torch.sigmoid((noise + log_odds) / TEMPERATURE) * (HIGH - LOW) + LOW).clamp(0, 1)


def expected(log_odds: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
    """Each mask's probability of not being 0."""
    return torch.sigmoid(log_odds - TEMPERATURE * math.log(-LOW / HIGH))


def shares(
    graph: Graph, removed: Float[Tensor, "row unit"]
) -> Float[Tensor, "row sender receiver"]:
    """The removed share of every edge, from that of every edge in order, or of every node but the
    embedding: then [row, sender, 1], one share for all of a node's edges."""
    n = len(removed)
    if removed.shape[1] == len(graph.senders) - 1:
        return torch.cat([removed.new_zeros(n, 1), removed], 1)[:, :, None]
    sender, receiver = map(torch.tensor, graph.index)
    full = removed.new_zeros(n, *graph.exists.shape)
    return full.index_put((torch.arange(n)[:, None], sender, receiver), removed)

"""How good is a circuit? Faithfulness under an explicit ablation, prompt by prompt.

There is no faithfulness as such. What is overwritten, with what, where and in which run all change
the number, so every function here takes an `Ablation` that spells these choices out.
Source: Miller, Chughtai & Saunders 2024, arXiv 2407.08734.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..tasks.pairs import PromptPairs
from .attribution import Metric
from .graph import Circuit, Mask, greedy, top
from .runs import CircuitRuns, ensure_runs
from .senders import Value


@dataclass(frozen=True)
class Ablation:
    """The six choices behind a faithfulness number.

    Attributes:
        granularity: "qkv" ablates each input of a head by itself; "head" keeps an edge into all
            inputs of a head if the circuit has it into any (the key-value head's, where shared).
        component: "edge" overwrites single edges; "node" overwrites a node for all its readers, and
            keeps every edge out of the circuit's nodes.
        value: what is written: "resample" (the corrupted run), "zero", "mean" (over the corrupted
            prompts, by position) or "noise" (a run with noisy embeddings).
        positions: where it is written; None for everywhere.
        direction: "ablate" starts from the clean run and takes away; "restore" starts from the
            corrupted run and writes clean values ("resample" only).
        set: what is overwritten. With "ablate", the "complement" asks whether the circuit is
            enough, the "circuit" whether the rest is; with "restore" the other way round.
    """

    granularity: Literal["qkv", "head"] = "qkv"
    component: Literal["edge", "node"] = "edge"
    value: Value = "resample"
    positions: tuple[int, ...] | None = None
    direction: Literal["ablate", "restore"] = "ablate"
    set: Literal["complement", "circuit"] = "complement"

    def __post_init__(self) -> None:
        allowed = {
            "granularity": ("qkv", "head"),
            "component": ("edge", "node"),
            "value": ("resample", "zero", "mean", "noise"),
            "direction": ("ablate", "restore"),
            "set": ("complement", "circuit"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {values}")
        if self.direction == "restore" and self.value != "resample":
            raise ValueError("to restore is to write clean values: use value='resample'")

    def overwritten(self, circuit: Circuit) -> Mask:
        """The edges that are overwritten when this circuit is evaluated."""
        inside = self.expand(circuit)
        return inside if self.set == "circuit" else circuit.graph.exists & ~inside

    def expand(self, circuit: Circuit) -> Mask:
        """The circuit's edges at this granularity."""
        graph, kept = circuit.graph, circuit.kept
        if self.component == "node":
            return graph.exists & kept.any(1)[:, None]
        if self.granularity == "qkv":
            return kept
        whole = kept.clone()
        for u in range(1, len(graph.senders)):
            reads = graph.reads(u)
            whole[:, reads] |= kept[:, reads].any(1)[:, None]
        return whole & graph.exists


@torch.no_grad()
def evaluate(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuits: Circuit | Mapping[str, Circuit],
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
    runs: CircuitRuns | None = None,
    max_memory: int | None = None,
) -> pd.DataFrame:
    """Run circuits in place of the model; one line per circuit and prompt.

    `value` is the metric of the circuit; `full` that of the whole model on the clean prompt;
    `empty` that with every edge overwritten (with "restore": of the corrupted prompt). Prompts run
    in batches of which each stays below `max_memory` bytes. `summary` makes numbers of it.

    Returns:
        circuit, edges (how many), prompt, value, full, empty.
    """
    chosen = circuits if isinstance(circuits, Mapping) else {"circuit": circuits}
    runs = ensure_runs(model, pairs, runs)
    masks = {name: ablation.overwritten(circuit) for name, circuit in chosen.items()}
    restore = ablation.direction == "restore"
    nothing = torch.zeros_like(runs.graph.exists)
    ends = {"full": nothing, "empty": runs.graph.exists}
    if restore:
        ends = {"full": runs.graph.exists, "empty": nothing}
    values = _values(runs, [*ends.values(), *masks.values()], ablation, metric, max_memory)
    full, empty, *rest = values
    tables = [
        pd.DataFrame(
            {
                "circuit": name,
                "edges": len(chosen[name]),
                "prompt": range(len(pairs)),
                "value": value,
                "full": full,
                "empty": empty,
            }
        )
        for name, value in zip(masks, rest, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _values(
    runs: CircuitRuns,
    masks: Sequence[Mask],
    ablation: Ablation,
    metric: Metric,
    max_memory: int | None,
) -> list[np.ndarray]:
    """The metric with each set of edges overwritten, by prompt."""
    logits: list[list[Tensor]] = [[] for _ in masks]
    for prompts in runs.batches(max_memory):
        wiring = runs.wiring(
            ablation.value, prompts, ablation.positions, ablation.direction == "restore"
        )
        for found, mask in zip(logits, masks, strict=True):
            found.append(wiring.logits(wiring.remove(mask)))
    function = runs.function(metric)
    return [function(torch.cat(found, 1))[0].double().cpu().numpy() for found in logits]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness of each circuit of `evaluate`: 0 is the empty circuit, 1 the whole model.

    `of_means` is the ratio of means over prompts: (value - empty) / (full - empty). The others are
    of the prompts' own ratios: `mean`, `median`, `low` and `high` (quartiles), `worst` (the one
    furthest from 1). A prompt whose model gains nothing over empty has no ratio and is left out of
    these; `prompts` counts the rest.
    """
    lines = []
    for name, part in table.groupby("circuit", sort=False):
        span = part["full"] - part["empty"]
        ratio = ((part["value"] - part["empty"]) / span.where(span != 0)).dropna()
        lines.append(
            {
                "circuit": name,
                "edges": part["edges"].iloc[0],
                "of_means": (part["value"] - part["empty"]).mean() / span.mean(),
                "mean": ratio.mean(),
                "median": ratio.median(),
                "low": ratio.quantile(0.25),
                "high": ratio.quantile(0.75),
                "worst": ratio.loc[(ratio - 1).abs().idxmax()] if len(ratio) else np.nan,
                "prompts": len(ratio),
            }
        )
    return pd.DataFrame(lines)


def curve(
    model: TransformerBridge,
    pairs: PromptPairs,
    scores: pd.DataFrame,
    sizes: Sequence[int],
    select: Literal["greedy", "top"] = "greedy",
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
    runs: CircuitRuns | None = None,
) -> pd.DataFrame:
    """`summary` of the circuits of several sizes that scores lead to; `size` is what was asked for,
    `edges` what is left once edges on no path to the output are dropped."""
    runs = ensure_runs(model, pairs, runs)
    pick = {"greedy": greedy, "top": top}[select]
    circuits = {str(n): pick(runs.graph, scores, n).pruned() for n in sizes}
    table = summary(evaluate(model, pairs, circuits, ablation, metric, runs))
    table.insert(0, "size", list(sizes))
    return table.drop(columns="circuit")


def area(edges: ArrayLike, faithfulness: ArrayLike, total: int) -> float:
    """Area under faithfulness over the share of edges kept, from the first size to the last,
    divided by that range: the mean faithfulness over sizes (trapezoids)."""
    x, y = np.asarray(edges, float) / total, np.asarray(faithfulness, float)
    if len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError("an area needs two or more increasing sizes")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def overlap(first: Circuit, second: Circuit, of: Literal["nodes", "edges"] = "nodes") -> float:
    """Jaccard overlap of two circuits: what both have, by what either has."""
    a, b = ({*c.nodes} if of == "nodes" else {*c.edges} for c in (first, second))
    return len(a & b) / len(a | b)


def roc(truth: ArrayLike, scores: ArrayLike) -> tuple[pd.DataFrame, float]:
    """Receiver operating characteristic of scores (larger: in the circuit), and its area.

    Edges of equal score enter together, and the area counts such a step at its lower corner, as in
    Conmy et al. 2023. Returns a table of threshold, fpr, tpr, and the area.
    """
    true, score = np.asarray(truth, bool), np.asarray(scores, float)
    if true.all() or not true.any():
        raise ValueError("the truth needs edges inside and outside the circuit")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of each equal score
    rates = [np.append(0, np.cumsum(x[order])[last] / x.sum()) for x in (~true, true)]
    threshold = np.append(np.inf, score[order][last])
    table = pd.DataFrame({"threshold": threshold, "fpr": rates[0], "tpr": rates[1]})
    return table, float((np.diff(rates[0]) * rates[1][:-1]).sum())


def completeness(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    n_subsets: int = 10,
    seed: int = 0,
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
    runs: CircuitRuns | None = None,
) -> pd.DataFrame:
    """Take away half of the circuit's nodes, in the circuit and in the model: do both fall alike?

    A circuit that is complete loses as much as the model does; where the model loses less, it has
    parts that stand in. One line per random subset: `nodes`, `circuit`, `model` (means over
    prompts), `incompleteness` (their absolute difference). Source: Wang et al. 2022, section 4.1.
    """
    runs = ensure_runs(model, pairs, runs)
    rng, graph = np.random.default_rng(seed), runs.graph
    inner = [name for name in circuit.nodes if name not in ("embed", "out")]
    if len(inner) < 2:
        raise ValueError(f"the circuit has {len(inner)} nodes besides embedding and output")
    subsets = [sorted(rng.choice(inner, len(inner) // 2, False)) for _ in range(n_subsets)]
    inside, masks = ablation.expand(circuit), []
    for names in subsets:
        gone = torch.tensor([name in names for name in graph.senders])[:, None] & graph.exists
        masks += [graph.exists & (~inside | gone), gone]
    values = [value.mean() for value in _values(runs, masks, ablation, metric, None)]
    table = pd.DataFrame({"nodes": [" ".join(names) for names in subsets]})
    table["circuit"], table["model"] = values[::2], values[1::2]
    return table.assign(incompleteness=(table["circuit"] - table["model"]).abs())


def minimality(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
    runs: CircuitRuns | None = None,
) -> pd.DataFrame:
    """What the circuit loses with each of its edges: edge, value, change (means over prompts)."""
    runs = ensure_runs(model, pairs, runs)
    graph, inside = runs.graph, ablation.expand(circuit)
    masks = [graph.exists & ~inside]
    for edge in circuit:
        without = masks[0].clone()
        without[graph.number[edge]] = True
        masks.append(without)
    values = [value.mean() for value in _values(runs, masks, ablation, metric, None)]
    table = pd.DataFrame({"edge": circuit.edges, "value": values[1:]})
    return table.assign(change=table["value"] - values[0])


def random_like(circuit: Circuit, seed: int = 0, same_nodes: bool = False) -> Circuit:
    """A circuit of as many edges at random, as many into each layer's receivers; with `same_nodes`
    drawn from the edges among the circuit's own nodes. Raises ValueError for `same_nodes` of a
    circuit that is not pruned, whose edges may end at nodes that it does not have."""
    if same_nodes and len(circuit.pruned()) < len(circuit):
        raise ValueError("prune the circuit first: some of its edges lie on no path")
    graph, rng = circuit.graph, np.random.default_rng(seed)
    among = Circuit.between(graph, circuit.nodes).kept if same_nodes else graph.exists
    kept = torch.zeros_like(graph.exists)
    for group in graph.groups:
        columns = slice(group.receivers.start, group.receivers.stop)
        places = among[:, columns].nonzero().numpy()
        n = int(circuit.kept[:, columns].sum())
        for u, r in places[rng.choice(len(places), n, replace=False)]:
            kept[u, group.receivers.start + r] = True
    return replace(circuit, kept=kept)

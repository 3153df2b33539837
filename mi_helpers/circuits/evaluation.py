"""How good is a circuit? Faithfulness under an explicit ablation, prompt by prompt.

There is no faithfulness as such. What is overwritten, with what, where and in which run all change
the number, so every function here takes an `Ablation` that spells these choices out.
Source: Miller, Chughtai & Saunders 2024, arXiv 2407.08734.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .choosing import SHARES, Ranking, ladder
from .graph import Circuit, Mask
from .runs import CircuitRuns, Metric, Source, Value, batches
from .wiring import Wiring

MEMORY = 2 * 10**9  # bytes of a batch of prompts
Circuits = Circuit | Mapping[str, Circuit] | Mapping[float, Circuit]
Table: TypeAlias = pd.DataFrame | Mapping[str, ArrayLike]  # columns by name


@dataclass(frozen=True)
class Ablation:
    """The six choices behind a faithfulness number.

    Attributes:
        granularity: "qkv" ablates each input of a head by itself; "head" keeps an edge into all
            inputs of a head if the circuit has it into any (the key-value head's, where shared).
        component: "edge" overwrites single edges; "node" overwrites a node for all its readers, and
            keeps every edge out of the circuit's nodes.
        value: what is written: "resample" (the corrupted run), "zero", "mean" (over the corrupted
            prompts, by position) or "noise" (a run with noisy embeddings); or what `optimal` gives,
            the constants that suit a circuit best.
        positions: where it is written, numbers or roles; None for everywhere.
        direction: "ablate" starts from the clean run and takes away; "restore" starts from the
            corrupted run and writes clean values ("resample" only).
        set: what is overwritten. With "ablate", the "complement" asks whether the circuit is
            enough, the "circuit" whether the rest is; with "restore" the other way round.
    """

    granularity: Literal["qkv", "head"] = "qkv"
    component: Literal["edge", "node"] = "edge"
    value: Value | Source = "resample"
    positions: tuple[int | str, ...] | None = None
    direction: Literal["ablate", "restore"] = "ablate"
    set: Literal["complement", "circuit"] = "complement"

    def __post_init__(self) -> None:
        for name, choice in get_type_hints(Ablation).items():
            values = get_args(choice)
            if get_origin(choice) is Literal and getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {values}")
        if not callable(self.value) and self.value not in get_args(Value):
            raise ValueError(f"value is {self.value!r}; it must be one of {get_args(Value)}")
        if self.direction == "restore" and self.value != "resample":
            raise ValueError("to restore is to write clean values: use value='resample'")

    def overwritten(self, circuit: Circuit) -> Mask:
        """The edges that are overwritten when this circuit is evaluated."""
        inside = self.inside(circuit)
        return inside if self.set == "circuit" else circuit.graph.exists & ~inside

    def inside(self, circuit: Circuit) -> Mask:
        """The edges that count as the circuit's: its own, or all of its nodes' or heads'."""
        graph, kept = circuit.graph, circuit.kept
        if self.component == "node":
            return graph.exists & kept.any(1)[:, None]
        if self.granularity == "qkv":
            return kept
        whole = kept.clone()
        for u in range(1, len(graph.senders)):
            reads = graph.inputs[u]
            whole[:, reads] |= kept[:, reads].any(1)[:, None]
        return whole & graph.exists


@torch.no_grad()
def evaluate(
    runs: CircuitRuns,
    circuits: Circuits,
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
    max_memory: int = MEMORY,
) -> pd.DataFrame:
    """Run circuits in place of the model; one line per circuit and prompt.

    `value` is the metric of the circuit; `full` that of the whole model on the clean prompt;
    `empty` that with every edge overwritten (with "restore": of the corrupted prompt). Prompts run
    in batches of which each stays below `max_memory` bytes. `summary` makes numbers of it, `gains`
    a table for paired comparisons.

    Returns:
        circuit, edges (how many), share (of all edges), prompt, value, full, empty; and `scored`,
        where answers have several tokens.
    """
    chosen = {"circuit": circuits} if isinstance(circuits, Circuit) else dict(circuits)
    graph, nothing = runs.graph, torch.zeros_like(runs.graph.exists)
    ends = [nothing, graph.exists] if ablation.direction == "ablate" else [graph.exists, nothing]
    masks = [ablation.overwritten(circuit) for circuit in chosen.values()]
    full, empty, *values = _values(runs, [*ends, *masks], ablation, metric, max_memory)
    tables = []
    for (name, circuit), value in zip(chosen.items(), values, strict=True):
        size = {"edges": len(circuit), "share": len(circuit) / len(graph.edges)}
        numbers = {"prompt": range(len(value)), "value": value, "full": full, "empty": empty}
        tables.append(pd.DataFrame({"circuit": name, **size, **numbers, **runs.pairs.said}))
    return pd.concat(tables, ignore_index=True)


def _values(
    runs: CircuitRuns,
    masks: Sequence[Mask],
    ablation: Ablation,
    metric: Metric,
    max_memory: int = MEMORY,
) -> list[np.ndarray]:
    """The metric with each set of edges overwritten, by prompt."""
    logits: list[list[Tensor]] = [[] for _ in masks]
    restore = ablation.direction == "restore"
    n, n_pos, width = runs.clean.resid[0].shape
    streams = 3 * len(runs.graph.senders) + len(runs.graph.receivers)  # of a prompt, at most
    for prompts in batches(n, max_memory // (streams * n_pos * width * 4)):
        wiring = Wiring(runs, ablation.value, prompts, ablation.positions, restore)
        for found, mask in zip(logits, masks, strict=True):
            found.append(wiring.logits(wiring.remove(mask)))
    function = runs.function(metric)
    return [function(torch.cat(found, 1))[0].double().cpu().numpy() for found in logits]


def gains(values: pd.DataFrame) -> pd.DataFrame:
    """What each circuit gains over the empty one, a line per prompt and a column per circuit;
    `full` is what the whole model gains. For paired comparisons: the faithfulness of a circuit with
    its interval is `mi.stats.ratio(gains[name], gains["full"])`, that of a difference
    `mi.stats.ratio(gains[one] - gains[other], gains["full"])`."""
    wide = values.assign(gain=values["value"] - values["empty"]).pivot(
        index="prompt", columns="circuit", values="gain"
    )[list(dict.fromkeys(values["circuit"]))]
    span = (values["full"] - values["empty"]).groupby(values["prompt"]).first()
    return wide.assign(full=span)


def summary(values: pd.DataFrame, least: float = 0.25) -> pd.DataFrame:
    """Faithfulness of each circuit of `evaluate`: 0 is the empty circuit, 1 the whole model.

    `faithfulness` is the ratio of means over prompts: (value - empty) / (full - empty). The others
    are of the prompts' own ratios: `mean`, `median`, `low` and `high` (quartiles), `worst` (the one
    furthest from 1). A prompt on which the model gains less than `least` of the mean gain divides
    by next to nothing and is left out of these; `prompts` counts the rest.
    """
    lines = []
    for name, part in values.groupby("circuit", sort=False):
        span, gain = part["full"] - part["empty"], part["value"] - part["empty"]
        ratio = (gain / span)[span > least * span.mean()]
        line = {"circuit": name, "edges": part["edges"].iloc[0], "share": part["share"].iloc[0]}
        line |= {"faithfulness": gain.mean() / span.mean(), "mean": ratio.mean()}
        line |= dict(zip(("low", "median", "high"), ratio.quantile([0.25, 0.5, 0.75]), strict=True))
        worst = ratio.loc[(ratio - 1).abs().idxmax()] if len(ratio) else np.nan
        lines.append(line | {"worst": worst, "prompts": len(ratio)})
    return pd.DataFrame(lines)


def curve(
    runs: CircuitRuns,
    scores: pd.DataFrame,
    shares: Sequence[float] = SHARES,
    ranking: Ranking = "absolute",
    select: Literal["greedy", "top"] = "greedy",
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
) -> pd.DataFrame:
    """`summary` of a `ladder` of circuits; `share` is the share asked for, `ranking` what edges
    were ranked by. `cpr` and `cmd` make one number of it."""
    circuits = ladder(runs.graph, scores, shares, ranking, select)
    table = summary(evaluate(runs, circuits, ablation, metric))
    return table.assign(share=table["circuit"], ranking=ranking).drop(columns="circuit")


def cpr(table: Table) -> float:
    """Circuit performance ratio: the area under faithfulness over the share of edges kept, linear
    in the share, from a table of `share` and `faithfulness`. More is better, without a bound; MIB
    ranks edges by their signed score for it (`ranking="signed"`).

    A circuit that does nothing below the whole model has .25, since half of all shares lie above
    one half. Source: Mueller et al. 2025, arXiv 2504.13151 (MIB), section 3.
    """
    return _area(table, lambda x: x)


def cmd(table: Table) -> float:
    """Circuit-model distance: the area under |1 - faithfulness|, as `cpr`. 0 is best; MIB ranks by
    the absolute score for it. Where faithfulness stays between 0 and 1, the two sum to the range of
    shares. Source: Mueller et al. 2025, arXiv 2504.13151 (MIB), section 3."""
    return _area(table, lambda x: np.abs(1 - x))


def _area(table: Table, of: Callable[[np.ndarray], np.ndarray]) -> float:
    x, y = (np.asarray(table[name], dtype=np.float64) for name in ("share", "faithfulness"))
    if len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError("an area needs two or more increasing shares")
    return float(np.trapezoid(of(y), x))


@torch.no_grad()
def completeness(
    runs: CircuitRuns,
    circuit: Circuit,
    sets: Sequence[Sequence[str]],
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
) -> pd.DataFrame:
    """Take nodes away, in the circuit and in the model: do both fall alike?

    A circuit that is complete loses as much as the model does; where the model loses less, it has
    parts that stand in. One line per set of nodes (the empty one: is the circuit faithful?):
    `nodes`, `size`, `circuit`, `model` (means over prompts), `incompleteness` (their absolute
    difference). Source: Wang et al. 2022, arXiv 2211.00593, section 4.1.
    """
    graph, inside, masks = runs.graph, ablation.inside(circuit), []
    for names in sets:
        gone = torch.tensor([name in names for name in graph.senders])[:, None] & graph.exists
        masks += [graph.exists & (~inside | gone), gone]
    values = [value.mean() for value in _values(runs, masks, ablation, metric)]
    table = pd.DataFrame({"nodes": [" ".join(names) for names in sets], "size": map(len, sets)})
    table["circuit"], table["model"] = values[::2], values[1::2]
    return table.assign(incompleteness=(table["circuit"] - table["model"]).abs())


def greedy_completeness(
    runs: CircuitRuns,
    circuit: Circuit,
    size: int = 4,
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
) -> pd.DataFrame:
    """`completeness` of a set that grows by the node that makes circuit and model differ most, one
    line for each size. Source: Wang et al. 2022, arXiv 2211.00593, section 4.1 (greedy sets)."""
    chosen, lines = list[str](), []
    for _ in range(size):
        left = [x for x in circuit.nodes if x not in ("embed", "out", *chosen)]
        table = completeness(runs, circuit, [[*chosen, x] for x in left], ablation, metric)
        best = int(table["incompleteness"].idxmax())
        chosen.append(left[best])
        lines.append(table.loc[best])
    return pd.DataFrame(lines).reset_index(drop=True)


@torch.no_grad()
def minimality(
    runs: CircuitRuns,
    circuit: Circuit,
    ablation: Ablation = Ablation(),
    metric: Metric = "logit_diff",
) -> pd.DataFrame:
    """What the circuit loses with each of its edges: edge, value, change (means over prompts).
    Judge a circuit by the metric that found it, or edges that it keeps for good reason look idle.
    """
    graph, inside = runs.graph, ablation.inside(circuit)
    masks = [graph.exists & ~inside]
    masks += [masks[0] | graph.mask([edge]) for edge in circuit]
    whole, *values = (x.mean() for x in _values(runs, masks, ablation, metric))
    table = pd.DataFrame({"edge": circuit.edges, "value": values})
    return table.assign(change=table["value"] - whole)


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
    fp, tp = (np.append(0, np.cumsum(x[order])[last]) for x in (~true, true))
    threshold = np.append(np.inf, score[order][last])
    table = pd.DataFrame({"threshold": threshold, "fpr": fp / fp[-1], "tpr": tp / tp[-1]})
    won = (np.diff(fp) * tp[:-1]).sum()  # whole pairs: equal areas are equal to the last bit
    return table, float(won / (fp[-1] * tp[-1]))

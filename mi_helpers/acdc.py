"""Automatic circuit discovery (ACDC): remove edges one at a time while the output stays put.

Source: Conmy, Mavor-Parker, Lynch, Heimersheim & Garriga-Alonso 2023, arXiv 2304.14997,
algorithm 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from .circuit_attribution import Metric
from .circuit_graph import Circuit, Graph
from .circuit_runs import CircuitRuns, ensure_runs
from .circuit_senders import Value
from .pairs import PromptPairs

Order = Literal["descending", "ascending"]


@dataclass(frozen=True, eq=False)
class Discovery:
    """What ACDC found, and its trials: edge, change (of the loss by this removal), removed."""

    circuit: Circuit
    trials: pd.DataFrame


@torch.no_grad()
def acdc(
    model: TransformerBridge,
    pairs: PromptPairs,
    threshold: float,
    metric: Metric = "kl",
    value: Value = "resample",
    heads: Order = "descending",
    runs: CircuitRuns | None = None,
) -> Discovery:
    """Remove every edge whose removal raises the loss by less than `threshold`.

    Receivers are visited from the output to the first layer, in a layer the MLP first and then the
    heads' inputs; the senders of each from the last layer to the embedding, heads in `heads` order.
    A removal that is accepted stays, and later trials are made on top of it. Each trial runs the
    model from its receiver on, and only the nodes that the change reaches. Inputs of nodes without
    a path to the output are dropped without a trial.

    Args:
        threshold: of the loss, mean over prompts; small values keep more edges.
        metric: "kl" from the clean run is a loss as it is; any other name is a score whose negative
            is the loss; a function of the last position's logits [row, prompt, vocab] is a loss.
        value: what a removed edge carries, see `circuit_runs.ablated`.
        runs: recorded runs of these pairs, to be used again.
    """
    runs = ensure_runs(model, pairs, runs)
    graph, wiring, function = runs.graph, runs.wiring(value), runs.function(metric)
    sign = 1 if callable(metric) or metric == "kl" else -1
    state, lines = wiring.start(), []
    loss = sign * float(function(wiring.logits(state)[None]).mean())
    removed = (~graph.exists).to(state.removed)
    state.removed = removed.clone()
    for receiver, senders in tqdm(
        list(visits(graph, heads)), desc="receivers", leave=False, disable=len(graph.edges) < 2000
    ):
        _, live = graph.live((removed < 1).cpu())
        if not live[receiver]:
            removed[:, receiver] = 1
            continue
        for sender in senders:
            trial = removed.clone()
            trial[sender, receiver] = 1
            new = wiring.remove(trial, state)
            after = sign * float(function(wiring.logits(new)[None]).mean())
            accepted = after - loss < threshold
            edge = f"{graph.senders[sender]} -> {graph.receivers[receiver]}"
            lines.append({"edge": edge, "change": after - loss, "removed": accepted})
            if accepted:
                state, removed, loss = new, trial, after
    circuit = Circuit(graph, (removed < 1).cpu() & graph.exists)
    return Discovery(circuit, pd.DataFrame(lines))


def visits(graph: Graph, heads: Order = "descending") -> Iterator[tuple[int, list[int]]]:
    """Receivers in the order of their visit, each with its senders in the order of theirs."""
    if heads not in ("descending", "ascending"):
        raise ValueError(f"heads is 'descending' or 'ascending', got {heads!r}")
    for group in reversed(graph.groups):
        parents = list(range(1, group.parents))
        width = graph.n_heads + graph.mlps
        by_layer = [parents[i : i + width] for i in range(0, len(parents), width)]
        order: list[int] = []
        for layer in reversed(by_layer):
            own, mlp = layer[: graph.n_heads], layer[graph.n_heads :]
            order += mlp + (own[::-1] if heads == "descending" else own)
        for receiver in _heads_first(graph, group.receivers, heads):
            yield receiver, [*order, 0]


def _heads_first(graph: Graph, receivers: range, heads: Order) -> list[int]:
    """The inputs of a layer's heads, head by head: q, then k and v of its key-value head."""
    if len(receivers) == 1:
        return list(receivers)
    counts = (graph.n_heads, graph.n_kv, graph.n_kv)
    place = {}
    for kind, count in enumerate(counts):
        for head in range(count):
            at = head * graph.n_heads // count  # the first head that reads it
            place[receivers.start + sum(counts[:kind]) + head] = (at, kind)
    down = -1 if heads == "descending" else 1
    return sorted(receivers, key=lambda r: (down * place[r][0], place[r][1]))

"""Scores for every edge of a model: what its removal does to a metric, estimated or measured.

Edge attribution patching estimates it for all edges from one backward pass: the change of the
sender's value, times the gradient of the metric at the receiver's input. All edges into one layer
are one matrix product of senders by receivers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from .. import metrics
from ..tasks.pairs import PromptPairs
from .backward import Pass
from .graph import Graph, Group
from .runs import CircuitRuns, ensure_runs
from .senders import (
    Source,
    Value,
    Weights,
    ablated,
    by_head,
    mlp_norm,
    projections,
    sender_shift,
)

Method = Literal["eap", "eap-ig", "clean-corrupted", "exact"]
Metric = str | Callable[[Tensor], Tensor]


def attribute(
    model: TransformerBridge,
    pairs: PromptPairs,
    method: Method = "eap",
    metric: Metric = "logit_diff",
    value: Value = "resample",
    steps: int = 5,
    edges: Sequence[str] | None = None,
    runs: CircuitRuns | None = None,
    max_memory: int = 64 * 10**6,
) -> pd.DataFrame:
    """A score for every edge: the change of the metric, mean over prompts, when it is removed.

    Args:
        method: how the gradient at the receivers is taken. "eap": at the clean run; two forward
            passes and one backward. "clean-corrupted": the mean of the gradients at the clean and
            at the ablated embeddings. "eap-ig": the mean over `steps` midpoints of the straight
            line between those embeddings. "exact" takes none: see `exact` (`edges` names those
            wanted, and `runs` are recorded runs to start from).
        metric: a name, or a function of the last position's logits [row, prompt, d_vocab].
        value: what a removed edge carries, see `circuit_runs.ablated`.
        max_memory: bytes for the contraction, done in batches of prompts; small ones stay in the
            processor's cache. The passes hold all prompts at once and grow with prompts times
            tokens: 0.6 GB for 50 prompts of 41 tokens and four layers of width 512, 0.3 GB for 8
            of 16 and GPT-2 small's size. Split a large set, and average the scores.

    Returns:
        edge, sender, receiver, score; edges as in `Graph.edges`.

    Raises:
        ValueError: KL with "eap", since its gradient is zero at the clean run; a metric that has no
            gradient; an architecture whose edges are not defined.

    Source: Syed, Rager & Conmy 2023, arXiv 2310.10348 (EAP); Hanna, Pezzelle & Belinkov 2024,
    arXiv 2403.17806 (EAP-IG over inputs, there at left ends in place of midpoints).
    """
    if method == "exact":
        return exact(model, pairs, metric, value, edges, runs)
    if edges is not None:
        raise ValueError("edges= is for method='exact': the others score every edge at once")
    if method == "eap" and metric == "kl":
        raise ValueError("kl has zero gradient at the clean run: use 'eap-ig', or another metric")
    graph = Graph.of(model)
    corrupted = Pass(model, pairs.corrupted_tokens).run()
    clean = Pass(model, pairs.clean_tokens)
    if metric == "kl":
        clean.run()
        function = metrics.build(pairs, "kl", reference=clean.logits)["kl"]
    else:
        function = metrics.build(pairs, metric)[metric] if isinstance(metric, str) else metric
        clean.run(function)
    source = ablated(value, pairs, clean, corrupted)
    passes = _gradient_passes(method, steps, clean, source, function)
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for weight, tangent in passes:
        scores += weight * _contract(graph, clean, tangent, source, max_memory)
    return graph.table({"score": scores / len(pairs)})


def head_importance(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole nodes from the scores of their edges: sender, layer, score, importance.

    `score` is the sum over a node's edges. With "eap" it is exactly the gradient at the node times
    its change, since a node's gradient is the sum of its readers'. `importance` is its absolute
    value over the root of the sum of squares in its layer (the embedding is a layer by itself).
    Source: Michel, Levy & Neubig 2019, arXiv 1905.10650; as in Conmy et al. 2023, appendix D.2.
    """
    table = scores.groupby("sender", sort=False, as_index=False)["score"].sum()
    layer = table["sender"].str.extract(r"[AM](\d+)")[0].astype(float).fillna(-1).astype(int)
    table.insert(1, "layer", layer)
    norm = table["score"].pow(2).groupby(layer).transform("sum").pow(0.5)
    return table.assign(importance=table["score"].abs() / norm.where(norm > 0, 1.0))


def _gradient_passes(
    method: Method, steps: int, clean: "Pass", source: Source, function: Callable[[Tensor], Tensor]
) -> Iterator[tuple[float, "Pass"]]:
    """Passes with gradients, and the weight of each."""
    shares = {"eap": [0.0], "clean-corrupted": [0.0, 1.0]}
    shares["eap-ig"] = [(step + 0.5) / steps for step in range(steps)]
    if method not in shares or not shares[method]:
        raise ValueError(f"method {method!r} with {steps} steps is none of {[*shares, 'exact']}")
    start = clean.activation("resid_pre", 0)
    end = source("resid_pre", 0)
    for share in shares[method]:
        if share == 0.0 and clean.gradients:
            yield 1 / len(shares[method]), clean
        else:
            between = Pass(
                clean.model, clean.tokens, torch.lerp(start, end.expand_as(start), share)
            )
            yield 1 / len(shares[method]), between.run(function)


def _contract(
    graph: Graph, clean: Pass, tangent: Pass, source: Source, max_memory: int
) -> Float[Tensor, "sender receiver"]:
    """Sum over prompts and positions of sender change times gradient, for every edge."""
    n, n_pos, width = clean.activation("resid_pre", 0).shape
    weights = projections(clean.model)
    each = (len(graph.senders) + 6 * (graph.n_heads + 2 * graph.n_kv)) * n_pos * width * 4
    size = max(1, max_memory // each)
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for first in range(0, n, size):
        rows = slice(first, first + size)

        def own(of: Source, rows: slice = rows) -> Source:
            def part(site: str, layer: int) -> Tensor:
                value = of(site, layer)
                return value[rows] if len(value) == n else value

            return part

        shift = sender_shift(graph, weights, own(clean.activation), own(source)).flatten(1)
        for group in graph.groups:
            at_receivers = _at_receivers(group, tangent, weights, rows)
            found = shift[: group.parents] @ at_receivers.flatten(1).T
            scores[: group.parents, group.receivers] += found.double().cpu()
    return scores


def _at_receivers(
    group: Group, tangent: Pass, weights: Weights, rows: slice
) -> Float[Tensor, "receiver prompt pos d_model"]:
    """The metric's gradient at the stream of every receiver of a group."""
    layer, gradients = group.layer, tangent.gradients
    if group.kind == "out":
        return gradients["out", layer - 1][rows][None]
    block = tangent.model.blocks[layer]
    if group.kind == "mlp":
        behind = gradients["mlp", layer][rows][None]
        return _through_norm(mlp_norm(block), tangent.values["resid_mid", layer][rows], behind)
    parts = [
        by_head(gradients[name, layer][rows], weights[layer][name][0].transpose(1, 2))
        for name in ("q", "k", "v")
    ]
    return _through_norm(block.ln1, tangent.values["resid_pre", layer][rows], torch.cat(parts))


@torch.enable_grad()
def _through_norm(
    norm: Any,
    stream: Float[Tensor, "prompt pos d_model"],
    behind: Float[Tensor, "receiver prompt pos d_model"],
) -> Float[Tensor, "receiver prompt pos d_model"]:
    """Gradients before a norm from those behind it."""
    streams = stream.detach().expand_as(behind).requires_grad_()
    (found,) = torch.autograd.grad(norm.original_component(streams), streams, behind)
    return found


@torch.no_grad()
def exact(
    model: TransformerBridge,
    pairs: PromptPairs,
    metric: Metric = "logit_diff",
    value: Value = "resample",
    edges: Sequence[str] | None = None,
    runs: CircuitRuns | None = None,
    max_memory: int = 64 * 10**6,
) -> pd.DataFrame:
    """The measured change of the metric when each edge is removed by itself: edge activation
    patching. Each edge runs the model from its receiver's layer on; edges into one layer share a
    batch of at most `max_memory` bytes (a single one takes `Wiring.row_memory`). Columns as for
    `attribute`."""
    runs = ensure_runs(model, pairs, runs)
    graph, wiring = runs.graph, runs.wiring(value)
    function = runs.function(metric)
    start = wiring.start()
    before = float(function(wiring.logits(start)).mean())
    scores = torch.full(graph.exists.shape, torch.nan, dtype=torch.float64)
    wanted = torch.zeros_like(graph.exists)
    for name in graph.edges if edges is None else edges:
        if name not in graph.number:
            raise ValueError(f"no edge {name!r}: write it like {graph.edges[-1]!r}")
        wanted[graph.number[name]] = True
    total = int(wanted.sum())
    with tqdm(total=total, desc="edges", leave=False, disable=total < 100) as bar:
        for group in graph.groups:
            receiver, sender = wanted[:, group.receivers].T.nonzero(as_tuple=True)
            rows = max(1, max_memory // wiring.row_memory(group))
            for u, r in zip(sender.split(rows), receiver.split(rows), strict=True):
                at = u, r + group.receivers.start
                removed = start.removed.repeat(len(u), 1, 1)
                removed[torch.arange(len(u)), *at] = 1
                logits = wiring.logits(wiring.remove(removed, start))
                scores[at] = function(logits).mean(-1).double().cpu() - before
                bar.update(len(u))
    table = graph.table({"score": scores})
    return table[table["score"].notna()].reset_index(drop=True)

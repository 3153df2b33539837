"""Scores for every edge of a model: what its removal does to a metric, estimated or measured.

Edge attribution patching estimates it for all edges from one backward pass: the change of the
sender's value, times the gradient of the metric at the receiver's input,

    score(u -> v) = sum over positions of (a'_u - a_u) · ∂metric / ∂(input of v).

All edges into one layer are one matrix product of senders by receivers. Three steps: gradients at
every receiver (`gradients`), from them those before the receiver's norm (`_at_receivers`), and the
product (`_contract`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..models.hooks import first, hooked
from ..models.sites import hook_name
from .graph import Group
from .runs import (
    CircuitRuns,
    Metric,
    Source,
    Value,
    Weights,
    by_head,
    mlp_norm,
    projections,
    rows,
    sender_shift,
)
from .wiring import wire

Method = Literal["eap", "eap-ig", "clean-corrupted", "exact"]


def attribute(
    runs: CircuitRuns,
    method: Method = "eap",
    metric: Metric = "logit_diff",
    value: Value = "resample",
    steps: int = 5,
    edges: Sequence[str] | None = None,
    max_memory: int = 64 * 10**6,
) -> pd.DataFrame:
    """A score for every edge: the change of the metric, mean over prompts, when it is removed.

    Args:
        method: how the gradient at the receivers is taken. "eap": at the clean run, one forward and
            one backward pass. "clean-corrupted": the mean of the gradients at the clean and at the
            ablated embeddings. "eap-ig": the mean over `steps` midpoints of the straight line
            between those embeddings. "exact" takes none: see `exact`.
        metric: a name, or a function of the last position's logits [row, prompt, d_vocab].
        value: what a removed edge carries, see `CircuitRuns.ablated`.
        edges: those wanted, for "exact" alone.
        max_memory: bytes for the contraction, done in batches of prompts; small ones stay in the
            processor's cache. The passes hold all prompts at once and grow with prompts times
            tokens: 0.6 GB for 50 prompts of 41 tokens and four layers of width 512, 0.3 GB for 8
            of 16 and GPT-2 small's size. Split a large set, and average the scores.

    Returns:
        edge, sender, receiver, score; edges as in `Graph.edges`.

    Raises:
        ValueError: KL with "eap", since its gradient is zero at the clean run; a metric that has no
            gradient; an unknown method.

    Source: Syed, Rager & Conmy 2023, arXiv 2310.10348 (EAP); Hanna, Pezzelle & Belinkov 2024,
    arXiv 2403.17806 (EAP-IG over inputs, there at left ends in place of midpoints).
    """
    if method == "exact":
        return exact(runs, metric, value, edges, max_memory)
    shares = {"eap": [0.0], "clean-corrupted": [0.0, 1.0]}
    shares["eap-ig"] = [(step + 0.5) / steps for step in range(steps)]
    if method not in shares or not shares[method]:
        raise ValueError(f"method {method!r} with {steps} steps is none of {[*shares, 'exact']}")
    if edges is not None:
        raise ValueError("edges= is for method='exact': the others score every edge at once")
    if method == "eap" and metric == "kl":
        raise ValueError("kl has zero gradient at the clean run: use 'eap-ig', or another metric")
    graph, function, source = runs.graph, runs.function(metric), runs.ablated(value)
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    clean, ablated = runs.clean.resid[0], source("resid_pre", 0)
    for share in shares[method]:  # of the way from the clean to the ablated embeddings
        tangent = gradients(runs, torch.lerp(clean, ablated.expand_as(clean), share), function)
        scores += _contract(runs, tangent, source, max_memory) / len(shares[method])
    return graph.table({"score": scores / len(runs.pairs)})


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


@dataclass(eq=False)
class Tangent:
    """Gradients of a metric in one pass, by (site, layer) for the sites q, k, v, "mlp" (behind its
    norm) and "out" (the last stream); and the streams that the norms saw ("attention", "mlp")."""

    gradients: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    streams: dict[tuple[str, int], Tensor] = field(default_factory=dict)


def gradients(
    runs: CircuitRuns,
    entering: Float[Tensor, "prompt pos d_model"],
    metric: Callable[[Tensor], Tensor],
) -> Tangent:
    """One pass of the clean prompts, with `entering` in place of the embeddings, and back."""
    model, found = runs.model, Tangent()
    taped: dict[tuple[str, int], Tensor] = {}

    def tape(site: str, layer: int) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            taped[site, layer] = value
            return value  # returned, so that the kept tensor is the one that is used

        return hook

    def leave(_: Any, args: tuple, output: Any) -> None:
        tape("out", model.cfg.n_layers - 1)(first(output))

    def keep(site: str, layer: int) -> Callable[[Any, tuple], None]:
        return lambda _, args: found.streams.update({(site, layer): args[0].detach()})

    def enter(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = entering.detach().requires_grad_()
        return (
            ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})
        )

    def split(layer: int) -> Callable[[Any, tuple], tuple]:  # attention may read the same tensor
        return lambda _, args: (tape("mlp", layer)(args[0].clone()), *args[1:])

    with torch.enable_grad(), ExitStack() as stack:
        handles = [
            model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
            model.blocks[-1].register_forward_hook(leave),
            model.unembed.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],)),
        ]
        for layer, block in enumerate(model.blocks):
            handles += [
                block.ln1.register_forward_pre_hook(keep("attention", layer)),
                mlp_norm(block).register_forward_pre_hook(keep("mlp", layer)),
                block.mlp.register_forward_pre_hook(split(layer)),
            ]
            for site in ("q", "k", "v"):
                point = model.hook_dict[hook_name(site, layer)]
                stack.enter_context(hooked(point, tape(site, layer)))
        for handle in handles:
            stack.callback(handle.remove)
        score = metric(model(runs.clean.tokens)[None, :, -1]).sum()
        if not score.requires_grad:
            raise ValueError("this metric has no gradient; take one that is smooth")
        slopes = torch.autograd.grad(score, list(taped.values()))
    found.gradients = dict(zip(taped, slopes, strict=True))
    return found


def _contract(
    runs: CircuitRuns, tangent: Tangent, source: Source, max_memory: int
) -> Float[Tensor, "sender receiver"]:
    """Sum over prompts and positions of sender change times gradient, for every edge."""
    graph, weights = runs.graph, projections(runs.model)
    scores = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for prompts in _batches(runs, max_memory):
        base, other = (
            _part(of, len(runs.pairs), prompts) for of in (runs.clean.activation, source)
        )
        shift = sender_shift(graph, weights, base, other).flatten(1)
        for group in graph.groups:
            at_receivers = _at_receivers(runs, group, tangent, weights, prompts)
            found = shift[: group.parents] @ at_receivers.flatten(1).T
            scores[: group.parents, group.receivers] += found.double().cpu()
    return scores


def _batches(runs: CircuitRuns, max_memory: int) -> Iterator[slice]:
    """The prompts in parts whose contraction takes `max_memory` bytes."""
    graph, (n, n_pos, width) = runs.graph, runs.clean.resid[0].shape
    each = (len(graph.senders) + 6 * sum(graph.counts.values())) * n_pos * width * 4
    size = max(1, max_memory // each)
    return (slice(i, i + size) for i in range(0, n, size))


def _part(source: Source, n: int, prompts: slice) -> Source:
    return lambda site, layer: rows(source(site, layer), n, prompts)


def _at_receivers(
    runs: CircuitRuns, group: Group, tangent: Tangent, weights: Weights, prompts: slice
) -> Float[Tensor, "receiver prompt pos d_model"]:
    """The metric's gradient at the stream of every receiver of a group."""
    layer, slopes = group.layer, tangent.gradients
    if group.kind == "out":
        return slopes["out", layer - 1][prompts][None]
    block, stream = runs.model.blocks[layer], tangent.streams[group.kind, layer][prompts]
    if group.kind == "mlp":
        return _through_norm(mlp_norm(block), stream, slopes["mlp", layer][prompts][None])
    parts = [
        by_head(slopes[name, layer][prompts], weights[layer][name][0].transpose(1, 2))
        for name in ("q", "k", "v")
    ]
    return _through_norm(block.ln1, stream, torch.cat(parts))


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
    runs: CircuitRuns,
    metric: Metric = "logit_diff",
    value: Value = "resample",
    edges: Sequence[str] | None = None,
    max_memory: int = 64 * 10**6,
) -> pd.DataFrame:
    """The measured change of the metric when each edge is removed by itself: edge activation
    patching. Each edge runs the model from its receiver's layer on; edges into one layer share a
    batch of at most `max_memory` bytes (a single one takes `Wiring.row_memory`). Columns as for
    `attribute`."""
    graph, wiring, function = runs.graph, wire(runs, value), runs.function(metric)
    start = wiring.start()
    before = float(function(wiring.logits(start)).mean())
    wanted = graph.exists if edges is None else graph.mask(edges)
    scores = torch.full(graph.exists.shape, torch.nan, dtype=torch.float64)
    total = int(wanted.sum())
    with tqdm(total=total, desc="edges", leave=False, disable=total < 100) as bar:
        for group in graph.groups:
            receiver, sender = wanted[:, group.receivers].T.nonzero(as_tuple=True)
            at_once = max(1, max_memory // wiring.row_memory(group))
            for u, r in zip(sender.split(at_once), receiver.split(at_once), strict=True):
                at = u, r + group.receivers.start
                removed = start.removed.repeat(len(u), 1, 1)
                removed[torch.arange(len(u)), *at] = 1  # one edge a row
                logits = wiring.logits(wiring.remove(removed, start))
                scores[at] = function(logits).mean(-1).double().cpu() - before
                bar.update(len(u))
    table = graph.table({"score": scores})
    return table[table["score"].notna()].reset_index(drop=True)

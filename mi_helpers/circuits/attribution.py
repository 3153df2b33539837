"""Scores for every edge of a model: what its removal does to a metric, estimated or measured.

Edge attribution patching estimates it for all edges from one backward pass: the change of the
sender's value, times the gradient of the metric at the receiver's input,

    score(u -> v) = sum over positions of (a'_u - a_u) · ∂metric / ∂(input of v).

Three steps: one pass gives gradients at every receiver (`gradients`), the chain rule those before
the receiver's norm (`_at_receivers`), and a matrix product of senders by receivers the scores of
all edges into one layer (`_contract`).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..engine.positions import each_position
from ..models.hooks import entering, first, gradients_of, hooked, mlp_norm
from .graph import Group, Place
from .runs import (
    CircuitRuns,
    Metric,
    Source,
    Value,
    Weights,
    batches,
    by_head,
    projections,
    sender_shift,
    source_of_prompts,
)
from .wiring import Wiring

CACHE = 64 * 10**6  # bytes of a contraction that stays in the processor's cache

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"]
Moved = tuple[str, int, Float[Tensor, "prompt pos ..."]]  # site, layer, and what is put there


def attribute(
    runs: CircuitRuns,
    method: Method = "eap",
    metric: Metric = "logit_diff",
    value: Value = "resample",
    steps: int = 5,
    edges: Sequence[str] | None = None,
    per_prompt: bool = False,
    max_memory: int = 2 * 10**9,
) -> pd.DataFrame:
    """A score for every edge: the change of the metric, mean over prompts, when it is removed.

    Args:
        method: how the gradient at the receivers is taken. "eap": at the clean run, one forward and
            one backward pass. "clean-corrupted": the mean of the gradients at the clean and at the
            ablated embeddings. "eap-ig": the mean over `steps` midpoints of the straight line
            between those embeddings. "eap-ig-activations": for every edge along the line of its own
            sender, embeddings, MLP or heads of one layer together, while all before it stay clean:
            `steps` passes for each of these. "exact" takes none: each edge is removed by itself,
            and the metric measured (edge activation patching).
        metric: a name, or a function of the last position's logits [row, prompt, d_vocab].
        value: what a removed edge carries, see `CircuitRuns.ablated`.
        edges: those wanted, for "exact" alone.
        per_prompt: give every prompt's own scores, for `bootstrapped`; not for "exact".
        max_memory: bytes that the passes may take; prompts are run in batches that stay below it,
            of one prompt at least. The recorded runs come on top.

    Returns:
        edge, sender, receiver, score; edges as in `Graph.edges`. With `per_prompt` also prompt, and
        a line for every edge of every prompt; and `scored`, where answers have several tokens.

    Raises:
        ValueError: KL with "eap", since its gradient is zero at the clean run; a metric that has no
            gradient; an unknown method.

    Source: Syed, Rager & Conmy 2023, arXiv 2310.10348 (EAP); Hanna, Pezzelle & Belinkov 2024,
    arXiv 2403.17806 (EAP-IG over inputs, there at left ends in place of midpoints; its repository
    has the one over activations, where every edge takes the mean over all senders' lines).
    """
    if method == "exact":
        if per_prompt:
            raise ValueError("per_prompt=True is for estimates: 'exact' gives means over prompts")
        return _exact(runs, metric, value, edges, min(max_memory, CACHE))
    shares = {"eap": [0.0], "clean-corrupted": [0.0, 1.0]}
    for integrated in ("eap-ig", "eap-ig-activations"):
        shares[integrated] = [(step + 0.5) / steps for step in range(steps)]
    if method not in shares or not shares[method]:
        raise ValueError(f"method {method!r} with {steps} steps is none of {[*shares, 'exact']}")
    if edges is not None:
        raise ValueError("edges= is for method='exact': the others score every edge at once")
    if method == "eap" and metric == "kl":
        raise ValueError("kl has zero gradient at the clean run: use 'eap-ig', or another metric")
    graph, function, source = runs.graph, runs.function(metric), runs.ablated(value)
    n_rows = len(runs.pairs) if per_prompt else 1  # a row for each prompt, or for their sum
    scores = torch.zeros(n_rows, *graph.exists.shape, dtype=torch.float64)
    lines = list(graph.places) if method == "eap-ig-activations" else [None]  # None: of the inputs
    clean = runs.clean.resid[0]
    # A pass keeps about 64 streams a layer of each prompt, and its logits twice.
    numbers = 64 * graph.n_layers * clean[0].numel() + 2 * runs.model.cfg.d_vocab
    for prompts in batches(len(clean), max_memory // (numbers * clean.element_size())):
        for line in lines:
            place = line or ("resid_pre", 0)
            start = runs.clean.activation(*place)[prompts]
            end = source_of_prompts(source, len(clean), prompts)(*place).expand_as(start)
            for share in shares[method]:  # of the way from the clean to the ablated values
                moved = (*place, torch.lerp(start, end, share))
                found = gradients(runs, moved, function, prompts)
                _contract(scores, runs, found, source, prompts, min(max_memory, CACHE), line)
    scores /= len(shares[method])
    if not per_prompt:
        return graph.table({"score": scores[0] / len(clean)}).assign(**runs.pairs.said)
    each = {prompt: graph.table({"score": score}) for prompt, score in enumerate(scores)}
    table = pd.concat(each, names=["prompt"]).reset_index("prompt").reset_index(drop=True)
    return table.assign(**runs.pairs.said)


@dataclass(eq=False)
class Gradients:
    """The gradients of a metric in one pass, and what the chain rule needs to go on from them."""

    behind: dict[tuple[str, int], Tensor]
    """By (site, layer): at q, k and v, at "mlp" (behind its norm) and "out" (the last stream)."""
    streams: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """By (kind of group, layer): what the norms of attention and MLPs read."""


def gradients(
    runs: CircuitRuns, moved: Moved, metric: Callable[[Tensor], Tensor], prompts: slice
) -> Gradients:
    """One pass of some clean prompts, with one activation `moved`, and back to its layer."""
    model, found, (place, start, value) = runs.model, Gradients({}), moved
    embeddings = value if place == "resid_pre" else runs.clean.resid[0][prompts]
    taped: dict[tuple[str, int], Tensor] = {}  # what is differentiated by

    def tape(site: str, layer: int, value: Tensor) -> Tensor:
        taped[site, layer] = value
        return value  # returned, so that the kept tensor is the one that is used

    def at_end(_: Any, args: tuple, output: Any) -> None:
        tape("out", model.cfg.n_layers - 1, first(output))

    def at_norm(kind: str, layer: int) -> Callable[[Any, tuple], None]:
        return lambda _, args: found.streams.update({(kind, layer): args[0].detach()})

    def at_mlp(layer: int) -> Callable[[Any, tuple], tuple]:  # attention may read the same tensor
        return lambda _, args: (tape("mlp", layer, args[0].clone()), *args[1:])

    def move(old: Tensor) -> Tensor:
        return old + (value - old).detach()  # gradients of the inputs go on as they were

    logits = runs.clean.logits().detach().clone()  # a metric reads all prompts' logits
    last = each_position(-1, runs.clean.roles, *runs.clean.tokens.shape)
    last = last[prompts].to(runs.clean.tokens.device)
    with entering(model, embeddings.detach().requires_grad_(), last), ExitStack() as stack:
        handles = [model.blocks[-1].register_forward_hook(at_end)]
        hooks = [] if place == "resid_pre" else [(runs.clean.hook(place, start), move)]
        for layer, block in list(enumerate(model.blocks))[start:]:
            handles += [
                block.ln1.register_forward_pre_hook(at_norm("attention", layer)),
                mlp_norm(block).register_forward_pre_hook(at_norm("mlp", layer)),
                block.mlp.register_forward_pre_hook(at_mlp(layer)),
            ]
            hooks += [
                (runs.clean.hook(site, layer), partial(tape, site, layer))
                for site in ("q", "k", "v")
            ]
        stack.enter_context(hooked(*hooks))
        for handle in handles:
            stack.enter_context(handle)
        logits[prompts] = model(runs.clean.tokens[prompts])[:, -1]
        slopes = gradients_of(metric(logits[None])[:, prompts].sum(), list(taped.values()))
    found.behind = dict(zip(taped, slopes, strict=True))
    return found


def _contract(
    scores: Float[Tensor, "row sender receiver"],
    runs: CircuitRuns,
    found: Gradients,
    source: Source,
    prompts: slice,
    max_memory: int,
    place: Place | None,
) -> None:
    """Add, for every edge (of one place's senders) and for these prompts, which are those of the
    pass, the sum over positions of sender change times gradient: to each prompt's row, or to the
    only one."""
    graph, weights, n = runs.graph, projections(runs.model), len(runs.pairs)
    senders = graph.places[place] if place else slice(None)
    each_row = len(scores) > 1
    rows = "u prompt pos d -> " + ("prompt u (pos d)" if each_row else "1 u (prompt pos d)")
    _, n_pos, width = runs.clean.resid[0].shape
    each = (len(graph.senders) + 6 * sum(graph.counts.values())) * n_pos * width * 4
    for of_pass in batches(len(range(n)[prompts]), max_memory // each):
        some = slice(prompts.start + of_pass.start, prompts.start + of_pass.stop)  # of all prompts
        clean, ablated = (source_of_prompts(x, n, some) for x in (runs.clean.activation, source))
        shift = rearrange(sender_shift(graph, weights, clean, ablated, place), rows).contiguous()
        for group in graph.groups:
            chosen = range(group.parents)[senders]
            if not chosen:
                continue
            slopes = rearrange(_at_receivers(runs, group, found, weights, of_pass), rows)
            added = (slopes @ shift[:, : len(chosen)].mT).mT  # few rows first: faster
            row = some if each_row else slice(None)
            scores[row, chosen.start : chosen.stop, group.receivers] += added.double().cpu()


def _at_receivers(
    runs: CircuitRuns, group: Group, found: Gradients, weights: Weights, prompts: slice
) -> Float[Tensor, "receiver prompt pos d_model"]:
    """The metric's gradient at the stream of every receiver of a group."""
    layer = group.layer
    if group.kind == "out":
        return found.behind["out", layer - 1][prompts][None]
    block, stream = runs.model.blocks[layer], found.streams[group.kind, layer][prompts]
    if group.kind == "mlp":
        return _through_norm(mlp_norm(block), stream, found.behind["mlp", layer][prompts][None])
    parts = [
        by_head(found.behind[name, layer][prompts], weights[layer][name][0].transpose(1, 2))
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
def _exact(
    runs: CircuitRuns, metric: Metric, value: Value, edges: Sequence[str] | None, max_memory: int
) -> pd.DataFrame:
    """The measured change of the metric when each edge is removed by itself. Each edge runs the
    model from its receiver's layer on; edges into one layer share a batch of at most `max_memory`
    bytes (a single one takes `Wiring.row_memory`)."""
    graph, wiring, function = runs.graph, Wiring(runs, value), runs.function(metric)
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

"""Scores for every edge of a model: what its removal does to a metric, estimated or measured.

Edge attribution patching estimates it for all edges from one backward pass: the change of the
sender's value, times the gradient of the metric at the receiver's input. All edges into one layer
are one matrix product of senders by receivers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from . import metrics
from .circuit_graph import Graph, Group
from .circuit_runs import CircuitRuns, ensure_runs
from .circuit_senders import (
    Source,
    Value,
    Weights,
    ablated,
    by_head,
    mlp_norm,
    projections,
    sender_shift,
)
from .pairs import PromptPairs

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
            line between those embeddings. "exact" takes none: it removes each edge by itself and
            runs the rest of the model, one run an edge (`edges` names those wanted, and `runs` are
            recorded runs to start from).
        metric: a name, or a function of the last position's logits [row, prompt, d_vocab].
        value: what a removed edge carries, see `circuit_runs.ablated`.
        max_memory: bytes for the contraction, done in batches of prompts; small ones stay in the
            processor's cache. The passes themselves take what they take.

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


@dataclass(eq=False)
class Pass:
    """One forward pass, and the gradients at every receiver if a metric is given.

    `activation` gives what senders wrote; `gradients` has (site, layer) for the sites q, k, v,
    "mlp" (behind its norm) and "out" (the last stream).
    """

    model: TransformerBridge
    tokens: Int[Tensor, "prompt pos"]
    entering: Float[Tensor, "prompt pos d_model"] | None = None  # in place of the embeddings

    def __post_init__(self) -> None:
        self.values: dict[tuple[str, int], Tensor] = {}
        self.gradients: dict[tuple[str, int], Tensor] = {}
        self.logits: Tensor = torch.empty(0)

    def activation(self, site: str, layer: int) -> Tensor:
        if site == "resid_post":
            return self.values["out", layer]
        return self.values[site, layer]

    def run(self, metric: Callable[[Tensor], Tensor] | None = None) -> "Pass":
        """The pass itself; with a metric (a function of logits [row, prompt, vocab]) and back."""
        model, last = self.model, self.model.cfg.n_layers - 1
        taped: dict[tuple[str, int], Tensor] = {}
        with torch.set_grad_enabled(metric is not None), ExitStack() as stack:
            for layer, block in enumerate(model.blocks):
                hooks = [
                    block.register_forward_pre_hook(self._enter(layer), with_kwargs=True),
                    mlp_norm(block).register_forward_pre_hook(self._keep("resid_mid", layer)),
                    block.mlp.register_forward_pre_hook(self._split(layer, taped)),
                ]
                for hook in hooks:
                    stack.callback(hook.remove)
            end = model.blocks[-1].register_forward_hook(self._leave(last, taped))
            unembed = model.unembed.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
            stack.callback(end.remove)
            stack.callback(unembed.remove)
            stack.enter_context(model.hooks(fwd_hooks=self._hooks(taped)))
            logits = model(self.tokens)[:, -1]
            if metric is not None:
                score = metric(logits[None]).sum()
                if not score.requires_grad:
                    raise ValueError("this metric has no gradient; take one that is smooth")
                found = torch.autograd.grad(score, list(taped.values()))
                self.gradients = dict(zip(taped, found, strict=True))
        self.logits = logits.detach()
        return self

    def _hooks(self, taped: dict[tuple[str, int], Tensor]) -> list[tuple[str, Callable]]:
        def keep(site: str, layer: int) -> Callable[[Tensor, Any], Tensor]:
            def hook(value: Tensor, hook: object) -> Tensor:
                if site in ("z", "mlp_out"):
                    self.values[site, layer] = value.detach()
                else:
                    taped[site, layer] = value
                return value  # returned, so that the kept tensor is the one that is used

            return hook

        sites = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "z": "attn.hook_z"}
        sites["mlp_out"] = "hook_mlp_out"
        return [
            (f"blocks.{layer}.{name}", keep(site, layer))
            for layer in range(self.model.cfg.n_layers)
            for site, name in sites.items()
        ]

    def _enter(self, layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            stream = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                stream = stream if self.entering is None else self.entering
                stream = stream.detach().requires_grad_(torch.is_grad_enabled())
            self.values["resid_pre", layer] = stream.detach()
            if layer:
                return None
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        return hook

    def _keep(self, site: str, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple) -> None:
            self.values[site, layer] = args[0].detach()

        return hook

    @staticmethod
    def _split(layer: int, taped: dict[tuple[str, int], Tensor]) -> Callable[..., tuple]:
        def hook(module: Any, args: tuple) -> tuple:
            taped["mlp", layer] = own = args[0].clone()  # attention may read the same tensor
            return (own, *args[1:])

        return hook

    def _leave(self, layer: int, taped: dict[tuple[str, int], Tensor]) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            taped["out", layer] = value
            self.values["out", layer] = value.detach()

        return hook


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
) -> pd.DataFrame:
    """The measured change of the metric when each edge is removed by itself: edge activation
    patching. One run per edge, from its receiver's layer on. Columns as for `attribute`."""
    runs = ensure_runs(model, pairs, runs)
    graph, wiring = runs.graph, runs.wiring(value)
    function = runs.function(metric)
    start = wiring.start()
    before = float(function(wiring.logits(start)[None]).mean())
    scores = torch.full(graph.exists.shape, torch.nan, dtype=torch.float64)
    names = list(graph.edges if edges is None else edges)
    for name in tqdm(names, desc="edges", leave=False, disable=len(names) < 100):
        if name not in graph.number:
            raise ValueError(f"no edge {name!r}: write it like {graph.edges[-1]!r}")
        removed = torch.zeros_like(start.removed)
        removed[graph.number[name]] = 1
        after = function(wiring.logits(wiring.remove(removed, start))[None]).mean()
        scores[graph.number[name]] = float(after) - before
    table = graph.table({"score": scores})
    return table[table["score"].notna()].reset_index(drop=True)

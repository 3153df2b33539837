"""The clean and the corrupted run, recorded once, and what every sender writes in them.

`record` runs a set of prompt pairs; all else in this folder takes what it returns.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..metrics import build
from ..models.hooks import map_leaves
from ..tasks.pairs import PromptPairs
from .graph import Graph, Place, projection

SITES = ("q", "k", "v", "z", "mlp_out")
Value = Literal["resample", "zero", "mean", "noise"]
Metric = str | Callable[[Tensor], Tensor]
Source = Callable[[str, int], Tensor]  # an activation by site and layer; broadcasts over prompts
Weights = list[dict[str, tuple[Tensor, Tensor]]]  # of each layer's q, k, v and o


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """The clean and the corrupted run of one set of prompt pairs, with all that is reused."""

    model: TransformerBridge
    graph: Graph
    pairs: PromptPairs
    clean: engine.Run
    corrupted: engine.Run
    calls: list[tuple[tuple, dict[str, Any]]]  # what the attention of each layer was called with

    def function(self, metric: Metric) -> Callable[[Tensor], Tensor]:
        """A metric, of the last position's logits [row, prompt, vocab], by its name or as it is;
        "kl" is from the clean run."""
        if callable(metric):
            return metric
        return build(self.pairs, [metric], reference=self.clean.logits())[metric]

    def loss(self, metric: Metric) -> Callable[[Tensor], Tensor]:
        """The same as a loss: "kl" and functions as they are, any other name by its negative."""
        function = self.function(metric)
        return function if callable(metric) or metric == "kl" else lambda x: -function(x)

    def ablated(self, value: Value | Source = "resample") -> Source:
        """What removed edges carry: the corrupted run's value, zero, the corrupted prompts' mean at
        each position, or the value in a run of the clean prompts with noise of three standard
        deviations on the embeddings (position 0 left out; Meng et al. 2022, arXiv 2202.05262). A
        function of site and layer is taken as it is."""
        if callable(value):
            return value
        clean, corrupted = self.clean, self.corrupted
        if value == "resample":
            return corrupted.activation
        if value == "mean":
            return cache(lambda site, layer: corrupted.mean(site, layer)[None])
        if value == "noise":
            positions = range(1, clean.tokens.shape[1])
            noised = engine.record_noised(
                self.model, clean.tokens, positions, sites=SITES, attention_mask=clean.mask
            )
            return noised.activation
        if value != "zero":
            raise ValueError(f"value is 'resample', 'zero', 'mean' or 'noise', got {value!r}")

        def zero(site: str, layer: int) -> Tensor:
            """Zero, but for the stream: attention's output biases belong to no sender, and stay."""
            found = torch.zeros_like(clean.activation(site, layer)[:1])
            if site in ("resid_pre", "resid_post"):
                for block in self.model.blocks[: layer + (site == "resid_post")]:
                    found += projection(block.attn, "o")[1]
            return found

        return zero


def record(model: TransformerBridge, pairs: PromptPairs) -> CircuitRuns:
    """Run the clean and the corrupted prompts once. Raises ValueError for a model whose heads and
    MLPs do not add up to its residual stream, and for pairs scored by all tokens of an answer."""
    if pairs.scored == "all":
        raise ValueError("circuits are scored by one token: make the pairs with scored='first'")
    graph, calls = Graph.of(model), []

    def keep(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append(map_leaves(_light, (args, kwargs)))

    with ExitStack() as stack:
        for block in model.blocks:
            stack.enter_context(block.attn.register_forward_pre_hook(keep, with_kwargs=True))
        clean = engine.record(model, pairs.clean_tokens, pairs.mask, SITES, pairs.roles)
    corrupted = engine.record(model, pairs.corrupted_tokens, pairs.mask, SITES, pairs.roles)
    return CircuitRuns(model, graph, pairs, clean, corrupted, calls)


def _light(value: Any) -> Any:
    """A call's argument without the cache, and without the memory of activations."""
    if hasattr(value, "update"):
        return None
    stream = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3
    return value.new_zeros(1).expand_as(value) if stream and len(value) > 1 else value


def batches(n: int, size: int) -> list[slice]:
    """`n` prompts in parts of `size`, of one at least."""
    size = max(1, size)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def of_prompts(value: Any, n: int, prompts: slice) -> Any:
    """Some of `n` prompts, of nested values; what has no entry for each prompt stays as it is."""

    def own(leaf: Any) -> Any:
        by_prompt = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == n
        return leaf[prompts] if by_prompt else leaf

    return map_leaves(own, value)


def source_of_prompts(source: Source, n: int, prompts: slice) -> Source:
    """The same of what a source gives."""
    return lambda site, layer: of_prompts(source(site, layer), n, prompts)


def projections(model: TransformerBridge) -> Weights:
    """Weights and biases of every layer's q, k, v and o."""
    return [{n: projection(block.attn, n) for n in ("q", "k", "v", "o")} for block in model.blocks]


def sender_shift(
    graph: Graph, weights: Weights, base: Source, source: Source, place: Place | None = None
) -> Float[Tensor, "sender prompt pos d_model"]:
    """What every sender, or each of one place, writes by `source`, minus what it does by `base`."""
    like, places = base("resid_pre", 0), graph.places
    if place is not None:
        places = {place: slice(0, places[place].stop - places[place].start)}
    found = like.new_empty(max(here.stop for here in places.values()), *like.shape)
    for (site, layer), here in places.items():
        change = source(site, layer) - base(site, layer)
        found[here] = by_head(change, weights[layer]["o"][0]) if site == "z" else change
    return found


def by_head(
    z: Float[Tensor, "prompt pos head d_head"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head prompt pos d_model"]:
    """What each head writes to the stream."""
    return einsum(z, weight, "prompt pos head d, head d model -> head prompt pos model")

"""What every sender of a circuit's graph writes, in a run or when it is ablated."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.recording import record_noised
from ..tasks.pairs import PromptPairs
from .graph import Graph, projection

SITES = ("q", "k", "v", "z", "mlp_out")
Value = Literal["resample", "zero", "mean", "noise"]
Source = Callable[[str, int], Tensor]  # of a site and layer; broadcasts over prompts
Weights = list[dict[str, tuple[Tensor, Tensor]]]  # of each layer's q, k, v and o


def ablated(value: Value, pairs: PromptPairs, clean: Any, corrupted: Any) -> Source:
    """What removed edges carry: the corrupted run's value, zero, the corrupted prompts' mean at
    each position, or the value in a run of the clean prompts with noise of three standard
    deviations on the embeddings (position 0 left out; Meng et al. 2022, arXiv 2202.05262).

    The runs are anything with a `model` and `activation(site, layer)`.
    """
    if value == "resample":
        return corrupted.activation
    if value == "mean":
        return cache(lambda site, layer: corrupted.activation(site, layer).mean(0)[None])
    if value == "noise":
        n_pos = pairs.clean_tokens.shape[1]
        tokens = pairs.clean_tokens
        return record_noised(clean.model, tokens, range(1, n_pos), sites=SITES).activation
    if value != "zero":
        raise ValueError(f"value is 'resample', 'zero', 'mean' or 'noise', got {value!r}")

    def zero(site: str, layer: int) -> Tensor:
        """Zero, but for the stream: attention's output biases belong to no sender, and stay."""
        found = torch.zeros_like(clean.activation(site, layer)[:1])
        if site in ("resid_pre", "resid_post"):
            for block in clean.model.blocks[: layer + (site == "resid_post")]:
                found += projection(block.attn, "o")[1]
        return found

    return zero


def projections(model: TransformerBridge) -> Weights:
    """Weights and biases of every layer's q, k, v and o."""
    return [{n: projection(block.attn, n) for n in ("q", "k", "v", "o")} for block in model.blocks]


def sender_shift(
    graph: Graph, weights: Weights, base: Source, source: Source
) -> Float[Tensor, "sender prompt pos d_model"]:
    """What every sender writes by `source`, minus what it writes by `base`."""
    like = base("resid_pre", 0)
    found = like.new_empty(len(graph.senders), *like.shape)
    found[0] = source("resid_pre", 0) - like
    for layer, of in enumerate(weights):
        start = graph.sender_number(layer, 0)
        change = source("z", layer) - base("z", layer)
        found[start : start + graph.n_heads] = by_head(change, of["o"][0])
        if graph.mlps:
            change = source("mlp_out", layer) - base("mlp_out", layer)
            found[graph.sender_number(layer)] = change
    return found


def by_head(
    z: Float[Tensor, "prompt pos head d_head"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head prompt pos d_model"]:
    """What each head writes to the stream."""
    return torch.einsum("bphe,hed->hbpd", z, weight)


def mlp_norm(block: Any) -> Any:
    """The norm in front of the MLP; some parallel blocks have one for both."""
    return block.ln2 if hasattr(block, "ln2") else block.ln1

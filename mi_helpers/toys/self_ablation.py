"""A network that ablates itself: a second pass, in which gates leave only a few units on.

Source: Ferrao et al. 2025, arXiv 2505.00509 (the "global" form), and the authors' code.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from .sparse_weights import text_loss
from .twins import Twins, product

KEPT = 4  # units of each attention layer and each MLP that a gate leaves on


def gate(
    relevance: Float[Tensor, "*shape unit"], k: int, soft: bool = False
) -> Float[Tensor, "*shape unit"]:
    """1 for the k most relevant units and 0 for the others, with the gradient of the soft gate.

    The soft gate, which `soft` asks for, is a sigmoid centred between the k-th and the next score,
    in units of their distance, rescaled to sum k. Source: 2505.00509 and its authors' code.
    """
    top, order = relevance.topk(k + 1, dim=-1)
    inside, outside = top[..., k - 1 : k], top[..., k:]
    smooth = ((relevance - (inside + outside) / 2) / (inside - outside + 1e-12)).sigmoid()
    smooth = k * smooth / smooth.sum(-1, keepdim=True)
    hard = torch.zeros_like(relevance).scatter(-1, order[..., :k], 1.0)
    return smooth if soft else hard - smooth.detach() + smooth


def gates_of(
    model: Twins, final: Float[Tensor, "net batch pos d"], soft: bool = False
) -> dict[str, Float[Tensor, "net batch pos unit"]]:
    """The gates of each layer's "z" and "neuron", from what a clean pass ends in."""
    relevance = product(final, model.W_gate).split([model.d, 4 * model.d] * model.layers, -1)
    units = [f"{name}{at}" for at in range(model.layers) for name in ("z", "neuron")]
    return {name: gate(x, KEPT, soft) for name, x in zip(units, relevance, strict=True)}


def self_ablate(
    model: Twins, tokens: Tensor, soft: bool = False, gates_from: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the clean and of the ablated pass, and the distance of their residual streams.

    The clean pass ends in a relevance for each "z" and "neuron" of all layers. In the second pass
    the gates multiply these; its keys and values are the clean ones. The distance is the mean
    squared one of streams of unit length. `gates_from`: texts whose clean pass gives the gates.
    """
    logits, clean = model.record(tokens)
    final = clean["final"] if gates_from is None else model.record(gates_from)[1]["final"]
    gates = gates_of(model, final, soft)
    distances = []

    def ablate(name: str, x: Tensor) -> Tensor:
        if name[0] in "kv":
            return clean[name]
        if name.startswith("read") or name == "final":
            distances.append(mse_loss(normalize(x, dim=-1), normalize(clean[name], dim=-1)))
        return x * gates[name] if name in gates else x

    return logits, model(tokens, ablate), torch.stack(distances).mean()


def losses(
    model: Twins, tokens: Int[Tensor, "net text pos_and_next"], soft: bool = False
) -> Float[Tensor, "net"]:
    """What such a network is trained on: both passes' losses and the distance, added."""
    clean, ablated, distance = self_ablate(model, tokens[..., :-1], soft)
    return text_loss(clean, tokens) + text_loss(ablated, tokens) + distance

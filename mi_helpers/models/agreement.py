"""Does the bridge compute what the model computed before it was bridged?

TransformerLens computes attention anew, by its own code, and for a few architectures not as Hugging
Face does (Cohere: other rotary angles). So each model runs a dozen tokens by itself before it is
bridged, and again after; every layer's residual stream and the log-probabilities have to agree.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from ..errors import explained
from .hooks import hook_name, kept

N_TOKENS = 12
PARTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")  # the last is the sum of the others


class HookError(ValueError):
    """A hook of the model does not do what its name says, or the bridge computes another model."""

    def __init__(self, message: str) -> None:
        super().__init__(explained("MI-E04", message))


@dataclass(frozen=True)
class Plain:
    """What a model computes on a few tokens, by itself: `resid[l]` enters block l."""

    tokens: Int[Tensor, "1 pos"]
    resid: tuple[Float[Tensor, "1 pos d_model"], ...]
    log_probs: Float[Tensor, "1 pos d_vocab"]


@dataclass(frozen=True)
class Agreement:
    """The largest differences between bridge and Hugging Face, each as a part of the largest value.

    `parts`: of resid_pre + attn_out + mlp_out from resid_post, over all layers; NaN where the
    architecture has no such hooks.
    """

    resid: float
    log_probs: float
    parts: float


@torch.no_grad()
def run_plainly(model: PreTrainedModel, tokens: Int[Tensor, "1 pos"], name: str) -> Plain:
    """One Hugging Face forward, in which the last token of a second copy differs.

    Raises ValueError where the last token changes what came before it (an encoder), or where the
    result is not finite.
    """
    other = tokens.clone()
    other[0, -1] = tokens[0, 0]
    output: Any = model(
        torch.cat([tokens, other]).to(model.device), output_hidden_states=True, use_cache=False
    )
    log_probs = output.logits.log_softmax(-1)
    if not log_probs.isfinite().all():
        half = model.dtype in (torch.float16, torch.bfloat16)
        advice = ": load it with dtype='float32'" if half else "; load an intact copy"
        raise ValueError(f"{name} computes NaN or infinite logits in {model.dtype}{advice}")
    before = log_probs[:, :-1]
    if distance(before[0], before[1]) > rounding(model.dtype):
        raise ValueError(
            f"{name} is an encoder ({type(model).__name__}): each token sees those after it, and "
            "everything here is for causal language models; load one of those, such as GPT-2"
        )
    resid = tuple(stream[:1] for stream in output.hidden_states)
    return Plain(tokens.to(model.device), resid, log_probs[:1])


@torch.no_grad()
def compare(bridge: TransformerBridge, plain: Plain) -> Agreement:
    """The bridge's numbers beside the model's own, layer by layer.

    Notes on the bridge whether its loop takes apart what a block returns (BLOOM, Falcon, GPT-J),
    which `engine.unembed` has to know.

    Raises HookError naming the first layer that differs, and by how much.
    """
    n_layers, known = bridge.cfg.n_layers, bridge.hook_dict
    names = {(site, layer): hook_name(site, layer) for site in PARTS for layer in range(n_layers)}

    def note(module: Any, args: Any, output: Any) -> None:
        bridge.blocks_return_tuples = isinstance(output, tuple)

    points = {spot: known[name] for spot, name in names.items() if name in known}
    with bridge.blocks[-1].register_forward_hook(note), kept(points) as found:
        log_probs = bridge(plain.tokens).log_softmax(-1)
    tolerance, resid, parts = rounding(bridge.cfg.dtype), [0.0], [torch.nan]
    for layer in range(n_layers):
        before, attn, mlp, after = (found.get((site, layer)) for site in PARTS)
        if before is None:
            break  # the check of the sites says so
        resid.append(distance(before, plain.resid[layer]))
        if not resid[-1] <= tolerance:
            last = f"layer {layer - 1}" if layer else "the embedding"
            raise HookError(_wrong(bridge, f"after {last} the residual stream", resid[-1]))
        if attn is not None and mlp is not None and after is not None:
            parts.append(distance(before + attn + mlp.view_as(after), after))
    off = distance(log_probs, plain.log_probs)
    if not off <= tolerance:
        after_last = f"after layer {n_layers - 1}, the last, the log-probabilities"
        raise HookError(_wrong(bridge, after_last, off))
    return Agreement(max(resid), off, max(parts[1:], default=torch.nan))


def _wrong(bridge: TransformerBridge, what: str, off: float) -> str:
    return (
        f"{what} differs from Hugging Face's by {off:.2g} of its largest value: TransformerLens "
        f"{version('transformer-lens')} computes {bridge.cfg.architecture} wrongly, so no result "
        "on it could be trusted; use a model of another architecture"
    )


def rounding(dtype: torch.dtype) -> float:
    """What rounding may change, as a part of the largest value. Half precision rounds at 1e-3."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2


def distance(value: Tensor, reference: Tensor) -> float:
    """Largest difference, as a part of the largest value; infinite where either is not finite."""
    scale = reference.abs().max()
    difference = (value - reference).abs().max() / torch.where(scale == 0, 1, scale)
    return difference.float().nan_to_num(torch.inf).item()


def spread_tokens(tokenizer: Any, rows: int, n: int) -> Int[Tensor, "1 pos"]:
    """Tokens spread over a vocabulary that an embedding of `rows` rows knows, none special."""
    special = set(tokenizer.all_special_ids)
    plain = [token for token in range(min(len(tokenizer), rows)) if token not in special]
    if not plain:
        raise HookError("the tokenizer has no token that is not special; pass another tokenizer")
    return torch.tensor([[plain[i * (len(plain) - 1) // (n + 1)] for i in range(1, n + 1)]])

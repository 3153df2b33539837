"""The residual stream as data: what to collect, which tokens to leave out, who reads it.

Position 0, and on some models a few tokens behind it, have a norm tens of times that of all others
(the default model: 2500 to 7400 against a median of 140). One of them can make up a mean, a
covariance or a correlation by itself. So whatever takes those leaves such tokens out, by norm, and
says how many they were: `ordinary_tokens`.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..models.hooks import hook_name, kept

EXTREME = 5.0  # times the median norm


class Autoencoder(Protocol):
    """What is asked of a sparse autoencoder; those of sae-lens have it."""

    W_dec: Any

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, feature_acts: Tensor) -> Tensor: ...


def ordinary_tokens(
    resid: Float[Tensor, "*batch d_model"],
) -> Bool[Tensor, "*batch"]:
    """False for tokens whose norm is more than `EXTREME` times the median norm of their text.

    The last axis but d_model is that of a text's tokens, so that the answer for a text does not
    depend on which others it is run with; [token, d_model] is one text.
    For everything that takes means, covariances or correlations over tokens (features here;
    baselines of directions and regions as well). `(~ordinary_tokens(x)).sum()` is to be reported.
    """
    norms = resid.norm(dim=-1)
    return norms <= EXTREME * norms.median(dim=-1, keepdim=True).values


@torch.no_grad()
def residuals(
    model: TransformerBridge, tokens: Int[Tensor, "document pos"], boundaries: Iterable[int]
) -> dict[int, Float[Tensor, "document pos d_model"]]:
    """The residual stream before each of some layers (`n_layers`: after the last), position 0 left
    out. Later layers are not run."""
    wanted, n_layers = sorted(set(boundaries)), model.cfg.n_layers
    if not wanted or wanted[0] < 0 or wanted[-1] > n_layers:
        raise ValueError(f"boundaries are from 0 to {n_layers}, got {wanted}")
    names = {b: hook_name("resid_post", b - 1) if b else hook_name("resid_pre", 0) for b in wanted}
    with kept({b: model.hook_dict[name] for b, name in names.items()}) as found:
        # One layer at least, or the first block's hooks would not fire.
        model(tokens, stop_at_layer=None if wanted[-1] == n_layers else max(1, wanted[-1]))
    return {b: stream[:, 1:] for b, stream in found.items()}

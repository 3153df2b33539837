"""Train a small sparse autoencoder: the lesson.

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): of all activations in a batch the k · batch
largest stay on, so that k features are on at a token on average. No auxiliary loss, no resuming:
`data/saes/make.py` trains a family with both, through sae-lens.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import JumpReLUSAE

CALIBRATED_ON = 16_384  # tokens


def train(
    x: Float[Tensor, "token d"],
    width: int,
    k: float,
    steps: int = 1000,
    batch: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
    frozen: bool = False,
    hook: str = "",
) -> "JumpReLUSAE":
    """An autoencoder of `width` features, `k` of them on at a token on average, fitted to `x`.

    `frozen` leaves the decoder at its random start, which is the control that says what learning
    directions is worth. `hook` is the hook point that `x` comes from, kept in the config.

    The autoencoder has the precision of `x`. Training amplifies what processors round differently:
    only in double precision does it end alike on all of them.

    Raises ValueError unless `k` lies between 0 and `width`.
    """
    if not 0 < k < width:
        raise ValueError(
            f"of {width} features {k} cannot be on at a token: ask for more than 0 and fewer"
        )
    generator, d = torch.Generator().manual_seed(seed), x.shape[1]
    scale = math.sqrt(d) / float(x.norm(dim=-1).mean())  # one learning rate fits all models
    b_dec = x.mean(0) * scale
    W_dec = unit(torch.randn(width, d, generator=generator, dtype=x.dtype).to(x))
    W_enc, b_enc = W_dec.T.clone(), torch.zeros(width).to(x)
    trained = [W_enc, b_enc, b_dec] + [W_dec] * (not frozen)
    optimiser = torch.optim.Adam([weight.requires_grad_() for weight in trained], learning_rate)
    for step in range(steps):
        rows = scale * x[torch.randint(len(x), (batch,), generator=generator).to(x.device)]
        f = ((rows - b_dec) @ W_enc + b_enc).relu()
        f = f * (f >= f.flatten().topk(round(k * batch), sorted=False).values.min())
        loss = (rows - (f @ W_dec + b_dec)).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = learning_rate * min(1, 3 * (1 - step / steps))
        optimiser.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=-1, keepdim=True)
    weights = {"W_dec": W_dec, "b_dec": b_dec / scale, "W_enc": W_enc, "b_enc": b_enc / scale}
    sae = _packed({name: weight.detach() for name, weight in weights.items()}, k, seed, hook)
    return calibrated(sae, x, k)


def _packed(weights: dict[str, Tensor], k: float, seed: int, hook: str) -> "JumpReLUSAE":
    """Weights as an autoencoder of sae-lens."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    width, d = weights["W_dec"].shape
    about = SAEMetadata(hook_name=hook, k=k, seed=seed)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=width, metadata=about)).to(weights["W_dec"])
    sae.load_state_dict(weights | {"threshold": torch.zeros_like(weights["b_enc"])})
    return sae.eval().requires_grad_(False)


@torch.no_grad()
def calibrated(sae: "JumpReLUSAE", x: Float[Tensor, "token d"], k: float) -> "JumpReLUSAE":
    """Set its one threshold such that `k` features are on at a token of `x` on average."""
    sae.threshold.zero_()
    sample = x[:: max(1, len(x) // CALIBRATED_ON)]
    on = torch.cat([sae.encode(rows).flatten() for rows in sample.split(2048)]).cpu().numpy()
    last_off = len(on) - round(k * len(sample)) - 1
    sae.threshold += float(np.partition(on, last_off)[last_off])  # torch's takes five times as long
    return sae


def unit(vectors: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    return vectors / vectors.norm(dim=-1, keepdim=True)

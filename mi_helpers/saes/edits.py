"""Writes by a sparse autoencoder: the whole reconstruction, or one feature held at a value.

Position 0, and tokens of extreme norm, are left as they are throughout: no SAE here was trained on
them, and on several models attention rests on them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.rows import Write
from ..engine.stream import Autoencoder, ordinary_tokens
from ..models.hooks import RESIDUAL_SITES, hook_name, hooked


def place_of(sae: Any) -> tuple[str, int]:
    """The site and the layer that an SAE of sae-lens reads, from its config; any of
    `models.hooks.RESIDUAL_SITES`. Raises ValueError for other hooks."""
    point = str(sae.cfg.metadata.hook_name)
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", point)
    if not found or found[2] not in RESIDUAL_SITES:
        raise ValueError(f"this SAE reads {point}; known are hooks of {', '.join(RESIDUAL_SITES)}")
    return found[2], int(found[1])


def ordinary_only(label: str, new: Callable[[Tensor], Tensor]) -> Write:
    """A write at tokens of ordinary norm alone; others stay as they are."""

    def write(current: Tensor, place: Any) -> Tensor:
        return torch.where(ordinary_tokens(current)[..., None], new(current), current)

    return Write(label, write)


def reconstruction(sae: Autoencoder) -> Write:
    """Write x_SAE in place of x."""
    return ordinary_only("reconstruction", lambda x: sae.decode(sae.encode(x)))


def clamp(sae: Autoencoder, feature: int, value: float) -> Write:
    """Hold one feature at a value, and leave the SAE's error as it is: x + (value - f_j) d_j.
    Zero ablates the feature; several times its usual maximum steers."""
    return ordinary_only(f"feature {feature} at {value:g}", lambda x: moved(sae, x, feature, value))


@contextmanager
def held(
    model: TransformerBridge, sae: Any, feature: ArrayLike, value: ArrayLike
) -> Iterator[None]:
    """While it lasts, the model runs with one feature held at a value at all positions but 0; of
    several features and values, one of each for each text of a batch.

    Works while the model writes a text with a cache, one such text (or batch) at a time, and on
    whole texts.
    """
    started = False
    features, values = np.atleast_1d(feature).tolist(), np.atleast_1d(value).tolist()

    def change(x: Float[Tensor, "sequence pos d"]) -> Tensor:
        nonlocal started
        parts = zip(x.split(len(x) // len(features)), features, values, strict=True)
        new = torch.cat([moved(sae, *part) for part in parts])
        if not started or x.shape[1] > 1:
            new[:, 0] = x[:, 0]
        started = True
        return new

    with hooked((model.hook_dict[hook_name(*place_of(sae))], change)):
        yield


@torch.no_grad()
def moved(
    sae: Autoencoder, x: Float[Tensor, "*batch d"], feature: int, value: float
) -> Float[Tensor, "*batch d"]:
    """x + (value - f_j) d_j."""
    by = value - sae.encode(x)[..., feature]
    return x + by[..., None] * sae.W_dec[feature]

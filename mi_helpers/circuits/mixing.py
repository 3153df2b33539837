"""Streams of several receivers as one tensor, and sums of senders' values into them."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .blocks import Stream

Streams = Float[Tensor, "row reader prompt pos d_model"]


def alike(removed: Float[Tensor, "row sender receiver"], receivers: list[int]) -> list[list[int]]:
    """Receivers in lists of those with the same removed edges. Equal shares may have gradients of
    their own, and are then kept apart."""
    if removed.shape[2] == 1:
        return [receivers] if receivers else []
    if removed.requires_grad:
        return [[r] for r in receivers]
    lists: dict[tuple, list[int]] = {}
    for r, edges in zip(receivers, removed[:, :, receivers].unbind(2), strict=True):
        lists.setdefault(tuple(edges.flatten().tolist()), []).append(r)
    return list(lists.values())


def columns(shares: Tensor, readers: list[int]) -> Float[Tensor, "row sender reader"]:
    """The shares of these receivers' edges."""
    return shares[:, :, readers] if shares.shape[2] > 1 else shares.expand(-1, -1, len(readers))


def stack(streams: list[Stream]) -> Streams:
    if len(streams) == 1:
        return streams[0][:, None]
    n_rows = max(map(len, streams))
    return torch.stack([x.expand(n_rows, -1, -1, -1) for x in streams], 1)


def mix(
    streams: Streams,
    share: Float[Tensor, "row sender reader"],
    values: Float[Tensor, "row sender prompt pos d_model"],
) -> Streams:
    """Streams plus their shares of senders' values; a single row of either is that of all rows."""
    flat, added = (x.flatten(2).expand(len(share), -1, -1) for x in (streams, values))
    weights = rearrange(share, "row sender reader -> row reader sender").to(flat)
    return torch.baddbmm(flat, weights, added).unflatten(2, streams.shape[2:])

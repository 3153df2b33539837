"""What `wiring` computes with: the model's own attention and MLPs, run on given inputs, and sums of
senders' values into the streams of several receivers."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..models.hooks import first, forward_as, map_leaves, mlp_norm

Stream = Float[Tensor, "row prompt pos d_model"]
Heads = Float[Tensor, "row prompt pos head d_head"]
Streams = Float[Tensor, "row reader prompt pos d_model"]


def attention_from(
    attn: Any, call: tuple[tuple, dict[str, Any]], q: Heads, k: Heads, v: Heads
) -> Heads:
    """What attention gives (z) for these queries, keys and values, before rotation; what has one
    row is that of all rows. `call` is what the module was called with in the recorded run."""
    kept, n_rows, n = list[Tensor](), max(map(len, (q, k, v))), q.shape[1]

    def keep(z: Tensor, *_: Any, **__: Any) -> Tensor:
        kept.append(z)
        return z

    def constant(value: Tensor) -> Callable[..., Tensor]:
        return lambda *_, **__: value

    def again(value: Any) -> Any:
        """An argument by prompt, for several rows of these prompts."""
        if n_rows == 1 or not isinstance(value, Tensor) or value.ndim < 2 or len(value) != n:
            return value
        return repeat(value, "prompt ... -> (row prompt) ...", row=n_rows)

    with ExitStack() as stack:
        for name, value in (("q", q), ("k", k), ("v", v)):
            value = value.expand(n_rows, -1, -1, -1, -1)
            flat = rearrange(value, "row prompt pos head d -> (row prompt) pos (head d)")
            stack.enter_context(forward_as(getattr(attn, name), constant(flat)))
        stack.enter_context(forward_as(attn.o, keep))
        args, kwargs = map_leaves(again, call)
        attn(*args, **kwargs)
    (z,) = kept
    return z.reshape(n_rows, *q.shape[1:])


def mlp_from(block: Any, streams: Stream) -> Stream:
    """What a block's MLP writes for these streams."""
    flat = rearrange(streams, "row prompt pos model -> (row prompt) pos model")
    written = first(block.mlp(mlp_norm(block).original_component(flat)))
    return rearrange(written, "(row prompt) pos model -> row prompt pos model", row=len(streams))


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
    """Streams of several receivers as one tensor."""
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

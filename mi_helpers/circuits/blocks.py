"""A model's own attention and MLPs, run on given inputs in several rows of the same prompts."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..models.hooks import first, forward_as, map_leaves
from .senders import mlp_norm

Heads = Float[Tensor, "row prompt pos head d_head"]


def attention_from(
    attn: Any, call: tuple[tuple, dict[str, Any]], q: Heads, k: Heads, v: Heads
) -> Heads:
    """What attention gives (z) for these queries, keys and values, before rotation; what has one
    row is that of all rows. `call` is what the module was called with in the recorded run."""
    kept, rows, n = list[Tensor](), max(map(len, (q, k, v))), q.shape[1]

    def keep(z: Tensor, *_: Any, **__: Any) -> Tensor:
        kept.append(z)
        return z

    with ExitStack() as stack:
        for name, value in (("q", q), ("k", k), ("v", v)):
            give = _constant(value.expand(rows, -1, -1, -1, -1).flatten(0, 1).flatten(2))
            stack.enter_context(forward_as(getattr(attn, name), give))
        stack.enter_context(forward_as(attn.o, keep))
        args, kwargs = map_leaves(lambda x: _repeated(x, n, rows), call)
        attn(*args, **kwargs)
    (z,) = kept
    return z.reshape(rows, *q.shape[1:])


def mlp_from(
    block: Any, streams: Float[Tensor, "row prompt pos d_model"]
) -> Float[Tensor, "row prompt pos d_model"]:
    """What a block's MLP writes for these streams."""
    normed = mlp_norm(block).original_component(streams.flatten(0, 1))
    return first(block.mlp(normed)).unflatten(0, streams.shape[:2])


def _constant(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: value


def _repeated(value: Any, n: int, rows: int) -> Any:
    """An argument by prompt, for several rows of these prompts."""
    if rows == 1 or not isinstance(value, Tensor) or value.ndim < 2 or len(value) != n:
        return value
    return value[None].expand(rows, *value.shape).flatten(0, 1)

"""A model's own attention and MLPs, run on given inputs."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..models.hooks import first, forward_as, map_leaves
from .runs import mlp_norm

Stream = Float[Tensor, "row prompt pos d_model"]
Heads = Float[Tensor, "row prompt pos head d_head"]


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

"""Hooks and stand-ins on a model's modules, taken away again in any event."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def hooked(point: HookPoint, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """The hook `fn` on one hook point, removed in any event."""
    point.add_hook(lambda value, hook: fn(value))
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


@contextmanager
def forward_as(module: torch.nn.Module, fn: Callable[..., Any]) -> Iterator[None]:
    """`fn` in place of the module's forward, put back in any event."""
    module.__dict__["forward"] = fn
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextmanager
def entering(
    model: TransformerBridge,
    stream: Float[Tensor, "prompt pos d_model"],
    read: Int[Tensor, "prompt k"],
    block: int = 0,
) -> Iterator[None]:
    """A pass with gradients, in which `stream` enters a block (the first: in place of the
    embeddings), those before it are not run, and only the positions `read` of each prompt are
    unembedded."""
    prompt = torch.arange(len(read), device=read.device)[:, None]
    skipped = (stream.detach(), None) if model.blocks_return_tuples else stream.detach()

    def enter(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = (stream, *args[1:])
        return (given, kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    with torch.enable_grad(), ExitStack() as stack:
        for before in model.blocks[:block]:
            stack.enter_context(forward_as(before, lambda *_, **__: skipped))
        for handle in (
            model.blocks[block].register_forward_pre_hook(enter, with_kwargs=True),
            model.unembed.register_forward_pre_hook(lambda _, args: (args[0][prompt, read],)),
        ):
            stack.callback(handle.remove)
        yield


def gradients_of(score: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a metric. Raises ValueError for one that has none, such as accuracy."""
    if not score.requires_grad:
        raise ValueError("this metric has no gradient; take one that is smooth in the logits")
    return torch.autograd.grad(score, tensors)


def map_leaves(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn` on every leaf of nested tuples, lists and dicts."""
    if isinstance(value, dict):
        return {key: map_leaves(fn, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(fn, item) for item in value)
    return fn(value)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def mlp_norm(block: Any) -> Any:
    """The norm in front of the MLP; some parallel blocks have one for both."""
    return block.ln2 if hasattr(block, "ln2") else block.ln1

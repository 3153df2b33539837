"""Hooks and stand-ins on a model's modules, taken away again in any event."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint


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


def map_leaves(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn` on every leaf of nested tuples, lists and dicts."""
    if isinstance(value, dict):
        return {key: map_leaves(fn, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(fn, item) for item in value)
    return fn(value)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output

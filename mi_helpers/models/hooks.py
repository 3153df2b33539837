"""Where a model can be read and edited: sites by name, and hooks that are always removed again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from ..errors import explained

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEAD_SITES = ("q", "k", "v", "z", "pattern")
SITES = RESIDUAL_SITES + HEAD_SITES


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens name of a site's hook. Raises ValueError for an unknown site."""
    if site not in SITES:
        message = f"unknown site {site!r}: choose one of {', '.join(SITES)}"
        raise ValueError(explained("MI-E03", message))
    return f"blocks.{layer}.{'attn.' if site in HEAD_SITES else ''}hook_{site}"


def n_heads(model: TransformerBridge, site: str) -> int:
    """Heads at a site: keys and values of grouped-query models have `n_key_value_heads`."""
    grouped = getattr(model.cfg, "n_key_value_heads", None) if site in ("k", "v") else None
    return int(grouped or model.cfg.n_heads)


Hook = Callable[[Tensor], Tensor | None]
Key = TypeVar("Key")


@contextmanager
def hooked(*hooks: tuple[HookPoint, Hook]) -> Iterator[None]:
    """Hooks on hook points, each a point and its function; removed in any event."""
    handles = []
    try:
        for point, fn in hooks:
            point.add_hook(lambda value, hook, fn=fn: fn(value))
            handles.append((point, point.fwd_hooks[-1]))
        yield
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)


@contextmanager
def kept(points: Mapping[Key, HookPoint]) -> Iterator[dict[Key, Tensor]]:
    """Copies of what passes these hook points, by their keys."""
    found: dict[Key, Tensor] = {}

    def keep(key: Key, value: Tensor) -> None:
        found[key] = value.clone()

    with hooked(*((point, partial(keep, key)) for key, point in points.items())):
        yield found


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

    def only_read(_: Any, args: tuple) -> tuple:
        return (args[0][prompt, read],)

    with torch.enable_grad(), ExitStack() as stack:
        for before in model.blocks[:block]:
            stack.enter_context(forward_as(before, lambda *_, **__: skipped))
        entered = model.blocks[block].register_forward_pre_hook(enter, with_kwargs=True)
        stack.enter_context(entered)
        stack.enter_context(model.unembed.register_forward_pre_hook(only_read))
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

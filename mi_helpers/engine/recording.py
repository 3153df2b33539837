"""Records one run of a model over a batch of prompts, and what later interventions reuse of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from ..errors import explained
from ..models.hooks import SITES, first, forward_as, hook_name, hooked, map_leaves
from .positions import Positions, at_each, each_position, is_one

# Blocks that mask by the place in the sequence, whatever mask they are given: rows run alone.
OWN_MASK = ("GPTNeoForCausalLM",)


@dataclass(eq=False)
class Run:
    """One forward pass over a batch of prompts, with what later interventions reuse.

    `resid[l]` enters block l, and `resid[n_layers]` leaves the last one; `keys[l]` and `values[l]`
    are what attention reads, rotary angles applied (empty where the model's attention keeps none);
    `calls[l]` is what block l was called with.
    `roles` name one position per prompt ("S2"), which edits and metrics may use as their `pos`.
    Negative positions count from each prompt's END, where the prompts have that role.
    """

    model: TransformerBridge
    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"] | None
    resid: list[Float[Tensor, "prompt pos d_model"]] = field(default_factory=list)
    keys: list[Float[Tensor, "prompt kv_head pos d_head"]] = field(default_factory=list)
    values: list[Float[Tensor, "prompt kv_head pos d_head"]] = field(default_factory=list)
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    roles: Mapping[str, Int[Tensor, "prompt"]] = field(default_factory=dict)
    acts: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def activation(self, site: str, layer: int) -> Float[Tensor, "prompt pos ..."]:
        """The activation at a site: [prompt, pos, d_model], or [prompt, pos, head, d_head or key].

        Raises KeyError where the site was not recorded.
        """
        if site in ("resid_pre", "resid_post"):
            return self.resid[layer + (site == "resid_post")]
        if site == "resid_mid":
            return self.resid[layer] + self.activation("attn_out", layer)
        if (site, layer) not in self.acts:
            raise KeyError(f"{site} was not recorded: use record(..., sites=[{site!r}])")
        return self.acts[site, layer]

    @cached_property
    def hooks(self) -> dict[str, HookPoint]:
        return self.model.hook_dict

    def hook(self, site: str, layer: int) -> HookPoint:
        """The hook point of a site. Raises ValueError, with the reason, for a site that this model
        does not offer (`model.missing_sites`), or not at this layer."""
        name = hook_name(site, layer)
        why = self.model.missing_sites.get(site)
        if why or name not in self.hooks:
            why = why or f"{self.model.cfg.architecture} has no hook {name}"
            offers = [other for other in SITES if other not in self.model.missing_sites]
            message = f"{site} cannot be used here: {why}. Use one of {', '.join(offers)}"
            raise ValueError(explained("MI-E03", message))
        return self.hooks[name]

    def logits(self, pos: Positions = -1) -> Float[Tensor, "prompt *k d_vocab"]:
        """Logits at one position, [prompt, d_vocab], or at several, [prompt, k, d_vocab]."""
        where = each_position(pos, self.roles, *self.tokens.shape).to(self.tokens.device)
        found = unembed(self.model, at_each(self.resid[-1], where))
        return found[:, 0] if is_one(pos) else found

    @property
    def forward_arguments(self) -> dict[str, Tensor]:
        """What the model has to be told beside the tokens. Padding behind a prompt needs no mask,
        since no token attends to what comes after it."""
        if self.mask is None or not (self.mask.diff(dim=1) > 0).any():
            return {}
        return {"attention_mask": self.mask}

    @property
    def packs(self) -> bool:
        """Whether rows may reuse its keys and values, and share a sequence with other rows."""
        return bool(self.keys) and self.model.cfg.architecture not in OWN_MASK

    def real_tokens(self) -> Bool[Tensor, "prompt pos"]:
        """True for tokens, False for padding."""
        return torch.ones_like(self.tokens).bool() if self.mask is None else self.mask.bool()

    def mean(self, site: str, layer: int) -> Float[Tensor, "pos ..."]:
        """The mean activation over prompts at each position, without padding."""
        return self.over_prompts(self.activation(site, layer))

    def over_prompts(self, activation: Float[Tensor, "prompt pos ..."]) -> Float[Tensor, "pos ..."]:
        """The mean over prompts at each position, without padding."""
        real = self.real_tokens().to(activation)
        weight = real.reshape(*real.shape, *[1] * (activation.ndim - 2))
        return (activation * weight).sum(0) / weight.sum(0)

    def arguments(
        self, layer: int, hidden: Tensor, cache: Any, fit: Callable[[Tensor], Tensor]
    ) -> tuple[tuple, dict[str, Any]]:
        """What block `layer` was called with, but `hidden` enters it, `cache` takes the place of
        the model's, and other tensors (masks, rotary angles) are as `fit` makes them."""
        args, kwargs = self.calls[layer]
        stream = args[0] if args else kwargs["hidden_states"]

        def own(value: Any) -> Any:
            if value is stream:
                return hidden
            if hasattr(value, "update"):
                return cache
            return fit(value) if isinstance(value, Tensor) else value

        if kwargs.get("attention_mask", 0) is None:
            kwargs = {**kwargs, "attention_mask": self.causal_mask}
        return map_leaves(own, (args, kwargs))

    @cached_property
    def causal_mask(self) -> Float[Tensor, "1 1 pos pos"]:
        """The mask of blocks that are called with none."""
        n_pos, like = self.tokens.shape[1], self.resid[0]
        return like.new_full((1, 1, n_pos, n_pos), torch.finfo(like.dtype).min).triu(1)

    def part(self, prompts: slice | Int[Tensor, "k"]) -> "Run":
        """The run of some of its prompts alone."""
        n = len(self.tokens)

        def own(value: Any) -> Any:
            if isinstance(value, Tensor) and self.is_shared_bias(value):
                return value
            if isinstance(value, Tensor) and value.ndim == 3 and self.is_key_bias(value):
                return value.unflatten(0, (n, -1))[prompts].flatten(0, 1)
            by_prompt = isinstance(value, Tensor) and value.ndim and len(value) == n
            return value[prompts] if by_prompt else value

        inside = ("tokens", "mask", "resid", "keys", "values", "calls", "roles", "acts")
        return replace(self, **{name: map_leaves(own, getattr(self, name)) for name in inside})

    def is_key_bias(self, value: Tensor) -> bool:
        """Whether a block's argument is the position bias of ALiBi, by its shape: [prompt · head,
        1, pos] (BLOOM) or [prompt, head, 1, pos] (Falcon)."""
        n_prompts, n_pos = self.tokens.shape
        heads = self.model.cfg.n_heads
        shapes = (n_prompts * heads, 1, n_pos), (n_prompts, heads, 1, n_pos)
        return value.shape in shapes and n_pos > 1

    def is_shared_bias(self, value: Tensor) -> bool:
        """Whether it is MPT's position bias, [head, 1, key]: one for all prompts, with keys counted
        from the end, so that rows run alone."""
        alone = not self.packs and self.tokens.shape[1] > 1
        return alone and value.ndim == 3 and value.shape[:2] == (self.model.cfg.n_heads, 1)

    def agrees_before(self, other: "Run") -> int:
        """The number of leading positions at which the two runs are equal, by causality."""
        if self.model is not other.model or self.tokens.shape != other.tokens.shape:
            return 0
        same = (self.tokens == other.tokens) & (self.real_tokens() == other.real_tokens())
        return int(same.all(0).cummin(0).values.sum())


@torch.no_grad()
def record(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompt pos"],
    attention_mask: Int[Tensor, "prompt pos"] | None = None,
    sites: Sequence[str] = (),
    roles: Mapping[str, Int[Tensor, "prompt"]] | None = None,
) -> Run:
    """Run the model once and keep residuals, keys and values, and the activations at `sites`.

    `attention_mask` is 1 for tokens and 0 for padding, on either side. `resid_pre` and
    `resid_post` are always kept. `roles` (those of prompt pairs) name positions for later rows;
    with a mask, END is the last token of each prompt if they do not say otherwise.
    Raises ValueError for an unknown site or wrong shapes.
    """
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [prompt, pos] and not empty, got {tuple(tokens.shape)}")
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(f"attention_mask {attention_mask.shape} is not of {tokens.shape}")
    device = model.cfg.device
    mask = None if attention_mask is None else attention_mask.to(device)
    found = Run(model, tokens.to(device), mask, roles=dict(roles or {}))
    if mask is not None:
        last = tokens.shape[1] - 1 - mask.flip(1).argmax(1)
        found.roles = {"END": last, **found.roles}
    for site in sites:
        found.hook(site, 0)
    cache = _Recorder(found)

    def keep_call(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        args, kwargs = map_leaves(lambda v: cache if hasattr(v, "update") else v, (args, kwargs))
        found.resid.append(args[0] if args else kwargs["hidden_states"])
        found.calls.append((args, kwargs))
        return args, kwargs

    def keep_last(module: torch.nn.Module, args: tuple, output: Any) -> None:
        found.resid.append(first(output))

    def keep_site(site: str, layer: int, value: Tensor) -> None:
        found.acts[site, layer] = value.transpose(1, 2) if site == "pattern" else value

    n_layers = model.cfg.n_layers
    read = {"attn_out" if site == "resid_mid" else site for site in sites}
    hooks = [
        (found.hook(site, layer), partial(keep_site, site, layer))
        for site in read - {"resid_pre", "resid_post"}
        for layer in range(n_layers)
    ]
    no_logits = forward_as(model.unembed, lambda x, *_, **__: x[..., :1])
    with ExitStack() as stack, hooked(*hooks), no_logits:
        for block in model.blocks:
            stack.enter_context(block.register_forward_pre_hook(keep_call, with_kwargs=True))
        stack.enter_context(model.blocks[-1].register_forward_hook(keep_last))
        model(found.tokens, use_cache=True, **found.forward_arguments)
    if len(found.keys) not in (0, n_layers) or len(found.resid) != n_layers + 1:
        raise ValueError(
            f"of {n_layers} blocks of {model.cfg.architecture}, {len(found.keys)} attend and "
            f"{len(found.resid) - 1} were called; the engine needs every block, once, in order"
        )
    return found


def record_noised(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompt pos"],
    positions: Positions,
    sigmas: float = 3.0,
    seed: int = 0,
    sites: Sequence[str] = (),
    roles: Mapping[str, Int[Tensor, "prompt"]] | None = None,
    attention_mask: Int[Tensor, "prompt pos"] | None = None,
) -> Run:
    """As `record`, with noise N(0, (sigmas · σ)²) on the embeddings at `positions`, σ being the
    standard deviation of these prompts' embeddings. Positions are numbers or names of `roles`.

    Source: Meng et al. 2022 (ROME), arXiv 2202.05262, section 2.1.
    """
    pos = each_position(positions, roles or {}, *tokens.shape).to(model.cfg.device)
    where = torch.arange(len(tokens), device=pos.device)[:, None], pos
    generator = torch.Generator().manual_seed(seed)

    def add(value: Tensor) -> Tensor:
        noise = torch.randn(value[where].shape, generator=generator).to(value)
        value = value.clone()
        real = value if attention_mask is None else value[attention_mask.to(value.device).bool()]
        value[where] += sigmas * real.std() * noise
        return value

    with hooked((model.hook_dict["hook_embed"], add)):
        noised = record(model, tokens, attention_mask, sites=sites, roles=roles)
    noised.tokens = noised.tokens.clone()
    noised.tokens[where] = -1  # no token of the vocabulary: the engine must see that runs differ
    return noised


def unembed(
    model: TransformerBridge,
    resid: Float[Tensor, "*batch d_model"],
    tokens: Int[Tensor, "token"] | None = None,
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of final residuals, by the model's own last norm, unembedding and soft cap; of all
    tokens of the vocabulary, or of some."""
    flat = resid.reshape(-1, 1, resid.shape[-1])
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled() and flat.requires_grad))
        if tokens is not None:
            whole = model.unembed.original_component
            bias = None if whole.bias is None else whole.bias[tokens]
            part = partial(torch.nn.functional.linear, weight=whole.weight[tokens], bias=bias)
            stack.enter_context(forward_as(model.unembed, part))
        output = (flat, None) if model.blocks_return_tuples else flat
        for block in model.blocks:
            stack.enter_context(forward_as(block, lambda *_, **__: output))
        token = torch.zeros(len(flat), 1, dtype=torch.long, device=resid.device)
        logits = model.original_model(input_ids=token, use_cache=False).logits
    return logits.reshape(*resid.shape[:-1], -1)


class _Recorder:
    """Stands in for the model's cache while recording: keeps the keys and values it is given."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.run.keys.append(k)
        self.run.values.append(v)
        return k, v

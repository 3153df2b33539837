"""Slow, obvious edge patching: two hooked forwards for every edge; and a linear model."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from mi_helpers import load_model
from mi_helpers.circuits.graph import Graph
from mi_helpers.tasks.pairs import PromptPairs
from mi_helpers.toys.docstring import word_tokenizer
from tests import tiny


def pairs(n: int = 3, length: int = 7, seed: int = 0) -> PromptPairs:
    """Random prompts of the tiny vocabulary; the first token is shared."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, tiny.D_VOCAB, (4, n, length), generator=generator)
    tokens[:2, :, 0] = 0
    texts, labels = [""] * n, [f"w{i}" for i in range(length)]
    answers, wrong = tokens[2, :, 0], (tokens[2, :, 0] - 3 + 7) % (tiny.D_VOCAB - 3) + 3
    return PromptPairs("random", texts, texts, tokens[0], tokens[1], answers, wrong, labels)


def _run(model: TransformerBridge, tokens: Tensor, hooks: dict, keep: list[str]) -> dict:
    kept: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(value: Tensor, hook: object) -> Tensor:
            value = hooks[name](value.clone()) if name in hooks else value
            if name in keep:
                kept[name] = value.clone()
            return value

        return hook

    names = list(dict.fromkeys([*hooks, *keep]))
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook_for(name)) for name in names]):
        kept["logits"] = model(tokens)[:, -1]
    return kept


def sender_change(
    model: TransformerBridge, graph: Graph, sender: int, data: PromptPairs, zero: bool
) -> Tensor:
    """Ablated minus clean value of a sender; a head's by writing its z and reading attn_out."""
    name = graph.senders[sender]
    if name[0] in "eM":
        point = "blocks.0.hook_resid_pre" if name == "embed" else f"blocks.{name[1:]}.hook_mlp_out"
        clean = _run(model, data.clean_tokens, {}, [point])[point]
        return (0 if zero else _run(model, data.corrupted_tokens, {}, [point])[point]) - clean
    layer, head = map(int, name[1:].split("."))
    z, out = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
    new = _run(model, data.corrupted_tokens, {}, [z])[z]

    def write(value: Tensor) -> Tensor:
        value[:, :, head] = 0 if zero else new[:, :, head]
        return value

    clean = _run(model, data.clean_tokens, {}, [out])[out]
    return _run(model, data.clean_tokens, {z: write}, [out])[out] - clean


def edge_logits(
    model: TransformerBridge,
    graph: Graph,
    sender: int,
    receiver: int,
    data: PromptPairs,
    zero: bool,
    step: float = 1.0,
    moved: dict | None = None,
) -> Tensor:
    """Logits of the clean prompts with one edge removed, or a share `step` of it; `moved` are hooks
    that are there in any case."""
    change, moved = step * sender_change(model, graph, sender, data, zero), moved or {}
    name = graph.receivers[receiver]

    def run(point: str, then: Callable[[Tensor], Tensor], keep: list[str]) -> dict:
        first = moved.get(point, lambda x: x)
        hooks = {**moved, point: lambda x: then(first(x))}
        return _run(model, data.clean_tokens, hooks, keep)

    def add(value: Tensor) -> Tensor:
        return value + change

    if name == "out":
        return run(f"blocks.{graph.n_layers - 1}.hook_resid_post", add, [])["logits"]
    layer, *rest = name[1:].split(".")
    block = f"blocks.{layer}."
    if not rest:
        added = "hook_resid_pre" if graph.parallel else "hook_attn_out"
        read = block + "hook_mlp_out"
        seen = run(block + added, add, [read])[read]
        return run(read, lambda x: seen, [])["logits"]
    head, read = int(rest[0]), f"{block}attn.hook_{rest[1]}"
    seen = run(block + "hook_resid_pre", add, [read])[read]

    def write(value: Tensor) -> Tensor:
        value[:, :, head] = seen[:, :, head]
        return value

    return run(read, write, [])["logits"]


def slope_on_line(
    model: TransformerBridge,
    graph: Graph,
    sender: int,
    receiver: int,
    data: PromptPairs,
    zero: bool,
    share: float,
    metric: Callable[[Tensor], Tensor],
) -> float:
    """How fast the metric moves as an edge is removed, where the sender (a layer's heads together)
    has gone a share of the way to its ablated values: by differences."""
    name = graph.senders[sender]
    point = {"e": "blocks.0.hook_resid_pre", "M": f"blocks.{name[1:]}.hook_mlp_out"}.get(name[0])
    point = point or f"blocks.{name[1:].split('.')[0]}.attn.hook_z"
    old, new = (
        _run(model, tokens, {}, [point])[point]
        for tokens in (data.clean_tokens, data.corrupted_tokens)
    )
    on_line = torch.lerp(old, torch.zeros_like(new) if zero else new, share)
    up, down = (
        metric(
            edge_logits(
                model, graph, sender, receiver, data, zero, step, {point: lambda _: on_line}
            )
        )
        for step in (0.01, -0.01)
    )
    return float((up - down).double().mean() / 0.02)


def linear_transformer() -> TransformerBridge:
    """A random attention-only transformer of two layers that is linear in its embeddings.

    Queries and keys are zero, so that attention is uniform, and the norms' epsilon is so large that
    they only scale. Each edge's effect is then its gradient times its change, exactly. Its
    tokenizer is `word_tokenizer`.
    """
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(word_tokenizer()), n_positions=64, n_embd=32, n_layer=2, n_head=4,
        n_inner=1, layer_norm_epsilon=1e8, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        initializer_range=0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.fill_(1e4)  # undoes the division by the root of epsilon
            elif ".mlp.c_proj." in name:
                parameter.zero_()
            elif ".c_attn." in name:
                parameter[..., : 2 * config.n_embd] = 0
    return load_model(model, tokenizer=word_tokenizer())

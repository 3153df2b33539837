"""Slow, obvious edge patching: two hooked forwards for every edge. Tests compare with it."""

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from mi_helpers.circuits.graph import Graph
from mi_helpers.tasks.pairs import PromptPairs
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
) -> Tensor:
    """Logits of the clean prompts with one edge removed."""
    change = sender_change(model, graph, sender, data, zero)
    name = graph.receivers[receiver]
    if name == "out":
        point = f"blocks.{graph.n_layers - 1}.hook_resid_post"
        return _run(model, data.clean_tokens, {point: lambda x: x + change}, [])["logits"]
    layer, *rest = name[1:].split(".")
    block = f"blocks.{layer}."
    if not rest:
        added = "hook_resid_pre" if graph.parallel else "hook_attn_out"
        read = block + "hook_mlp_out"
        seen = _run(model, data.clean_tokens, {block + added: lambda x: x + change}, [read])[read]
        return _run(model, data.clean_tokens, {read: lambda x: seen}, [])["logits"]
    head, read = int(rest[0]), f"{block}attn.hook_{rest[1]}"
    added = block + "hook_resid_pre"
    seen = _run(model, data.clean_tokens, {added: lambda x: x + change}, [read])[read]

    def write(value: Tensor) -> Tensor:
        value[:, :, head] = seen[:, :, head]
        return value

    return _run(model, data.clean_tokens, {read: write}, [])["logits"]

"""Tiny, randomly initialised models of every family that the README names, for tests that need only
an architecture.

Four layers, width 32, grouped-query attention where the family has it, and a sliding window of
eight tokens where the family has one, so that prompts of twelve tokens are longer than the window.
"""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

D_VOCAB = 128
WINDOW = 8
_TOKENS = {"vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_COMMON = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_GPT = {**_TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
_BLOOM = {**_TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4}
_KV = dict(_COMMON, num_key_value_heads=2)
_GROUPED = dict(_KV, head_dim=8)
_WINDOWED = dict(_GROUPED, sliding_window=WINDOW)
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_NEO: dict[str, Any] = dict(
    _TOKENS, hidden_size=32, num_layers=4, num_heads=4, intermediate_size=64, window_size=WINDOW,
    max_position_embeddings=128, attention_types=[[["global", "local"], 2]],
)  # fmt: skip
_FALCON: dict[str, Any] = dict(_COMMON, new_decoder_architecture=False)
_GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_neox": _COMMON,
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": dict(_WINDOWED, query_pre_attn_scalar=8),
    "gemma3_text": dict(_WINDOWED, query_pre_attn_scalar=8),
    "olmo2": _KV,
    "phi": _COMMON,
    "mistral": _WINDOWED,
}
FAMILIES = tuple(_CONFIGS)  # what most tests run on
_CONFIGS |= {
    "gpt_neo": _NEO,
    "gptj": dict(_GPT, rotary_dim=4),
    "opt": dict(_COMMON, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": _BLOOM,
    "falcon": dict(_FALCON, alibi=False, multi_query=True),
    "falcon-alibi": dict(_FALCON, alibi=True, multi_query=False),
    "olmo": _KV,
    "olmo3": dict(_KV, sliding_window=WINDOW),
    "granite": {**_KV, **_GRANITE, "attention_multiplier": 0.3},
    "mixtral": {**_GROUPED, **_EXPERTS},
    "qwen3_moe": {**_GROUPED, **_ROUTED},
    "phi3": _KV,
    "starcoder2": dict(_KV, sliding_window=WINDOW),
    "smollm3": _GROUPED,
    "stablelm": _KV,
    "gemma": _GROUPED,
    "glm4": _GROUPED,
    "gpt_oss": {**_WINDOWED, **_EXPERTS},
    "mpt": dict(_TOKENS, d_model=32, n_heads=4, n_layers=4, max_seq_len=128),
    "codegen": dict(_GPT, n_ctx=128, rotary_dim=4),
    "gpt_bigcode": dict(_GPT, multi_query=True),
}
ALL_FAMILIES = tuple(_CONFIGS)


def hf_model(family: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A tiny random Hugging Face model of the family, eager attention, eval mode."""
    config = AutoConfig.for_model(family.split("-")[0], **{**_CONFIGS[family], **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    config.architectures = [type(model).__name__]
    for parameter in model.parameters():  # default scales leave attention almost uniform
        parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of D_VOCAB words that needs no download."""
    words = ["<s>", "</s>", "<pad>"] + [f"w{i}" for i in range(D_VOCAB - 3)]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        name_or_path="tiny",
        add_bos_token=True,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="w0",
    )


def load(model: PreTrainedModel) -> TransformerBridge:
    """The bridge around an in-memory model, by the package's own loader."""
    from mi_helpers.models import load_model

    return load_model(model, tokenizer=tokenizer())


@cache
def bridge(family: str) -> TransformerBridge:
    """One shared bridge per family; tests must leave it as they found it."""
    return load(hf_model(family))

"""Tiny, randomly initialised models of ten families, for tests that need only an architecture.

Four layers, width 32, grouped-query attention where the family has it, and a sliding window of
eight tokens where the family has one, so that prompts of twelve tokens are longer than the window.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

D_VOCAB = 128
_COMMON = {
    "vocab_size": D_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED = dict(_COMMON, num_key_value_heads=2, head_dim=8)
_CONFIGS: dict[str, dict] = {
    "gpt2": {
        "vocab_size": D_VOCAB,
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
    },
    "gpt_neox": _COMMON,
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": dict(_GROUPED, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3_text": dict(_GROUPED, sliding_window=8, query_pre_attn_scalar=8),
    "olmo2": {k: v for k, v in _GROUPED.items() if k != "head_dim"},
    "phi": _COMMON,
    "mistral": dict(_GROUPED, sliding_window=8),
}
FAMILIES = tuple(_CONFIGS)


def hf_model(family: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A tiny random Hugging Face model of the family, eager attention, eval mode."""
    config = AutoConfig.for_model(family, **{**_CONFIGS[family], **overrides})
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
    from mi_helpers.models.loading import load_model

    return load_model(model, tokenizer=tokenizer())


@cache
def bridge(family: str) -> TransformerBridge:
    """One shared bridge per family; tests must leave it as they found it."""
    return load(hf_model(family))

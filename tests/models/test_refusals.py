"""Models that cannot be right are refused: one sentence that says what is wrong and what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from mi_helpers.models import load_model
from mi_helpers.models.agreement import HookError
from mi_helpers.models.support import n_parameters, refuse_architecture
from tests import tiny

BERT = dict(tiny._COMMON)
T5 = {**tiny._TOKENS, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8}
MAMBA = {**tiny._TOKENS, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8}


def build(kind: str, settings: dict[str, Any], auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    for parameter in model.parameters():
        parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model


def saved(model: PreTrainedModel, path: Path) -> Path:
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(("kind", "settings"), [("cohere", tiny._KV), ("cohere2", tiny._WINDOWED)])
def test_a_bridge_that_computes_another_model_is_refused(kind: str, settings: dict) -> None:
    """TransformerLens gives Cohere the rotary angles of Llama."""
    with pytest.raises(HookError, match=r"after layer 0 the residual .* by 0\.\d+ .* wrongly"):
        tiny.load(build(kind, settings))


@pytest.mark.parametrize(
    ("kind", "settings", "auto", "message"),
    [
        ("bert", BERT, AutoModelForCausalLM, "is an encoder .*BertLMHeadModel.* such as GPT-2"),
        ("t5", T5, AutoModelForSeq2SeqLM, "is an encoder-decoder .*t5.* such as GPT-2"),
        ("mamba", MAMBA, AutoModelForCausalLM, "has layers without attention .*mamba"),
    ],
)
def test_what_is_no_causal_transformer_is_refused(
    kind: str, settings: dict, auto: Any, message: str, tmp_path: Path
) -> None:
    model = build(kind, settings, auto)
    with pytest.raises(ValueError, match=f"random-{kind} {message}"):
        tiny.load(model)
    with pytest.raises(ValueError, match=f"own-model {message}"):
        load_model(saved(model, tmp_path / "own-model"))


HYBRIDS = (
    *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba2"),
    *("nemotron_h", "qwen3_next", "recurrent_gemma", "rwkv", "zamba2"),
)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_state_space_and_hybrid_configurations_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"it has layers without attention .{kind}"):
        refuse_architecture(AutoConfig.for_model(kind), "it")


@pytest.mark.parametrize("kind", ["distilbert", "vit"])
def test_a_directory_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is no causal language model .{kind}.; load one"):
        load_model(tmp_path)


GROUPED_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
SEVERAL_KEYS = {"multi_query": False}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("falcon", {**tiny._COMMON, **GROUPED_FALCON}),
        ("gpt_bigcode", {**tiny._GPT, **SEVERAL_KEYS}),
    ],
)
def test_an_architecture_that_cannot_be_bridged_is_one_sentence(kind: str, settings: dict) -> None:
    model = build(kind, settings)
    with pytest.raises(ValueError, match=r"ForCausalLM cannot be bridged by .* another arch"):
        tiny.load(model)
    assert model.config.architectures is None


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="is a LlamaModel, which predicts no tokens; load it as"):
        tiny.load(tiny.hf_model("llama").model)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model = tiny.hf_model("llama")
    path = saved(model, tmp_path / "small")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(path)
    for given in (path, model):
        with pytest.raises(ValueError, match=r"quantised weights \(gptq\).*load the original"):
            load_model(given, tokenizer=tiny.tokenizer())
    model = tiny.hf_model("llama")
    weight: Any = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    weight.requires_grad_(False).data = weight.data.to(torch.int8)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight holds torch\.int8"):
        tiny.load(model)


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny.hf_model("llama")
    model.get_parameter("model.layers.2.mlp.up_proj.weight").data[3, :2] = torch.nan
    with pytest.raises(ValueError, match=r"2 of the 2048 numbers in model\.layers\.2\.mlp\.up_pr"):
        tiny.load(model)


def test_a_model_that_overflows_in_half_precision_is_told_so() -> None:
    model = tiny.hf_model("llama").half()
    model.get_output_embeddings().weight.data *= 30000  # finite, but its logits are not
    with pytest.raises(ValueError, match=r"infinite logits in torch\.float16: .*dtype='float32'"):
        tiny.load(model)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tiny.hf_model("llama"), tmp_path / "large")
    size = 4 * n_parameters(path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=size - 1))

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read although it is too large")

    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", read)
        with pytest.raises(MemoryError, match=r"large has 0\.00 billion .* take dtype='bfloat16'"):
            load_model(path)
    assert load_model(path, dtype="bfloat16").cfg.n_layers == 4


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_parameters_are_counted_without_reading_them(family: str, tmp_path: Path) -> None:
    model = tiny.hf_model(family)
    expected = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert n_parameters(tmp_path) == expected
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert n_parameters(tmp_path) == pytest.approx(expected, rel=0.4)  # with the file's own head

"""Models that are refused before any work, each by one sentence that says what to do."""

import json
import math
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import explained

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
GB = 1e9


def refuse_architecture(config: PretrainedConfig, name: str) -> None:
    """Raises ValueError for what no experiment here can be run on, by the configuration alone."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder ({kind}), and everything here is for decoders alone; "
            "load a causal language model, such as GPT-2 or Llama"
        )
    text: Any = config.get_text_config(decoder=True)
    named = [getattr(text, key, None) or () for key in ("layer_types", "layers_block_type")]
    layers = {kind for kinds in named for kind in kinds}
    state_space = any(key.startswith(("mamba", "ssm", "time_step")) for key in vars(text))
    if state_space or layers - ATTENTION or not hasattr(text, "num_attention_heads"):
        raise ValueError(
            f"{name} has layers without attention ({kind}: state-space, recurrent or linear), "
            "whose state the engine cannot reuse; load a model whose every layer attends"
        )
    if quantised := getattr(config, "quantization_config", None):
        about = quantised if isinstance(quantised, dict) else vars(quantised)
        method = str(getattr(about.get("quant_method"), "value", about.get("quant_method")))
        raise ValueError(
            f"{name} holds quantised weights ({method}), and hooks need floating-point ones; load "
            "the original weights, or call its dequantize() in transformers and save it anew"
        )


def refuse_weights(model: PreTrainedModel, name: str) -> None:
    """Raises ValueError for weights that are quantised, NaN or infinite; names the first one."""
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{name} is a {type(model).__name__}, which predicts no tokens; load it as "
            "AutoModelForCausalLM"
        )
    for key, weight in model.named_parameters():
        if not weight.is_floating_point():
            raise ValueError(
                f"{name}: {key} holds {weight.dtype}, so the weights are quantised, and hooks need "
                "floating-point ones; load the original weights"
            )
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            bad = int((~weight.isfinite()).sum())
            raise ValueError(
                f"{name}: {bad} of the {weight.numel()} numbers in {key} are NaN or infinite; load "
                "an intact copy"
            )


def refuse_size(
    directory: Path, dtype: torch.dtype | None, device: torch.device | str, name: str
) -> None:
    """Raises MemoryError, with numbers, for a model that free memory cannot hold."""
    kind = dtype or torch.float32
    parameters = n_parameters(directory)
    need = parameters * kind.itemsize
    places = {"memory": psutil.virtual_memory().available}
    if torch.device(device).type == "cuda":
        places["the GPU's memory"] = torch.cuda.mem_get_info(torch.device(device))[0]
    for place, free in places.items():
        if need > free:
            half = parameters * torch.bfloat16.itemsize
            smaller = f"dtype='bfloat16' ({half / GB:.1f} GB), " if kind.itemsize > 2 else ""
            message = (
                f"{name} has {parameters / 1e9:.2f} billion parameters, {need / GB:.1f} GB in "
                f"{str(kind).removeprefix('torch.')}, but {free / GB:.1f} GB of {place} are free; "
                f"take {smaller}a smaller model, or a larger machine"
            )
            raise MemoryError(explained("MI-E06", message))


def n_parameters(directory: Path) -> int:
    """The number of parameters in a directory's weights, from the heads of its files.

    Pickled files have no head that can be read alone; their numbers are taken to have the width
    that the configuration names.
    """
    tensors: dict[str, int] = {}
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        head.pop("__metadata__", None)
        tensors |= {key: math.prod(about["shape"]) for key, about in head.items()}
    if tensors:
        return sum(tensors.values())
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    return sum(file.stat().st_size for file in directory.glob("*.bin")) // stored.itemsize

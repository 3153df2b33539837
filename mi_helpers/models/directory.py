"""Reads a directory of Hugging Face weights: no code of the model's own is run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


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


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in _TOKENIZERS):
        return None
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


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

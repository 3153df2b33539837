"""The tokenizer of a model: read, made to fit the embedding, and what texts begin with."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import default as default_model

if TYPE_CHECKING:  # the command line answers before these are loaded
    from transformers import PreTrainedTokenizerBase

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a directory, None where it holds none."""
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in _TOKENIZERS):
        return None
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, rows: int, name: str, cache_dir: str | Path | None
) -> PreTrainedTokenizerBase:
    """A tokenizer for an embedding of this many rows, marked so that TransformerLens keeps it."""
    if tokenizer is None:
        tokenizer = read_tokenizer(default_model.fetch(cache_dir))
        assert tokenizer is not None
        if len(tokenizer) > rows:
            raise ValueError(
                f"{name} comes without a tokenizer, and that of {default_model.NAME} does not fit: "
                f"it has {len(tokenizer)} tokens, the model {rows}. Pass tokenizer=, or save one "
                "beside the weights"
            )
        said = f"{name} has no tokenizer; taking that of {default_model.NAME}"
        warnings.warn(said, stacklevel=3)
    elif len(tokenizer) > rows:
        warnings.warn(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, its embedding {rows} rows: some "
            "tokens cannot be used. Does it belong to this model?",
            stacklevel=3,
        )
    # Without this mark TransformerLens loads the tokenizer anew by its name, from the hub if need
    # be, and loses tokens added since. `to_tokens` adds the BOS token itself, where there is one.
    tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path)
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


@lru_cache(maxsize=4)
def own_bos(tokenizer: Any) -> int | None:
    """The BOS token of a Hugging Face tokenizer, None where it has none.

    It is what the tokenizer itself puts in front of a text; or else its own BOS token, which models
    such as GPT-2 were not always trained with, but which keeps position 0 apart from the text. A
    BOS token that TransformerLens has set on a tokenizer without one does not count.
    """
    with_it, without = (
        tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False)
    )
    if with_it[: len(without)] != without and with_it[0] in tokenizer.all_special_ids:
        return int(with_it[0])
    own = tokenizer.init_kwargs.get("bos_token")
    return None if own is None else int(tokenizer.convert_tokens_to_ids(str(own)))

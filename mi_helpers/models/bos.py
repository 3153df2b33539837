"""The token that a model's texts begin with."""

from functools import lru_cache
from typing import Any


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

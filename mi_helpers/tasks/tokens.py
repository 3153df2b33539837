"""Texts and tokens: what a text is in tokens, what a token looks like on an axis."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..models.tokenizer import own_bos

Model = Any  # a TransformerBridge; not imported here because that takes seconds


def token_labels(model: Model, tokens: Int[Tensor, "pos"] | Sequence[int]) -> list[str]:
    """One readable, distinct label per token, safe to put into HTML and figures.

    A space is shown as `·`, a line break as `\\n`, angle brackets as `‹›`; a token that occurs
    again carries its number: `·the`, `·the (2)`.
    """
    return number_duplicates([readable(model, int(token)) for token in tokens])


def readable(model: Model, token: int) -> str:
    """One token as a label."""
    piece = model.tokenizer.convert_ids_to_tokens(token)
    text = model.tokenizer.decode([token])
    if "\ufffd" in text:  # part of a character: the raw piece says more
        text = piece
    elif piece.startswith("\u2581") and not text.startswith(" "):  # sentencepiece drops it
        text = " " + text
    for mark, shown in ((" ", "·"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(mark, shown)
    return text.replace("<", "‹").replace(">", "›") or "(empty)"


def number_duplicates(labels: Sequence[str]) -> list[str]:
    """The labels, those that occur again with their number."""
    seen: dict[str, int] = {}
    numbered = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        numbered.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return numbered


def compare_tokens(model: Model, first: Sequence[int], second: Sequence[int]) -> str:
    """Two prompts token by token, one position a line, with a mark where they differ."""
    columns = [[readable(model, int(token)) for token in ids] for ids in (first, second)]
    width = max(len(label) for label in columns[0] + ["first"])
    lines = [f"{'pos':>4}  {'first':<{width}}  second"]
    for i, (a, b) in enumerate(zip_longest(*columns, fillvalue="(end)")):
        lines.append(f"{i:>4}  {a:<{width}}  {b}{'' if a == b else '   <- differs'}")
    return "\n".join(lines)


def bos_token(model: Model) -> int | None:
    """The token that this model's texts begin with, None where its tokenizer has no BOS token."""
    return own_bos(model.tokenizer)


def token_ids(model: Model, text: str) -> list[int]:
    """A text's tokens, behind one BOS token where the tokenizer has one (see `bos_token`).

    A text that begins with it already, as chat templates do, does not get a second one, and no EOS
    token is added.
    """
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = bos_token(model)
    return list(ids) if bos is None or ids[:1] == [bos] else [bos, *ids]


def chat(model: Model, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as the text that this model's chat template makes of them, up to where the
    assistant's next word stands; a prompt like any other text.

    Args:
        messages: such as `[{"role": "user", "content": "Where is the Louvre?"}]`.

    Raises:
        ValueError: the tokenizer has no chat template, or it does not take these messages.
    """
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"the tokenizer of {getattr(model, 'name', 'this model')} has no chat template: it was "
            "not made for chat, so write the prompt as plain text"
        )
    try:
        return model.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates are programs, and raise what they like
        raise ValueError(f"the chat template does not take these messages: {error}") from error


def continuation(model: Model, prompt: str, text: str) -> list[int] | None:
    """The tokens that `text` adds after `prompt`.

    None if the prompt's own tokens change with it, or if the tokenizer does not know the text.
    """
    before, after = token_ids(model, prompt), token_ids(model, prompt + text)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if after[: len(before)] != before or unknown in after[len(before) :]:
        return None
    return after[len(before) :]


def word_token(model: Model, word: str) -> int | None:
    """The one token that a word is inside a sentence, behind a space; None if it is several."""
    added = continuation(model, "the", f" {word}")
    return added[0] if added is not None and len(added) == 1 else None


def text_after(model: Model, ids: Sequence[int], added: Sequence[int]) -> str:
    """The text that some tokens add behind others; its leading space is kept on any tokenizer."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before, after = (model.tokenizer.decode(list(x), **options) for x in (ids, [*ids, *added]))
    return after[len(before) :]

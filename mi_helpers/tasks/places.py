"""Where things are in prompts: positions by word or number, their names on axes, equal lengths."""

import re
from collections.abc import Mapping, Sequence

from ..errors import explained
from .tokens import Model, compare_tokens, number_duplicates, token_ids, token_labels

Role = int | str | Sequence[int | str]  # where a role is: see `PromptPairs.from_texts`


def check_lengths(model: Model, clean: list[list[int]], corrupted: list[list[int]]) -> None:
    """Raises ValueError for a pair of different token lengths, with the two side by side."""
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a) != len(b):
            message = (
                f"prompt {i}: the clean prompt has {len(a)} tokens and the corrupted one {len(b)}, "
                "but patching needs equal lengths"
            )
            raise ValueError(f"{explained('MI-E01', message)}:\n{compare_tokens(model, a, b)}")


def positions_of(model: Model, texts: Sequence[str], ids: list[list[int]], role: Role) -> list[int]:
    """Each prompt's position of a role."""
    each = [role] * len(texts) if isinstance(role, int | str) else list(role)
    if len(each) != len(texts):
        raise ValueError(f"a role needs one position or word per prompt, got {len(each)}")
    positions = []
    for i, (text, tokens, where) in enumerate(zip(texts, ids, each, strict=True)):
        position = _word(model, text, tokens, where, i) if isinstance(where, str) else int(where)
        if not -len(tokens) <= position < len(tokens):
            raise ValueError(f"prompt {i}: position {where} of {len(tokens)} tokens")
        positions.append(position % len(tokens))
    return positions


def _word(model: Model, text: str, tokens: list[int], word: str, prompt: int) -> int:
    """The position of a word's last token: the length of the text up to the word's end."""
    word, _, number = word.strip().partition("#")
    ends = [found.end() for found in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not number and len(ends) != 1:
        raise ValueError(
            f"prompt {prompt}: {word!r} occurs {len(ends)} times in {text!r}"
            + (f"; write {word}#2 for the second" if ends else "")
        )
    if not 1 <= int(number or 1) <= len(ends):
        raise ValueError(f"prompt {prompt}: {word!r} occurs {len(ends)} times, not {number}")
    before = token_ids(model, text[: ends[int(number or 1) - 1]])
    if tokens[: len(before)] != before:
        raise ValueError(f"prompt {prompt}: no token ends where {word!r} does; give its position")
    return len(before) - 1


def axis_labels(model: Model, ids: list[list[int]], roles: Mapping[str, list[int]]) -> list[str]:
    """A label for each position: its role where that is in one place, else the first prompt's
    token, or where lengths differ the position's number."""
    lengths = {len(each) for each in ids}
    labels = token_labels(model, ids[0])
    if len(lengths) > 1:  # a position is not the same place in all
        labels = [str(i) for i in range(max(lengths))]
    for name, positions in roles.items():
        if len(set(positions)) == 1:
            labels[positions[0]] = name
    return number_duplicates(labels)

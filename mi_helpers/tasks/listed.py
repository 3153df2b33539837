"""Tasks whose prompts list things: what comes next in the list, or which colour a thing has."""

from typing import Literal

import numpy as np

from . import words
from .pairs import PromptPairs
from .prompts import differing, generator, one_of, single_tokens, with_roles
from .tokens import Model, continuation

SHOWN = 4  # elements of a sequence that a prompt shows


def sequence(
    model: Model,
    n: int = 8,
    seed: int = 0,
    *,
    kind: Literal["digits", "numbers", "months"] = "digits",
) -> PromptPairs:
    """Sequence continuation: "The salt: 5, 6, 7, 8," -> 9; the wrong answer is the last one shown.

    The corrupted prompt lists other elements of the kind, none of which follows its predecessor and
    none of which is the answer; the word before them is the same, and says nothing. Where a space
    before a digit is a token, it is the prompt's last (`scored` is "first"). `numbers` are words.
    Source: Lan, Torr & Barez 2023, arXiv 2311.04131, there in sentences.

    Raises ValueError for a tokenizer that gives the elements unequal numbers of tokens.
    """
    one_of("kind", kind, tuple(words.SEQUENCES))
    elements, rng = words.SEQUENCES[kind].split(), generator(n, seed)
    counts = {x: len(continuation(model, "the", f" {x}") or []) for x in elements}
    if len(set(counts.values())) > 1:
        raise ValueError(f"these {kind} are not equally many tokens for this model: {counts}")
    first = single_tokens(model, words.WORDS.split(), 1, "words")
    rows = []
    for _ in range(n):
        start = int(rng.integers(len(elements) - SHOWN))
        shown, answer = elements[start : start + SHOWN], elements[start + SHOWN]
        others = _out_of_order(rng, len(elements), start + SHOWN)
        sides = (shown, [elements[i] for i in others])
        head = f"The {rng.choice(first)}: "
        clean, corrupted = (head + ", ".join(listed) + "," for listed in sides)
        rows.append((clean, corrupted, f" {answer}", f" {shown[-1]}"))
    texts, task = zip(*rows, strict=True), f"sequence of {kind}"
    return PromptPairs.from_texts(model, *texts, task=task, scored="first")


def _out_of_order(rng: np.random.Generator, n: int, answer: int) -> list[int]:
    """Places in a sequence of n without the answer, none behind its predecessor, whose last is not
    the answer's predecessor."""
    while True:
        drawn = rng.choice([i for i in range(n) if i != answer], SHOWN, replace=False)
        if (np.diff(drawn) != 1).all() and drawn[-1] != answer - 1:
            return [int(i) for i in drawn]


def colored_objects(model: Model, n: int = 8, seed: int = 0) -> PromptPairs:
    """Colored objects: "The key is gray, the map is red, the cup is blue. The map is" -> red.

    The corrupted prompt asks for another of the three, whose colour is the wrong answer; that is
    the one position that differs.
    Source: Merullo, Eickhoff & Pavlick 2023, arXiv 2310.08744, in a shorter sentence of our own.
    """
    rng = generator(n, seed)
    colors = single_tokens(model, words.COLORS.split(), 3, "colors")
    objects = single_tokens(model, words.OBJECTS.split(), 3, "objects")
    sentence = "The {} is {}, the {} is {}, the {} is {}. The {} is"
    rows = []
    for _ in range(n):
        things, painted = (rng.choice(x, 3, replace=False) for x in (objects, colors))
        listed = [word for pair in zip(things, painted, strict=True) for word in pair]
        both = rng.choice(3, 2, replace=False)  # which is asked for in clean and corrupted prompt
        texts = [sentence.format(*listed, things[asked]) for asked in both]
        rows.append((*texts, *(f" {painted[asked]}" for asked in both)))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="colored objects")
    return with_roles(pairs, {"object": differing(pairs)[0]})

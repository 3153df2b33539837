"""Sentences in which two things go together: a subject and its verb, a profession and a pronoun."""

from itertools import product
from typing import Literal

import pandas as pd

from . import words
from .pairs import PromptPairs
from .prompts import differing, generator, one_of, with_roles
from .tokens import Model, word_token

VERBS = {"is": "are", "was": "were", "has": "have"}


def agreement(
    model: Model,
    n: int = 8,
    seed: int = 0,
    *,
    kind: Literal["simple", "preposition", "relative"] = "preposition",
) -> PromptPairs:
    """Subject-verb agreement: "The keys near the cabinet" -> are, where is is wrong.

    The corrupted prompt has the subject in the other number; that is the one position that differs.
    Half of the subjects are plural. The noun in between (none in "simple") is singular or plural by
    chance; in "relative" it stands in "that the man saw". Each pair asks for one verb of `VERBS`.
    Source: the structures of Marks et al. 2024, arXiv 2403.19647, section 3; sentences of our own.

    Raises ValueError where the tokenizer has fewer than four nouns as single tokens in both
    numbers, or no verb.
    """
    one_of("kind", kind, tuple(words.AGREEMENT))
    rng = generator(n, seed)
    both = [entry.split("/") for entry in words.NOUNS.split()]
    known, verbs = (
        [pair for pair in pairs if all(word_token(model, word) is not None for word in pair)]
        for pairs in (both, list(VERBS.items()))
    )
    if len(known) < 4 or not verbs:
        raise ValueError(
            f"this model's tokenizer has {len(known)} of {len(both)} nouns and {len(verbs)} of "
            f"{len(VERBS)} verbs as single tokens in both numbers; 4 and 1 are needed: make the "
            "set from your own words with PromptPairs.from_texts"
        )
    rows = []
    for i in range(n):
        subject, other = (known[k] for k in rng.choice(len(known), 2, replace=False))
        verb, plural, between = verbs[rng.integers(len(verbs))], i % 2, rng.integers(2)
        said = [words.AGREEMENT[kind].format(word, other[between]) for word in subject]
        right, other = f" {verb[plural]}", f" {verb[1 - plural]}"
        rows.append((said[plural], said[1 - plural], right, other))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="agreement")
    return with_roles(pairs, {"subject": differing(pairs)[0]})


def biographies(n: int = 6, seed: int = 0) -> pd.DataFrame:
    """Short lives of nurses and professors that never name the profession, each for a woman and a
    man: columns `text`, `profession`, `gender` and `cue`, the number of the sentence that tells the
    profession. Each cue stands in `n` texts of either gender, among neutral sentences; `n` texts a
    gender have no cue, and no profession. The versions for a woman and a man, one row after the
    other, differ in their pronouns alone.

    A stand-in for Bias in Bios (De-Arteaga et al. 2019), which Marks et al. 2024 use.
    """
    rng, neutral = generator(n, seed), _phrases(words.NEUTRAL)
    told = [(job, i, f"{{he}} {cue}. ") for job, cues in words.CUES.items()
            for i, cue in enumerate(_phrases(cues))]  # fmt: skip
    rows = []
    for (profession, number, cue), _ in product([*told, ("", -1, "")], range(n)):
        one, two = rng.choice(neutral, 2, replace=False)
        text = f"{{he}} {one}. {cue}{{his}} friends say that {{they}} {two}."
        for gender, (he, his) in words.PRONOUNS.items():
            said = text.format(he=he, his=his, they=he.lower())
            rows.append((said, profession, gender, number))
    return pd.DataFrame(rows, columns=["text", "profession", "gender", "cue"])


def _phrases(text: str) -> list[str]:
    return " ".join(text.split()).split("; ")

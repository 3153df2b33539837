"""Sentences in which two things go together: a subject and its verb, a profession and a pronoun."""

from itertools import product
from typing import Literal

import pandas as pd

from . import words
from .pairs import PromptPairs
from .prompts import _differing, _one_of, _rng, _with_roles
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
    _one_of("kind", kind, tuple(words.AGREEMENT))
    rng = _rng(n, seed)
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
    clean, corrupted, answers, wrong = [], [], [], []
    for i in range(n):
        subject, other = (known[k] for k in rng.choice(len(known), 2, replace=False))
        verb, plural, between = verbs[rng.integers(len(verbs))], i % 2, rng.integers(2)
        said = [words.AGREEMENT[kind].format(word, other[between]) for word in subject]
        clean.append(said[plural])
        corrupted.append(said[1 - plural])
        answers.append(f" {verb[plural]}")
        wrong.append(f" {verb[1 - plural]}")
    pairs = PromptPairs.from_texts(
        model, clean, corrupted, answers, wrong, task=f"agreement, {kind}"
    )
    return _with_roles(pairs, {"subject": _differing(pairs)[0]})


def biographies(n: int = 6, seed: int = 0) -> pd.DataFrame:
    """Short lives of nurses and professors that never name the profession, each for a woman and a
    man: columns `text`, `profession`, `gender` and `cue`, the number of the sentence that tells the
    profession. Each cue stands in `n` texts of either gender, among neutral sentences.

    A stand-in for Bias in Bios (De-Arteaga et al. 2019), as Marks et al. 2024 use it; texts of our
    own. The two versions for a woman and a man differ in their pronouns alone.
    """
    rng = _rng(n, seed)
    rows = []
    for (profession, cues), _ in product(words.CUES.items(), range(n)):
        for number, cue in enumerate(_phrases(cues)):
            one, two = rng.choice(_phrases(words.NEUTRAL), 2, replace=False)
            for gender, (he, his) in words.PRONOUNS.items():
                text = f"{he} {one}. {he} {cue}. {his} friends say that {he.lower()} {two}."
                rows.append((text, profession, gender, number))
    return pd.DataFrame(rows, columns=["text", "profession", "gender", "cue"])


def _phrases(text: str) -> list[str]:
    return " ".join(text.split()).split("; ")

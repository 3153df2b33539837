"""Sequences and colored objects on a tokenizer that splits words at spaces."""

import re
from itertools import pairwise
from typing import Any

import pytest

from mi_helpers.tasks import listed, words
from tests.tasks.test_prompts import VOCABULARY, make_model

WORDS = f"{VOCABULARY} {words.COLORS} {words.WORDS} {' '.join(words.SEQUENCES.values())} The"


@pytest.mark.parametrize("kind", words.SEQUENCES)
def test_sequences_go_on_or_do_not(kind: Any) -> None:
    model, elements = make_model(vocabulary=WORDS), words.SEQUENCES[kind].split()
    pairs = listed.sequence(model, 12, kind=kind)
    assert pairs.mask is None  # one length, so that positions mean the same
    for i in range(12):
        text = pairs.as_texts(model, i)
        clean, corrupted = (
            [elements.index(x) for x in re.findall(r"(\w+),", text[side])]
            for side in ("clean", "corrupted")
        )
        answer, wrong = (elements.index(text[name].strip()) for name in ("answer", "wrong"))
        assert clean == [*range(answer - 4, answer)]
        assert wrong == clean[-1] != corrupted[-1]
        assert answer not in corrupted
        assert all(b != a + 1 for a, b in pairwise(corrupted))
        assert text["clean"].split(":")[0] == text["corrupted"].split(":")[0]


def test_sequences_refuse_unequal_elements_and_unknown_kinds() -> None:
    with pytest.raises(ValueError, match="equally many tokens"):
        listed.sequence(make_model(vocabulary=WORDS.replace("June", "")), kind="months")
    days: Any = "days"
    with pytest.raises(ValueError, match="kind is 'days'"):
        listed.sequence(make_model(), kind=days)


def test_colored_objects_ask_for_one_of_three() -> None:
    model = make_model(vocabulary=WORDS)
    pairs = listed.colored_objects(model, 12)
    for i in range(12):
        text = pairs.as_texts(model, i)
        color_of = dict(re.findall(r"(\w+) is (\w+)[,.]", text["clean"]))
        assert len(set(color_of.values())) == 3
        asked = [text[side].split()[-2] for side in ("clean", "corrupted")]
        assert [color_of[x] for x in asked] == [text["answer"].strip(), text["wrong"].strip()]
    differs = (pairs.clean_tokens != pairs.corrupted_tokens).any(0).nonzero().flatten()
    assert differs.tolist() == [int(pairs.roles["object"][0])]

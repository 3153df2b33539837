"""Prompt pairs and tasks, on word-level tokenizers that split text as real ones do."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mi_helpers.tasks import prompts, sentences, words
from mi_helpers.tasks.pairs import PromptPairs
from mi_helpers.tasks.tokens import compare_tokens, token_labels

SENTENCES = (
    "the in the year List: The lasted from the year to the year def (self, ):\n "
    '"""\n\n    :param : \n    :param '
    + " ".join([*words.IOI_TEMPLATES.values(), *words.AGREEMENT.values()])
)
LISTED = (words.NAMES, words.PLACES, words.OBJECTS, words.EVENTS, words.WORDS, words.ARGUMENTS)
VERBS = (*sentences.VERBS, *sentences.VERBS.values())
CAPITALS = "The capital of is " + words.CAPITALS.replace(";", " ")
VOCABULARY = " ".join([words.NOUNS.replace("/", " "), *VERBS, *LISTED, CAPITALS])
GENERATORS = (
    prompts.ioi,
    prompts.greater_than,
    prompts.induction,
    prompts.facts,
    prompts.docstring,
    sentences.agreement,
)


@cache
def make_model(digits: str = r"[0-9]", vocabulary: str = VOCABULARY) -> SimpleNamespace:
    """Enough of a bridge to tokenise: words with their leading space, digits split by `digits`."""
    pattern = rf" ?[A-Za-z]+|{digits}|[0-9]|[^A-Za-z0-9]"
    numbers = [str(i) for i in range(10)] + [f"{i:02}" for i in range(100)]
    # with and without the space, because a prompt's first word has none
    text = re.findall(pattern, SENTENCES) + re.findall(r"[A-Za-z]+", SENTENCES)
    text += [" " + word for word in (SENTENCES + " " + vocabulary).split() if word.isalpha()]
    vocab = dict.fromkeys(["<unk>", "<s>", *numbers, *map(str, range(100, 1000)), *text])
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")

    def to_tokens(text: str) -> torch.Tensor:
        return torch.tensor([[1, *tokenizer(text)["input_ids"]]])

    cfg = SimpleNamespace(device="cpu", d_vocab=len(vocab))
    return SimpleNamespace(tokenizer=tokenizer, to_tokens=to_tokens, cfg=cfg)


def token(model: SimpleNamespace, text: str) -> int:
    return model.tokenizer.convert_tokens_to_ids(text)


class Scripted:
    """A model that gives each prompt's answer the logit it is told to, at the last position."""

    def __init__(self, pairs: PromptPairs, clean: list[float], corrupted: list[float]):
        both = [(pairs.clean_tokens, clean), (pairs.corrupted_tokens, corrupted)]
        self.script = {
            tuple(row.tolist()): (int(answer), value)
            for tokens, values in both
            for row, answer, value in zip(tokens, pairs.answers, values, strict=True)
        }

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, 2000)
        for i, row in enumerate(tokens):
            answer, value = self.script[tuple(row.tolist())]
            logits[i, -1, answer] = value
        return logits


def global_random_state() -> tuple[str, str]:
    return str(torch.get_rng_state().tolist()), str(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("task", GENERATORS, ids=lambda task: task.__name__)
def test_every_task(task):
    """What all generators promise: shapes, labels, seeds, prefixes, and no global state."""
    model = make_model()
    before = global_random_state()
    pairs = task(model, n=6, seed=3)
    assert global_random_state() == before
    assert pairs.task == task.__name__
    assert len(pairs) == 6
    assert pairs.clean_tokens.shape == pairs.corrupted_tokens.shape == (6, len(pairs.labels))
    assert len(set(pairs.labels)) == len(pairs.labels)
    assert pairs.labels[-1] == "END"
    assert pairs.roles["END"].tolist() == [len(pairs.labels) - 1] * 6
    assert len(pairs.roles) > 1
    assert not (pairs.clean_tokens == 0).any(), "an unknown word was used"
    assert not (pairs.answers == pairs.wrong).any()
    assert (pairs.clean_tokens != pairs.corrupted_tokens).any(1).all()
    assert task(model, n=6, seed=3).clean == pairs.clean
    assert task(model, n=6, seed=4).clean != pairs.clean
    assert task(model, n=9, seed=3).clean[:6] == pairs.clean
    for text, answer in zip(pairs.clean, pairs.answers, strict=True):
        after = text + model.tokenizer.decode([answer])
        assert model.to_tokens(after)[0, -1] == answer
    with pytest.raises(ValueError, match="n is 0"):
        task(model, n=0)


def occurrences(tokens: torch.Tensor, ids: torch.Tensor) -> list[int]:
    return (tokens == ids[:, None]).sum(1).tolist()


@pytest.mark.parametrize("template", words.IOI_TEMPLATES)
@pytest.mark.parametrize("order", ["abba", "baba", "both"])
def test_ioi_prompts(template, order):
    pairs = prompts.ioi(make_model(), n=6, template=template, order=order)
    assert occurrences(pairs.clean_tokens, pairs.answers) == [1] * 6
    assert occurrences(pairs.clean_tokens, pairs.wrong) == [2] * 6
    first = [
        int((row == a).nonzero()[0]) < int((row == b).nonzero()[0])
        for row, a, b in zip(pairs.clean_tokens, pairs.answers, pairs.wrong, strict=True)
    ]
    assert first == {"abba": [True] * 6, "baba": [False] * 6, "both": [True, False] * 3}[order]
    named = [label for label in pairs.labels if "IO" in label or "S1" in label or "S2" in label]
    expected = {"abba": ["IO", "S1"], "baba": ["S1", "IO"], "both": ["IO/S1", "IO/S1 (2)"]}
    assert named == [*expected[order], "S2"]
    tokens = {role: pairs.clean_tokens[range(6), at] for role, at in pairs.roles.items()}
    assert torch.equal(tokens["IO"], pairs.answers)
    assert torch.equal(tokens["S1"], pairs.wrong)
    assert torch.equal(tokens["S2"], pairs.wrong)
    assert (pairs.roles["S1"] < pairs.roles["S2"]).all()


def test_ioi_corruptions_differ_as_documented():
    model = make_model()
    sets = {c: prompts.ioi(model, n=6, corruption=c) for c in ("abc", "s2", "names")}
    names = [sets["abc"].labels.index(label) for label in ("IO", "S1", "S2")]
    for corruption, pairs in sets.items():
        assert pairs.clean == sets["abc"].clean
        differs = (pairs.clean_tokens != pairs.corrupted_tokens).nonzero()[:, 1].reshape(6, -1)
        assert differs.tolist() == [names[-1:] if corruption == "s2" else names] * 6
    abc, swapped = (sets[c].corrupted_tokens[:, names] for c in ("abc", "names"))
    clean = sets["abc"].clean_tokens[:, names]
    assert all(
        len({*new.tolist(), *old.tolist()}) == 5 for new, old in zip(abc, clean, strict=True)
    )
    assert torch.equal(swapped, clean[:, [1, 0, 0]])


def test_ioi_takes_a_sentence_of_ones_own():
    sentence = "Then {first} and {second} met, and {giver} gave it to"
    assert prompts.ioi(make_model(), n=2, template=sentence).clean[0].endswith("gave it to")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruption": "abb"}, "corruption is 'abb'; it must be one of abc, s2, names"),
        ({"order": "random"}, "it must be one of abba, baba, both"),
        ({"template": "nosuch"}, "it must be one of"),
        ({"template": "Then {first} and {second} met. {first} left"}, r"needs \{first\}"),
    ],
)
def test_ioi_refuses_unknown_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        prompts.ioi(make_model(), **arguments)


@pytest.mark.parametrize(("digits", "width"), [("[0-9]", 1), ("[0-9]{2}", 2)])
def test_greater_than(digits, width):
    model = make_model(digits)
    pairs = prompts.greater_than(model, n=20)
    assert pairs.right_set is not None
    assert pairs.wrong_set is not None
    for i, text in enumerate(pairs.clean):
        start = re.sub(r".* year (\d\d)(\d\d) to the year \1$", r"\2", text)[:width]
        later = [f"{k:0{width}}" for k in range(10**width) if k > int(start)]
        earlier = [f"{k:0{width}}" for k in range(10**width) if k < int(start) + width - 1]
        for marks, expected in ((pairs.right_set, later), (pairs.wrong_set, earlier)):
            found = [model.tokenizer.decode([k]) for k in marks[i].nonzero().flatten()]
            assert sorted(found) == expected
        assert pairs.right_set[i, pairs.answers[i]]
        assert pairs.wrong_set[i, pairs.wrong[i]]
        assert pairs.corrupted[i] == re.sub(r"(\d\d)\d\d to", r"\g<1>01 to", text)


def test_greater_than_needs_usable_digits():
    with pytest.raises(ValueError, match="no one-token answers"):
        prompts.greater_than(make_model("[0-9]{3}"))


def test_induction():
    pairs = prompts.induction(make_model(), n=5)
    for clean, corrupted, answer, wrong in zip(
        pairs.clean_tokens, pairs.corrupted_tokens, pairs.answers, pairs.wrong, strict=True
    ):
        cue = int((clean == clean[-1]).nonzero()[0])
        assert clean[cue + 1] == answer
        assert corrupted[cue + 1] == wrong
        assert sorted(clean.tolist()) == sorted(corrupted.tolist())
        assert (clean != corrupted).sum() == 2
    assert pairs.labels.index("decoy") > pairs.labels.index("answer")


def test_facts():
    model = make_model()
    most = len(words.CAPITALS.split(";"))
    pairs = prompts.facts(model, n=most)
    known = re.sub(r"\s+", " ", words.CAPITALS)
    answers = [pairs.answers, pairs.wrong]
    for texts, tokens in zip([pairs.clean, pairs.corrupted], answers, strict=True):
        for text, answer in zip(texts, tokens, strict=True):
            country = text.split()[-2]
            assert f"{country}{model.tokenizer.decode([answer])}" in known
    assert len(set(pairs.clean)) == most
    assert "country" in pairs.labels
    with pytest.raises(ValueError, match=f"single tokens for only {most}"):
        prompts.facts(model, n=most + 1)


@pytest.mark.parametrize("kind", words.AGREEMENT)
def test_agreement(kind):
    pairs = sentences.agreement(make_model(), n=12, kind=kind)
    numbers = [entry.split("/") for entry in words.NOUNS.split()]
    at = pairs.roles["subject"]
    assert ((pairs.clean_tokens != pairs.corrupted_tokens).sum(1) == 1).all()
    for i, (clean, corrupted, answer) in enumerate(
        zip(pairs.clean, pairs.corrupted, pairs.answers, strict=True)
    ):
        subject, other = clean.split()[1], corrupted.split()[1]
        pair = next(two for two in numbers if subject in two)
        assert sorted([subject, other]) == sorted(pair)
        assert pair.index(subject) == i % 2  # half of them plural
        verb = make_model().tokenizer.decode([answer]).strip()
        assert (verb in sentences.VERBS.values()) == bool(i % 2)
        assert pairs.clean_tokens[i, at[i]] == token(make_model(), f" {subject}")
    with pytest.raises(ValueError, match="nouns and 3 of 3 verbs as single tokens"):
        sentences.agreement(make_model(vocabulary="is are was were has have man men"), kind=kind)


def test_biographies():
    """Two versions differ in pronouns alone; a cue stands in as many texts of either gender."""
    table = sentences.biographies(n=3, seed=1)
    women, men = (table[table["gender"] == g].reset_index(drop=True) for g in ("woman", "man"))
    swap = [("She ", "He "), ("Her ", "His "), (" she ", " he ")]
    for of_woman, of_man in zip(women["text"], men["text"], strict=True):
        for one, other in swap:
            of_woman = of_woman.replace(one, other)
        assert of_woman == of_man
    assert (table.groupby(["profession", "cue", "gender"]).size() == 3).all()
    assert table.groupby("profession")["cue"].nunique().to_dict() == {
        "": 1,
        "nurse": 24,
        "professor": 24,
    }
    assert not table["text"].str.contains("nurse|professor", case=False).any()
    assert table["text"].nunique() > 0.9 * len(table)


def test_docstring():
    pairs = prompts.docstring(make_model(), n=8)
    for i in range(8):
        at = dict(zip(pairs.labels, pairs.clean_tokens[i].tolist(), strict=True))
        assert at["A def"] == at["A doc"]
        assert at["B def"] == at["B doc"]
        assert at["C def"] == pairs.answers[i]
        definition = pairs.clean_tokens[i, : pairs.labels.index("A doc")]
        assert (definition == pairs.wrong[i]).sum() == 1
        differs = (pairs.clean_tokens[i] != pairs.corrupted_tokens[i]).nonzero().flatten()
        assert [pairs.labels[k] for k in differs] == ["A def", "B def", "C def", "A doc", "B doc"]


def test_too_few_words():
    with pytest.raises(ValueError, match="3 single-token names of 63 tried, and 5"):
        prompts.ioi(make_model(vocabulary="Mary John Tom store drink"))


def from_texts(clean, corrupted, answers=(" Mary",), wrong=(" John",)):
    return PromptPairs.from_texts(make_model(), clean, corrupted, list(answers), list(wrong))


def test_unequal_lengths_are_shown_side_by_side():
    with pytest.raises(ValueError, match=r"(?s)prompt 0: the clean prompt has 3 .* one 4") as error:
        from_texts(["the year"], ["the year the"])
    lines = str(error.value).splitlines()[-4:]
    assert [line.split() for line in lines] == [
        ["0", "‹s›", "‹s›"],
        ["1", "the", "the"],
        ["2", "·year", "·year"],
        ["3", "(end)", "·the", "<-", "differs"],
    ]
    two = ["the year", "the year to"]
    pairs = from_texts(two, two, (" Mary", " Tom"), (" John", " Dan"))
    assert pairs.roles["END"].tolist() == [2, 3]
    assert pairs.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert pairs.labels == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("answers", "wrong", "message"),
    [
        ([" Mary John"], [" Tom"], "' Mary John' is not one token"),
        ([" Mary"], ["er"], "'er' is not one token after 'the year'.*leading space"),
        ([" Xyzzy"], [" Tom"], "is not one token"),
        ([""], [" Tom"], "is not one token"),
        ([" Mary"], [" Mary"], "prompt 0: answer and wrong answer are both ' Mary'"),
        ([" Mary", " Tom"], [" John"], "'answers': 2"),
    ],
)
def test_bad_answers_are_refused(answers, wrong, message):
    with pytest.raises(ValueError, match=message):
        from_texts(["the year"], ["to the"], answers, wrong)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        from_texts([], [], [], [])


def test_from_texts_keeps_what_it_is_given():
    model = make_model()
    pairs = PromptPairs.from_texts(
        model, ["the the year"], ["the in year"], [" Mary"], [" John"], roles={"here": 2}
    )
    assert pairs.labels == ["‹s›", "the", "here", "·year"]
    assert pairs.answers.tolist() == [token(model, " Mary")]
    assert pairs.wrong.tolist() == [token(model, " John")]


def test_pairs_from_a_table(tmp_path):
    model = make_model()
    made = prompts.ioi(model, n=4, order="both")
    lines = [
        {"clean": c, "corrupted": o, "answer": " " + io, "wrong": " " + s, "role:IO": io}
        | {"role:S2": f"{s}#2", "role:third": 3}
        for c, o in zip(made.clean, made.corrupted, strict=True)
        for s in [c.split()[-5]]
        for io in [next(w for w in c.split() if w in words.NAMES.split() and w != s)]
    ]
    table = pd.DataFrame(lines)
    table.to_csv(tmp_path / "own.csv", index=False)
    table.to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    table.assign(**{"role:third": 3}).to_parquet(tmp_path / "own.parquet")
    files = [tmp_path / "own.csv", str(tmp_path / "own.jsonl"), tmp_path / "own.parquet"]
    for given in (table, *files):
        pairs = PromptPairs.from_table(model, given, task="own")
        assert torch.equal(pairs.clean_tokens, made.clean_tokens)
        assert torch.equal(pairs.answers, made.answers)
        assert torch.equal(pairs.roles["IO"], made.roles["IO"])
        assert torch.equal(pairs.roles["S2"], made.roles["S2"])
        assert pairs.roles["third"].tolist() == [3] * 4
    ids = table.drop(columns=["answer", "wrong"])
    ids = ids.assign(correct_idx=made.answers.tolist(), incorrect_idx=made.wrong.tolist())
    assert torch.equal(PromptPairs.from_table(model, ids).wrong, made.wrong)
    ids = ids.rename(
        columns={"correct_idx": "country_idx", "incorrect_idx": "corrupted_country_idx"}
    )
    ids.to_csv(tmp_path / "ids.csv", index=False)
    assert torch.equal(PromptPairs.from_table(model, tmp_path / "ids.csv").wrong, made.wrong)
    with pytest.raises(ValueError, match=r"own\.txt is none of \.csv"):
        PromptPairs.from_table(model, "own.txt")
    half = pairs.part(slice(0, 2))
    assert len(half) == len(half.roles["IO"]) == 2
    assert half.clean == pairs.part([0, 1]).clean


def test_digits_in_a_csv_are_text(tmp_path):
    model = make_model()
    text = "clean,corrupted,answer,wrong\nthe year,in year,7,8\n"
    (tmp_path / "own.csv").write_text(text)
    pairs = PromptPairs.from_table(model, tmp_path / "own.csv")
    assert pairs.answers.tolist() == [token(model, "7")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "line 2: answer is empty"),
        ({"answer": " Mary John"}, "line 2: the answer ' Mary John' is not one token"),
        ({"corrupted": "the in year to"}, "line 2: the clean prompt has 4 tokens"),
        ({"role:X": "day"}, "line 2: 'day' occurs 0 times"),
        ({"role:X": "the"}, "line 2: 'the' occurs 2 times .*the#2"),
        ({"answer": 5000}, "line 2: token 5000 is outside a vocabulary"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(change, message):
    good = {
        "clean": "the the year",
        "corrupted": "the in year",
        "answer": " Mary",
        "wrong": " John",
    }
    good |= {"role:X": "year"}
    table = pd.DataFrame([good, good | change])
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_table(make_model(), table)
    with pytest.raises(ValueError, match="no columns"):
        PromptPairs.from_table(make_model(), table.drop(columns="wrong"))


def test_token_labels_are_readable_and_distinct():
    model = make_model()
    ids = [1] + [token(model, text) for text in (" the", "\n", " the", " ", "the", " the")]
    labels = token_labels(model, torch.tensor(ids))
    assert labels == ["‹s›", "·the", "\\n", "·the (2)", "·", "the", "·the (3)"]


def test_token_labels_of_a_sentencepiece_tokenizer():
    """Its decoder drops the space that its pieces carry; the label must not."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "▁the": 1, "ing": 2}, "<unk>"))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert token_labels(SimpleNamespace(tokenizer=tokenizer), [1, 2, 1]) == [
        "·the",
        "ing",
        "·the (2)",
    ]


def test_token_labels_of_half_a_character():
    inner = Tokenizer(models.WordLevel({"Ã": 0, "©": 1}, "Ã"))
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert token_labels(SimpleNamespace(tokenizer=tokenizer), [0, 1]) == ["Ã", "©"]


def test_compare_tokens_marks_the_differences():
    model = make_model()
    text = compare_tokens(model, [1, token(model, " the")], [1, token(model, " Mary")])
    assert [line.endswith("<- differs") for line in text.splitlines()] == [False, False, True]


def test_performance():
    pairs = prompts.ioi(make_model(), n=8)
    scripted = Scripted(pairs, clean=[2.0] * 6 + [-1.0] * 2, corrupted=[0.0] * 8)
    table = pairs.performance(scripted)
    assert table.index.tolist() == ["clean", "corrupted"]
    assert table.loc["clean", ["prompts", "accuracy", "logit_diff"]].tolist() == [8, 0.75, 1.25]
    # Wilson's interval for 6 of 8, worked out by hand
    assert table.loc["clean", "accuracy_low"] == pytest.approx(0.4093, abs=1e-4)
    assert table.loc["clean", "accuracy_high"] == pytest.approx(0.9285, abs=1e-4)
    assert -1 < table.loc["clean", "logit_diff_low"] < 1.25 < table.loc["clean", "logit_diff_high"]
    assert table.loc["corrupted", ["accuracy", "logit_diff"]].tolist() == [0.0, 0.0]
    perfect = pairs.performance(Scripted(pairs, [1.0] * 8, [0.0] * 8)).loc["clean"]
    assert (perfect.accuracy_low, perfect.accuracy_high) == (pytest.approx(0.6756, abs=1e-4), 1.0)


@pytest.mark.parametrize(
    ("clean", "corrupted", "does"),
    [
        ([2.0] * 16, [0.0] * 16, True),
        ([2.0] * 13 + [-0.5] * 3, [0.0] * 16, True),
        ([2.0] * 16, [2.0] * 16, False),  # the corruption takes nothing away
        ([2.0] * 11 + [-0.5] * 5, [0.0] * 16, False),  # right on 11 of 16
        ([-2.0] * 16, [0.0] * 16, False),
        ([1.0, -1.0] * 8, [0.0] * 16, False),
    ],
)
def test_does_task(clean, corrupted, does):
    pairs = prompts.ioi(make_model(), n=16)
    assert pairs.does_task(Scripted(pairs, clean, corrupted)) is does


def test_untrained_models_do_not_do_the_task():
    """Random logits pass the rule by luck in under 2 % of seeds."""
    pairs = prompts.ioi(make_model(), n=8)
    rng = np.random.default_rng(0)
    passed = [
        pairs.does_task(Scripted(pairs, *rng.normal(size=(2, 8)).tolist())) for _ in range(60)
    ]
    assert sum(passed) <= 1

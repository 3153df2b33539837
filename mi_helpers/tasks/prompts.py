"""Tasks: generators of prompt pairs whose behaviour is known from papers.

Each generator picks its words from those that are one token for the model at hand, so that a set
has one token length on any tokenizer, and takes a seed; a larger `n` extends a smaller one. What a
corruption leaves as it was cannot be found by patching: each docstring says what differs between
the two prompts. Look at `pairs.performance(model)` before patching anything.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from . import words
from .pairs import PromptPairs
from .tokens import Model, continuation, number_duplicates, word_token


def ioi(
    model: Model,
    n: int = 8,
    seed: int = 0,
    *,
    corruption: Literal["abc", "s2", "names"] = "abc",
    template: str = "together",
    order: Literal["abba", "baba", "both"] = "abba",
) -> PromptPairs:
    """Indirect object identification: "When Mary and John went … John gave a book to" -> Mary.

    The answer is the name that occurs once (IO), the wrong answer the one that occurs twice (S).
    What differs between clean and corrupted prompt:
    - "abc": all three names become three other, distinct names, so no name is repeated. The
      corrupted prompt favours neither answer.
    - "s2": the second subject alone becomes the indirect object. One late position differs, and the
      corrupted prompt's right answer is the clean one's wrong answer.
    - "names": IO and S change places everywhere. All three name positions differ, and the right and
      wrong answers are exchanged.

    `order` puts IO before S1 ("abba"), after it ("baba"), or alternates; `template` is a key of
    `words.IOI_TEMPLATES` or a sentence of one's own with the same fields.
    Source: Wang et al. 2022, arXiv 2211.00593, section 2 and appendix E, with sentences of our own.
    """
    one_of("corruption", corruption, ("abc", "s2", "names"))
    one_of("order", order, ("abba", "baba", "both"))
    sentence = _sentence(template)
    names = single_tokens(model, words.NAMES.split(), 5, "names")
    places = single_tokens(model, words.PLACES.split(), 1, "places")
    objects = single_tokens(model, words.OBJECTS.split(), 1, "objects")
    rng = generator(n, seed)
    rows = []
    for i in range(n):
        io, s, *others = rng.choice(names, 5, replace=False)
        io_first = order == "abba" or (order == "both" and i % 2 == 0)
        things = {"place": rng.choice(places), "object": rng.choice(objects)}
        first, second = (io, s) if io_first else (s, io)
        swapped = {"abc": others, "s2": (first, second, io), "names": (second, first, io)}
        a, b, c = swapped[corruption]
        clean = sentence.format(first=first, second=second, giver=s, **things)
        corrupted = sentence.format(first=a, second=b, giver=c, **things)
        rows.append((clean, corrupted, f" {io}", f" {s}"))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="ioi")
    (io_at,), (s1_at, s2_at) = _where(pairs, pairs.answers), _where(pairs, pairs.wrong)
    return with_roles(pairs, {"IO": io_at, "S1": s1_at, "S2": s2_at})


def greater_than(model: Model, n: int = 8, seed: int = 0) -> PromptPairs:
    """Greater-than: "The war lasted from the year 1732 to the year 17" -> a later two digits.

    The corrupted prompt has 01 for the start year's last two digits, so that nearly every
    continuation is later; nothing else differs. Where the tokenizer keeps two digits together, the
    answer is a two-digit token above the start year's and the wrong one is up to it. Where every
    digit is a token, the same holds for the tens digit (strictly below, since equal tens decide
    nothing). `right_set` and `wrong_set` hold all such tokens, for `metrics.prob_diff`.
    Source: Hanna, Liu & Variengien 2023, arXiv 2305.00586.
    """
    rng = generator(n, seed)
    events = single_tokens(model, words.EVENTS.split(), 1, "events")
    years, tokens = _years(model)
    numbers, digits = sorted(tokens), len(next(iter(tokens)))
    sentence = "The {} lasted from the year {} to the year {}"
    rows, later, earlier = [], [], []
    for _ in range(n):
        event, year = rng.choice(events), str(rng.choice(years))
        century, start = year[:2], year[2 : 2 + digits]
        clean = sentence.format(event, year, century)
        corrupted = sentence.format(event, f"{century}01", century)
        after = [number for number in numbers if number > start]
        before = [k for k in numbers if k < start or (digits == 2 and k == start)]
        later.append([tokens[number] for number in after])
        earlier.append([tokens[number] for number in before])
        answer, wrong = (tokens[str(rng.choice(some))] for some in (after, before))
        rows.append((clean, corrupted, answer, wrong))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="greater_than")
    right_set, wrong_set = _token_sets(model, later), _token_sets(model, earlier)
    pairs = replace(pairs, right_set=right_set, wrong_set=wrong_set)
    return with_roles(pairs, {"YY": differing(pairs)[0]})


def induction(model: Model, n: int = 8, seed: int = 0) -> PromptPairs:
    """A list of random words that starts again: the cue's first successor comes next.

    "List: w1 … w10 w1 … w5" -> w6. In the corrupted prompt the answer w6 and a decoy, w9, have
    changed places in the first round, so that the decoy is right there. Those two positions differ;
    both words are in both prompts, so only their order tells them apart.
    Source: Olsson et al. 2022, arXiv 2209.11895; made into pairs here.
    """
    length, shown, decoy = 10, 5, 8
    rng = generator(n, seed)
    vocabulary = single_tokens(model, words.WORDS.split(), length, "words")
    rows = []
    for _ in range(n):
        listed = list(rng.choice(vocabulary, length, replace=False))
        other = listed.copy()
        other[shown], other[decoy] = listed[decoy], listed[shown]
        clean, corrupted = (" ".join(["List:", *x, *listed[:shown]]) for x in (listed, other))
        rows.append((clean, corrupted, f" {listed[shown]}", f" {listed[decoy]}"))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="induction")
    return with_roles(pairs, dict(zip(("answer", "decoy"), differing(pairs), strict=True)))


def facts(model: Model, n: int = 8, seed: int = 0) -> PromptPairs:
    """Factual recall: "The capital of France is" -> Paris.

    The corrupted prompt names another country with another answer, which is the wrong answer. The
    country is the only position that differs. `n` is at most the number of countries whose name and
    answer are single tokens for this model.
    """
    rng = generator(n, seed)
    answer_of = dict(entry.split() for entry in words.CAPITALS.split(";"))
    countries = single_tokens(model, list(answer_of), 2, "countries")
    known = set(single_tokens(model, list(answer_of.values()), 2, "answers"))
    countries = [country for country in countries if answer_of[country] in known]
    if n > len(countries):
        raise ValueError(
            f"n is {n}, but this model's tokenizer has single tokens for only {len(countries)} of "
            f"the {len(answer_of)} countries and their answers"
        )
    rows = []
    for country in rng.permutation(countries)[:n]:
        other = rng.choice([c for c in countries if answer_of[c] != answer_of[country]])
        texts = [f"The capital of {name} is" for name in (country, other)]
        rows.append((*texts, *(f" {answer_of[name]}" for name in (country, other))))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="facts")
    return with_roles(pairs, {"country": differing(pairs)[0]})


def docstring(model: Model, n: int = 8, seed: int = 0) -> PromptPairs:
    """Docstring completion: after two documented arguments, the name of the third comes next.

    A function with six arguments (two before, three to be documented, one after) and a docstring
    that ends in ":param". The corrupted prompt has other random names for the three arguments in
    the definition and, independently, for the two in the docstring; all else is equal. The wrong
    answer is one of the definition's other five arguments.
    Source: Heimersheim & Janiak 2023; prompt form as in Conmy et al. 2023, arXiv 2304.14997.
    """
    rng = generator(n, seed)
    names = single_tokens(model, words.ARGUMENTS.split(), 12, "argument names")
    vocabulary = single_tokens(model, words.WORDS.split(), 7, "words")
    rows = []
    for _ in range(n):
        function, *arguments = rng.choice(names, 12, replace=False)
        before, (a, b, c, after), others = arguments[:2], arguments[2:6], arguments[6:]
        prose = [" ".join(rng.choice(vocabulary, k)) for k in (2, 2, 2)]
        clean = _definition(function, [*before, a, b, c, after], [a, b], prose)
        corrupted = _definition(function, [*before, *others[:3], after], others[3:], prose)
        rows.append((clean, corrupted, f" {c}", f" {rng.choice([*before, a, b, after])}"))
    pairs = PromptPairs.from_texts(model, *zip(*rows, strict=True), task="docstring")
    roles = ("A def", "B def", "C def", "A doc", "B doc")
    return with_roles(pairs, dict(zip(roles, differing(pairs), strict=True)))


def _definition(
    function: str, arguments: Sequence[str], documented: Sequence[str], prose: Sequence[str]
) -> str:
    lines = [f"    :param {name}: {text}" for name, text in zip(documented, prose[1:], strict=True)]
    # a fixed first word: it has no space before it, so most words would be several tokens there
    head = f'def {function}(self, {", ".join(arguments)}):\n    """The {prose[0]}\n'
    return "\n".join([head, *lines, "    :param"])


def _years(model: Model) -> tuple[list[str], dict[str, int]]:
    """Years that split after the century, and the token of each number that may end one: of two
    digits where the tokenizer has those, else of one."""
    for digits in (2, 1):
        added = {f"{k:0{digits}}": continuation(model, "the", f"{k:0{digits}}")
                 for k in range(10**digits)}  # fmt: skip
        tokens = {number: ids[0] for number, ids in added.items() if ids and len(ids) == 1}
        if len(tokens) < 10**digits:
            continue
        years = []
        for century in range(11, 18):
            head = continuation(model, "in the year", f" {century}") or []
            room = range(2, 99) if digits == 2 else range(10, 90)  # numbers below and above
            for last in (1, *room):  # the corrupted prompt's year is …01
                year = f"{last:02}"
                ends = [tokens[year[i : i + digits]] for i in range(0, 2, digits)]
                splits = continuation(model, "in the year", f" {century}{year}") == [*head, *ends]
                if not head or (last == 1 and not splits):
                    break
                if splits and last > 1:
                    years.append(f"{century}{year}")
        if years:
            return years, tokens
    raise ValueError(
        "this model's tokenizer neither keeps the last two digits of a year together nor "
        "splits single digits, so greater_than has no one-token answers"
    )


def _token_sets(model: Model, tokens: Sequence[Sequence[int]]) -> Bool[Tensor, "prompt vocab"]:
    """Marks each prompt's tokens."""
    marks = torch.zeros(len(tokens), model.cfg.d_vocab, dtype=torch.bool)
    for row, marked in zip(marks, tokens, strict=True):
        row[list(marked)] = True
    return marks.to(model.cfg.device)


def single_tokens(model: Model, tried: Sequence[str], least: int, kind: str) -> list[str]:
    """The words that are one token of their own after a space."""
    found: dict[int, str] = {}
    for word in tried:
        if (token := word_token(model, word)) is not None:
            found.setdefault(token, word)
    if len(found) < least:
        raise ValueError(
            f"this model's tokenizer has {len(found)} single-token {kind} of {len(tried)} tried, "
            f"and {least} are needed; make the set from your own words with PromptPairs.from_texts"
        )
    return list(found.values())


def differing(pairs: PromptPairs) -> list[int]:
    """The positions at which the first pair's two prompts differ."""
    return (pairs.clean_tokens[0] != pairs.corrupted_tokens[0]).nonzero().flatten().tolist()


def _where(pairs: PromptPairs, tokens: Int[Tensor, "prompt"]) -> Int[Tensor, "occurrence prompt"]:
    """The positions at which each prompt holds its token, all prompts equally often."""
    found = (pairs.clean_tokens == tokens[:, None]).nonzero()[:, 1]
    return rearrange(found, "(prompt occurrence) -> occurrence prompt", prompt=len(pairs))


def with_roles(pairs: PromptPairs, roles: Mapping[str, int | Int[Tensor, "prompt"]]) -> PromptPairs:
    """The pairs with positions named by their roles, on axes "IO/S1" where prompts differ."""
    found = {name: torch.zeros_like(pairs.answers) + at for name, at in roles.items()} | pairs.roles
    named: dict[int, list[str]] = defaultdict(list)
    for name, at in found.items():
        for position in at.unique().tolist():
            named[position].append(name)
    labels = ["/".join(named[i]) if i in named else text for i, text in enumerate(pairs.labels)]
    return replace(pairs, labels=number_duplicates(labels), roles=found)


def generator(n: int, seed: int) -> np.random.Generator:
    """What a task of n pairs draws from."""
    if n < 1:
        raise ValueError(f"n is {n}; a set needs at least one prompt pair")
    return np.random.default_rng(seed)


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError for a choice that there is not."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _sentence(template: str) -> str:
    """The sentence of a named template, or one written out, once its fields are checked."""
    if " " not in template:
        one_of("template", template, tuple(words.IOI_TEMPLATES))
    sentence = words.IOI_TEMPLATES.get(template, template)
    if any(sentence.count(field) != 1 for field in ("{first}", "{second}", "{giver}")):
        raise ValueError(
            f"an IOI sentence needs {{first}}, {{second}}, {{giver}} once: {template!r}"
        )
    return sentence

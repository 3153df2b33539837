"""Networks whose circuit is known, or measured edge by edge."""

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_helpers import circuits, load_model
from mi_helpers.circuits.graph import Graph
from mi_helpers.data.docstring import make as train_docstring
from mi_helpers.tasks.prompts import docstring
from mi_helpers.toys.docstring import docstring_network, word_tokenizer
from tests.circuits.tracr_networks import (
    PUBLISHED,
    Program,
    load_arrays,
    squared_change,
    tracr_pairs,
    tracr_program,
)

PROGRAMS: tuple[Program, ...] = ("proportion", "reverse")
Written = dict[str, np.ndarray]  # what each sender writes, [pos, stream]

# The paper's lists with tokens and positions as two nodes (Conmy et al. 2023, appendix).
SPLIT = {
    "proportion": """A1 -> out, positions -> A1.q, positions -> A1.k, M0 -> A1.v, tokens -> M0,
        tokens -> A1.q, tokens -> A1.k""",
    "reverse": """A3 -> out, M2 -> A3.q, positions -> A3.k, tokens -> A3.v, M1 -> M2, M0 -> M1,
        tokens -> M1, positions -> M1, A0 -> M0, tokens -> M0, tokens -> A0.v""",
}


def compiled(
    program: Program, text: str, removed: frozenset[str] = frozenset(), other: Written | None = None
) -> tuple[np.ndarray, Written]:
    """The compiler's network as it stands, in both directions: output [pos, value] behind BOS, and
    what each sender wrote. Removed edges carry `other`, or zero."""
    arrays, vocabulary = load_arrays(program)
    w = {name: value.double().numpy() for name, value in arrays.items()}
    ids = [vocabulary.index(token) for token in ("BOS", *text.split())]
    written = {"tokens": w["tokens"][ids], "positions": w["positions"][: len(ids)]}

    def read(receiver: str) -> np.ndarray:
        total = np.zeros_like(written["tokens"])
        for sender, own in written.items():
            gone = f"{sender} -> {receiver}" in removed
            total = total + ((0 * own if other is None else other[sender]) if gone else own)
        return total

    for layer in range(len(w["query"])):
        q, k, v = (
            read(f"A{layer}.{name[0]}") @ w[name][layer] for name in ("query", "key", "value")
        )
        scores = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        z = scores / scores.sum(1, keepdims=True) @ v
        written[f"A{layer}"] = z @ w["output"][layer]
        hidden = np.maximum(read(f"M{layer}") @ w["mlp_in"][layer], 0)
        written[f"M{layer}"] = hidden @ w["mlp_out"][layer]
    return (read("out") @ w["unembed"])[1:], written


def right(program: Program, text: str) -> np.ndarray:
    """What the program should write at every position."""
    letters = text.split()
    if program == "reverse":
        return np.eye(3)[[int(letter) - 1 for letter in letters[::-1]]]
    return np.array([[letters[: i + 1].count("x") / (i + 1)] for i in range(len(letters))])


def inputs(program: Program, longest: int) -> Iterator[str]:
    letters = "123" if program == "reverse" else "wxyz"
    for length in range(1, longest + 1):
        yield from map(" ".join, itertools.product(letters, repeat=length))


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiled_networks_compute_their_programs(program: Program) -> None:
    for text in inputs(program, 3):
        assert np.abs(compiled(program, text)[0] - right(program, text)).max() < 1e-6
    model = tracr_program(program)
    shown = [
        model.tokenizer.convert_tokens_to_ids(x) for x in ("123" if program == "reverse" else "x")
    ]
    by_length = itertools.groupby(inputs(program, 4), len)
    for texts in (list(group) for _, group in by_length):
        logits = model(model.to_tokens(texts))[:, -1]
        expected = torch.tensor(np.array([right(program, text)[-1] for text in texts])).float()
        assert (logits[:, shown] - expected).abs().max() < 1e-5
        logits[:, shown] = 0
        assert not logits.any()


def edges_of(graph: Graph) -> dict[str, frozenset[str]]:
    """The reference's edges by the graph's: tokens and positions are one sender there."""
    found = {}
    for name in graph.edges:
        sender, receiver = (part.replace(".0", "", 1) for part in name.split(" -> "))
        senders = ("tokens", "positions") if sender == "embed" else (sender,)
        found[name] = frozenset(f"{one} -> {receiver}" for one in senders)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_effects_of_edges_are_those_of_the_compiled_network(program: Program) -> None:
    """At the last position, where GPT-2's mask makes no difference; squared distance."""
    model = tracr_program(program)
    pairs = tracr_pairs(model, program)
    runs = circuits.record(model, pairs)
    distance = squared_change(model, pairs)
    references = edges_of(runs.graph)
    for value in ("zero", "resample"):
        found = circuits.attribute(runs, "exact", distance, value)
        texts = [(a.removeprefix("BOS "), b.removeprefix("BOS "))
                 for a, b in zip(pairs.clean, pairs.corrupted, strict=True)]  # fmt: skip
        carried = [compiled(program, b)[1] if value == "resample" else None for _, b in texts]
        clean = [compiled(program, a)[0][-1] for a, _ in texts]
        for edge, score in zip(found["edge"], found["score"], strict=True):
            after = [compiled(program, a, references[edge], other)[0][-1]
                     for (a, _), other in zip(texts, carried, strict=True)]  # fmt: skip
            expected = np.square(np.array(after) - np.array(clean)).sum(1).mean()
            assert score == pytest.approx(expected, abs=1e-5), (edge, value)


@cache
def effects(program: Program, zero: bool) -> dict[str, float]:
    """Largest change of the output, at any position of some prompts, when an edge is removed."""
    texts = ("x w x z", "w x y x", "y z w x")
    if program == "reverse":
        texts = ("1 2 3", "2 3 1", "3 1 2")
    layers = len(load_arrays(program)[0]["query"])
    order = ["tokens", "positions", *(f"{kind}{n}" for n in range(layers) for kind in "AM")]
    found = {}
    for i, sender in enumerate(order):
        for node in [*order[max(i + 1, 2) :], "out"]:
            for receiver in [f"{node}.{x}" for x in "qkv"] if node[0] == "A" else [node]:
                edge = f"{sender} -> {receiver}"
                found[edge] = max(
                    change(program, *pair, edge, zero)
                    for pair in zip(texts, texts[1:] + texts[:1], strict=True)
                )
    return found


def change(program: Program, text: str, other: str, edge: str, zero: bool) -> float:
    carried = None if zero else compiled(program, other)[1]
    after = compiled(program, text, frozenset([edge]), carried)[0]
    return float(np.abs(after - compiled(program, text)[0]).max())


def needed(program: Program, zero: bool) -> set[str]:
    return {edge for edge, effect in effects(program, zero).items() if effect > 1e-3}


def published(program: Program) -> set[str]:
    return {" ".join(edge.split()) for edge in SPLIT[program].split(",")}


def test_the_published_lists_are_what_zero_ablation_finds() -> None:
    assert needed("reverse", zero=True) == published("reverse")
    tiny = {"tokens -> A1.q", "tokens -> A1.k"}  # the published list was made with no threshold
    assert needed("proportion", zero=True) == published("proportion") - tiny
    assert all(0 < effects("proportion", zero=True)[edge] < 1e-8 for edge in tiny)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_has_tokens_and_positions_as_one_sender(program: Program) -> None:
    merged = {re.sub("tokens|positions", "embed", edge) for edge in published(program)}
    assert {re.sub(r"A(\d)", r"A\1.0", edge) for edge in merged} == set(PUBLISHED[program])


def test_edges_that_carry_positions_only_are_not_needed_under_resampling() -> None:
    """Miller et al. 2024, arXiv 2407.08734, section 6.4: prompts share their positions."""
    assert needed("proportion", zero=False) == {"A1 -> out", "M0 -> A1.v", "tokens -> M0"}
    assert needed("reverse", zero=False) == {"A3 -> out", "tokens -> A3.v"}


def test_unknown_programs_are_refused() -> None:
    with pytest.raises(ValueError, match="program is one of proportion, reverse"):
        tracr_program("sort")  # type: ignore[arg-type]


# The docstring network


def test_the_docstring_network_does_its_task() -> None:
    model = docstring_network()
    pairs = docstring(model, 100, seed=1234)
    chosen = model(pairs.clean_tokens)[:, -1].argmax(-1)  # of all tokens, not of two
    assert (chosen == pairs.answers).float().mean() > 0.95
    assert pairs.clean_tokens.shape[1] == 1 + 41  # the paper's, behind the BOS token
    graph = Graph.of(model)
    assert len(graph.edges) == 1281
    assert not graph.mlps


def test_training_texts_are_of_the_form_of_the_task() -> None:
    """The task's prompt is the beginning of a text that `definition` can draw."""
    rng = np.random.default_rng(0)
    tokenizer = word_tokenizer()
    for _ in range(20):
        tokens, marks = train_docstring.definition(rng)
        text = " ".join(tokens[1:]).replace("<s>", "")
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens
        names = [b for a, b in itertools.pairwise(tokens) if a == "param"]
        defined = tokens[: tokens.index(")")]
        assert [token for token, mark in zip(tokens, marks, strict=True) if mark] == names[1:]
        start = defined.index(names[0])
        assert defined[start : start + 2 * len(names) : 2] == names  # commas between


def test_rounds_repeat_and_mark_what_is_determined() -> None:
    rng = np.random.default_rng(0)
    for commas in (False, True):
        tokens, marks = train_docstring.rounds(rng, commas)
        words = tokens[1 :: 1 + commas]
        period = len(set(words))
        assert words[period:] == words[:-period]
        first = marks.index(True)
        assert tokens[first - 1 - commas] in tokens[1 : first - 1 - commas]
        assert "," not in {token for token, mark in zip(tokens, marks, strict=True) if mark}


def test_training_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_docstring, "INDUCTION", 2)
    trainer, again = (train_docstring.Trainer(32, 4, 4, 1e-3, seed) for seed in (0, 1))
    for step in range(4):
        if step == 3:
            trainer.save(tmp_path / "progress.pt")
        last = trainer.advance()
    again.load(tmp_path / "progress.pt")
    assert again.advance() == last
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_training_script_writes_a_network_that_loads(tmp_path: Path) -> None:
    options = ["--work", str(tmp_path / "work"), "--width", "32", "--batch", "4"]
    for steps in ("1", "2"):  # the second run goes on from the first
        out = tmp_path / steps
        train_docstring.main(["--out", str(out), "--steps", steps, *options])
        assert json.loads((out / "about.json").read_text())["steps"] == int(steps)
    progress = torch.load(tmp_path / "work" / "docstring.pt", weights_only=True)
    assert progress["step"] == 2
    assert len(Graph.of(load_model(tmp_path / "2", tokenizer=word_tokenizer())).edges) == 1281

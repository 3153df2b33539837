"""Networks with known circuits: their stories, their training on a small case, what ships."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

import mi_helpers as mi
from mi_helpers.data.known_circuits import make
from mi_helpers.toys.known_circuits import FOLDER, KNOWN, known_network, known_pairs, network


def in_words(name: str, text: str) -> torch.Tensor:
    return torch.tensor([[KNOWN[name].vocabulary.index(word) for word in ["<s>", *text.split()]]])


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("recall", "c w d u a r b q a", "r"),
        ("names", "When Jane and Mark met , then Mark and Lucy gave to", "Jane"),
        ("names", "When Jane and Mark met , then Lucy and Jane gave to", "Mark"),
        ("sums", "3 5 keep =", "1"),
        ("sums", "3 5 turn =", "6"),
        ("largest", "3 5 2 =", "5"),
        ("largest", "3 0 6 =", "6"),
        ("votes", "yes no yes no yes yes =", "yes"),
        ("votes", "yes no no yes yes yes =", "no"),
    ],
)
def test_stories_give_the_answers(name: str, text: str, answer: str) -> None:
    known = KNOWN[name]
    assert known.vocabulary[int(known.answer(in_words(name, text)))] == answer


def test_exchanged_variables_change_the_answer() -> None:
    known = KNOWN["recall"]
    base, other = (in_words("recall", t) for t in ("a p b q c r d s b", "d t a u b v c w c"))
    values = known.variables(other)
    assert known.vocabulary[int(known.answer(base, {"A0.1": values["A0.1"]}))] == "r"  # b is third
    assert known.vocabulary[int(known.answer(base, {"A1.2": values["A1.2"]}))] == "w"


@pytest.mark.parametrize("name", list(KNOWN))
def test_like_prompts_have_variables_that_make_sense(name: str) -> None:
    known, generator = KNOWN[name], torch.Generator().manual_seed(0)
    x = known.draw(50, generator, None)
    for node, value in known.variables(known.draw(50, generator, x)).items():
        answers = known.answer(x, {node: value})
        assert torch.isin(answers, known.answer(known.draw(500, generator, None)).unique()).all()
        if name == "names":
            assert ((answers == x[:, 2]) | (answers == x[:, 4])).all()


@pytest.mark.parametrize("name", list(KNOWN))
def test_circuits_are_edges_that_lie_on_paths(name: str) -> None:
    known = KNOWN[name]
    circuit = mi.circuits.Circuit.of(make.graph_of(known), known.circuit)
    assert len(circuit) == len(circuit.pruned()) == len(known.circuit)
    variables = known.variables(known.draw(2, torch.Generator(), None))
    assert {*circuit.nodes} == {"embed", *variables, "out"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["recall", "names"])
def test_the_training_pass_is_the_model_and_removes_edges_as_the_package_does(name: str) -> None:
    bridge = known_network(name, folder=None)
    runs = mi.circuits.record(bridge, known_pairs(bridge, name, 5))
    model, graph = network(KNOWN[name]), make.graph_of(KNOWN[name])
    assert graph == runs.graph
    x, other = runs.pairs.clean_tokens, runs.pairs.corrupted_tokens
    logits, _ = make.wired(model, graph, x)
    assert torch.allclose(logits, model(x).logits[:, -1], atol=1e-5)
    circuit = mi.circuits.random_like(mi.circuits.Circuit.of(graph, KNOWN[name].circuit))
    removed = (graph.exists & ~circuit.kept).float().expand(5, -1, -1)
    logits, _ = make.wired(model, graph, x, removed, make.wired(model, graph, other)[1])
    chosen = mi.circuits.evaluate(runs, circuit, metric=lambda x: x[..., 3])["value"]
    assert torch.allclose(logits[:, 3].double(), torch.tensor(chosen.to_numpy()), atol=1e-5)


def test_interventions_exchange_a_node_or_leave_the_circuit_alone() -> None:
    known, generator = KNOWN["recall"], torch.Generator().manual_seed(0)
    graph, x = make.graph_of(known), known.draw(400, generator, None)
    second, removed, answers = make.interventions(known, graph, x, generator)
    inside = graph.mask(known.circuit)
    touched = (removed.bool() & inside).any(2)  # [prompt, sender]
    plain = ~touched.any(1)
    assert 0.4 < plain.double().mean() < 0.6
    assert torch.equal(answers[plain], known.answer(x)[plain])
    values = known.variables(second)
    for node in values:
        here = touched[:, graph.senders.index(node)]
        assert torch.equal(answers[here], known.answer(x, {node: values[node]})[here])
    whole = removed[plain].bool().sum((1, 2))
    assert whole.min() == 0
    assert whole.max() == graph.exists.sum() - inside.sum()


def test_make_trains_and_measures(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--names", "votes", "--steps", "60", "--prompts", "40"])
    known = KNOWN["votes"]
    x = known.draw(200, torch.Generator().manual_seed(3), None)
    loss = [
        float(cross_entropy(known_network("votes", folder)(x)[:, -1], known.answer(x)))
        for folder in (tmp_path, None)
    ]
    assert loss[0] < 0.6 * loss[1]
    model = known_network("votes", tmp_path)
    runs = mi.circuits.record(model, known_pairs(model, "votes", 40, seed=1))
    about = json.loads((tmp_path / "about.json").read_text())["votes"]
    again = make.follows(runs).set_index("exchange")["follows"].round(4)
    assert about["follows"] == again.to_dict()


@pytest.mark.parametrize("name", list(KNOWN))
def test_shipped_networks_have_their_circuits(name: str) -> None:
    model = known_network(name)
    runs = mi.circuits.record(model, known_pairs(model, name, 64, seed=5))
    found = make.follows(runs).set_index("exchange")["follows"]
    assert found.min() > 0.95
    stored = json.loads((FOLDER / "about.json").read_text())[name]
    pd.testing.assert_series_equal(
        found, pd.Series(stored["follows"]), check_names=False, atol=0.05
    )
    sizes = mi.circuits.attribute(runs, "exact").set_index("edge")["score"].abs()
    assert mi.circuits.roc(sizes.index.isin(KNOWN[name].circuit), sizes)[1] > 0.95
    files = [path for path in FOLDER.iterdir() if path.suffix == ".safetensors"]
    assert len(files) == len(KNOWN)
    assert max(path.stat().st_size for path in files) < 2e6

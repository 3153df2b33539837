"""Circuits written to files and read again, and names in the benchmark's own words."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mi_helpers import circuits
from mi_helpers.circuits.choosing import top
from mi_helpers.circuits.files import load, save
from mi_helpers.circuits.graph import Circuit, Graph


def scored(graph: Graph) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=len(graph.edges))
    return pd.DataFrame({"edge": graph.edges, "score": values})


@pytest.mark.parametrize(
    "graph",
    [Graph(2, 4, 4), Graph(2, 4, 2), Graph(3, 2, 2, mlps=False), Graph(2, 2, 2, parallel=True)],
)
def test_a_circuit_is_read_as_it_was_written(graph: Graph, tmp_path: Path) -> None:
    scores, path = scored(graph), tmp_path / "circuit.json"
    circuit = top(graph, scores, 17)
    save(circuit, path, scores, d_model=8)
    found, table = load(path)
    assert found.graph == graph
    assert found.edges == circuit.edges
    assert table["edge"].tolist() == graph.edges
    np.testing.assert_allclose(table["score"], scores["score"])


def test_names_are_those_of_the_benchmark(tmp_path: Path) -> None:
    graph, path = Graph(2, 4, 2), tmp_path / "circuit.json"
    circuit = Circuit.of(graph, ["embed -> A1.1.k", "A0.3 -> A1.0.q", "M0 -> M1", "M1 -> out"])
    save(circuit, path, scored(graph), d_model=8)
    read = json.loads(path.read_text())
    kept = {name for name, facts in read["edges"].items() if facts["in_graph"]}
    shared = {"input->a1.h2<k>", "input->a1.h3<k>"}
    assert kept == shared | {"a0.h3->a1.h0<q>", "m0->m1", "m1->logits"}
    here = {name for name, facts in read["nodes"].items() if facts["in_graph"]}
    assert here == {"input", "a0.h3", "m0", "m1", "logits"}
    inputs = 4 * 3  # q, k and v of each of four heads, as if none were shared
    assert len(read["edges"]) == inputs * 1 + 5 + inputs * 6 + 10 + 11


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps({"cfg": {}, "nodes": {}}))
    with pytest.raises(ValueError, match="it has no \\['edges'\\]"):
        load(path)
    cfg = {"n_layers": 1, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False}
    edges = {"m0->a0.h1<q>": {"score": 1.0, "in_graph": True}}
    path.write_text(json.dumps({"cfg": cfg, "nodes": {"m0": {}}, "edges": edges}))
    with pytest.raises(ValueError, match=r"has no edge 'm0->a0\.h1<q>'"):
        load(path)


def test_the_room_lists_both() -> None:
    assert circuits.save is save
    assert circuits.load is load


def test_published_circuits_are_those_of_the_papers() -> None:
    docstring, ioi, greater = map(circuits.published, ("docstring", "ioi", "greater-than"))
    assert len(docstring) == len(docstring.pruned()) == 24  # 37 less 13 within nodes
    assert sum(node.startswith("A") for node in ioi.nodes) == 26
    assert sum(node.startswith("A") for node in greater.nodes) == 9
    assert len(ioi.pruned()) == len(ioi)
    assert {"A8.6 -> A9.9.q", "M0 -> A9.9.v", "A9.9 -> M11", "A4.11 -> A5.5.k"} <= {*ioi.edges}
    # Heads of one layer, and those after it, feed no head of it; inhibition moves queries alone.
    assert {"A8.6 -> A7.3.q", "A8.6 -> A9.9.k", "embed -> A9.9.q"}.isdisjoint(ioi.edges)
    assert {"A0.1 -> M0", "M3 -> A5.5.k", "A9.1 -> M11"} <= {*greater.edges}
    with pytest.raises(ValueError, match="not one of the published"):
        circuits.published("induction")

"""Truth tables of patching on networks whose answer is known."""

from itertools import product

import pytest
import torch

from mi_helpers.toys import gates

ON, OFF = {"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}


def scores(network, clean, corrupted, *targets):
    table = gates.patch_table(network, clean, corrupted, targets or None)
    return {row.patched: (row.denoise, row.noise) for row in table.itertuples()}


@pytest.mark.parametrize(("network", "rule"), [(gates.AND, min), (gates.OR, max)])
def test_gates_compute_their_truth_tables(network, rule):
    for a, b in product([0.0, 1.0], repeat=2):
        assert float(network.run({"a": a, "b": b})["y"]) == rule(a, b)


def test_and_gate_is_found_by_noising_one_input():
    assert scores(gates.AND, ON, OFF) == {"a": (0, 0), "b": (0, 0), "a + b": (1, 0)}


def test_or_gate_is_found_by_denoising_one_input():
    assert scores(gates.OR, ON, OFF) == {"a": (1, 1), "b": (1, 1), "a + b": (1, 0)}


def test_chain_is_restored_and_broken_at_any_link():
    found = scores(gates.CHAIN, {"x": 1.0}, {"x": 0.0})
    assert found
    assert set(found.values()) == {(1, 0)}


def test_two_chains_need_one_node_of_each_to_restore_and_any_node_to_break():
    on, off = dict.fromkeys(("x1", "x2"), 1.0), dict.fromkeys(("x1", "x2"), 0.0)
    first, second = {"x1", "A", "B", "C"}, {"x2", "D", "E", "F"}
    for patched, (denoise, noise) in scores(gates.TWO_CHAINS, on, off).items():
        nodes = set(patched.split(" + "))
        assert denoise == float(bool(nodes & first) and bool(nodes & second))
        assert noise == 0


def test_an_edge_reaches_one_child_only():
    network = gates.Network({"p": gates.copy("x"), "q": gates.copy("x"), "y": gates.both("p", "q")})
    on, off = {"x": 1.0}, {"x": 0.0}
    one, both = [("x", "p")], [("x", "p"), ("x", "q")]
    assert scores(network, on, off, ["x"], one, both) == {
        "x": (1, 0),
        "x→p": (0, 0),
        "x→p + x→q": (1, 0),
    }


def test_values_may_be_batches():
    found = gates.AND.run({"a": torch.tensor([0.0, 1, 1]), "b": torch.tensor([1.0, 0, 1])})
    assert found["y"].tolist() == [0, 0, 1]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no \\['c'\\]"):
        gates.AND.run(ON, {"c": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="inputs are"):
        gates.AND.run({"a": 1.0})
    with pytest.raises(ValueError, match="before its parents"):
        gates.Network({"y": gates.copy("z"), "z": gates.copy("y")})
    with pytest.raises(ValueError, match="both give"):
        gates.patch_table(gates.AND, OFF, OFF)

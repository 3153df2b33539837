"""Subnetwork probing: masks, their gradients, and a circuit that was planted."""

from typing import Any

import numpy as np
import pytest
import torch

from mi_helpers import circuits
from mi_helpers.circuits.probing import drawn, expected, shares
from mi_helpers.circuits.runs import record
from mi_helpers.circuits.wiring import Wiring
from tests import tiny
from tests.circuits.reference import pairs

PAIRS = pairs()


@pytest.fixture(scope="module")
def planted():
    """A tiny GPT-2 in which all heads but 1.2 write next to nothing, and the MLPs nothing."""
    model: Any = tiny.hf_model("gpt2")
    for layer, block in enumerate(model.transformer.h):
        keep = torch.full((4, 1), 1e-3)
        keep[2] = 3.0 if layer == 1 else 1e-3
        weight = block.attn.c_proj.weight.data
        weight *= keep.repeat_interleave(8, 0)
        block.mlp.c_proj.weight.data.zero_()
        block.mlp.c_proj.bias.data.zero_()
    return tiny.load(model)


@pytest.mark.parametrize("value", ["resample", "zero"])
@pytest.mark.parametrize(("family", "units"), [("gpt2", "edges"), ("qwen2", "nodes")])
def test_gradients_of_masks_are_finite_differences(family, units, value):
    model = tiny.bridge(family)
    runs = record(model, PAIRS)
    wiring, metric = Wiring(runs, value), runs.function("logit_diff")
    n = len(runs.graph.edges) if units == "edges" else len(runs.graph.senders) - 1
    removed = torch.rand(1, n, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1

    def score(removed: torch.Tensor) -> torch.Tensor:
        logits = wiring.logits(wiring.remove(shares(runs.graph, removed)))
        return metric(logits).double().mean()

    leaf = removed.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(score(leaf), leaf)
    strongest = slopes[0].abs().topk(6).indices.tolist()
    for one in [*strongest, *range(0, n, n // 6)]:
        step = torch.zeros_like(removed)
        step[0, one] = 2e-3
        slope = float(score(removed + step) - score(removed - step)) / 4e-3
        assert float(slopes[0, one]) == pytest.approx(slope, abs=3e-3, rel=0.03)


def test_shares_of_nodes_are_those_of_their_edges():
    graph = circuits.Graph(2, 2, 1)
    removed = torch.rand(3, len(graph.senders) - 1)
    by_edge = torch.stack([removed[:, u - 1] if u else torch.zeros(3) for u in graph.index[0]], 1)
    one, other = shares(graph, removed) * graph.exists, shares(graph, by_edge)
    assert torch.equal(one, other)


def test_masks_are_exact_at_both_ends_and_as_often_as_expected():
    odds = torch.tensor([-1.0, 0.0, 2.0])
    masks = drawn(odds, torch.rand(100_000, 3, generator=torch.Generator().manual_seed(0)))
    assert masks.min() == 0
    assert masks.max() == 1
    np.testing.assert_allclose((masks > 0).float().mean(0), expected(odds), atol=0.005)
    assert torch.equal(drawn(torch.zeros(1), torch.tensor([0.5])), torch.tensor([0.5]))


@pytest.mark.parametrize("value", ["resample", "zero"])
def test_a_planted_head_is_kept_and_nothing_else(planted, value):
    runs = record(planted, PAIRS)
    found = circuits.subnetwork_probing(runs, [0.0, 1.0, 1e4], value=value, steps=60, rate=0.2)
    table = found.scores.set_index("unit")
    nodes = {penalty: circuit.nodes for penalty, circuit in found.circuits.items()}
    assert nodes[1.0] == ["embed", "A1.2", "out"]
    assert nodes[1e4] == ["embed", "out"]
    assert "A1.2" in nodes[0.0]
    assert len(table.loc["A1.2"]) == 3
    losses = found.history[found.history["step"] > 50].groupby("penalty")["loss"].mean()
    assert losses[1.0] < 0.1 * losses[1e4]


def test_edges_of_a_planted_head_are_kept(planted):
    """Values and output carry it; an embedding that reaches the output matters too."""
    found = circuits.subnetwork_probing(
        record(planted, PAIRS), 2.0, units="edges", steps=60, rate=0.25
    )
    edges = {*found.circuits[2.0].edges}
    assert {"embed -> out", "embed -> A1.2.v", "A1.2 -> out"} <= edges
    assert edges <= {"embed -> out", "A1.2 -> out", *(f"embed -> A1.2.{x}" for x in "qkv")}


def test_probing_is_the_same_twice_and_a_row_as_alone(planted):
    runs = record(planted, PAIRS)
    one, again = (circuits.subnetwork_probing(runs, 0.5, steps=5) for _ in range(2))
    assert one.scores.equals(again.scores)
    assert one.history.equals(again.history)
    other = circuits.subnetwork_probing(runs, 0.5, steps=5, seed=1)
    assert not one.scores.equals(other.scores)


@pytest.mark.parametrize(
    ("penalty", "options", "message"),
    [
        (-1.0, {}, "at least 0"),
        ([1.0, 1.0], {}, "different"),
        (1.0, {"steps": 0}, "a step or more"),
        (1.0, {"units": "heads"}, "'nodes' or 'edges'"),
        (1.0, {"metric": "rank"}, "no gradient"),
    ],
)
def test_bad_input_is_refused(penalty, options, message):
    with pytest.raises(ValueError, match=message):
        circuits.subnetwork_probing(record(tiny.bridge("gpt2"), PAIRS), penalty, **options)

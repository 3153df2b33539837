"""Circuits: graph, runs with edges removed, attribution, ACDC, evaluation, drawing."""

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import circuits, load_model, patching
from mi_helpers.circuits.acdc import visits
from mi_helpers.circuits.graph import Circuit, Graph, greedy, top
from mi_helpers.circuits.runs import CircuitRuns, record_runs
from mi_helpers.metrics import logit_diff
from mi_helpers.tasks.prompts import docstring
from mi_helpers.toys.docstring import gate_scores, linear_transformer
from mi_helpers.toys.gates import OR, TWO_CHAINS
from tests import tiny
from tests.circuits.reference import edge_logits, pairs

PAIRS = pairs()
FAMILIES = ("gpt2", "llama", "qwen2")
_runs: dict[str, CircuitRuns] = {}


def runs_of(family: str) -> CircuitRuns:
    if family not in _runs:
        _runs[family] = record_runs(tiny.bridge(family), PAIRS)
    return _runs[family]


def one_edge(graph: Graph, number: int) -> torch.Tensor:
    mask = torch.zeros_like(graph.exists)
    mask[graph.index[0][number], graph.index[1][number]] = True
    return mask


# The graph


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (Graph(12, 12, 12), 32491),
        (Graph(4, 8, 8, mlps=False), 1281),
        (Graph(2, 8, 8, mlps=False), 257),
    ],
)
def test_edge_counts_are_those_of_the_literature(graph, edges):
    assert len(graph.edges) == len(set(graph.edges)) == edges


def test_names_read_as_people_write_them():
    graph = Graph(3, 4, 2)
    assert {"A0.3 -> A1.2.q", "embed -> M0", "M2 -> out", "A1.3 -> A2.1.v"} <= set(graph.edges)
    assert "A1.0 -> A1.1.q" not in graph.edges
    assert "A0.0 -> A1.2.k" not in graph.edges  # there are two key-value heads
    assert "A1.0 -> M1" in graph.edges
    assert "A1.0 -> M1" not in Graph(3, 4, 2, parallel=True).edges


def test_heads_of_a_group_read_the_same_keys():
    graph = Graph(2, 4, 2)
    names = [[graph.receivers[r] for r in graph.reads(graph.sender_number(1, h))] for h in (2, 3)]
    assert names == [["A1.2.q", "A1.1.k", "A1.1.v"], ["A1.3.q", "A1.1.k", "A1.1.v"]]


def test_pruning_keeps_edges_on_paths_only():
    graph = Graph(2, 2, 2)
    path = ["embed -> A0.0.v", "A0.0 -> M1", "M1 -> out"]
    circuit = Circuit.of(graph, [*path, "embed -> A1.1.k", "M0 -> out"])
    assert circuit.pruned().edges == Circuit.of(graph, path).edges
    assert len(Circuit.full(graph).pruned()) == len(graph.edges)


def test_a_circuit_of_nodes_has_all_edges_among_them():
    graph = Graph(2, 2, 1, mlps=False)
    circuit = Circuit.between(graph, ["A1.0"])
    assert circuit.edges == ["embed -> A1.0.q", "embed -> A1.0.k", "embed -> A1.0.v",
                             "embed -> out", "A1.0 -> out"]  # fmt: skip


@pytest.mark.parametrize("name", ["A9.9 -> out", "embed->out", "M0 -> A0.0.q"])
def test_unknown_edges_are_refused(name):
    with pytest.raises(ValueError, match="no edge"):
        Circuit.of(Graph(2, 2, 2), [name])


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_architectures_with_norms_behind_attention_are_refused_by_name(family):
    with pytest.raises(ValueError, match=r"Gemma2|Olmo2.*no summands"):
        Graph.of(tiny.bridge(family))


# Runs with edges removed


CASES = [(family, value) for family in FAMILIES for value in ("resample", "zero")]


@pytest.mark.parametrize(
    ("family", "value"), [*CASES, ("gpt_neox", "resample"), ("phi", "resample")]
)
def test_each_edge_is_removed_as_by_the_slow_reference(family, value):
    runs, model = runs_of(family), tiny.bridge(family)
    graph, wiring = runs.graph, runs.wiring(value)
    kinds = pd.Series([edge.split(" -> ")[1].split(".")[-1][0] for edge in graph.edges])
    generator = np.random.default_rng(0)
    chosen = [n for _, part in kinds.groupby(kinds) for n in generator.choice(part.index, 2)]
    for n in chosen:  # two each of q, k, v, MLP and output
        found = wiring.logits(wiring.remove(one_edge(graph, n)))[0]
        sender, receiver = graph.index[0][n], graph.index[1][n]
        expected = edge_logits(model, graph, sender, receiver, PAIRS, value == "zero")
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_edge_removed_is_the_clean_run_and_all_are_the_corrupted_run(family):
    runs = runs_of(family)
    wiring = runs.wiring()
    assert torch.equal(wiring.logits(wiring.start())[0], runs.clean.logits())
    everything = wiring.logits(wiring.remove(runs.graph.exists))[0]
    assert torch.equal(everything, runs.corrupted.logits())


@pytest.mark.parametrize("pos", [None, [2, 6]])
def test_step_by_step_is_as_from_scratch(pos):
    runs = runs_of("qwen2")
    wiring, generator = runs.wiring(pos=pos), torch.Generator().manual_seed(0)
    state, mask = wiring.start(), torch.zeros_like(runs.graph.exists)
    order = torch.randperm(len(runs.graph.edges), generator=generator)
    for part in order.split(90):
        for n in part.tolist():
            mask |= one_edge(runs.graph, n)
        state = wiring.remove(mask, state)
        expected = wiring.logits(wiring.remove(mask))
        torch.testing.assert_close(wiring.logits(state), expected, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="put back"):
        wiring.remove(torch.zeros_like(mask), state)


def test_all_edges_removed_at_some_positions_is_a_prompt_mixed_of_both():
    """Where only embeddings differ, removing every edge of the embedding at a position is to swap
    the token there; the heads must then be left to run by themselves."""
    runs, model = runs_of("gpt2"), tiny.bridge("gpt2")
    wiring, mask = runs.wiring(pos=[2]), torch.zeros_like(runs.graph.exists)
    mask[0] = True
    mixed = PAIRS.clean_tokens.clone()
    mixed[:, 2] = PAIRS.corrupted_tokens[:, 2]
    found = wiring.logits(wiring.remove(mask))[0]
    torch.testing.assert_close(found, model(mixed)[:, -1], atol=2e-5, rtol=0)


def test_removing_a_whole_node_is_patching_its_output():
    runs, model = runs_of("llama"), tiny.bridge("llama")
    wiring, mask = runs.wiring("mean"), torch.zeros_like(runs.graph.exists)
    sender = runs.graph.sender_number(1, 2)
    mask[sender] = runs.graph.exists[sender]
    mean = runs.corrupted.acts["z", 1].mean(0)[:, 2]

    def write(value, hook):
        value = value.clone()
        value[:, :, 2] = mean
        return value

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", write)]):
        expected = model(PAIRS.clean_tokens)[:, -1]
    found = wiring.logits(wiring.remove(mask))[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_rows_that_share_a_batch_are_as_alone():
    runs = runs_of("qwen2")
    wiring, generator = runs.wiring(), torch.Generator().manual_seed(0)
    first = (torch.rand(runs.graph.exists.shape, generator=generator) < 0.1) & runs.graph.exists
    state = wiring.remove(first)
    more = (torch.rand(5, *first.shape, generator=generator) < 0.2) & runs.graph.exists
    rows = wiring.remove(more | first, state)
    for number in range(5):
        alone = wiring.remove(more[number] | first)
        expected = wiring.logits(alone)
        torch.testing.assert_close(wiring.logits(rows)[[number]], expected, atol=2e-5, rtol=0)
        again = wiring.remove(runs.graph.exists, rows.row(number))
        torch.testing.assert_close(wiring.logits(again)[0], runs.corrupted.logits())
    with pytest.raises(ValueError, match="one row"):
        wiring.remove(first, rows)


# Attribution


@pytest.mark.parametrize("value", ["resample", "zero"])
@pytest.mark.parametrize("family", FAMILIES)
def test_eap_is_the_slope_of_removal(family, value):
    """Removing a thousandth of an edge changes the metric by a thousandth of its score."""
    model, runs = tiny.bridge(family), runs_of(family)
    scores = circuits.attribute(model, PAIRS, value=value)
    wiring, metric = runs.wiring(value), runs.function("logit_diff")
    start = metric(wiring.logits(wiring.start())).mean()
    for n in range(0, len(runs.graph.edges), 61):
        state = wiring.remove(one_edge(runs.graph, n) * 1e-3)
        slope = 1e3 * (metric(wiring.logits(state)).double().mean() - start)
        assert scores["score"][n] == pytest.approx(float(slope), abs=2e-3, rel=0.05)


def test_attribution_and_evaluation_are_the_same_twice():
    model = tiny.bridge("qwen2")
    for method in ("eap", "eap-ig", "exact"):
        one, again = (circuits.attribute(model, PAIRS, method) for _ in range(2))
        assert one.equals(again)
    circuit = top(runs_of("qwen2").graph, one, 40)
    assert circuits.evaluate(model, PAIRS, circuit).equals(circuits.evaluate(model, PAIRS, circuit))


def test_batches_of_prompts_add_up():
    model = tiny.bridge("qwen2")
    whole = circuits.attribute(model, PAIRS)
    parts = circuits.attribute(model, PAIRS, max_memory=1)
    np.testing.assert_allclose(whole["score"], parts["score"], atol=1e-6)


def test_attribution_is_exact_where_the_model_is_linear():
    model = linear_transformer(n_layers=2)
    data = docstring(model, 4)
    exact = circuits.attribute(model, data, "exact")["score"]
    assert exact.abs().max() > 0.1
    for method in ("eap", "eap-ig", "clean-corrupted"):
        scores = circuits.attribute(model, data, method)["score"]
        np.testing.assert_allclose(scores, exact, atol=1e-4 * exact.abs().max())


def test_integrated_gradients_meet_the_definition():
    """EAP-IG is the mean of EAP's gradients along the path: one step is the midpoint alone."""
    model = tiny.bridge("gpt2")
    many = circuits.attribute(model, PAIRS, "eap-ig", metric="kl", steps=2)["score"]
    assert many.abs().max() > 0
    with pytest.raises(ValueError, match="zero gradient"):
        circuits.attribute(model, PAIRS, metric="kl")
    with pytest.raises(ValueError, match="none of"):
        circuits.attribute(model, PAIRS, "eap-ig", steps=0)
    with pytest.raises(ValueError, match="no gradient"):
        circuits.attribute(model, PAIRS, metric="rank")


def test_the_edges_of_a_head_sum_to_its_own_attribution():
    """An independent path to the same number: attribution patching of z."""
    model = tiny.bridge("llama")
    nodes = circuits.head_importance(circuits.attribute(model, PAIRS)).set_index("sender")
    runs = patching.record(model, PAIRS, ["z"])
    whole = patching.attribution(runs, "z", direction="noise", normalise=False)
    logits = model(PAIRS.clean_tokens)[:, -1]
    clean = float(logit_diff(logits, PAIRS.answers, PAIRS.wrong).mean())
    for row in whole.itertuples():
        found = nodes.loc[f"A{row.layer}.{row.head}", "score"]
        assert found == pytest.approx(row.logit_diff - clean, abs=2e-5)
    assert nodes.groupby("layer")["importance"].apply(lambda x: (x**2).sum()).to_list() == (
        pytest.approx([1.0] * 5)
    )


def test_exact_scores_only_the_edges_asked_for():
    model, wanted = tiny.bridge("gpt2"), ["A0.1 -> M2", "M3 -> out"]
    table = circuits.attribute(model, PAIRS, "exact", edges=wanted, runs=runs_of("gpt2"))
    assert table["edge"].tolist() == wanted
    with pytest.raises(ValueError, match="no edge"):
        circuits.attribute(model, PAIRS, "exact", edges=["A0.1 -> M9"], runs=runs_of("gpt2"))


# ACDC


def slow_acdc(model, threshold: float) -> list[str]:
    """The algorithm as written: every removal is a run from scratch."""
    runs = record_runs(model, PAIRS)
    graph, wiring, metric = runs.graph, runs.wiring(), runs.function("kl")
    kept, loss = graph.exists.clone(), 0.0
    for receiver, senders in visits(graph):
        for sender in senders:
            trial = kept.clone()
            trial[sender, receiver] = False
            after = float(metric(wiring.logits(wiring.remove(graph.exists & ~trial))).mean())
            if after - loss < threshold:
                kept, loss = trial, after
    return Circuit(graph, kept).edges


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_acdc_is_the_algorithm_as_written(family):
    model = load_model(
        tiny.hf_model(family, **{"num_hidden_layers": 2} if family == "qwen2" else {"n_layer": 2}),
        tokenizer=tiny.tokenizer(),
    )
    found = circuits.acdc(model, PAIRS, 0.1)
    assert found.circuit.edges == slow_acdc(model, 0.1)
    assert 0 < len(found.circuit) < len(found.circuit.graph.edges)
    assert len(found.trials) < len(found.circuit.graph.edges)  # orphans cost no trial
    again = circuits.acdc(model, PAIRS, 0.1)
    pd.testing.assert_frame_equal(found.trials, again.trials)


@pytest.mark.parametrize(
    ("family", "units"), [*((family, "edges") for family in FAMILIES), ("llama", "nodes")]
)
def test_trials_that_share_a_batch_end_as_one_by_one(family, units):
    model, runs = tiny.bridge(family), runs_of(family)
    options = {"runs": runs, "units": units, "value": "zero" if units == "nodes" else "resample"}
    threshold = 0.02 if units == "edges" else 0.2
    alone = circuits.acdc(model, PAIRS, threshold, max_memory=1, **options)
    removed = alone.trials["removed"]
    assert 0 < removed.sum() < len(removed)
    for rows in (3, 40):
        budget = rows * runs.wiring().row_memory(runs.graph.groups[0])
        found = circuits.acdc(model, PAIRS, threshold, max_memory=budget, **options)
        assert found.trials[["edge", "removed"]].equals(alone.trials[["edge", "removed"]])
        np.testing.assert_allclose(found.trials["change"], alone.trials["change"], atol=2e-5)
        assert found.circuit.edges == alone.circuit.edges


def test_acdc_over_heads_removes_them_whole():
    model, runs = tiny.bridge("llama"), runs_of("llama")
    found = circuits.acdc(model, PAIRS, 0.05, runs=runs, units="heads")
    gone = found.trials.loc[found.trials["removed"], "edge"].tolist()
    assert found.trials["edge"].tolist()[:4] == ["A3.3", "A3.2", "A3.1", "A3.0"]
    assert gone
    assert not {*gone} & {*found.circuit.nodes}
    assert {"embed", "M0", "M1", "M2", "M3", "out"} <= {*found.circuit.nodes}
    mask = torch.zeros_like(runs.graph.exists)
    mask[[runs.graph.senders.index(name) for name in gone]] = True
    logits = runs.wiring().logits(runs.wiring().remove(mask & runs.graph.exists))
    loss = float(runs.function("kl")(logits).mean())
    accepted = found.trials.loc[found.trials["removed"], "change"].sum()
    assert accepted == pytest.approx(loss, abs=2e-5)
    with pytest.raises(ValueError, match="units is"):
        circuits.acdc(model, PAIRS, 1.0, units="layers", runs=runs)  # type: ignore[arg-type]


def test_acdc_visits_receivers_backwards_and_senders_from_the_last():
    graph = Graph(2, 2, 2)
    order = [(graph.receivers[r], [graph.senders[u] for u in us]) for r, us in visits(graph)]
    assert order[0] == ("out", ["M1", "A1.1", "A1.0", "M0", "A0.1", "A0.0", "embed"])
    assert [name for name, _ in order[1:8]] == [
        "M1", "A1.1.q", "A1.1.k", "A1.1.v", "A1.0.q", "A1.0.k", "A1.0.v"]  # fmt: skip
    assert sum(len(us) for _, us in order) == len(graph.edges)


def test_a_huge_threshold_leaves_nothing_and_a_hopeless_one_everything():
    model = tiny.bridge("gpt2")
    assert len(circuits.acdc(model, PAIRS, 1e9, runs=runs_of("gpt2")).circuit) == 0
    with pytest.raises(ValueError, match="heads is"):
        circuits.acdc(model, PAIRS, 1.0, heads="sideways", runs=runs_of("gpt2"))  # type: ignore[arg-type]


# Known answers on gates


def test_an_or_gate_hides_its_inputs_from_gradients_and_half_of_them_from_acdc():
    table = gate_scores(OR, {"a": 1, "b": 1}, {"a": 0, "b": 0}).set_index("edge")
    assert table["exact"].tolist() == [0, 0]
    assert table["eap"].tolist() == [0, 0]
    assert table["eap_ig"].tolist() == pytest.approx([0.5, 0.5])
    assert table["acdc"].sum() == 1


def test_every_edge_of_two_chains_is_found_by_all_methods():
    clean, corrupted = {"x1": 1, "x2": 1}, {"x1": 0, "x2": 0}
    table = gate_scores(TWO_CHAINS, clean, corrupted)
    assert table["exact"].tolist() == pytest.approx([1] * 8)
    assert table["eap"].tolist() == pytest.approx([1] * 8)
    assert table["acdc"].all()


# Evaluation


def test_full_and_empty_circuits_are_one_and_zero():
    model, runs = tiny.bridge("gpt2"), runs_of("gpt2")
    nothing = Circuit.of(runs.graph, [])
    both = {"full": Circuit.full(runs.graph), "empty": nothing}
    for ablation in (
        circuits.Ablation(),
        circuits.Ablation(component="node", value="zero"),
        circuits.Ablation(granularity="head", value="mean"),
        circuits.Ablation(direction="restore", set="circuit"),
        circuits.Ablation(value="noise", positions=(3, 6)),
    ):
        table = circuits.evaluate(model, PAIRS, both, ablation, runs=runs)
        found = circuits.summary(table).set_index("circuit")
        assert found.loc["full", "of_means"] == pytest.approx(1, abs=1e-5)
        assert found.loc["empty", "of_means"] == pytest.approx(0, abs=1e-5)
        assert found.loc["full", "worst"] == pytest.approx(1, abs=1e-4)


def test_restoring_the_rest_is_ablating_the_circuit_for_all_edges_of_a_node():
    """The two directions differ in general; they agree on edges into the output alone."""
    model, runs = tiny.bridge("gpt2"), runs_of("gpt2")
    circuit = Circuit.of(runs.graph, [e for e in runs.graph.edges if e.endswith("-> out")][::2])
    noised = circuits.evaluate(
        model, PAIRS, circuit, circuits.Ablation(set="circuit"), "logit_diff", runs
    )
    wiring = runs.wiring()
    expected = runs.function("logit_diff")(wiring.logits(wiring.remove(circuit.kept)))[0]
    np.testing.assert_allclose(noised["value"], expected.numpy(), atol=1e-5)


def test_prompts_in_batches_give_the_same_values():
    model, runs = tiny.bridge("qwen2"), runs_of("qwen2")
    circuit = top(runs.graph, circuits.attribute(model, PAIRS), 60)
    for value in ("resample", "mean"):
        ablation = circuits.Ablation(value=value)
        whole = circuits.evaluate(model, PAIRS, circuit, ablation, runs=runs)
        parts = circuits.evaluate(model, PAIRS, circuit, ablation, runs=runs, max_memory=1)
        pd.testing.assert_frame_equal(whole, parts, atol=1e-5)


def test_pruned_circuits_run_as_unpruned_ones():
    model, runs = tiny.bridge("llama"), runs_of("llama")
    circuit = top(runs.graph, circuits.attribute(model, PAIRS), 40)
    assert len(circuit.pruned()) < 40
    both = {"as found": circuit, "pruned": circuit.pruned()}
    table = circuits.evaluate(model, PAIRS, both, runs=runs)
    one, other = (part["value"] for _, part in table.groupby("circuit"))
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_granularity_and_component_widen_a_circuit():
    graph = Graph(2, 2, 2)
    circuit = Circuit.of(graph, ["embed -> A1.0.q", "A1.0 -> out"])
    head = Circuit(graph, circuits.Ablation(granularity="head").expand(circuit))
    assert {"embed -> A1.0.k", "embed -> A1.0.v"} < set(head.edges)
    assert len(head) == 4
    node = Circuit(graph, circuits.Ablation(component="node").expand(circuit))
    assert len(node) == sum(e.startswith(("embed", "A1.0")) for e in graph.edges)


def test_bad_ablations_are_refused():
    with pytest.raises(ValueError, match="value is"):
        circuits.Ablation(value="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="to restore"):
        circuits.Ablation(direction="restore", value="zero")


def test_greedy_circuits_grow_from_the_output():
    graph = Graph(3, 2, 2)
    generator = np.random.default_rng(0)
    scores = pd.DataFrame({"edge": graph.edges, "score": generator.normal(size=len(graph.edges))})
    for n in (1, 7, 40):
        circuit = greedy(graph, scores, n)
        _, live = graph.live(circuit.kept)
        assert len(circuit) == n
        assert live[circuit.kept.any(0).numpy()].all()
    assert greedy(graph, scores, 10**6).edges == graph.edges


def test_curve_ends_at_one_and_area_is_its_mean():
    model, runs = tiny.bridge("gpt2"), runs_of("gpt2")
    scores, total = circuits.attribute(model, PAIRS), len(runs.graph.edges)
    table = circuits.curve(model, PAIRS, scores, [20, 100, total], runs=runs)
    assert table["of_means"].iloc[-1] == pytest.approx(1, abs=1e-5)
    assert circuits.area([0, 50, 100], [0, 1, 1], 100) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="increasing"):
        circuits.area([5, 5], [0, 1], 10)


def test_roc_counts_ties_at_their_lower_corner():
    truth = [True, True, False, False]
    assert circuits.roc(truth, [4, 3, 2, 1])[1] == 1
    assert circuits.roc(truth, [1, 2, 3, 4])[1] == 0
    assert circuits.roc(truth, [1, 1, 1, 1])[1] == 0  # nothing is ranked
    assert circuits.roc(truth, [2, 1, 1, 0])[1] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="inside and outside"):
        circuits.roc([True, True], [1, 2])


def test_completeness_of_the_whole_model_is_perfect():
    model, runs = tiny.bridge("gpt2"), runs_of("gpt2")
    whole = Circuit.full(runs.graph)
    table = circuits.completeness(model, PAIRS, whole, n_subsets=3, runs=runs)
    assert table["incompleteness"].max() < 1e-5
    assert table["nodes"].nunique() == 3


def test_minimality_of_an_edge_is_what_the_circuit_loses_with_it():
    model, runs = tiny.bridge("gpt2"), runs_of("gpt2")
    circuit = top(runs.graph, circuits.attribute(model, PAIRS), 30).pruned()
    table = circuits.minimality(model, PAIRS, circuit, runs=runs)
    without = Circuit.of(runs.graph, [e for e in circuit if e != table["edge"][2]])
    value = circuits.evaluate(model, PAIRS, without, runs=runs)["value"].mean()
    assert table["value"][2] == pytest.approx(value, abs=1e-5)


def test_a_random_circuit_has_as_many_edges_in_each_layer():
    graph = Graph(3, 4, 2)
    circuit = Circuit.between(graph, ["A0.1", "A2.2", "M1"])
    other = circuits.random_like(circuit, seed=1)
    for group in graph.groups:
        columns = slice(group.receivers.start, group.receivers.stop)
        assert other.kept[:, columns].sum() == circuit.kept[:, columns].sum()
    assert other.edges != circuit.edges
    with pytest.raises(ValueError, match="prune"):
        circuits.random_like(other, same_nodes=True)
    generator = np.random.default_rng(0)
    scores = pd.DataFrame({"edge": graph.edges, "score": generator.normal(size=len(graph.edges))})
    grown = greedy(graph, scores, 60).pruned()
    same = circuits.random_like(grown, seed=3, same_nodes=True)
    assert len(same) == len(grown)
    assert set(same.nodes) <= set(grown.nodes)
    assert same.edges != grown.edges


# Drawing


def test_a_drawing_has_every_node_and_edge_once():
    graph = Graph(3, 4, 2)
    scores = pd.DataFrame({"edge": graph.edges, "score": np.linspace(-1, 1, len(graph.edges))})
    circuit = top(graph, scores, 25).pruned()
    scores["score"] **= 9
    figure = circuits.draw(circuit, scores, title="a circuit")
    names = {text for trace in figure.data if trace.mode == "markers+text" for text in trace.text}
    assert names == {name.removeprefix("A") for name in circuit.nodes}
    hover = [t for trace in figure.data if trace.mode == "markers" for t in trace.text or ()]
    assert {text.split("<br>")[0] for text in hover} == set(circuit.edges)
    steps = figure.layout.sliders[0].steps
    assert all(len(step.args[1]) == len(figure.data) for step in steps)
    assert figure.data[-1].y[list(figure.data[-1].text).index("out")] == max(figure.data[-1].y)
    with pytest.raises(ValueError, match="0 edges"):
        circuits.draw(Circuit.of(graph, []))

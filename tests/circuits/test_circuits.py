"""Circuits: graph, runs with edges removed, attribution, ACDC, evaluation, drawing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import circuits, load_model, patching
from mi_helpers.circuits import wiring as wiring_room
from mi_helpers.circuits.choosing import greedy, top
from mi_helpers.circuits.discovery import receivers_of, senders_of, trials
from mi_helpers.circuits.graph import Circuit, Graph
from mi_helpers.circuits.runs import CircuitRuns, projections, record
from mi_helpers.circuits.wiring import Wiring
from mi_helpers.engine import unembed
from mi_helpers.metrics import logit_diff
from mi_helpers.tasks.prompts import docstring
from mi_helpers.toys.docstring import gate_scores
from mi_helpers.toys.gates import OR, TWO_CHAINS
from tests import tiny
from tests.circuits.reference import edge_logits, linear_transformer, pairs, slope_on_line

PAIRS = pairs()
FAMILIES = ("gpt2", "llama", "qwen2")
_runs: dict[str, CircuitRuns] = {}


def runs_of(family: str) -> CircuitRuns:
    if family not in _runs:
        _runs[family] = record(tiny.bridge(family), PAIRS)
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
    names = [[graph.receivers[r] for r in graph.inputs[graph.sender_number(1, h)]] for h in (2, 3)]
    assert names == [["A1.2.q", "A1.1.k", "A1.1.v"], ["A1.3.q", "A1.1.k", "A1.1.v"]]


def test_pruning_keeps_edges_on_paths_only():
    graph = Graph(2, 2, 2)
    path = ["embed -> A0.0.v", "A0.0 -> M1", "M1 -> out"]
    circuit = Circuit.of(graph, [*path, "embed -> A1.1.k", "M0 -> out"])
    assert circuit.pruned().edges == Circuit.of(graph, path).edges
    assert len(Circuit(graph, graph.exists).pruned()) == len(graph.edges)


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
    graph, wiring = runs.graph, Wiring(runs, value)
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
    wiring = Wiring(runs)
    assert torch.equal(wiring.logits(wiring.start())[0], runs.clean.logits())
    everything = wiring.logits(wiring.remove(runs.graph.exists))[0]
    assert torch.equal(everything, runs.corrupted.logits())


@pytest.mark.parametrize("pos", [None, [2, 6]])
def test_step_by_step_is_as_from_scratch(pos):
    runs = runs_of("qwen2")
    wiring, generator = Wiring(runs, pos=pos), torch.Generator().manual_seed(0)
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
    wiring, mask = Wiring(runs, pos=[2]), torch.zeros_like(runs.graph.exists)
    mask[0] = True
    mixed = PAIRS.clean_tokens.clone()
    mixed[:, 2] = PAIRS.corrupted_tokens[:, 2]
    found = wiring.logits(wiring.remove(mask))[0]
    torch.testing.assert_close(found, model(mixed)[:, -1], atol=2e-5, rtol=0)


def test_removing_a_whole_node_is_patching_its_output():
    runs, model = runs_of("llama"), tiny.bridge("llama")
    wiring, mask = Wiring(runs, "mean"), torch.zeros_like(runs.graph.exists)
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
    wiring, generator = Wiring(runs), torch.Generator().manual_seed(0)
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
    runs = runs_of(family)
    scores = circuits.attribute(runs, value=value)
    wiring, metric = Wiring(runs, value), runs.function("logit_diff")
    start = metric(wiring.logits(wiring.start())).mean()
    for n in range(0, len(runs.graph.edges), 61):
        state = wiring.remove(one_edge(runs.graph, n) * 1e-3)
        slope = 1e3 * (metric(wiring.logits(state)).double().mean() - start)
        assert scores["score"][n] == pytest.approx(float(slope), abs=2e-3, rel=0.05)


@pytest.mark.parametrize("value", ["resample", "zero"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_over_activations_is_the_mean_slope_on_the_senders_line(family, value):
    """Against differences in hooked runs, in which nothing but the sender has moved."""
    runs, model = runs_of(family), tiny.bridge(family)
    scores = circuits.attribute(runs, "eap-ig-activations", value=value, steps=2)["score"]
    sender, receiver = runs.graph.index
    for n in range(0, len(scores), 97):
        case = model, runs.graph, sender[n], receiver[n], PAIRS, value == "zero"
        slopes = [
            slope_on_line(*case, share, runs.function("logit_diff")) for share in (1 / 4, 3 / 4)
        ]
        assert scores[n] == pytest.approx(np.mean(slopes), abs=5e-4, rel=0.02)


def test_attribution_and_evaluation_are_the_same_twice():
    runs = runs_of("qwen2")
    for method in ("eap", "eap-ig", "eap-ig-activations", "exact"):
        one, again = (circuits.attribute(runs, method) for _ in range(2))
        assert one.equals(again)
    circuit = top(runs.graph, one, 40)
    assert circuits.evaluate(runs, circuit).equals(circuits.evaluate(runs, circuit))


def test_batches_of_prompts_add_up():
    whole = circuits.attribute(runs_of("qwen2"))
    parts = circuits.attribute(runs_of("qwen2"), max_memory=1)
    np.testing.assert_allclose(whole["score"], parts["score"], atol=1e-6)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations"])
def test_scores_by_prompt_are_those_of_each_prompt_alone(method):
    model, data = tiny.bridge("qwen2"), pairs()
    whole = circuits.attribute(record(model, data), method)
    each = circuits.attribute(record(model, data), method, per_prompt=True)
    means = each.groupby("edge", sort=False)["score"].mean()
    assert means.index.tolist() == whole["edge"].tolist()
    np.testing.assert_allclose(means, whole["score"], atol=1e-5)
    take = {
        name: getattr(data, name)[1:2]
        for name in ("clean", "corrupted", "clean_tokens", "corrupted_tokens", "answers", "wrong")
    }
    alone = circuits.attribute(record(model, replace(data, **take, roles={})), method)
    own = each.loc[each["prompt"] == 1, "score"]
    np.testing.assert_allclose(own, alone["score"], atol=1e-5)
    with pytest.raises(ValueError, match="per_prompt=True is for estimates"):
        circuits.attribute(record(model, data), "exact", per_prompt=True)


def test_the_bootstrap_keeps_edges_of_stable_sign():
    """Against plain resampling of a table of three edges."""
    rng, names = np.random.default_rng(1), ["a -> b", "a -> c", "b -> c"]
    values = rng.normal([1.0, 0.1, -0.4], 0.5, size=(12, 3))
    table = pd.DataFrame({"prompt": np.repeat(range(12), 3), "edge": names * 12, "sender": "a"})
    table = table.assign(receiver="b", score=values.ravel())
    found = circuits.bootstrapped(table, draws=4000)
    draws = values[rng.integers(12, size=(4000, 12))].mean(1)
    same = (np.sign(draws) == np.sign(values.mean(0))).mean(0)
    np.testing.assert_allclose(found["same_sign"], same, atol=0.03)
    assert found["edge"].tolist() == names
    np.testing.assert_allclose(found["mean"], values.mean(0))
    assert (found["score"] != 0).tolist() == (found["same_sign"] >= 0.95).tolist()
    assert 0 < (found["score"] != 0).sum() < 3
    with pytest.raises(ValueError, match="per_prompt=True"):
        circuits.bootstrapped(found)


def test_attribution_is_exact_where_the_model_is_linear():
    model = linear_transformer()
    runs = record(model, docstring(model, 4))
    exact = circuits.attribute(runs, "exact")["score"]
    assert exact.abs().max() > 0.1
    for method in ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted"):
        scores = circuits.attribute(runs, method)["score"]
        np.testing.assert_allclose(scores, exact, atol=1e-4 * exact.abs().max())


def test_integrated_gradients_meet_the_definition():
    """EAP-IG is the mean of EAP's gradients along the path: one step is the midpoint alone."""
    runs = runs_of("gpt2")
    many = circuits.attribute(runs, "eap-ig", metric="kl", steps=2)["score"]
    assert many.abs().max() > 0
    with pytest.raises(ValueError, match="zero gradient"):
        circuits.attribute(runs, metric="kl")
    with pytest.raises(ValueError, match="none of"):
        circuits.attribute(runs, "eap-ig", steps=0)
    with pytest.raises(ValueError, match="no gradient"):
        circuits.attribute(runs, metric="rank")


def test_the_edges_of_a_head_sum_to_its_own_attribution():
    """An independent path to the same number: attribution patching of z."""
    model = tiny.bridge("llama")
    nodes = circuits.head_importance(circuits.attribute(runs_of("llama"))).set_index("sender")
    both = patching.record(model, PAIRS, ["z"])
    whole = patching.attribution(both, "z", direction="noise", normalise=False)
    logits = model(PAIRS.clean_tokens)[:, -1]
    clean = float(logit_diff(logits, PAIRS.answers, PAIRS.wrong).mean())
    for row in whole.itertuples():
        found = nodes.loc[f"A{row.layer}.{row.head}", "score"]
        assert found == pytest.approx(row.logit_diff - clean, abs=2e-5)
    assert nodes.groupby("layer")["importance"].apply(lambda x: (x**2).sum()).to_list() == (
        pytest.approx([1.0] * 5)
    )


def test_exact_scores_only_the_edges_asked_for():
    runs, wanted = runs_of("gpt2"), ["A0.1 -> M2", "M3 -> out"]
    table = circuits.attribute(runs, "exact", edges=wanted)
    assert table["edge"].tolist() == wanted
    with pytest.raises(ValueError, match="no edge"):
        circuits.attribute(runs, "exact", edges=["A0.1 -> M9"])


# ACDC


def order(graph: Graph) -> list[tuple[int, int]]:
    """Receiver and sender of every trial."""
    return [
        (r, u)
        for group in reversed(graph.groups)
        for r in receivers_of(graph, group, "descending")
        for u in senders_of(graph, group, "descending")
    ]


def slow_acdc(runs: CircuitRuns, threshold: float) -> list[str]:
    """The algorithm as written: every removal is a run from scratch."""
    graph, wiring, metric = runs.graph, Wiring(runs), runs.function("kl")
    kept, loss = graph.exists.clone(), 0.0
    for receiver, sender in order(graph):
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
    runs = record(model, PAIRS)
    found = circuits.acdc(runs, 0.1)
    assert found.circuit.edges == slow_acdc(runs, 0.1)
    assert 0 < len(found.circuit) < len(found.circuit.graph.edges)
    assert len(found.trials) < len(found.circuit.graph.edges)  # orphans cost no trial
    again = circuits.acdc(runs, 0.1)
    pd.testing.assert_frame_equal(found.trials, again.trials)


@pytest.mark.parametrize(
    ("family", "units"), [*((family, "edges") for family in FAMILIES), ("llama", "nodes")]
)
def test_trials_that_share_a_batch_end_as_one_by_one(family, units):
    runs = runs_of(family)
    options = {"units": units, "value": "zero" if units == "nodes" else "resample"}
    threshold = 0.02 if units == "edges" else 0.2
    alone = circuits.acdc(runs, threshold, max_memory=1, **options)
    removed = alone.trials["removed"]
    assert 0 < removed.sum() < len(removed)
    for rows in (3, 40):
        budget = rows * Wiring(runs).row_memory(runs.graph.groups[0])
        found = circuits.acdc(runs, threshold, max_memory=budget, **options)
        assert found.trials[["edge", "removed"]].equals(alone.trials[["edge", "removed"]])
        np.testing.assert_allclose(found.trials["change"], alone.trials["change"], atol=2e-5)
        assert found.circuit.edges == alone.circuit.edges


def test_acdc_over_heads_removes_them_whole():
    runs = runs_of("llama")
    found = circuits.acdc(runs, 0.05, units="heads")
    gone = found.trials.loc[found.trials["removed"], "edge"].tolist()
    assert found.trials["edge"].tolist()[:4] == ["A3.3", "A3.2", "A3.1", "A3.0"]
    assert gone
    assert not {*gone} & {*found.circuit.nodes}
    assert {"embed", "M0", "M1", "M2", "M3", "out"} <= {*found.circuit.nodes}
    mask = torch.zeros_like(runs.graph.exists)
    mask[[runs.graph.senders.index(name) for name in gone]] = True
    logits = Wiring(runs).logits(Wiring(runs).remove(mask & runs.graph.exists))
    loss = float(runs.function("kl")(logits).mean())
    accepted = found.trials.loc[found.trials["removed"], "change"].sum()
    assert accepted == pytest.approx(loss, abs=2e-5)
    with pytest.raises(ValueError, match="units is"):
        circuits.acdc(runs, 1.0, units="layers")  # type: ignore[arg-type]


def test_acdc_visits_receivers_backwards_and_senders_from_the_last():
    graph = Graph(2, 2, 2)
    found = [(graph.receivers[r], graph.senders[u]) for r, u in order(graph)]
    senders = [sender for receiver, sender in found if receiver == "out"]
    assert senders == ["M1", "A1.1", "A1.0", "M0", "A0.1", "A0.0", "embed"]
    assert list(dict(found))[:8] == [
        "out", "M1", "A1.1.q", "A1.1.k", "A1.1.v", "A1.0.q", "A1.0.k", "A1.0.v"]  # fmt: skip
    assert len(found) == len(graph.edges)
    batched = [(trial.receiver, trial.sender) for _, batch in trials(graph) for trial in batch]
    assert batched == order(graph)


def test_a_huge_threshold_leaves_nothing_and_a_hopeless_one_everything():
    runs = runs_of("gpt2")
    assert len(circuits.acdc(runs, 1e9).circuit) == 0
    with pytest.raises(ValueError, match="heads is"):
        circuits.acdc(runs, 1.0, heads="sideways")  # type: ignore[arg-type]


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
    runs = runs_of("gpt2")
    nothing = Circuit.of(runs.graph, [])
    both = {"full": Circuit(runs.graph, runs.graph.exists), "empty": nothing}
    for ablation in (
        circuits.Ablation(),
        circuits.Ablation(component="node", value="zero"),
        circuits.Ablation(granularity="head", value="mean"),
        circuits.Ablation(direction="restore", set="circuit"),
        circuits.Ablation(value="noise", positions=(3, 6)),
    ):
        table = circuits.evaluate(runs, both, ablation)
        found = circuits.summary(table).set_index("circuit")
        assert found.loc["full", "faithfulness"] == pytest.approx(1, abs=1e-5)
        assert found.loc["empty", "faithfulness"] == pytest.approx(0, abs=1e-5)
        assert found.loc["full", "worst"] == pytest.approx(1, abs=1e-4)


def test_the_best_constant_of_a_linear_model_is_the_mean():
    """One edge into the output, squared error: the least-squares answer, where it is read."""
    model = linear_transformer()
    runs = record(model, docstring(model, 8))
    edge, clean = "A1.0 -> out", runs.clean.logits()
    without = Circuit.of(runs.graph, [e for e in runs.graph.edges if e != edge])

    def error(logits):
        return (logits - clean).square().mean(-1)

    layer, head = 1, 0
    z = runs.clean.activation("z", layer)[:, -1, head]
    written = z @ projections(model)[layer]["o"][0][head]
    expected = unembed(model, written - written.mean(0)) - unembed(model, torch.zeros_like(written))
    values = circuits.optimal(runs, without, metric=error, steps=300)
    found = circuits.evaluate(runs, without, circuits.Ablation(value=values), error)["value"]
    least = float(expected.square().mean())
    assert found.mean() == pytest.approx(least, rel=0.02)
    start = circuits.optimal(runs, without, metric=error, steps=0)
    begun = circuits.evaluate(runs, without, circuits.Ablation(value=start), error)["value"]
    assert begun.mean() > 1.1 * least


def test_constants_are_written_as_by_hooks():
    runs, model = runs_of("llama"), tiny.bridge("llama")
    circuit = Circuit.between(runs.graph, ["A0.1", "M1", "A2.0", "M3"])
    values = circuits.optimal(runs, circuit, circuits.Ablation(component="node"), steps=3)
    ablation = circuits.Ablation(component="node", value=values)
    found = circuits.evaluate(runs, circuit, ablation)["value"]

    def write(site, layer):
        def hook(x, hook):
            here = [n for n in range(x.shape[2]) if f"A{layer}.{n}" not in circuit.nodes]
            if site == "z":
                x[:, :, here] = values(site, layer)[:, :, here]
            elif f"M{layer}" not in circuit.nodes:
                x = values(site, layer).expand_as(x)
            return x

        return hook

    names = {"z": "blocks.{}.attn.hook_z", "mlp_out": "blocks.{}.hook_mlp_out"}
    hooks = [
        (name.format(n), write(site, n))
        for n in range(runs.graph.n_layers)
        for site, name in names.items()
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(PAIRS.clean_tokens)[:, -1]
    expected = logit_diff(logits, PAIRS.answers, PAIRS.wrong)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match="to restore"):
        circuits.optimal(runs, circuit, circuits.Ablation(direction="restore"))
    with pytest.raises(ValueError, match="no gradient"):
        circuits.optimal(runs, circuit, metric="rank")


def test_restoring_the_rest_is_ablating_the_circuit_for_all_edges_of_a_node():
    """The two directions differ in general; they agree on edges into the output alone."""
    runs = runs_of("gpt2")
    circuit = Circuit.of(runs.graph, [e for e in runs.graph.edges if e.endswith("-> out")][::2])
    noised = circuits.evaluate(runs, circuit, circuits.Ablation(set="circuit"))
    wiring = Wiring(runs)
    expected = runs.function("logit_diff")(wiring.logits(wiring.remove(circuit.kept)))[0]
    np.testing.assert_allclose(noised["value"], expected.numpy(), atol=1e-5)


def test_prompts_in_batches_give_the_same_values():
    runs = runs_of("qwen2")
    circuit = top(runs.graph, circuits.attribute(runs), 60)
    for value in ("resample", "mean"):
        ablation = circuits.Ablation(value=value)
        whole = circuits.evaluate(runs, circuit, ablation)
        parts = circuits.evaluate(runs, circuit, ablation, max_memory=1)
        pd.testing.assert_frame_equal(whole, parts, atol=1e-5)


def test_pruned_circuits_run_as_unpruned_ones():
    runs = runs_of("llama")
    circuit = top(runs.graph, circuits.attribute(runs), 40)
    assert len(circuit.pruned()) < 40
    both = {"as found": circuit, "pruned": circuit.pruned()}
    table = circuits.evaluate(runs, both)
    one, other = (part["value"] for _, part in table.groupby("circuit"))
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("few", [0.0, 1e9])  # one by one, or as one matrix product
def test_circuits_built_from_the_ablated_end_run_as_from_the_clean_one(few, monkeypatch):
    monkeypatch.setattr(wiring_room, "FEW", few)
    runs = runs_of("llama")
    for value in ("resample", "mean"):
        ready = Wiring(runs, value)
        for n in (20, 100, 300):
            circuit = top(runs.graph, circuits.attribute(runs), n)
            removed = runs.graph.exists & ~circuit.kept
            expected = ready.logits(ready.remove(removed, ready.start()))
            for _ in range(2):  # nothing that is reused is written to
                found = ready.logits(ready.remove(removed))
                np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-5)


def test_granularity_and_component_widen_a_circuit():
    graph = Graph(2, 2, 2)
    circuit = Circuit.of(graph, ["embed -> A1.0.q", "A1.0 -> out"])
    head = Circuit(graph, circuits.Ablation(granularity="head").inside(circuit))
    assert {"embed -> A1.0.k", "embed -> A1.0.v"} < set(head.edges)
    assert len(head) == 4
    node = Circuit(graph, circuits.Ablation(component="node").inside(circuit))
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


def test_a_ladder_holds_what_grows_edge_by_edge():
    graph = Graph(3, 2, 2)
    generator = np.random.default_rng(0)
    scores = pd.DataFrame({"edge": graph.edges, "score": generator.normal(size=len(graph.edges))})
    size = dict(zip(graph.edges, scores["score"].abs(), strict=True))
    grown, opened = list[str](), {len(graph.receivers) - 1}
    for share, circuit in circuits.ladder(graph, scores, [0.1, 0.5, 0.9]).items():
        while len(grown) < int(share * len(size)):
            left = [e for e in graph.edges if e not in grown and graph.number[e][1] in opened]
            grown.append(max(left, key=lambda e: size[e]))
            opened |= {*graph.inputs[graph.number[grown[-1]][0]]}
        assert circuit.edges == Circuit.of(graph, grown).pruned().edges
    with pytest.raises(ValueError, match="select is 'greedy' or 'top'"):
        circuits.ladder(graph, scores, select="gready")  # type: ignore[arg-type]


def test_curve_ends_at_one():
    runs = runs_of("gpt2")
    scores = circuits.attribute(runs)
    table = circuits.curve(runs, scores, [0.01, 0.1, 1.0])
    assert table["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-5)
    assert table["share"].tolist() == [0.01, 0.1, 1.0]
    assert table["edges"].iloc[-1] == len(runs.graph.edges)


@pytest.mark.parametrize(
    ("faithfulness", "cpr", "cmd"),
    [
        ([0.0] * 9 + [1.0], 0.25, 0.749),  # nothing below the whole model: MIB's "random"
        ([1.0] * 10, 0.999, 0.0),
        ([2.0] * 10, 1.998, 0.999),  # too faithful: rewarded by one, punished by the other
    ],
)
def test_integrated_measures_are_those_of_mib(faithfulness, cpr, cmd):
    table = pd.DataFrame({"share": circuits.SHARES, "faithfulness": faithfulness})
    assert circuits.cpr(table) == pytest.approx(cpr)
    assert circuits.cmd(table) == pytest.approx(cmd)


def test_integrated_measures_sum_to_their_range():
    """Wherever faithfulness stays between 0 and 1, as 1 - f is its own absolute value there."""
    values = np.random.default_rng(0).random(10)
    table = pd.DataFrame({"share": circuits.SHARES, "faithfulness": values})
    assert circuits.cpr(table) + circuits.cmd(table) == pytest.approx(0.999)
    with pytest.raises(ValueError, match="increasing"):
        circuits.cpr(table[::-1])


def test_signed_ranking_leaves_out_what_holds_the_answer_back():
    graph = Graph(2, 2, 2)
    scores = pd.DataFrame({"edge": graph.edges, "score": -1.0})
    scores.loc[scores["edge"] == "M1 -> out", "score"] = 2.0  # its removal raises the metric
    assert top(graph, scores, 1).edges == ["M1 -> out"]
    assert "M1 -> out" not in top(graph, scores, len(graph.edges) - 1, "signed").edges
    assert "M1 -> out" not in greedy(graph, scores, 20, "signed").edges
    with pytest.raises(ValueError, match="ranking is"):
        top(graph, scores, 1, "random")  # type: ignore[arg-type]


def test_gains_pair_prompts_and_give_the_ratio_of_means():
    runs = runs_of("gpt2")
    rungs = circuits.ladder(runs.graph, circuits.attribute(runs), [0.05, 0.2, 1.0])
    values = circuits.evaluate(runs, rungs)
    wide, table = circuits.gains(values), circuits.summary(values)
    assert wide.columns.tolist() == [0.05, 0.2, 1.0, "full"]
    ratios = wide[[0.05, 0.2, 1.0]].mean() / wide["full"].mean()
    np.testing.assert_allclose(ratios, table["faithfulness"])


def test_roc_counts_ties_at_their_lower_corner():
    truth = [True, True, False, False]
    assert circuits.roc(truth, [4, 3, 2, 1])[1] == 1
    assert circuits.roc(truth, [1, 2, 3, 4])[1] == 0
    assert circuits.roc(truth, [1, 1, 1, 1])[1] == 0  # nothing is ranked
    assert circuits.roc(truth, [2, 1, 1, 0])[1] == pytest.approx(0.75)
    for n in range(2, 60):  # to the last bit: areas are compared with each other
        assert circuits.roc([True] + (n - 1) * [False], range(n, 0, -1))[1] == 1
    with pytest.raises(ValueError, match="inside and outside"):
        circuits.roc([True, True], [1, 2])


def test_completeness_of_the_whole_model_is_perfect():
    runs = runs_of("gpt2")
    sets = [[], ["A0.1"], ["A0.1", "M2"]]
    table = circuits.completeness(runs, Circuit(runs.graph, runs.graph.exists), sets)
    assert table["incompleteness"].max() < 1e-5
    assert table["size"].tolist() == [0, 1, 2]


def test_greedy_sets_are_at_least_as_bad_as_each_node():
    runs = runs_of("llama")
    circuit = top(runs.graph, circuits.attribute(runs), 60).pruned()
    found = circuits.greedy_completeness(runs, circuit, size=2)
    inner = [name for name in circuit.nodes if name not in ("embed", "out")]
    single = circuits.completeness(runs, circuit, [[name] for name in inner])
    assert found["incompleteness"][0] == pytest.approx(single["incompleteness"].max())
    assert found["size"].tolist() == [1, 2]


def test_minimality_of_an_edge_is_what_the_circuit_loses_with_it():
    runs = runs_of("gpt2")
    circuit = top(runs.graph, circuits.attribute(runs), 30).pruned()
    table = circuits.minimality(runs, circuit)
    without = Circuit.of(runs.graph, [e for e in circuit if e != table["edge"][2]])
    value = circuits.evaluate(runs, without)["value"].mean()
    assert table["value"][2] == pytest.approx(value, abs=1e-5)


def test_a_random_circuit_has_as_many_edges_of_each_kind():
    graph = Graph(3, 4, 2)
    circuit = Circuit.of(graph, ["A0.1 -> A2.2.q", "M1 -> A2.2.q", "A0.1 -> M1", "embed -> A1.1.v"])
    other = circuits.random_like(circuit, seed=1)
    kinds = [
        sorted((edge.split(" -> ")[1].split(".")[0::2], edge[0] == "A") for edge in found)
        for found in (circuit, other)
    ]
    assert kinds[0] == kinds[1]
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
    nodes = next(trace for trace in figure.data if trace.mode == "markers+text")
    assert nodes.y[list(nodes.text).index("out")] == max(nodes.y)
    with pytest.raises(ValueError, match="0 edges"):
        circuits.draw(Circuit.of(graph, []))


def test_an_edge_into_shared_keys_is_one_arrow():
    graph = Graph(3, 4, 2)
    edges = ["embed -> A1.1.k", "A1.2 -> out", "A1.3 -> out", "embed -> M2", "M2 -> out"]
    figure = circuits.draw(Circuit.of(graph, edges))
    arrows = [s for t in figure.data if t.mode == "markers" for s in t.marker.symbol]
    assert arrows.count("arrow") == len(edges)
    shared = [t for t in figure.data if t.name == "shared keys and values"]
    assert [x for t in shared for x in t.x if x is not None] != []
    marks = next(t for t in figure.data if t.mode == "text")
    assert list(marks.text) == ["k"]


def test_colours_say_what_removal_does():
    graph = Graph(2, 2, 2)
    scores = pd.DataFrame({"edge": graph.edges, "score": -1.0})
    scores.loc[scores["edge"] == "M1 -> out", "score"] = 1.0
    figure = circuits.draw(Circuit(graph, graph.exists), scores)
    legend = {t.name: t.line.color for t in figure.data if t.x == (None,)}
    assert len(legend) == 2
    for trace in (t for t in figure.data if t.mode == "markers" and t.text):
        edge = trace.text[0].split("<br>")[0]
        effect = "raises" if edge == "M1 -> out" else "lowers"
        assert trace.marker.color == legend[f"removal {effect} the metric"]
    long = circuits.draw(Circuit(graph, graph.exists), scores, metric="of a metric " * 9)
    assert long.layout.margin.t > figure.layout.margin.t  # two rows of the legend

"""Models reduced to some heads, and classes of heads, against plain hooked forwards."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import metrics, patching
from mi_helpers.patching import roles
from tests import tiny
from tests.patching.test_patching import PAIRS, POS, N, close

SITES = ["z", "attn_out", "mlp_out", "pattern"]
WHERE = {
    "IO": torch.tensor([1, 1, 2]),
    "S1": torch.tensor([2, 2, 1]),
    "S1+1": torch.tensor([3, 3, 2]),
    "S2": torch.tensor([4, 4, 4]),
    "END": torch.tensor([6, 6, 6]),
}
NODES: list[tuple[str, str | None]] = [
    ("0.1", "S1+1"),
    ("1.0", "S2"),
    ("2.3", "END"),
    ("3.2", "END"),
]
HEADS = [f"{layer}.{head}" for layer in range(4) for head in range(4)]


def recorded(family):
    return patching.record(tiny.bridge(family), replace(PAIRS, roles=WHERE), SITES)


def slow(runs, nodes, fill, of_model=False, gone=()):
    """One prompt at a time, one hook a head; `of_model`: nothing but `gone` is overwritten."""
    model, values = runs.model, []
    for prompt in range(N):
        hooks = []
        for name in HEADS:
            layer, head = patching.split(name)
            z = runs.corrupted.activation("z", layer)[:, :, head]
            source = z.mean(0) if fill == "mean" else z[prompt]

            def hook(value, hook, name=name, head=head, source=source, prompt=prompt):
                at = {role: int(WHERE[role][prompt]) for role in WHERE}
                kept = {p for h, r in nodes if h == name for p in ([at[r]] if r else range(POS))}
                lost = {p for h, r in gone if h == name for p in ([at[r]] if r else range(POS))}
                for pos in range(POS):
                    if pos in lost or (not of_model and pos not in kept):
                        value[0, pos, head] = source[pos]
                return value

            hooks.append((f"blocks.{layer}.attn.hook_z", hook))
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logits = model(PAIRS.clean_tokens[prompt : prompt + 1])[:, -1]
        ends = PAIRS.answers[prompt : prompt + 1], PAIRS.wrong[prompt : prompt + 1]
        values.append(float(metrics.logit_diff(logits, *ends)[0]))
    return np.array(values)


@pytest.mark.parametrize("fill", ["mean", "resample"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_reduced_model_equals_one_hook_a_head(family, fill):
    runs = recorded(family)
    close(patching.reduce_to(runs, NODES, fill).logit_diff(), slow(runs, NODES, fill))
    everywhere = [("1.2", None), ("3.0", "S2")]
    close(patching.reduce_to(runs, everywhere, fill).logit_diff(), slow(runs, everywhere, fill))


def test_nodes_taken_out_of_a_circuit_and_of_the_model():
    runs = recorded("gpt2")
    sets: list[list[tuple[str, str | None]]] = [
        NODES[:1],
        NODES[2:],
        NODES,
        [],
        [("1.1", None), *NODES[1:2]],
    ]
    circuit, model = (patching.reduce_to(runs, nodes) for nodes in (NODES, None))
    for found, gone in zip(patching.without(circuit, sets), sets, strict=True):
        close(found, slow(runs, [n for n in NODES if n not in gone], "mean"))
    for found, gone in zip(patching.without(model, sets), sets, strict=True):
        close(found, slow(runs, [], "mean", of_model=True, gone=gone))
    close(model.logit_diff(), slow(runs, [], "mean", of_model=True))


@pytest.mark.parametrize(
    ("nodes", "fill", "message"),
    [
        ([("9.0", "END")], "mean", "no head '9.0': 4 layers of 4 heads"),
        ([("1.0", "S3")], "mean", "no role 'S3': these prompts have IO"),
        ([], "zero", "fill is 'mean' or 'resample', got 'zero'"),
    ],
)
def test_what_cannot_be_knocked_out_is_named(nodes, fill, message):
    with pytest.raises(ValueError, match=message):
        patching.reduce_to(recorded("gpt2"), nodes, fill)


def test_a_random_circuit_has_the_layers_and_roles_and_none_of_the_heads():
    model = tiny.bridge("gpt2")
    drawn = patching.random_like(model, NODES, seed=1, avoid=[("2.0", "END")])
    assert [(h.split(".")[0], r) for h, r in drawn] == [(h.split(".")[0], r) for h, r in NODES]
    assert not {*drawn} & {*NODES, ("2.0", "END")}
    assert drawn == patching.random_like(model, NODES, seed=1, avoid=[("2.0", "END")])
    whole_layer = [(f"1.{head}", "END") for head in range(4)]
    assert len(patching.random_like(model, whole_layer)) == 4  # no other is left


def test_what_heads_gain_without_others_is_four_runs():
    runs, movers = recorded("gpt2"), ["2.1", "2.2"]
    found = patching.gains_without([runs], movers)
    assert list(found) == ["2.0", "2.3", *(f"3.{head}" for head in range(4))]

    def fall(head, gone):
        held = [(name, "END") for name in gone]
        before = slow(runs, [], "resample", of_model=True, gone=held)
        return before - slow(runs, [], "resample", of_model=True, gone=[*held, (head, "END")])

    for head in ("2.0", "3.1"):
        close(found[head], fall(head, movers) - fall(head, []))


def test_falls_are_what_path_patching_takes_away():
    runs = recorded("llama")
    table = patching.path_patch(runs, ["0.1"], ["2.0.q"], pos="END", normalise=False)
    clean = runs.scores(["logit_diff"]).query("run == 'clean'")["logit_diff"].mean()
    found = patching.falls([runs, runs], ["0.1", "3.0"], ["2.0.q"], "END")
    assert list(found) == ["0.1"]
    assert len(found) == 2 * N
    close(found["0.1"].mean(), clean - table["logit_diff"][0])
    assert patching.falls([runs], ["0.1"], [], "END").empty


@pytest.mark.parametrize(
    ("effect", "io", "s", "looks", "copied", "expected"),
    [
        (1.0, 0.9, -0.1, (0.6, 0.1, 0.1), 0.9, "name mover"),
        (1.0, 0.9, -0.1, (0.6, 0.1, 0.1), 0.2, "other writer"),
        (1.0, 0.9, -0.1, (0.1, 0.1, 0.6), 0.9, "other writer"),
        (1.0, 0.2, -0.8, (0.1, 0.1, 0.6), 0.0, "subject suppressor"),
        (-1.0, -0.9, 0.1, (0.6, 0.1, 0.1), 0.0, "negative"),
    ],
)
def test_a_writer_is_named_by_what_it_does(effect, io, s, looks, copied, expected):
    head = {"effect": effect, "answer_logit": io, "wrong_logit": s, "copied": copied}
    head |= dict(zip(("IO", "S1", "S2"), looks, strict=True))
    assert roles.writer_class(pd.Series(head)) == expected


def test_strong_effects_are_those_beyond_two_standard_deviations():
    effects = pd.DataFrame([[0.0] * 20 + [3.0, -4.0]] * 2, columns=[f"0.{i}" for i in range(22)])
    assert list(roles.strong(effects).index) == ["0.21", "0.20"]
    assert list(roles.strong(effects, +1).index) == ["0.20"]
    assert roles.strong(pd.DataFrame()).empty


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_classes_name_heads_at_their_roles(family):
    sets = [recorded(family)]
    table = patching.classes(sets, patching.writers(sets))
    assert list(table) == ["class", "head", "role", "effect"]
    assert not table.duplicated(["head", "role"]).any()
    assert {*table["role"]} <= {"END", "S2", "S1+1"}
    assert {*table["head"]} <= {*HEADS}

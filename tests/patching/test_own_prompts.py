"""A user's own table: prompts of several lengths, answers of several tokens, roles; each result is
that of the prompt by itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import patching
from mi_helpers.tasks import PromptPairs
from tests import tiny

FAMILIES = ("gpt2", "mistral", "gemma2", "gpt_neox", "qwen3")  # absolute positions; windows of 8
SITES = ["resid_pre", "z", "attn_out", "mlp_out"]
# three lengths, of which one is longer than the window; the subject stands elsewhere in each
LINES = [
    ("w5 w6 w7 w8 w9", "w5 w6 w17 w8 w9", "w7"),
    (
        "w5 w21 w6 w7 w30 w31 w32 w33 w34 w35 w36 w9",
        "w5 w21 w6 w17 w30 w31 w32 w33 w34 w35 w36 w9",
        "w7",
    ),
    ("w40 w41 w7 w9 w10 w11 w12", "w40 w41 w50 w9 w10 w11 w12", "w7"),
]
ANSWERS = {"one": [(" w60", " w61"), (" w62", " w63"), (" w64", " w65")]}
ANSWERS["several"] = [(" w60 w61", " w60 w62"), (" w63", " w64 w65 w66"), (" w67 w68 w69", " w70")]


def table(answers: str = "one") -> pd.DataFrame:
    lines = [
        {"clean": c, "corrupted": o, "answer": a, "wrong": w, "role:subject": s}
        for (c, o, s), (a, w) in zip(LINES, ANSWERS[answers], strict=True)
    ]
    return pd.DataFrame(lines)


def sweep(runs: patching.BaseRuns, **options: Any) -> pd.DataFrame:
    return patching.sweep(runs, positions=["subject", "END"], **options)


METHODS: dict[str, Any] = {
    "stream": lambda runs: sweep(runs, layers=[0, 2], normalise=False, per_prompt=True),
    "heads": lambda runs: patching.sweep(
        runs, "z", "noise", layers=[2], normalise=False, per_prompt=True
    ),
    "end": lambda runs: patching.sweep(
        runs, "attn_out", positions=[-1, -2], normalise=False, per_prompt=True
    ),
    "path": lambda runs: patching.path_patch(
        runs, ["0.1", "1.3"], ["2.1.q", "mlp3"], normalise=False, per_prompt=True
    ),
    "direct": lambda runs: patching.direct_effects(runs, ["1.2", "mlp3"]),
    "attribution": lambda runs: patching.attribution(
        runs, "z", steps=2, positions=["subject", "END"], normalise=False, per_prompt=True
    ),
    "scores": lambda runs: runs.scores(["logit_diff", "log_prob", "accuracy"]),
}


@pytest.mark.parametrize(
    ("family", "answers", "scored"),
    [(family, "one", "one") for family in FAMILIES]
    + [(family, "several", "all") for family in ("gpt2", "mistral")],
)
def test_a_mixed_set_is_each_prompt_alone(family: str, answers: str, scored: Any) -> None:
    model, found = tiny.bridge(family), table(answers)
    pairs = PromptPairs.from_table(model, found, scored=scored)
    runs = patching.record(model, pairs, SITES)
    alone = [
        patching.record(model, PromptPairs.from_table(model, found.iloc[[i]], scored=scored), SITES)
        for i in range(len(found))
    ]
    assert pairs.clean_tokens.shape == (3, 13)
    assert alone[0].pairs.clean_tokens.shape == (1, 6)
    for name, method in METHODS.items():
        whole = method(runs)
        score = "log_prob" if "log_prob" in whole else "logit_diff"
        for i, one in enumerate(alone):
            mine = whole[whole["prompt"] == i]
            error = np.abs(mine[score].to_numpy() - method(one)[score].to_numpy()).max()
            assert error < 2e-5, (name, i)
        if name != "scores":
            assert whole[score].std() > 1e-4
        assert ("scored" in whole) == (scored != "one")
    means = sweep(runs, layers=[0, 2], normalise=False)["logit_diff"].to_numpy()
    each = METHODS["stream"](runs)["logit_diff"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(means, each.mean(1), atol=1e-6)
    part = pairs.part([1, 2]).part(slice(1, 2))
    assert torch.equal(part.clean_tokens, alone[2].pairs.clean_tokens)
    assert part.roles["subject"].tolist() == [3]


def by_hand(model: Any, prompt: str, answer: str) -> float:
    """The log-probability of an answer, one plain forward pass a token."""
    ids, total = model.to_tokens(prompt)[0].tolist(), 0.0
    for word in answer.split():
        token = model.tokenizer.convert_tokens_to_ids(word)
        with torch.no_grad():
            total += float(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return total


def test_whole_answers_are_scored_by_their_log_probability() -> None:
    model, found = tiny.bridge("gpt2"), table("several")
    pairs = PromptPairs.from_table(model, found, scored="all")
    scores = patching.record(model, pairs, ["z"]).scores(["answer_logit", "wrong_logit", "prob"])
    for run in ("clean", "corrupted"):
        of_run = scores[scores["run"] == run]
        for column, answer in (("answer_logit", "answer"), ("wrong_logit", "wrong")):
            expected = [
                by_hand(model, *pair) for pair in zip(found[run], found[answer], strict=True)
            ]
            np.testing.assert_allclose(of_run[column], expected, atol=1e-5)
    table_of = pairs.performance(model)
    expected = scores.groupby("run")[["answer_logit", "wrong_logit"]].mean()
    difference = expected["answer_logit"] - expected["wrong_logit"]
    np.testing.assert_allclose(table_of["logit_diff"], difference, atol=1e-5)
    assert set(table_of["scored"]) == {"all"}
    with pytest.raises(ValueError, match="make the pairs with scored='first'"):
        patching.gaussian(model, pairs, [1])
    # a single token's is the logit difference itself
    one = PromptPairs.from_table(model, table(), scored="one").performance(model)
    whole = PromptPairs.from_table(model, table(), scored="all").performance(model)
    np.testing.assert_allclose(one["logit_diff"], whole["logit_diff"], atol=1e-5)
    runs = patching.record(model, pairs, ["z"])
    rolled = replace(pairs, answers=pairs.answers.roll(1))
    with pytest.raises(ValueError, match="recorded before other answers"):
        replace(runs, pairs=rolled).scores(["logit_diff"])
    with pytest.raises(ValueError, match="'rank' is not one of whole answers"):
        patching.sweep(patching.record(model, pairs), metrics=["rank"])


def test_the_first_token_that_tells_them_apart() -> None:
    model, found = tiny.bridge("gpt2"), table("several")
    pairs = PromptPairs.from_table(model, found, scored="first")
    words = model.tokenizer.convert_ids_to_tokens
    assert words(pairs.answers.tolist()) == ["w61", "w63", "w67"]
    assert words(pairs.wrong.tolist()) == ["w62", "w64", "w70"]
    assert words(pairs.clean_tokens[0, :7].tolist())[-2:] == ["w9", "w60"]  # both begin with w60
    assert words(pairs.corrupted_tokens[0, :7].tolist())[-2:] == ["w9", "w60"]
    assert pairs.roles["END"].tolist() == [6, 12, 7]
    runs = patching.record(model, pairs)
    assert set(sweep(runs)["scored"]) == {"first"}
    with torch.no_grad():
        logits = model(pairs.clean_tokens[:1, :7])[0, -1]
    expected = logits[pairs.answers[0]] - logits[pairs.wrong[0]]
    assert runs.scores(["logit_diff"])["logit_diff"][0] == pytest.approx(float(expected), abs=1e-5)
    found.loc[0, "wrong"] = " w60"
    with pytest.raises(ValueError, match=r"line 1: .*no token tells one from the other"):
        PromptPairs.from_table(model, found, scored="first")
    with pytest.raises(ValueError, match=r"line 1: .*not one token.*scored='first' or 'all'"):
        PromptPairs.from_table(model, table("several"))


@pytest.mark.parametrize("scored", ["first", "all"])
def test_a_table_goes_through_all_of_activation_patching(tmp_path: Any, scored: Any) -> None:
    """What notebook 01 does, from a file: nothing but the table and `scored` is another."""
    table("several").to_csv(tmp_path / "own.csv", index=False)
    model = tiny.bridge("mistral")
    pairs = PromptPairs.from_table(model, tmp_path / "own.csv", scored=scored)
    assert pairs.performance(model).loc["clean", "prompts"] == 3
    pairs.does_task(model)
    runs = patching.record(model, pairs)
    # the stream, layers by roles; roles are the default where lengths differ
    stream = patching.sweep(runs, per_prompt=True)
    assert list(stream["pos"].unique()) == ["subject", "END"]
    # heads, both directions, as one column each
    swept: dict[str, Any] = {"layers": range(2, 4), "positions": ["END"], "per_prompt": True}
    denoised = patching.by_prompt(patching.sweep(runs, "z", "denoise", **swept))
    noised = patching.by_prompt(patching.sweep(runs, "z", "noise", **swept))
    assert denoised.shape == noised.shape == (3, 8)
    strongest = noised.mean().idxmin()
    # a head's attention between roles; its direct path; what reaches its query
    seen = patching.attention(runs.clean, [strongest], ["subject", "END"])
    assert ((seen[["subject", "END"]] >= 0) & (seen[["subject", "END"]] <= 1)).all(axis=None)
    direct = patching.direct_effects(runs, [strongest])
    assert len(direct) == 3
    told = patching.path_patch(runs, "heads", [f"{strongest}.q"], pos="END", per_prompt=True)
    assert patching.by_prompt(told).shape[0] == 3
    # attribution estimates the sweep's rows
    guess = patching.attribution(runs, "z", direction="noise", **swept)
    assert len(guess) == noised.size
    for found in (stream, direct, told, guess):
        assert set(found["scored"]) == {scored}
        assert np.isfinite(found["logit_diff"]).all()
    # patching everything gives the other run
    everything = patching.sweep(runs, layers=[0], positions="all")
    assert everything["logit_diff"].item() == pytest.approx(1, abs=1e-4)


def test_positions_of_mixed_sets_are_named() -> None:
    model = tiny.bridge("gpt2")
    pairs = PromptPairs.from_table(model, table())
    runs = patching.record(model, pairs)
    with pytest.raises(ValueError, match=r"6 to 13 tokens.*name roles, of subject, END"):
        patching.sweep(runs, positions="each")
    with pytest.raises(ValueError, match="position 6 does not exist: there are 6"):
        patching.sweep(runs, positions=[6])
    at = patching.sweep(runs, positions=["END", -1], layers=[2])["logit_diff"]
    assert at[0] == at[1]
    both = PromptPairs.join([pairs.part([0]), pairs.part([1, 2])])
    assert torch.equal(both.clean_tokens, pairs.clean_tokens)
    assert torch.equal(both.roles["subject"], pairs.roles["subject"])
    noised = patching.gaussian(model, pairs, ["subject"])
    alike = (noised.clean.resid[0] == noised.corrupted.resid[0]).all(-1)
    changed = [np.flatnonzero(~row).tolist() for row in alike.numpy()]
    assert changed == [[at] for at in pairs.roles["subject"].tolist()]


@pytest.mark.parametrize("fill", ["resample", "mean"])
def test_reduced_models_on_mixed_sets(fill: Any) -> None:
    model, found = tiny.bridge("gpt2"), table()
    runs = patching.record(model, PromptPairs.from_table(model, found), ["z"])
    nodes = [("1.2", "subject"), ("3.1", "END")]
    kept = patching.reduce_to(runs, nodes, fill)
    less = patching.without(kept, [nodes[:1], []])
    np.testing.assert_allclose(less[1], kept.logit_diff(), atol=1e-5)
    fewer = patching.reduce_to(runs, nodes[1:], fill).logit_diff()
    np.testing.assert_allclose(less[0], fewer, atol=1e-5)
    if fill == "resample":
        for i in range(3):
            one = PromptPairs.from_table(model, found.iloc[[i]])
            alone = patching.reduce_to(patching.record(model, one, ["z"]), nodes, fill)
            assert alone.logit_diff()[0] == pytest.approx(kept.logit_diff()[i], abs=1e-5)

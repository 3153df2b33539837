"""Claims: rules, verdicts, what is refused, what is recorded, how it is shown."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mi_helpers import claims
from mi_helpers.claims import above, below, between, equals
from mi_helpers.stats import Estimate, estimate

MEASURED = Estimate(0.5, 0.4, 0.6, 32, "prompts", "nats")
GOOD: dict[str, Any] = {
    "id": "00.layer-norm",
    "says": "it does",
    "source": "a paper, §1",
    "value": MEASURED,
    "rule": above(0.3),
}


@pytest.fixture(autouse=True)
def _fresh_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MI_SCORECARD", raising=False)
    claims.start("00_tour", model="toy", seed=7, applies={"task": True, "sae": "no autoencoder"})


def made(**changes: Any) -> claims.Record:
    claims.claim(**{**GOOD, **changes})
    return claims.records()[-1]


def test_a_claim_is_recorded_with_exactly_the_keys_of_a_scorecard() -> None:
    assert made(null=("shuffled", 0.1)) == {
        "id": "00.layer-norm",
        "notebook": "00_tour",
        "model": "toy",
        "says": "it does",
        "source": "a paper, §1",
        "kind": "replication",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 32,
        "unit": "nats",
        "rule": "> 0.3",
        "null": "shuffled: 0.1",
        "verdict": "holds",
        "why": None,
        "seed": 7,
    }
    assert tuple(claims.records()[0]) == claims.KEYS


@pytest.mark.parametrize(
    ("rule", "text", "verdicts"),
    [
        # intervals [0, 1], [2, 3], [4, 5] against limits inside, between and at their ends
        (above(0.5), "> 0.5", ("undecided", "holds", "holds")),
        (above(2), "> 2", ("does not hold", "undecided", "holds")),
        (above(1), "> 1", ("does not hold", "holds", "holds")),  # at the limit is not above it
        (below(3.5), "< 3.5", ("holds", "holds", "does not hold")),
        (between(1.5, 3.5), "between 1.5 and 3.5", ("does not hold", "holds", "does not hold")),
        (between(2.5, 9), "between 2.5 and 9", ("does not hold", "undecided", "holds")),
        (equals(2.5, 1), "2.5 ± 1", ("does not hold", "holds", "does not hold")),
        (equals(2.5, 0.1), "2.5 ± 0.1", ("does not hold", "undecided", "does not hold")),
    ],
)
def test_a_rule_is_code_and_prints_itself(
    rule: claims.Rule, text: str, verdicts: tuple[str, ...]
) -> None:
    assert str(rule) == text
    assert tuple(rule.verdict(low, low + 1) for low in (0, 2, 4)) == verdicts


def test_rules_refuse_limits_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="low < high"):
        between(2, 1)
    with pytest.raises(ValueError, match="above 0"):
        equals(1, 0)


def test_undecided_says_how_many_samples_would_decide() -> None:
    # half width .1 at distance .05 from the limit: (.1 / .05)² = 4 times as many
    assert made(rule=above(0.45))["why"] == "n = 32 prompts; about 130 would decide"
    assert made(id="00.at-limit", rule=above(0.5))["why"] == (
        "at n = 32 prompts the value lies on its limit"
    )
    assert (
        made(id="00.nearly", rule=above(0.4001))["why"] == "n = 32 prompts; about 33 would decide"
    )


def test_about_as_many_samples_as_it_says_do_decide() -> None:
    rng = np.random.default_rng(0)
    found = estimate(rng.normal(0.25, 1, 40))
    record = made(value=found, rule=above(0))
    assert record["verdict"] == "undecided"
    needed = int((record["why"] or "").split("about ")[1].split()[0])
    decided = [estimate(rng.normal(found.value, 1, 2 * needed)).low > 0 for _ in range(20)]
    assert np.mean(decided) > 0.5


def test_a_claim_that_its_null_passes_is_undecided() -> None:
    assert made(null=("untrained", Estimate(0.1, 0.0, 0.2, 32, "prompts")))["verdict"] == "holds"
    record = made(id="00.weak", null=("untrained", Estimate(0.4, 0.35, 0.5, 32, "prompts")))
    assert record["verdict"] == "undecided"
    assert record["why"] == "the null is not ruled out (untrained)"
    assert record["null"] == "untrained: 0.4 [0.35, 0.5]"
    overlapping = made(id="00.spans", null=("untrained", Estimate(0.2, 0.1, 0.45, 32, "prompts")))
    assert overlapping["verdict"] == "undecided"
    apart = made(id="00.apart", null=("untrained", Estimate(0.2, 0.1, 0.39, 32, "prompts")))
    assert apart["verdict"] == "holds"
    passing = made(id="00.passing", null=("untrained", Estimate(0.32, 0.25, 0.39, 32, "prompts")))
    assert passing["verdict"] == "undecided"  # apart, but beyond the limit by its own value
    ratio, one = Estimate(1.5, 1.4, 1.6, 32, "prompts", "×"), Estimate(1.1, 0.9, 1.3, 32, "prompts")
    same = made(id="00.ratio", value=ratio, rule=above(1), null=("itself", one))
    assert same["verdict"] == "holds"  # a ratio of 1 is no effect
    beyond = Estimate(0.8, 0.7, 0.9, 32, "prompts")
    refuted = made(id="00.beyond", null=("untrained", beyond))
    assert refuted["verdict"] == "does not hold"
    assert refuted["why"] == "the null keeps the rule by more (untrained)"
    low = Estimate(0.2, 0.1, 0.25, 32, "prompts")
    small = {"value": Estimate(0.4, 0.3, 0.45, 32, "prompts"), "rule": below(0.5)}
    assert made(id="00.under", null=("untrained", low), **small)["verdict"] == "does not hold"


def test_a_null_without_effect_is_told_from_an_effect_and_not_from_another_null() -> None:
    def share_that_hold(effect: float) -> float:
        rng, held = np.random.default_rng(0), 0
        for i in range(100):
            value, null = (estimate(rng.normal(mean, 1, 20)) for mean in (effect, 0))
            record = made(
                id=f"00.draw-{effect > 0:d}-{i}", value=value, rule=above(0), null=("no", null)
            )
            held += record["verdict"] == "holds"
        return held / 100

    assert share_that_hold(2.0) > 0.9  # a limit of 0 lies within the null's interval 19 times of 20
    assert share_that_hold(0.0) < 0.02


def test_what_a_claim_needs_is_said_once() -> None:
    assert made(needs="task")["verdict"] == "holds"
    without = made(id="00.of-sae", value=None, needs="sae")
    assert (without["verdict"], without["why"]) == ("not applicable", "no autoencoder")
    made(id="00.parent", rule=above(0.9))
    child = made(id="00.child", needs="00.parent")
    assert (child["verdict"], child["why"]) == (
        "not applicable",
        "its parent 00.parent: does not hold",
    )
    assert made(id="00.child-of-good", needs="00.layer-norm")["verdict"] == "holds"
    claims.condition("late", False, "found later")
    assert made(id="00.late", value=None, needs="late")["why"] == "found later"
    with pytest.raises(ValueError, match="needs 'nothing', which was not set"):
        made(id="00.x", needs="nothing")
    with pytest.raises(ValueError, match="say why"):
        claims.condition("late", False, " ")


def test_a_check_is_a_plain_number_and_has_no_interval() -> None:
    record = made(value=torch.tensor(1e-7), rule=below(1e-5), kind="check")
    assert (record["kind"], record["verdict"], record["low"]) == ("check", "holds", None)
    assert made(id="00.bool", value=True, rule=equals(1, 0.5), kind="check")["value"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "0.x"}, "an id is"),
        ({"id": "00.Layer"}, "an id is"),
        ({"id": "00.a_b"}, "an id is"),
        ({"id": "01.other-notebook"}, "the notebook's number"),
        ({"says": " "}, "says and source are not empty"),
        ({"value": Estimate(math.nan, 0.4, 0.6, 3, "x")}, "finite numbers"),
        ({"value": Estimate(0.5, math.nan, 0.6, 3, "x")}, "finite numbers"),
        ({"value": Estimate(0.5, 0.6, 0.4, 3, "x")}, "low end is not above"),
        ({"value": 0.5}, "a replication needs an interval"),
        ({"value": None}, "only where the claim does not apply"),
        ({"kind": "guess"}, "kind is 'replication' or 'check'"),
    ],
)
def test_a_malformed_claim_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changes)
    assert claims.records() == []


def test_a_claim_before_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_context", {})
    with pytest.raises(RuntimeError, match="before claim"):
        made()


def test_running_a_cell_again_replaces_its_claim() -> None:
    made()
    made(value=Estimate(0.45, 0.4, 0.5, 32, "prompts"))
    assert [record["value"] for record in claims.records()] == [0.45]
    with pytest.raises(ValueError, match="already made"):
        made(says="something else")


def test_under_a_run_each_claim_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("MI_SCORECARD", str(file))
    made()
    made(id="00.two", says="two\nlines")
    with pytest.raises(ValueError, match="already made"):
        made()
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == claims.records()


def test_a_model_is_named_without_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    claims.start("00_tour", model=folder, seed=None)
    assert made()["model"] == "my-model"
    with pytest.raises(TypeError, match="a model is named"):
        claims.start("00_tour", model=3, seed=None)
    with pytest.raises(ValueError, match="two digits"):
        claims.start("tour", model="toy", seed=None)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (above(0.3), "✔ holds"),
        (above(0.7), "✘ does not hold"),
        (above(0.5), "? undecided"),
    ],
)
def test_the_row_shows_verdict_value_interval_rule_null_and_source(
    rule: claims.Rule, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(rule=rule, null=("an untrained copy", 0.0))
    printed = capsys.readouterr().out
    shown = claims.table()._repr_html_()
    for part in (words, "00.layer-norm", "0.5 [0.4, 0.6] nats", "a paper, §1", "an untrained copy"):
        assert part in printed
        assert part in shown
    assert f"rule: {rule}" in printed


def test_texts_are_escaped_in_html() -> None:
    made(says="<script>", null=("<i>", 0.0))
    shown = claims.table()._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<i>" not in shown


def test_an_empty_table_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no claim"):
        claims.table()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5"), (12345.6, "12350"), (-3.0, "-3"), (1.2346e-7, "1.235e-07"), (-0.0, "0")],
)
def test_values_are_shown_with_four_digits(value: Any, shown: str) -> None:
    assert claims.measured(made(value=value, kind="check")) == shown

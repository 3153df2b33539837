"""Claims: what is refused, what is recorded, how it is shown, and the bootstrap."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mi_helpers import claims, stats

GOOD: dict[str, Any] = {
    "id": "00.layer-norm",
    "says": "it does",
    "source": "a paper, §1",
    "value": 0.5,
    "interval": (0.4, 0.6),
    "holds": True,
    "rule": "above 0.3",
}


@pytest.fixture(autouse=True)
def _fresh_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MI_SCORECARD", raising=False)
    claims.start("00_tour", model="toy", seed=7)


def test_a_claim_is_recorded_with_exactly_the_keys_of_a_scorecard() -> None:
    claims.check(**GOOD)
    assert claims.records() == [
        {
            "id": "00.layer-norm", "notebook": "00_tour", "model": "toy", "says": "it does",
            "source": "a paper, §1", "value": 0.5, "low": 0.4, "high": 0.6, "rule": "above 0.3",
            "holds": True, "why": None, "seed": 7,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "0.x"}, "an id is"),
        ({"id": "00.Layer"}, "an id is"),
        ({"id": "00.a_b"}, "an id is"),
        ({"id": "01.other-notebook"}, "number is not that of notebook"),
        ({"says": " "}, "says must be a text"),
        ({"rule": ""}, "rule must be a text"),
        ({"value": math.nan}, "value must be a finite number"),
        ({"value": math.inf}, "value must be a finite number"),
        ({"value": True}, "value must be a finite number"),
        ({"value": "0.5"}, "value must be a finite number"),
        ({"value": None}, "needs its measured value"),
        ({"interval": (0.6, 0.4)}, "out of order"),
        ({"interval": (math.nan, 0.4)}, "low must be a finite number"),
        ({"interval": (0.4, None)}, "two ends"),
        ({"holds": None}, "needs why="),
        ({"holds": None, "why": "  "}, "needs why="),
        ({"holds": 1}, "holds must be"),
        ({"holds": "yes"}, "holds must be"),
        ({"why": 3}, "why must be"),
    ],
)
def test_bad_claims_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        claims.check(**{**GOOD, **changes})
    assert repr(changes.get("id", GOOD["id"])) in str(error.value)
    assert claims.records() == []


def test_check_before_start_says_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_context", {})
    with pytest.raises(RuntimeError, match=r"mi\.claims\.start"):
        claims.check(**GOOD)


def test_a_cell_may_run_twice_but_an_id_says_one_thing() -> None:
    claims.check(**GOOD)
    claims.check(**{**GOOD, "value": 0.45})
    assert [record["value"] for record in claims.records()] == [0.45]
    with pytest.raises(ValueError, match="already checked"):
        claims.check(**{**GOOD, "says": "something else"})


def test_in_a_run_every_claim_is_one_line_and_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "claims.jsonl"
    monkeypatch.setenv("MI_SCORECARD", str(lines))
    claims.check(**GOOD)
    claims.check(**{**GOOD, "id": "00.two", "says": "two\nlines"})
    with pytest.raises(ValueError, match="already checked"):
        claims.check(**GOOD)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert written == claims.records()


def test_numbers_of_numpy_and_torch_become_plain_and_rounded() -> None:
    claims.check(
        **{
            **GOOD,
            "value": torch.tensor(0.123456),
            "interval": (np.float32(0.1), np.float64(1 / 3)),
            "holds": np.bool_(False),
        }
    )
    (record,) = claims.records()
    assert [record[key] for key in ("value", "low", "high")] == [0.1235, 0.1, 0.3333]
    assert record["holds"] is False
    json.dumps(record)


def test_a_directory_is_recorded_by_its_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    claims.start("00_tour", model=folder, seed=0)
    claims.check(**GOOD)
    assert claims.records()[0]["model"] == "my-model"
    assert claims.model_name("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    with pytest.raises(TypeError, match="named by"):
        claims.model_name(3)


def test_texts_with_html_come_out_as_text() -> None:
    claims.check(
        **{**GOOD, "says": "<script>x</script>", "rule": "a < b & c", "source": '<a href="x">'}
    )
    shown = claims.table()._repr_html_()
    assert "<script" not in shown
    assert "<a " not in shown
    assert "&lt;script&gt;" in shown
    assert "a &lt; b &amp; c" in shown


@pytest.mark.parametrize(
    ("holds", "words"), [(True, "✔ holds"), (False, "✘ does not hold"), (None, "– not applicable")]
)
def test_the_row_shows_verdict_value_interval_rule_and_source(
    holds: bool | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    claims.check(**{**GOOD, "holds": holds, "why": "the reason"})
    printed = capsys.readouterr().out
    shown = claims.table()._repr_html_()
    for part in (
        words,
        "00.layer-norm",
        "0.5 [0.4, 0.6]",
        "above 0.3",
        "a paper, §1",
        "the reason",
    ):
        assert part in printed
        assert part in shown


def test_an_empty_table_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no claim"):
        claims.table()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5"), (12345.6, "12350"), (-3.0, "-3"), (1.2346e-7, "1.235e-07"), (-0.0, "0")],
)
def test_values_are_shown_with_four_digits(value: Any, shown: str) -> None:
    claims.check(**{**GOOD, "value": value, "interval": None})
    assert claims.measured(claims.records()[0]) == shown


def test_the_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        value, low, high = stats.bootstrap(rng.normal(2.0, 1.0, 40), n=300, seed=trial)
        assert low <= value <= high
        hits += low <= 2.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_bootstrap_draws_whole_rows_and_takes_any_statistic() -> None:
    x = np.arange(1.0, 21.0)
    pairs = torch.tensor(np.stack([x, 3 * x], axis=1))

    def ratio(rows: np.ndarray) -> float:
        return rows[:, 1].sum() / rows[:, 0].sum()

    assert stats.bootstrap(pairs, ratio) == pytest.approx((3.0, 3.0, 3.0))


@given(arrays(float, st.integers(2, 8), elements=st.floats(-1e3, 1e3)), st.integers(0, 9))
def test_the_bootstrap_is_seeded_and_stays_in_range(values: Any, seed: int) -> None:
    first = stats.bootstrap(values, n=20, seed=seed)
    assert first == stats.bootstrap(values, n=20, seed=seed)
    slack = 1e-9 * (1 + abs(values).max())
    assert values.min() - slack <= first[1] <= first[2] <= values.max() + slack


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "two samples"), ([1.0], "two samples"), (3.0, "two samples"), ([1, math.nan], "NaN")],
)
def test_the_bootstrap_refuses_what_has_no_interval(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.bootstrap(values)

"""Each notebook runs on another model: a tiny random one, with another seed and smaller sizes."""

from pathlib import Path

import pytest

from mi_helpers.run import cli as runs
from mi_helpers.run import scorecard
from tests.notebooks.listing import FINISHED, Listed
from tests.tiny import hf_model


def families(number: int, listed: Listed, exhaustive: bool) -> tuple[str | None, ...]:
    """One of the notebook's families, another than its neighbour's; all with `--exhaustive`."""
    all_of_it = listed.families or (None,)
    return all_of_it if exhaustive else (all_of_it[number % len(all_of_it)],)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        exhaustive = metafunc.config.getoption("exhaustive")
        cases = [
            pytest.param(listed, family, id=f"{listed.name}-{family or listed.model}")
            for number, listed in enumerate(FINISHED)
            for family in families(number, listed, exhaustive)
        ]
        metafunc.parametrize(("listed", "family"), cases)


def save_random(family: str, folder: Path) -> Path:
    """A random model with a vocabulary for the default tokenizer, which steps in for its own."""
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    hf_model(family, vocab_size=49_152, **{positions: 512}).save_pretrained(folder)
    return folder


def test_a_notebook_gets_through_with_other_parameters(
    listed: Listed, family: str | None, tmp_path: Path
) -> None:
    parameters = dict(listed.changed)
    if family:
        parameters["MODEL"] = str(save_random(family, tmp_path / f"random-{family}"))
    run = runs.run([str(listed.path)], parameters, minutes=10, root=tmp_path)
    assert [found["error"] for *_, found in run.finished()] == [None]
    records = scorecard.collect([run.folder], tmp_path).records
    assert records, "a notebook has claims"
    for record in records:
        assert record["notebook"] == listed.name
        assert record["model"] == (f"random-{family}" if family else listed.model)
        assert str(record["seed"]) == listed.changed["SEED"]
        applies = record["verdict"] != "not applicable"
        assert applies == (record["id"] in listed.model_free), (record["id"], record["why"])

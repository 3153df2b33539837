"""`mi check`: what it says of a model, against what the model is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_helpers.models import load_model
from mi_helpers.run import cli, passport, plan
from tests import tiny

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "notebooks" / "sweeps" / "published.yml"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-neo"
    tiny.hf_model("gpt_neo").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def about(saved: Path) -> dict[str, Any]:
    return passport.passport(str(saved), ROOT)


def test_it_says_what_the_model_is(saved: Path, about: dict[str, Any]) -> None:
    parameters = sum(weight.numel() for weight in tiny.hf_model("gpt_neo").parameters())
    expected = {
        "model": "tiny-neo",
        "gpt2": False,
        "source": "a directory",
        "architecture": "GPTNeoForCausalLM",
        "parameters": parameters,
        "dtype": "float32",
        "bos": "<s>",
        "sites": list(load_model(saved).sites),
    }
    assert {key: about[key] for key in expected} == expected
    assert set(about["missing_sites"]) == {"pattern"}
    assert about["agreement"]["resid"] < 1e-5


def test_it_measures_what_half_precision_changes(about: dict[str, Any]) -> None:
    coarse, fine = (about["half_precision"][kind]["kl"] for kind in ("bfloat16", "float16"))
    assert 0 < fine < coarse < 0.1  # 11 bits against 8


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_is_that_of_a_model_loaded_so(family: str) -> None:
    tokens = torch.arange(5, 17)[None]
    model = tiny.load(tiny.hf_model(family))
    exact = model(tokens)
    half = load_model(tiny.hf_model(family), tokenizer=tiny.tokenizer(), dtype="bfloat16")(tokens)
    with passport._in_dtype(model, torch.bfloat16):
        assert torch.equal(model(tokens), half)
    assert torch.equal(model(tokens), exact)
    assert not torch.equal(half.float(), exact)


def test_it_says_why_a_task_or_a_notebook_is_out(about: dict[str, Any]) -> None:
    rows = {row["task"]: row for row in about["tasks"]}
    assert set(rows) == set(passport.TASKS)
    assert not any(row["does"] for row in rows.values())
    assert "names" in rows["ioi"]["why"]  # a vocabulary w0 … w124 has none
    notebooks = {row["notebook"]: row for row in about["notebooks"]}
    assert set(notebooks) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks["01_activation_patching"]["why"].startswith("does not do ioi")
    assert "toy networks alone" in notebooks["18_compact_proofs"]["why"]
    assert notebooks["00_tour"]["minutes"] > 0


def test_as_text_and_as_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "tiny-neo: GPTNeoForCausalLM, 4 layers, 4 heads, width 32, 128 tokens" in text
    assert "not pattern: blocks.0.attn.hook_pattern ignores what is written there" in text
    assert cli.main(["check", str(saved), "--json", "--dtype", "bfloat16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "bfloat16"
    assert found["half_precision"] == {}


def test_a_refused_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "./nowhere"]) == 2
    assert capsys.readouterr().err.startswith("mi check: nowhere is no directory")


# The sweep over published models


def test_published_models_are_ten_at_fixed_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = plan.read_settings(PUBLISHED)
    assert len(set(settings["models"])) == 10
    for name in settings["models"]:
        revision = name.partition("@")[2]
        assert revision == "step143000" or (len(revision) == 40 and int(revision, 16))
    fetched: list[str] = []
    monkeypatch.setattr("mi_helpers.models.fetch", fetched.append)
    jobs, notes = plan.make(settings, ROOT)
    assert fetched == settings["models"]
    assert notes == []
    assert len(jobs) == 10 * len(settings["notebooks"]) == len({job.folder for job in jobs})
    assert {job.given["MODEL"] for job in jobs} == set(settings["models"])


def test_a_sweep_over_them_is_one_error_without_a_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["sweep", str(PUBLISHED), "--plan", "--name", "dry"]) == 2
    assert "'openai-community/gpt2' is no local directory" in capsys.readouterr().err

"""`mi check`: what it says of a model, against what the model is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_helpers.metrics import kl
from mi_helpers.models import load_model
from mi_helpers.models.agreement import N_TOKENS, spread_tokens
from mi_helpers.run import cli, passport, provenance
from tests import tiny

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "notebooks" / "sweeps" / "published.txt"


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
        "source": "a directory",
        "architecture": "GPTNeoForCausalLM",
        "parameters": parameters,
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
    def load(dtype: str) -> Any:
        return load_model(tiny.hf_model(family), tokenizer=tiny.tokenizer(), dtype=dtype)

    model = load("float32")
    tokens = spread_tokens(model.tokenizer, model.cfg.d_vocab, N_TOKENS)
    exact = model(tokens)[:, -1]
    found = passport._half_precision(model, None)
    for kind in ("bfloat16", "float16"):
        half = load(kind)(tokens)[:, -1].float()
        assert found[kind] == {"kl": kl(half[None], exact).mean().item()}


def test_it_says_why_a_task_or_a_notebook_is_out(about: dict[str, Any]) -> None:
    rows = {row["task"]: row for row in about["tasks"]}
    assert set(rows) == set(passport.TASKS)
    assert not any(row["does"] for row in rows.values())
    assert "names" in rows["ioi"]["why"]  # a vocabulary w0 … w124 has none
    notebooks = {row["notebook"]: row for row in about["notebooks"]}
    assert set(notebooks) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks["01_activation_patching"]["why"].startswith("does not do ioi")
    assert notebooks["02_patching_pitfalls"]["minutes"] > 0
    assert notebooks["02_patching_pitfalls"]["memory_gb"] > 0.1
    assert "toy networks alone" in notebooks["18_compact_proofs"]["why"]


def test_as_text_and_as_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "tiny-neo: GPTNeoForCausalLM, 4 layers, 4 heads, width 32, 128 tokens" in text
    assert "not pattern: blocks.0.attn.hook_pattern ignores what is written there" in text
    assert cli.main(["check", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny-neo"


def test_a_refused_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "./nowhere"]) == 2
    assert capsys.readouterr().err.startswith("mi: nowhere is no directory")


# The sweep over published models


def test_published_models_are_ten_at_fixed_revisions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []

    def weights(name: str) -> dict[str, str]:
        fetched.append(name)
        return {}

    monkeypatch.setattr(provenance, "weights", weights)
    assert cli.main(["run", f"@{PUBLISHED}", "--plan"]) == 0
    assert capsys.readouterr().out == "plan: 40 runs, 40 to do\n"
    assert len(fetched) == len(set(fetched)) == 10
    for name in fetched:
        revision = name.partition("@")[2]
        assert revision == "step143000" or (len(revision) == 40 and int(revision, 16))


def test_a_sweep_over_them_is_one_error_without_a_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["run", f"@{PUBLISHED}", "--plan"]) == 2
    assert "'openai-community/gpt2' is no local directory" in capsys.readouterr().err

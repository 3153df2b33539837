"""The codes in messages, and the pages that explain them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from choreographer.browsers.chromium import Chromium

import mi_helpers as mi
from mi_helpers.engine import execution
from mi_helpers.errors import explained
from mi_helpers.models import hooks, loading
from mi_helpers.models.check import HookError
from mi_helpers.run.render import require_browser
from tests.tiny import bridge

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path for path in (ROOT / "docs" / "errors").glob("MI-E*.md")}


def test_each_code_has_a_page_and_each_page_a_code() -> None:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "mi_helpers").rglob("*.py"))
    used = {code for text in sources for code in re.findall(r"""explained\(["'](MI-E\d\d)""", text)}
    assert used == set(PAGES)
    index = (ROOT / "docs/errors/index.md").read_text(encoding="utf-8")
    for code, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {code}: ")
        assert "\n> " in text, f"{code}: the message as it is met"
        assert "**What to do**" in text or "**What to do.**" in text, code
        assert f"[{code}]({code}.md)" in index


def test_the_code_stands_at_the_end_and_names_a_file_that_is_there() -> None:
    said = explained("MI-E01", "one line")
    assert said.startswith("one line [MI-E01: ")
    (path,) = re.findall(r"explained in (\S+)\]$", said)
    assert (ROOT / path).is_file()
    assert "MI-E04" in str(HookError("a hook"))


def pairs(clean: str, corrupted: str, answer: str) -> mi.tasks.PromptPairs:
    return mi.tasks.PromptPairs.from_texts(bridge("gpt2"), [clean], [corrupted], [answer], [" w9"])


def test_what_readers_meet_most_often_carries_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\[MI-E01: "):
        pairs("w1 w2", "w1 w2 w3", " w5")
    with pytest.raises(ValueError, match=r"\[MI-E02: "):
        pairs("w1 w2", "w1 w3", " w5 w6")
    with pytest.raises(ValueError, match=r"\[MI-E03: "):
        hooks.hook_name("mlp", 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"\[MI-E07: "):
        loading.load_model("nobody/has-this")


def test_a_missing_chrome_carries_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    with pytest.raises(ValueError, match=r"apt-get install chromium.*\[MI-E05: "):
        require_browser()


def test_an_autoencoder_that_does_not_fit_carries_its_code() -> None:
    pytest.importorskip("sae_lens")
    model = bridge("gpt2")
    x = torch.randn(256, model.cfg.d_model)
    sae = mi.saes.train(x, width=16, k=2, steps=1, batch=64, hook="blocks.1.hook_resid_pre")
    with pytest.raises(ValueError, match=r"does not fit.*\[MI-E08: "):
        mi.saes.check(model, sae, tokens=torch.randint(model.cfg.d_vocab, (4, 12)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: Any) -> None:
        raise error

    runs = mi.patching.record(bridge("gpt2"), pairs("w1 w2", "w1 w3", " w5"))
    monkeypatch.setattr(execution, "_forward", full)
    with pytest.raises(MemoryError, match=r"memory.* \[MI-E06: "):
        mi.patching.sweep(runs)

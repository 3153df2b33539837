"""The book's "how do I …" pages as a reader follows them: every file, command and cell, in order.

A small random model stands in `my-model`, and the default model's first two layers for the default
model. The notebook that pages run ends after its second claim; the whole of it has its own tests.
The cluster's `sbatch` is a script that starts the job here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import mi_helpers as mi
from mi_helpers.models import default
from tests.tiny import hf_model

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how").glob("*.md"))
BLOCK = re.compile(r"^```(?:(\w+)|\{code-block\} \w+\n:caption: (\S+)\n)\n(.*?)^```$", re.M | re.S)
SBATCH = """#!/bin/sh
for script in "$@"; do :; done
cp "$script" job.sh  # as SLURM does: whoever submits a script may delete it at once
nohup sh job.sh >job.log 2>&1 &
echo $! >>jobs.pid
echo "Submitted batch job 1"
"""


def shorten(path: Path, claims: int) -> None:
    """Leave a notebook's cells up to that of its `claims`-th claim, and the table of claims."""
    notebook = nbformat.read(path, as_version=4)
    ends = [i for i, cell in enumerate(notebook.cells) if "mi.claim(" in cell.source]
    table = [cell for cell in notebook.cells if cell.source.strip() == "mi.claims.table()"]
    notebook.cells = [*notebook.cells[: ends[claims - 1] + 1], *table]
    nbformat.write(notebook, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's checkout: the notebooks, a model of their own, and the commands on the path."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shorten(tmp_path / "notebooks/00_tour.ipynb", claims=2)
    shutil.copytree(ROOT / "papermill_runs/reference", tmp_path / "papermill_runs/reference")
    hf_model("gpt2", vocab_size=49_152, n_positions=512).save_pretrained(tmp_path / "my-model")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "sbatch").chmod(0o755)
    here = [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(here))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    jobs = tmp_path / "jobs.pid"
    for pid in jobs.read_text().split() if jobs.exists() else ():
        subprocess.run(["kill", pid], check=False)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cells of a page share; `load_model()` gives two layers of the default model."""
    load, weights = mi.load_model, default.directory()

    def short(model: Any = None, **options: Any) -> Any:
        if model is not None:
            return load(model, **options)
        two = AutoModelForCausalLM.from_pretrained(weights, num_hidden_layers=2)
        return load(two, tokenizer=AutoTokenizer.from_pretrained(weights))

    monkeypatch.setattr(mi, "load_model", short, raising=False)
    return {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_reader_who_copies_everything_gets_through(
    page: Path, folder: Path, names: dict[str, Any]
) -> None:
    if page.stem == "own_sae":
        pytest.importorskip("sae_lens")
    text = page.read_text(encoding="utf-8")
    blocks = [(found[1], found[2], found[3]) for found in BLOCK.finditer(text)]
    assert text.count("```") == 2 * len(blocks), "a block of a kind that nobody tries"
    for language, file, content in blocks:
        if file:
            (folder / file).write_text(content, encoding="utf-8")
        elif language == "python":
            exec(compile(content, f"{page.name}", "exec"), names)
        elif language == "console":
            done = subprocess.run(
                ["sh", "-e", "-c", content], capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{content}{done.stdout[-2000:]}{done.stderr[-2000:]}"
        else:
            pytest.fail(f"a block that is neither a file, Python nor a command: {content[:60]!r}")


def test_each_use_leaves_what_its_page_promises(folder: Path, names: dict[str, Any]) -> None:
    """The CSV's four prompts are four pairs, and their roles are found."""
    page = (ROOT / "docs/how/own_prompts.md").read_text(encoding="utf-8")
    blocks = [(found[2], found[3]) for found in BLOCK.finditer(page)]
    Path("pairs.csv").write_text(blocks[0][1], encoding="utf-8")
    exec(blocks[1][1], names)
    assert len(names["pairs"]) == 4
    assert set(names["pairs"].roles) == {"PLACE", "END"}

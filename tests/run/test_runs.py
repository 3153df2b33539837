"""Runs: parameters checked before anything starts, failures contained, results whole or absent."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image, ImageChops

from mi_helpers.claims import KEYS, Record
from mi_helpers.run import cli as runs
from mi_helpers.run import execute as notebooks
from mi_helpers.run import parameters, plan, provenance, render, scorecard, sweep, worker
from tests.run.sweeping import Executor, record, write_model, write_notebook

PARAMETERS = """SEED = 0  # of the prompts
N: int = 3  # prompts
RATE = 0.5  # share
LAYERS = [1, 2]  # which
WORD = "a"  # a word
FLAG = False  # or not
LIMIT = None  # none
TWICE = 2 * N  # computed"""
CHECK = """from mi_helpers import claims, stats
claims.start("00_good", model="toy", seed=SEED)
claims.claim(
    "00.three", says="<b>N</b> | is 3", source="this test",
    value=stats.Estimate(N, N - 1, N + 1, 5, "draws"), rule=claims.equals(3, 1.5),
)
import ipykernel, json
print("n is", N, "over", json.loads(ipykernel.get_connection_info())["transport"])"""
CHILD = """import os, subprocess
child = subprocess.Popen(["sleep", "1000"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of three notebooks: one is good, one fails, one never ends."""
    root = tmp_path_factory.mktemp("a {brace} and space")
    write_notebook(root / "notebooks/00_good.ipynb", PARAMETERS, CHECK)
    write_notebook(root / "notebooks/01_bad.ipynb", PARAMETERS, "print('so far')", "1 / 0", "2")
    write_notebook(
        root / "notebooks/02_slow.ipynb", PARAMETERS, CHILD, "import time; time.sleep(1000)"
    )
    return root


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def finished(root: Path) -> sweep.Sweep:
    """All three, run once. The clock jumps past the limit when the slow one has come to its end."""
    ahead = 0.0

    def monotonic() -> float:
        return time.monotonic() + ahead

    def execute(path: Path, *others: Any) -> dict[str, Any]:
        def jump(done: int) -> None:
            nonlocal ahead
            if path.stem == "02_slow" and done == 3:
                ahead = 3600.0

        folder, given, seconds, environment, _ = others
        return real(path, folder, given, seconds, environment, jump)

    real = notebooks.execute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
        patch.setattr(notebooks, "execute", execute)
        return runs.run(name="first", root=root)


def alive(pids: Path) -> list[int]:
    return [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)]


def files(finished: sweep.Sweep) -> dict[str, Path]:
    return {path.name: path for path in (finished.folder / "runs").glob("*/*.ipynb")}


def test_a_run_leaves_whole_outputs_partial_outputs_and_errors(finished: sweep.Sweep) -> None:
    kept = files(finished)
    assert sorted(kept) == ["00_good.ipynb", "01_bad.failed.ipynb", "02_slow.failed.ipynb"]
    names = {path.name for path in finished.folder.iterdir() if path.name[0] != "."}
    assert names == {"runs", "scorecard.html", "scorecard.json", "scorecard.md"}
    errors = {job.path.stem: run["error"] for job, _, run in finished.finished()}
    assert errors == {
        "00_good": None,
        "01_bad": "cell 4 of 5: ZeroDivisionError: division by zero",
        "02_slow": "cell 4 of 4: time limit of 30 min reached",
    }
    assert "so far" in kept["01_bad.failed.ipynb"].read_text()
    said = sweep.read_run(kept["01_bad.failed.ipynb"].with_name("run.json"))["traceback"]
    assert "ZeroDivisionError" in said


def test_at_the_time_limit_the_kernel_and_its_children_are_killed(
    finished: sweep.Sweep, root: Path
) -> None:
    assert len((root / "notebooks/pids").read_text().split()) == 2
    assert alive(root / "notebooks/pids") == []


def test_the_scorecard_holds_the_claims_of_finished_notebooks(finished: sweep.Sweep) -> None:
    (found,) = json.loads((finished.folder / "scorecard.json").read_text())
    assert tuple(found) == KEYS
    assert (found["id"], found["value"], found["verdict"]) == ("00.three", 3.0, "holds")
    page = (finished.folder / "scorecard.md").read_text()
    assert "`00.three` &lt;b&gt;N&lt;/b&gt; \\| is 3" in page
    assert "[✔ 3 [2, 4]](runs/00_good-" in page


def test_the_record_of_a_run_says_what_it_was_made_with(finished: sweep.Sweep, root: Path) -> None:
    run = sweep.read_run(files(finished)["00_good.ipynb"].with_name("run.json"))
    versions = run["inputs"]["packages"]
    assert versions["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert versions["torch"]
    assert run["commit"] == ""  # it is no git repository
    assert run["inputs"]["parameters"]["SEED"] == 0
    assert run["inputs"]["parameters"]["TWICE"] == "2 * N"
    assert str(root) not in json.dumps(run)
    assert run["models"] == []  # it loaded none
    assert 0.1 < run["cpu_s"] < 100
    assert 0.02 < run["peak_gb"] < 2


def test_the_commit_is_named_and_changes_on_top_of_it_too(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD") + "+changes"


def test_weights_are_known_by_their_hash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    single = provenance.weights(str(tmp_path))
    assert single["sha256"].startswith("ba7816bf8f01cfea")  # SHA-256 of "abc"
    (tmp_path / "more.safetensors").write_bytes(b"")
    assert provenance.weights(str(tmp_path)) != single
    assert provenance.weights("smollm2-135m")["sha256"].startswith("b179c952")


def test_the_command_runs_with_parameters_and_compares_with_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Executor(monkeypatch)
    write_notebook(tmp_path / "notebooks/00_good.ipynb", PARAMETERS)
    scorecard.save_reference(runs.run(["00"], {"N": "2"}, name="two"))
    saved = tmp_path / "papermill_runs/reference/toy/00_good.json"
    assert sweep.read_run(saved)["inputs"]["parameters"]["N"] == 2
    capsys.readouterr()
    assert runs.main(["run", "00", "-p", "N=9", "--name", "nine"]) == 0
    out = capsys.readouterr().out
    files = re.findall(r"(?:to read it|its claims): (.+)\n", out)
    assert [Path(file).name for file in files] == ["00_good.ipynb", "scorecard.html"]
    assert all(Path(file).is_file() for file in files)
    assert "✘ does not hold   00.sum  toy  9 [8, 10]" in out
    assert "0 of 1 replications hold, 1 do not, 0 undecided, 0 not applicable\n" in out
    assert "from the reference to this: 1 flip" in out
    assert "flip  00.sum  ✔ holds 2 [1, 3] -> ✘ does not hold 9 [8, 10]" in out
    assert runs.main(["diff", "two", "nine"]) == 1
    assert runs.main(["diff", "nine", "papermill_runs/nine"]) == 0
    assert capsys.readouterr().out.endswith("1 notebooks in both: no difference\n")


def test_ctrl_c_kills_the_family_and_leaves_no_result(root: Path, tmp_path: Path) -> None:
    def interrupt(job: plan.Job, done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    jobs, _ = plan.make(["02"], {}, root)
    work = sweep.Sweep(tmp_path / "papermill_runs/interrupted", jobs)
    with pytest.raises(KeyboardInterrupt):
        list(work.work(10, on_cell=interrupt))
    assert alive(root / "notebooks/pids") == []
    assert not list((work.folder / "runs").iterdir())
    assert not list((work.folder / ".attempts").iterdir())


def test_papermill_hanging_after_the_last_cell_is_no_failure(tmp_path: Path) -> None:
    done = new_code_cell("1", execution_count=1, metadata={"papermill": {"status": "completed"}})
    nbformat.write(new_notebook(cells=[done]), tmp_path / notebooks.OUTPUT)
    for code in (None, notebooks.SILENT):  # at the time limit, or found idle
        assert notebooks._error(tmp_path, code, 100) is None


def test_a_kernel_that_dies_is_an_error_with_papermills_last_words(tmp_path: Path) -> None:
    (tmp_path / notebooks.LOG).write_text(
        "Traceback\n\x1b[31mDeadKernelError: Kernel died\x1b[0m\n"
    )
    error = notebooks._error(tmp_path, 1, 100)
    assert error == "outside of the cells: DeadKernelError: Kernel died"


def test_a_kernel_that_waits_for_the_disk_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads:
        read_bytes = 30e6  # of 20 s on a disk that is slow

        def children(self, recursive: bool) -> list["Reads"]:
            return [self]

        def cpu_times(self) -> tuple[float, ...]:
            return (0.1, 0.0, 5.0, 5.0)  # the last two are of its own children

        def io_counters(self) -> "Reads":
            return self

    monkeypatch.setattr(psutil, "Process", Reads)
    assert worker.work() == pytest.approx(3.1)


DIES = "import os, time; time.sleep(0.5); os._exit(1)"  # the cell's start is told, its end is not


@pytest.mark.parametrize("cells", [["1", DIES], [DIES, "1"]], ids=["last", "first"])
def test_a_kernel_that_dies_in_a_cell_is_no_finished_run(cells: list[str], tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "notebooks/00_dies.ipynb", *cells)
    outcome = notebooks.execute(path, tmp_path, {}, seconds=60)
    assert "Kernel died" in outcome["error"]


def test_papermill_and_its_kernel_take_no_port(finished: sweep.Sweep) -> None:
    """A port is chosen before it is bound, and two notebooks that start at once can share one."""
    assert "n is 3 over ipc" in files(finished)["00_good.ipynb"].read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "SEEDS=1"], "no chosen notebook has a parameter SEEDS; known: FLAG, LAYERS"),
        (["-p", "zzz=1"], "known: FLAG, LAYERS, LIMIT, N, RATE, SEED, TWICE, WORD"),
        (["-p", "N"], "-p takes NAME=VALUE, got 'N'"),
        (["-p", "N=2.5"], "N is of type int (default 3), got '2.5'"),
        (["--model", "gpt2"], "no chosen notebook has a parameter MODEL"),
        (["03_none"], "no notebook is called '03_none'; there are 00_good, 01_bad, 02_slow"),
        (["0"], "several notebooks begin with '0'; there are 00_good, 01_bad, 02_slow"),
        (["--name", "../up"], "'../up' is no name for a folder of runs"),
        (["--name", ".."], "'..' is no name for a folder of runs"),
        (["--name", "other"], "'other' is no name for a folder of runs; choose another --name"),
        (["--timeout", "0"], "must be above 0"),
        (["--jobs", "0"], "must be above 0"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "papermill_runs/other/files").mkdir(parents=True, exist_ok=True)
    before = sorted((here / "papermill_runs").glob("*"))
    assert runs.main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted((here / "papermill_runs").glob("*")) == before


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SEED", "4", 4),
        ("RATE", "2", 2.0),
        ("RATE", "1e-5", 1e-5),
        ("LAYERS", "[3]", [3]),
        ("LAYERS", "(3, 4)", [3, 4]),
        ("WORD", "1", "1"),
        ("WORD", "", ""),
        ("FLAG", "True", True),
        ("LIMIT", "7", 7),
        ("LIMIT", "None", None),
        ("TWICE", "5", 5),
    ],
)
def test_values_take_the_type_of_the_default(name: str, text: str, value: Any, root: Path) -> None:
    found = parameters.read(root / "notebooks/00_good.ipynb")[name]
    converted = parameters.convert(found, text)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SEED", "True"), ("SEED", "'4'"), ("SEED", "four"), ("RATE", "fast"), ("RATE", "None"),
        ("LAYERS", "3"), ("FLAG", "1"), ("FLAG", "true"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(name: str, text: str, root: Path) -> None:
    found = parameters.read(root / "notebooks/00_good.ipynb")[name]
    with pytest.raises(ValueError, match=f"{name} is of type"):
        parameters.convert(found, text)


def given(root: Path, *notebooks: str, full: bool = False, **texts: str) -> list[dict[str, Any]]:
    """What a run gives to each notebook."""
    return [job.given for job in plan.make(notebooks, texts, root, full=full)[0]]


def test_a_model_is_given_to_the_notebooks_that_take_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "my-model")
    write_notebook(tmp_path / "notebooks/00_one.ipynb", 'MODEL = "m"')
    write_notebook(tmp_path / "notebooks/01_two.ipynb", "SEED = 0")
    jobs, notes = plan.make([], {"MODEL": "my-model"}, tmp_path)
    assert [job.given for job in jobs] == [{"MODEL": str(tmp_path / "my-model")}, {}]
    assert notes == ["01_two has no parameter MODEL: it runs without"]
    with pytest.raises(ValueError, match=r"there is no \./other"):
        given(tmp_path, MODEL="./other")


FULL = """SEED = 0  # of the prompts
N = 3  # prompts; full: 100
LAYERS = [
    1, 2,
]  # which; full: [1, 2, 3]
MARK = "# full: 9"  # no comment in there
TEXT = "docs"  # a text; full: "all of it" """


def test_a_full_run_takes_the_values_that_the_comments_name(tmp_path: Path) -> None:
    write_notebook(tmp_path / "notebooks/00_one.ipynb", FULL)
    write_notebook(tmp_path / "notebooks/01_two.ipynb", "SEED = 0  # of a full set")
    larger = {"N": 100, "LAYERS": [1, 2, 3], "TEXT": "all of it"}
    assert given(tmp_path, full=True, SEED="4") == [{**larger, "SEED": 4}, {"SEED": 4}]
    assert plan.make([], {}, tmp_path, full=True)[1] == ["no full set in 01_two: run as always"]
    assert given(tmp_path, "00", full=True, N="5") == [{**larger, "N": 5}]
    assert given(tmp_path, "00") == [{}]


def test_a_full_value_of_another_type_is_refused(tmp_path: Path) -> None:
    write_notebook(tmp_path / "notebooks/00_one.ipynb", "N = 3  # prompts; full: all")
    with pytest.raises(ValueError, match="00_one: N is of type int"):
        given(tmp_path, full=True)


def test_a_fault_in_a_reference_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    executor = Executor(monkeypatch)
    write_notebook(tmp_path / "notebooks/00_one.ipynb", PARAMETERS)
    reference = tmp_path / "papermill_runs/reference/toy/01_two.json"
    reference.parent.mkdir(parents=True)
    reference.write_text("{")
    assert runs.main(["run", "00"]) == 2
    assert "01_two.json is not the record of a run" in capsys.readouterr().err
    assert executor.calls == []


def test_full_reaches_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Executor(monkeypatch)
    cell = PARAMETERS.replace("# prompts", "# prompts; full: 30")
    write_notebook(tmp_path / "notebooks/00_good.ipynb", cell)
    assert runs.main(["run", "--full", "--name", "full"]) == 0
    (found,) = scorecard.collect([tmp_path / "papermill_runs/full"], tmp_path).records
    assert found["value"] == 30


def test_a_model_that_cannot_be_had_stops_the_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_notebook(tmp_path / "notebooks/00_one.ipynb", 'MODEL = "smollm2-135m"')
    assert runs.main(["run", "--model", "empty"]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not (tmp_path / "papermill_runs").exists()


def test_what_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks/00_torn.ipynb"
    path.write_text('{"cells": [')
    with pytest.raises(ValueError, match=r"00_torn\.ipynb cannot be read as a notebook"):
        parameters.read(path)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scorecard.json"
    sweep.write_atomic(target, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        sweep.write_atomic(target, "new")
    assert target.read_text() == "old"


def claim(id: str = "00.a", **changes: Any) -> Record:
    return record(id, **{"notebook": "00_good", "low": 0.9, "high": 1.1, "n": 9, **changes})


BARE: dict[str, Any] = dict.fromkeys(("low", "high", "n"))
ERROR = BARE | {"rule": "< 0.001"}


@pytest.mark.parametrize(
    ("a", "b", "kinds"),
    [
        ([claim()], [claim(value=1.05, low=0.95, high=1.15)], []),
        ([claim()], [claim(verdict="does not hold")], ["flip"]),
        ([claim()], [claim(verdict="undecided")], ["flip"]),
        ([claim()], [claim(value=1.2, low=1.15, high=1.3)], ["moved"]),
        ([claim()], [claim(value=1.2, low=0.8, high=1.6)], []),
        ([claim()], [claim(value=1.2, **BARE)], ["moved"]),
        ([claim(**BARE)], [claim(value=1.005, **BARE)], []),
        ([claim(**BARE)], [claim(value=1.02, **BARE)], ["moved"]),
        ([claim(value=0.0, **ERROR)], [claim(value=2.8e-5, **ERROR)], []),  # rounding
        ([claim(value=0.0, **ERROR)], [claim(value=5e-4, **ERROR)], ["moved"]),
        ([claim("00.a"), claim("00.b")], [claim("00.b", verdict="undecided"), claim("00.c")],
         ["flip", "missing", "new"]),
        ([claim(model="one")], [claim(model="two")], []),
        ([claim(model="one"), claim(model="two")], [claim(model="two")], ["missing"]),
        ([claim(seed=0), claim(seed=1, verdict="undecided")], [claim(seed=0), claim(seed=1)],
         ["flip"]),
    ],
)  # fmt: skip
def test_scorecards_are_compared_claim_by_claim(
    a: list[Record], b: list[Record], kinds: list[str]
) -> None:
    assert [change.kind for change in scorecard.compare(a, b)] == kinds


def figure(**data: str) -> Any:
    return new_output("display_data", data={notebooks.PLOTLY: {"data": []}, **data})


def executed(source: Path, *outputs: Any) -> Any:
    """A notebook as papermill leaves it, its second code cell with these outputs."""
    done = nbformat.read(source, as_version=4)
    done.metadata["papermill"] = {"input_path": str(source)}
    for count, cell in enumerate(done.cells[1:], 1):
        cell.execution_count = count
        cell.metadata["papermill"] = {"status": "completed"}
        cell.metadata["execution"] = {"iopub.status.busy": "now"}
    done.cells[2].outputs = list(outputs)
    return done


def finish(folder: Path, source: Path, *outputs: Any) -> sweep.Sweep:
    """A finished run with these outputs."""
    work = sweep.Sweep(folder / "papermill_runs/r", plan.make([], {}, folder)[0])
    kept = work.folder / "runs" / work.jobs[0].name
    kept.mkdir(parents=True)
    nbformat.write(executed(source, *outputs), kept / "00_good.ipynb")
    run = {"identity": work.jobs[0].identity, "inputs": work.jobs[0].inputs, "error": None}
    (kept / "run.json").write_text(json.dumps({**run, "seconds": 1.0, "records": []}))
    return work


def stored(folder: Path, *outputs: Any) -> tuple[Path, list[str]]:
    """Store an execution with these outputs; the notebook's path and what was refused."""
    source = write_notebook(folder / "notebooks/00_good.ipynb", PARAMETERS, "print(1)")
    return source, render.store(finish(folder, source, *outputs))


def test_stored_outputs_are_clean(tmp_path: Path) -> None:
    source, refused = stored(
        tmp_path,
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stderr", text="  0%|  | /home/me"),
        new_output("display_data", data={"text/plain": "0%", render._WIDGET: {"model_id": "7f"}}),
        new_output("stream", name="stdout", text="two\n"),
        figure(**{"image/png": "/tmp/AAAA"}),
    )
    assert refused == []
    result = nbformat.read(source, as_version=4)
    nbformat.validate(result)
    cell = result.cells[2]
    assert [cell.execution_count for cell in result.cells[1:]] == [1, 2]
    assert [out.get("text") for out in cell.outputs] == ["one\ntwo\n", None]
    assert "image/png" in cell.outputs[1].data
    assert result.metadata == render._METADATA
    assert [cell.metadata for cell in result.cells] == [{}, {"tags": ["parameters"]}, {}]


def test_a_notebook_edited_while_it_ran_is_not_overwritten(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "notebooks/00_good.ipynb", PARAMETERS, "print(1)")
    work = finish(tmp_path, source)
    write_notebook(source, PARAMETERS, "print(2)")
    assert render.store(work) == ["00_good"]
    assert nbformat.read(source, as_version=4).cells[2].source == "print(2)"


def test_a_large_picture_gets_a_palette() -> None:
    picture, file = Image.linear_gradient("L").convert("RGB"), io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    large = base64.b64encode(file.getvalue()).decode()
    small = render.with_palette(large)
    assert len(small) < len(large) / 10
    again = Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB")
    assert again.size == picture.size
    bands: Any = ImageChops.difference(again, picture).getextrema()
    assert max(high for _, high in bands) <= 2


def test_without_a_browser_render_says_how_to_get_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from choreographer.browsers.chromium import Chromium

    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    assert runs.main(["render"]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err


def test_models_lists_the_default_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "smollm2-135m" in out
    assert "layers" in out


def test_the_command_line_answers_without_loading_what_is_slow() -> None:
    code = (
        "import sys, mi_helpers.run.cli; print({'torch', 'pandas', 'papermill'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_names_the_main_topics_run_and_all_is_a_word(tmp_path: Path) -> None:
    for name in ("00_a", "10_b", "16_c"):
        write_notebook(tmp_path / f"notebooks/{name}.ipynb", "SEED = 0  # of nothing")

    def found(*names: str) -> list[str]:
        return [path.stem for path in plan.find(names, tmp_path)]

    assert found() == ["00_a", "10_b"]
    assert found("all") == ["00_a", "10_b", "16_c"]
    assert found("16") == ["16_c"]

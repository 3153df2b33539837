"""Sweeps: plans, identities, and results that are whole or absent whatever happens."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mi_helpers.run import cli as runs
from mi_helpers.run import execute as notebooks
from mi_helpers.run import plan as sweep_plan
from mi_helpers.run import provenance, scorecard
from mi_helpers.run import sweep as sweeps
from tests.run.sweeping import CHECK, MODEL, PARAMETERS, Executor, write_model, write_notebook


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection of two notebooks, one with a model; and two models."""
    write_notebook(tmp_path / "notebooks/00_toy.ipynb", PARAMETERS, CHECK)
    write_notebook(tmp_path / "notebooks/01_bad.ipynb", MODEL, "1 / SEED")
    write_model(tmp_path / "models/a-2")
    write_model(tmp_path / "models/a-10", b"others")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Executor:
    return Executor(monkeypatch)


def plan(root: Path, *names: str, **grid: Any) -> list[sweep_plan.Job]:
    return sweep_plan.make(names, grid, root)[0]


def test_a_plan_is_the_grid_with_each_run_once(root: Path) -> None:
    grid = {"MODEL": ["models/a-*"], "SEED": [0, 1], "N": [3, "4", "3"]}
    jobs, notes = sweep_plan.make([], grid, root)
    assert [str(job) for job in jobs] == [
        "00_toy SEED=0 N=3", "00_toy SEED=0 N=4", "00_toy SEED=1 N=3", "00_toy SEED=1 N=4",
        "01_bad MODEL=a-2 SEED=0", "01_bad MODEL=a-2 SEED=1", "01_bad MODEL=a-10 SEED=0",
        "01_bad MODEL=a-10 SEED=1",
    ]  # fmt: skip
    assert notes == [
        "00_toy has no parameter MODEL: it runs without",
        "01_bad has no parameter N: it runs without",
    ]
    assert jobs[0].given == {"SEED": 0, "N": 3}
    assert jobs[4].given["MODEL"] == str(root / "models/a-2")
    assert len({job.name for job in jobs}) == len(jobs)


def test_arguments_come_from_a_file(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "s.txt").write_text("# a sweep\n01  # one notebook\n--model models/a-2 -p SEED=3\n")
    assert runs.main(["run", "@s.txt", "--name", "s", "-p", "SEED=4"]) == 0
    assert executor.calls == ["01_bad 3", "01_bad 4"]
    assert "plan: 2 runs, 2 to do\n" in capsys.readouterr().out


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"SEEDS": 1}, "no chosen notebook has a parameter SEEDS; known: MODEL, N, SEED"),
    ({"N": [1, "x"]}, "N is of type int"),
    ({"SEED": []}, "asks for no run"),
    ({"MODEL": ["models/none-*"]}, r"there is no models/none-\*"),
]


@pytest.mark.parametrize(("grid", "message"), MISTAKES)
def test_mistakes_are_one_clear_error(grid: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(root, **grid)


def test_a_model_without_weights_is_refused_before_anything_starts(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "empty").mkdir()
    assert runs.main(["run", "--model", "empty", "--name", "x"]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert not (root / "papermill_runs").exists()


def test_two_models_of_one_name_are_refused(root: Path) -> None:
    write_model(root / "others/a-2")
    with pytest.raises(ValueError, match="two models have one name"):
        plan(root, MODEL=["models/a-2", "others/a-2"])


def test_a_parameter_that_is_a_list_takes_lists(root: Path) -> None:
    write_notebook(root / "notebooks/02_list.ipynb", "LAYERS = [1, 2]  # which")
    (job,) = plan(root, "02", LAYERS=[[3, 4]])
    assert job.given == {"LAYERS": [3, 4]}
    with pytest.raises(ValueError, match="LAYERS is of type list"):
        plan(root, "02", LAYERS=[3, 4])


def test_the_identity_follows_source_parameters_weights_and_versions(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(**grid: Any) -> str:
        (job,) = plan(root, "01", **{"MODEL": "models/a-2", **grid})
        return job.identity

    seen = [identity(), identity(SEED=1), identity(MODEL="models/a-10")]
    assert identity(SEED=0) == seen[0]  # the default, spelt out
    path = root / "notebooks/01_bad.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    notebook["cells"][2]["execution_count"] = 7
    path.write_text(json.dumps(notebook))
    assert identity() == seen[0]  # outputs are no part of it
    write_notebook(path, MODEL, "2 / SEED")
    seen.append(identity())
    (root / "models/a-2/model.safetensors").write_bytes(b"trained on")
    seen.append(identity())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9+cpu")
    seen.append(identity())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9+cu130")
    assert identity() == seen[-1]  # the build is the machine's affair
    assert len(set(seen)) == len(seen)


def test_the_identity_follows_the_package_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    names = ("__init__.py", "engine/rows.py", "data/weights.safetensors")
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    seen = {provenance.code()}
    for name in names:
        (package / name).write_text("changed")
        seen.add(provenance.code())
    assert len(seen) == 4
    (package / "__pycache__").mkdir()
    (package / "__pycache__/rows.pyc").write_text("compiled")
    assert provenance.code() in seen


def go(*arguments: str) -> int:
    return runs.main(["run", "--name", "s", "--model", "models/a-2", *arguments])


SEEDS = ("-p", "SEED=0", "-p", "SEED=1")


def kept(root: Path) -> dict[str, bytes]:
    folder = root / "papermill_runs/s"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("scorecard.*")}


def test_finished_runs_are_not_repeated_and_failed_ones_only_when_asked(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(*SEEDS) == 1
    out = capsys.readouterr().out
    assert "plan: 4 runs, 4 to do\n" in out
    assert "01_bad MODEL=a-2 SEED=0: cell 1 of 1: ValueError: no, after 0 s" in out
    assert sorted(executor.calls) == ["00_toy 0", "00_toy 1", "01_bad 0", "01_bad 1"]
    first = kept(root)
    assert go(*SEEDS) == 1
    out = capsys.readouterr().out
    assert "plan: 4 runs, 0 to do; 1 failed before (--retry)" in out
    assert len(executor.calls) == 4
    assert kept(root) == first
    (folder,) = (root / "papermill_runs/s/runs").glob("01_bad-a-2-*/01_bad.failed.ipynb")
    assert sweeps.read_run(folder.with_name("run.json"))["traceback"] == "line 1\nno"
    executor.cured = True
    assert go(*SEEDS, "--retry") == 0
    assert executor.calls[4:] == ["01_bad 0"]
    assert "Failed runs" not in kept(root)["scorecard.md"].decode()


def test_a_changed_notebook_runs_again_and_takes_the_place_of_the_old(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("-p", "SEED=1") == 0
    write_notebook(root / "notebooks/00_toy.ipynb", PARAMETERS, CHECK + "\n# changed")
    executor.says = "Something else"
    assert go("-p", "SEED=1") == 0
    assert executor.calls == ["00_toy 1", "01_bad 1", "00_toy 1"]
    records = scorecard.collect([root / "papermill_runs/s"], root).records
    assert {r["notebook"]: r["says"] for r in records}["00_toy"] == "Something else"
    assert len(records) == 2
    assert len(list((root / "papermill_runs/s/runs").iterdir())) == 2


def test_the_plan_alone_starts_nothing(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("-p", "SEED=0", "--plan") == 0
    assert "2 to do" in capsys.readouterr().out
    assert not executor.calls
    assert not (root / "papermill_runs").exists()


@pytest.fixture
def one(root: Path) -> sweeps.Sweep:
    """A sweep of one run."""
    work = sweeps.Sweep(root / "papermill_runs/s", plan(root, "00"))
    for name in ("runs", ".locks", ".attempts"):
        (work.folder / name).mkdir(parents=True)
    return work


def carry_out(work: sweeps.Sweep) -> dict[str, Any] | None:
    return work._carry_out(work.jobs[0], 60, {}, lambda done: None)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whatever_step_of_writing_fails_a_result_is_whole_or_absent(
    fault: BaseException, one: sweeps.Sweep, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call to the disk fails in turn, until one attempt gets through without a fault."""
    names = ("fsync", "replace", "rename", "mkdir", "chmod")
    calls, broken = 0, 0

    def spoil(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == broken:
                raise fault
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in names:
        spoil(name)
    while calls >= broken:
        calls, broken = 0, broken + 1
        with contextlib.suppress(OSError, KeyboardInterrupt):
            assert carry_out(one)
        for found in list((one.folder / "runs").glob("*")):
            if calls >= broken:  # the fault came after the last step, or was of no consequence
                assert sweeps.read_run(found / "run.json")["records"]
                assert (found / "00_toy.ipynb").is_file()
                found.rename(one.folder / f"moved-{broken}")
    assert broken > 6
    assert one.result(one.jobs[0])
    assert list((one.folder / ".attempts").iterdir()) == []


def test_leftovers_of_a_killed_sweep_are_never_results_and_are_swept_away(
    one: sweeps.Sweep, executor: Executor
) -> None:
    name = one.jobs[0].name
    (one.folder / ".attempts" / f"{name}.left/result").mkdir(parents=True)
    (one.folder / ".attempts" / f"{name}.left/result/run.json").write_text("{}")
    (one.folder / "runs" / name).mkdir(parents=True)  # made by no sweep; empty is no result
    assert one.result(one.jobs[0]) is None
    assert carry_out(one)
    assert list((one.folder / ".attempts").iterdir()) == []


def test_a_notebook_edited_during_the_sweep_is_a_failure_and_runs_again(
    one: sweeps.Sweep, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(*arguments: Any) -> dict[str, Any]:
        write_notebook(one.jobs[0].path, PARAMETERS, CHECK + "\n# edited")
        return executor(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "execute", edit)
        ((_, run),) = one.work(1)
    assert run["error"] == "the notebook or the package was edited while it ran"
    assert run["records"] == []
    again = sweeps.Sweep(one.folder, plan(one.root, "00"))
    assert [found["error"] for _, found in again.work(1)] == [None]


def test_a_damaged_record_is_named(
    one: sweeps.Sweep, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(one)
    file = one.folder / "runs" / one.jobs[0].name / "run.json"
    for text in ("", "[]", "{}", file.read_text().replace('"does not hold"', '"fails"')):
        file.write_text(text)
        assert runs.main(["run", "--name", "s", "00"]) == 2
        assert f"{file} is not the record of a run" in capsys.readouterr().err
        assert runs.main(["scorecard", "s"]) == 2
        assert f"{file} is not the record of a run" in capsys.readouterr().err


def test_a_run_that_someone_else_is_at_is_waited_for(one: sweeps.Sweep, executor: Executor) -> None:
    other = FileLock(one.folder / ".locks" / one.jobs[0].name)
    other.acquire()
    assert carry_out(one) is None

    found: list[dict[str, Any]] = []
    worker = threading.Thread(target=lambda: found.extend(run for _, run in one.work(1)))
    worker.start()
    time.sleep(0.3)
    other.release()
    worker.join(20)
    assert [run["error"] for run in found] == [None]
    assert not worker.is_alive()


def test_two_sweeps_on_one_folder_share_the_work(root: Path, executor: Executor) -> None:
    jobs = plan(root, "00", SEED=list(range(6)))
    both = [sweeps.Sweep(root / "papermill_runs/s", jobs) for _ in range(2)]
    seen: list[list[str]] = [[], []]

    def act(number: int) -> None:
        for job, run in both[number].work(1):
            seen[number].append(f"{run['error']} {job}")

    threads = [threading.Thread(target=act, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(executor.calls) == sorted(f"00_toy {seed}" for seed in range(6))
    for outcomes in seen:
        assert sorted(outcomes) == sorted(f"None 00_toy SEED={seed}" for seed in range(6))


def test_runs_at_a_time_share_the_cores_and_end_together(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of them fails, or Ctrl-C comes, the others stop at their next look at a cell."""
    together, threads, stopped = threading.Barrier(2), [], []

    def execute(
        path: Path, folder: Path, given: Any, seconds: float, environment: Any, on_cell: Any
    ) -> None:
        threads.append(environment["OMP_NUM_THREADS"])
        if len(threads) <= 2:
            together.wait(20)
        if given["SEED"] != 0:
            raise OSError("the disk is full")
        try:
            while True:
                on_cell(0)
                time.sleep(0.01)
        finally:
            stopped.append(given)

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    work = sweeps.Sweep(root / "papermill_runs/s", plan(root, "00", SEED=[0, 1, 2, 3]))
    with pytest.raises(OSError, match="the disk is full"):
        list(work.work(1, at_once=2))
    assert set(threads) == {"4"}
    assert stopped == [{"SEED": 0}]


def test_two_runs_at_a_time_end_as_one_after_another(root: Path, executor: Executor) -> None:
    assert go(*SEEDS, "--jobs", "2") == 1
    assert sorted(executor.calls) == ["00_toy 0", "00_toy 1", "01_bad 0", "01_bad 1"]
    both = kept(root)
    (root / "papermill_runs/s").rename(root / "papermill_runs/before")
    assert go(*SEEDS) == 1
    assert kept(root) == both


def test_sweeps_with_other_settings_add_to_the_folder(root: Path, executor: Executor) -> None:
    for seeds in ("0", "1", ["0", "1"]):
        runs.run(["00"], {"SEED": seeds}, name="s")
    assert executor.calls == ["00_toy 0", "00_toy 1"]
    assert [r["seed"] for r in scorecard.collect([root / "papermill_runs/s"], root).records] == [
        0,
        1,
    ]


def test_runs_become_the_references_of_their_models(root: Path, executor: Executor) -> None:
    work = runs.run(["01"], {"MODEL": "models/a-*", "SEED": "1"}, name="s")
    files = scorecard.save_reference(work)
    references = root / "papermill_runs/reference"
    assert sorted(files) == [references / model / "01_bad.json" for model in ("a-10", "a-2")]
    written = sweeps.read_run(references / "a-10/01_bad.json")
    assert written["inputs"]["parameters"] == {"MODEL": "a-10", "SEED": 1}
    assert str(root) not in json.dumps(written)
    assert runs.main(["diff", "reference", "s"]) == 0


def test_the_sweep_of_small_decoders_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert runs.main(["run", "@notebooks/sweeps/suite.txt", "--plan"]) == 0
    assert "plan: 7 runs, " in capsys.readouterr().out

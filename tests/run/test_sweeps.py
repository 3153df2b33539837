"""Sweeps: plans, identities, and results that are whole or absent whatever happens."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mi_helpers.run import cli as runs
from mi_helpers.run import execute as notebooks
from mi_helpers.run import plan as sweep_plan
from mi_helpers.run import provenance, scorecard, spread
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


def plan(root: Path, **settings: Any) -> list[sweep_plan.Job]:
    return sweep_plan.make(sweep_plan.resolve(settings, root), root)[0]


def test_a_plan_is_the_grid_with_each_run_once_and_models_together(root: Path) -> None:
    jobs, notes = sweep_plan.make(
        sweep_plan.resolve(
            {"models": ["models/a-*"], "seeds": [0, 1], "parameters": {"N": [3, "4"]}}, root
        ),
        root,
    )
    assert [str(job).replace(str(root), "") for job in jobs] == [
        "00_toy SEED=0 N=3", "00_toy SEED=0 N=4", "00_toy SEED=1 N=3", "00_toy SEED=1 N=4",
        "01_bad MODEL=a-2 SEED=0", "01_bad MODEL=a-2 SEED=1", "01_bad MODEL=a-10 SEED=0",
        "01_bad MODEL=a-10 SEED=1",
    ]  # fmt: skip
    assert notes == [
        "MODEL is not a parameter of 00_toy: left alone there",
        "N is not a parameter of 01_bad: left alone there",
    ]
    assert jobs[0].given == {"SEED": 0, "N": 3}
    assert jobs[4].given["MODEL"] == str(root / "models/a-2")
    assert len({job.folder for job in jobs}) == len(jobs)


def test_settings_come_from_a_file_with_paths_relative_to_it(root: Path) -> None:
    (root / "sweeps").mkdir()
    file = root / "sweeps/s.yml"
    file.write_text("notebooks: [../notebooks/01_bad.ipynb]\nmodels: ../models/a-2\nseeds: 3\n")
    (job,) = sweep_plan.make(sweep_plan.read_settings(file), root)[0]
    assert job.path == root / "notebooks/01_bad.ipynb"
    assert job.given == {"MODEL": str(root / "models/a-2"), "SEED": 3}


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"notebooks": ["09"]}, "no notebook is called '09'"),
    ({"parameters": {"SEEDS": 1}}, "no chosen notebook has a parameter SEEDS; did you mean SEED"),
    ({"parameters": {"N": [1, "x"]}}, "N is of type int"),
    ({"parameters": {"N": {"from": 1}}}, "N is of type int (default 3), got {'from': 1}"),
    ({"parameters": []}, "parameters is a mapping"),
    ({"parameters": [1]}, "parameters is a mapping"),
    ({"seeds": []}, "ask for no run"),
    ({"seeds": [0], "parameters": {"SEED": [1]}}, "SEED is given twice"),
    ({"models": ["models/none-*"]}, "no directory of weights matches 'models/none-*'"),
    ({"models": ["./nowhere"]}, "MODEL=./nowhere: there is no such directory"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_in_settings_are_one_clear_error(
    settings: dict[str, Any], message: str, root: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(root, **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0", "cannot be read from s.yml: while parsing a flow sequence"),
        ("- 1", "is a mapping with keys among notebooks, models, seeds, parameters, got [1]"),
        (
            "seed: [0]",
            "is a mapping with keys among notebooks, models, seeds, parameters, got {'seed': [0]}",
        ),
        (None, "the sweep's settings cannot be read"),
    ],
)
def test_mistakes_in_the_file_are_one_clear_error(
    text: str | None, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (root / "s.yml").write_text(text)
    assert runs.main(["sweep", "s.yml"]) == 2
    assert message in capsys.readouterr().err
    assert not (root / "papermill_runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to run"),
        (["--seeds", "0"], "needs a --name"),
        (["--seeds", "0", "--name", "../x"], "a run's name is that of a folder"),
        (["--seeds", "0", "--name", "reference"], "a run's name is that of a folder"),
        (["--seeds", "0", "--name", "x", "-p", "N"], "-p takes NAME=VALUE"),
        (["--seeds", "0", "--name", "x", "--jobs", "0"], "--jobs is above 0"),
        (["--seeds", "0", "--name", "x", "--jobs", "2", "--scheduler", "y"], "leave it out"),
        (["--seeds", "0", "--name", "run"], "is there already; choose another --name"),
        (["--models", "empty", "--name", "x"], "has no config.json"),
    ],
)
def test_mistakes_on_the_command_line_are_refused_before_anything_starts(
    arguments: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "empty").mkdir()
    (root / "papermill_runs/run").mkdir(parents=True)
    (root / "papermill_runs/run/scorecard.json").write_text("[]")
    assert runs.main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in (root / "papermill_runs").iterdir()] == ["run"]


def test_two_models_of_one_name_are_refused(root: Path) -> None:
    write_model(root / "others/a-2")
    with pytest.raises(ValueError, match="two models are called 'a-2'"):
        plan(root, models=["models/a-2", "others/a-2"])


def test_a_list_for_a_parameter_that_is_a_list_is_explained(root: Path) -> None:
    write_notebook(root / "notebooks/02_list.ipynb", "LAYERS = [1, 2]  # which")
    (job,) = plan(root, notebooks=["02"], parameters={"LAYERS": [[3, 4]]})
    assert job.given == {"LAYERS": [3, 4]}
    with pytest.raises(ValueError, match=r"write \[\[1, 2\]\]"):
        plan(root, notebooks=["02"], parameters={"LAYERS": [3, 4]})


def test_the_identity_follows_source_parameters_weights_and_versions(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(**settings: Any) -> str:
        (job,) = plan(root, notebooks=["01"], **{"models": ["models/a-2"], **settings})
        return job.identity

    seen = [identity(), identity(seeds=[1]), identity(models=["models/a-10"])]
    assert identity(seeds=[0]) == seen[0]  # the default, spelt out
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
    now = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: now | {"torch": "9.9+cpu"})
    seen.append(identity())
    monkeypatch.setattr(provenance, "versions", lambda: now | {"torch": "9.9+cu130"})
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
    return runs.main(["sweep", "--name", "s", "--models", "models/a-2", *arguments])


def kept(root: Path) -> dict[str, bytes]:
    folder = root / "papermill_runs/s"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("scorecard.*")}


def test_finished_runs_are_not_repeated_and_failed_ones_only_when_asked(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("--seeds", "0", "1") == 1
    out = capsys.readouterr().out
    assert "plan: 4 runs, 0 finished and 0 failed before (--retry); 4 to do" in out
    assert "failed  01_bad MODEL=a-2 SEED=0: cell 1: ValueError: no" in out
    assert sorted(executor.calls) == ["00_toy 0", "00_toy 1", "01_bad 0", "01_bad 1"]
    first = kept(root)
    assert go("--seeds", "0", "1") == 1
    out = capsys.readouterr().out
    assert "3 finished and 1 failed before (--retry); 0 to do" in out
    assert len(executor.calls) == 4
    assert kept(root) == first
    (folder,) = (root / "papermill_runs/s/runs").glob("01_bad-a-2-*/01_bad.failed.ipynb")
    assert sweeps.read_run(folder.with_name("run.json"))["traceback"] == "line 1\nno"
    executor.cured = True
    assert go("--seeds", "0", "1", "--retry") == 0
    assert executor.calls[4:] == ["01_bad 0"]
    assert "Failed runs" not in kept(root)["scorecard.md"].decode()


def test_a_changed_notebook_runs_again_and_takes_the_place_of_the_old(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("--seeds", "1") == 0
    write_notebook(root / "notebooks/00_toy.ipynb", PARAMETERS, CHECK + "\n# changed")
    executor.says = "Something else"
    assert go("--seeds", "1") == 0
    assert executor.calls == ["00_toy 1", "01_bad 1", "00_toy 1"]
    records = scorecard.collect([root / "papermill_runs/s"], root).records
    assert {r["notebook"]: r["says"] for r in records}["00_toy"] == "Something else"
    assert len(records) == 2
    assert len(list((root / "papermill_runs/s/runs").iterdir())) == 3  # the old one is kept


def test_the_plan_alone_starts_nothing(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("--seeds", "0", "--plan") == 0
    assert "2 to do" in capsys.readouterr().out
    assert not executor.calls
    assert not (root / "papermill_runs").exists()


@pytest.fixture
def one(root: Path) -> sweeps.Sweep:
    """A sweep of one run."""
    work = sweeps.Sweep(root / "papermill_runs/s", plan(root, notebooks=["00"]))
    work.record_plan()
    return work


def carry_out(work: sweeps.Sweep, **options: Any) -> sweeps.Outcome:
    return sweeps.carry_out(work.jobs[0], work.folder, minutes=1, **options)


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
            assert carry_out(one).state == "done"
        for found in list((one.folder / "runs").glob("*")):
            if calls >= broken:  # the fault came after the last step, or was of no consequence
                assert sweeps.read_run(found / "run.json")["records"]
                assert (found / "00_toy.ipynb").is_file()
                found.rename(one.folder / f"moved-{broken}")
    assert broken > 8
    assert sweeps.state(one.folder, one.jobs[0]) == "done"
    assert list((one.folder / ".attempts").iterdir()) == []


def test_a_full_disk_in_the_notebook_is_no_failure_of_the_notebook(
    one: sweeps.Sweep, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> notebooks.Ended:
        executor(*arguments, **options)
        return notebooks.Ended("papermill ended with code 1: OSError: [Errno 28] No space", 1.0)

    monkeypatch.setattr(notebooks, "execute", full)
    with pytest.raises(OSError, match="No space"):
        carry_out(one)
    assert sweeps.state(one.folder, one.jobs[0]) is None


def test_leftovers_of_a_killed_sweep_are_never_results_and_are_swept_away(
    one: sweeps.Sweep, executor: Executor
) -> None:
    name = one.jobs[0].folder
    (one.folder / ".attempts" / f"{name}.left/result").mkdir(parents=True)
    (one.folder / ".attempts" / f"{name}.left/result/run.json").write_text("{}")
    (one.folder / "runs" / name).mkdir(parents=True)  # made by no sweep; empty is no result
    assert sweeps.state(one.folder, one.jobs[0]) is None
    assert carry_out(one).state == "done"
    assert list((one.folder / ".attempts").iterdir()) == []


def test_a_notebook_edited_during_the_sweep_is_not_stored(
    one: sweeps.Sweep, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(*arguments: Any, **options: Any) -> notebooks.Ended:
        write_notebook(one.jobs[0].path, PARAMETERS, CHECK + "\n# edited")
        return executor(*arguments, **options)

    monkeypatch.setattr(notebooks, "execute", edit)
    assert carry_out(one).state == "edited"
    assert executor.calls == ["00_toy 0"]
    assert carry_out(one).state == "edited"  # and from now on it is not even started
    assert executor.calls == ["00_toy 0"]
    assert sweeps.state(one.folder, one.jobs[0]) is None


def test_a_damaged_record_is_named(
    one: sweeps.Sweep, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(one)
    file = one.folder / "runs" / one.jobs[0].folder / "run.json"
    for text in ("", "[]", "{}", file.read_text().replace('"does not hold"', '"fails"')):
        file.write_text(text)
        assert runs.main(["sweep", "--name", "s", "--notebooks", "00"]) == 2
        assert f"{file} is not the record of a run" in capsys.readouterr().err
        assert runs.main(["scorecard", "s"]) == 2
        assert f"{file} is not the record of a run" in capsys.readouterr().err


def test_a_run_that_someone_else_is_at_is_waited_for(one: sweeps.Sweep, executor: Executor) -> None:
    other = FileLock(one.folder / ".locks" / one.jobs[0].folder)
    other.acquire()
    assert carry_out(one).state == "busy"

    found: list[sweeps.Outcome] = []
    worker = threading.Thread(
        target=lambda: found.extend(o for _, o in one.work(spread.in_turn, minutes=1))
    )
    worker.start()
    time.sleep(0.3)
    other.release()
    worker.join(20)
    assert [outcome.state for outcome in found] == ["done"]
    assert not worker.is_alive()


def test_two_sweeps_on_one_folder_share_the_work(root: Path, executor: Executor) -> None:
    settings = {"seeds": list(range(6)), "notebooks": ["00"]}
    both = [sweeps.Sweep(root / "papermill_runs/s", plan(root, **settings)) for _ in range(2)]
    seen: list[list[str]] = [[], []]

    def act(number: int) -> None:
        both[number].record_plan()
        for job, outcome in both[number].work(spread.in_turn, minutes=1):
            seen[number].append(f"{outcome.state} {job}")

    threads = [threading.Thread(target=act, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(executor.calls) == sorted(f"00_toy {seed}" for seed in range(6))
    for outcomes in seen:
        assert sorted(outcomes) == sorted(f"done 00_toy SEED={seed}" for seed in range(6))


def test_runs_in_threads_have_an_environment_each_and_end_together(root: Path) -> None:
    """Where one of them fails, or Ctrl-C comes, the others stop at their next look at a cell."""
    jobs = plan(root, notebooks=["00"], seeds=[0, 1, 2, 3])
    together, seen, stopped = threading.Barrier(2), [], []

    def act(job: sweep_plan.Job, environment: dict[str, str], on_cell: Any) -> sweeps.Outcome:
        seen.append(environment["GPU"])
        together.wait(20)
        if environment["GPU"] == "1":
            raise OSError("the disk is full")
        try:
            while True:
                on_cell(job, 0)
                time.sleep(0.01)
        finally:
            stopped.append(job)

    with pytest.raises(OSError, match="the disk is full"):
        list(spread.in_threads([{"GPU": "0"}, {"GPU": "1"}])(jobs, act))
    assert sorted(seen) == ["0", "1"]
    assert len(stopped) == 1


def test_two_runs_at_a_time_end_as_one_after_another(root: Path, executor: Executor) -> None:
    assert go("--seeds", "0", "1", "--jobs", "2") == 1
    assert sorted(executor.calls) == ["00_toy 0", "00_toy 1", "01_bad 0", "01_bad 1"]
    both = kept(root)
    (root / "papermill_runs/s").rename(root / "papermill_runs/before")
    assert go("--seeds", "0", "1") == 1
    assert kept(root) == both


def test_sweeps_with_other_settings_add_to_the_folder(root: Path, executor: Executor) -> None:
    for seeds in (["0"], ["1"], ["0", "1"]):
        runs.main(["sweep", "--name", "s", "--notebooks", "00", "--seeds", *seeds])
    assert executor.calls == ["00_toy 0", "00_toy 1"]
    assert [r["seed"] for r in scorecard.collect([root / "papermill_runs/s"], root).records] == [
        0,
        1,
    ]


def test_a_sweep_can_become_the_reference(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--name", "s", "--notebooks", "01", "--seeds", "1"]
    models = ["--models", "models/a-*"]
    assert runs.main(["sweep", *options, *models, "--save-reference"]) == 0
    references = root / "papermill_runs/reference"
    assert sorted(path.name for path in references.iterdir()) == ["a-10", "a-2"]
    written = sweeps.read_run(references / "a-10/01_bad.json")
    assert written["inputs"]["parameters"] == {"MODEL": "a-10", "SEED": 1}
    assert str(root) not in json.dumps(written)
    assert runs.main(["diff", "reference", "s"]) == 0
    assert runs.main(["sweep", *options[:-1], "1", "3", *models, "--save-reference"]) == 2
    assert "there are several of 01_bad on a-" in capsys.readouterr().err


def test_each_worker_gets_its_gpu_and_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    on_cpu = spread.environments(3)
    assert [env["OMP_NUM_THREADS"] for env in on_cpu] == ["2"] * 3
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    on_gpus = spread.environments(3)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in on_gpus] == ["5", "7", "5"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert spread.environments(3)[0]["OMP_NUM_THREADS"] == "1"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_scheduler_that_does_not_answer_is_an_error_in_seconds(
    root: Path,
    silent_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(spread, "ANSWER_S", 0.5)
    for address in ("tcp://127.0.0.1:1", "nowhere", f"tcp://127.0.0.1:{silent_port}"):
        started = time.monotonic()
        assert go("--scheduler", address) == 2
        assert time.monotonic() - started < 30
        assert f"no dask scheduler answers at '{address}'" in capsys.readouterr().err


def test_the_options_of_the_command_line_take_the_place_of_the_files(
    root: Path, executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "s.yml").write_text("notebooks: [00]\nseeds: [0, 1]\nparameters: {N: [1, 2]}\n")
    assert runs.main(["sweep", "s.yml", "--plan"]) == 0
    assert "plan: 4 runs, 0" in capsys.readouterr().out
    assert runs.main(["sweep", "s.yml", "--plan", "--seeds", "5", "-p", "N=3", "-p", "N=4"]) == 0
    assert "plan: 2 runs, 0" in capsys.readouterr().out
    assert runs.SUMMARY_S > 0


def test_the_documented_slurm_workers_ask_for_one_gpu_and_one_run_at_a_time() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    page = Path(__file__).parents[2] / "notebooks/sweeps/README.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.split("cluster.scale")[0], found)
    script = found["cluster"].job_script()
    found["cluster"].close()
    assert isinstance(found["cluster"], jobqueue.SLURMCluster)
    for part in ("--gres=gpu:1", "-t 04:00:00", "--cpus-per-task=4", "--nthreads 1"):
        assert part in script
    assert "export OMP_NUM_THREADS=4" in script


def test_the_sweeps_that_come_with_the_notebooks_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path(__file__).parents[2]
    files = {file.stem: file for file in (here / "notebooks/sweeps").glob("*.yml")}
    assert "published" in files
    monkeypatch.chdir(here)
    for name, file in files.items():
        if name == "published":  # of models on the hub, which is out of reach here
            monkeypatch.setattr("mi_helpers.models.fetch", lambda name: name)
            monkeypatch.setattr(provenance, "weights", lambda name: {"name": name})
        assert runs.main(["sweep", str(file), "--name", "never-swept", "--plan"]) == 0
        planned = 40 if name == "published" else 7
        assert f"plan: {planned} runs, " in capsys.readouterr().out
        monkeypatch.undo()
        monkeypatch.chdir(here)


def test_a_notebook_that_kills_its_workers_is_a_failed_run_and_a_lost_scheduler_an_error(
    one: sweeps.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from distributed import CancelledError, KilledWorker

    fault: Exception = KilledWorker("task", None, 3)  # type: ignore[arg-type]

    class Client:
        """A client whose only job never comes back."""

        def submit(self, *arguments: Any, **options: Any) -> "Client":
            return self

        def result(self) -> None:
            raise fault

        def cancel(self, futures: list["Client"]) -> None:
            pass

    monkeypatch.setattr("distributed.as_completed", list)
    on_workers = spread.on_workers(Client(), one.folder)
    ((_, outcome),) = one.work(on_workers, minutes=1)
    assert outcome == ("failed", "all 4 workers died that ran this notebook")
    assert sweeps.state(one.folder, one.jobs[0]) == "failed"
    fault = CancelledError("lost")
    with pytest.raises(OSError, match="the scheduler is gone"):
        list(on_workers(one.jobs, lambda job: sweeps.Outcome("done")))

"""Sweeps that are killed, with real kernels: the scorecard is as if undisturbed.

The notebooks need no model, so that a run takes two seconds.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mi_helpers.run import sweep as sweeps
from tests.run.sweeping import CHECK, PARAMETERS, write_notebook

COUNTED = (
    CHECK
    + """
with open("executions", "a") as file:  # beside the notebooks
    file.write(f"{SEED} {N}\\n")"""
)
GRID = ["-p", "N=3", "-p", "N=4", "-p", "SEED=0", "-p", "SEED=1"]
KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection whose sweep ran through."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_notebook(root / "notebooks/00_toy.ipynb", PARAMETERS, COUNTED)
    write_notebook(root / "notebooks/01_bad.ipynb", "SEED = 0  # fails at 0", "1 / SEED")
    assert start(root).wait(300) == 1  # one of its runs fails
    return root


@pytest.fixture
def fresh(undisturbed: Path, tmp_path: Path) -> Path:
    """The same collection, not yet swept."""
    shutil.copytree(undisturbed / "notebooks", tmp_path / "notebooks")
    (tmp_path / "notebooks/executions").unlink()
    return tmp_path


def start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "mi_helpers.run.cli", "run", "--name", "s"]
    return subprocess.Popen([*command, *GRID, *arguments], cwd=root)


def scorecards(root: Path) -> dict[str, bytes]:
    folder = root / "papermill_runs/s"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("scorecard.*"))}


def results(root: Path) -> dict[str, int]:
    """Each finished run with the time of its record, which shows when one is done again."""
    found = (root / "papermill_runs/s/runs").glob("*/run.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def check(root: Path, undisturbed: Path) -> None:
    assert scorecards(root) == scorecards(undisturbed)
    assert sorted(scorecards(root)) == ["scorecard.html", "scorecard.json", "scorecard.md"]
    assert len(results(root)) == 6
    assert list((root / "papermill_runs/s/.attempts").iterdir()) == []


def test_a_sweep_killed_at_ten_random_moments_ends_as_if_undisturbed(
    fresh: Path, undisturbed: Path
) -> None:
    moments = random.Random(0)
    before: dict[str, int] = {}
    for _ in range(KILLS):
        process = start(fresh)
        time.sleep(moments.uniform(0.3, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in (fresh / "papermill_runs/s/runs").glob("*"):
            assert sweeps.read_run(folder / "run.json")["identity"]  # all that is there is whole
        after = results(fresh)
        assert before.items() <= after.items(), "a finished run was lost or repeated"
        before = after
    assert start(fresh).wait(300) == 1
    assert before.items() <= results(fresh).items()
    check(fresh, undisturbed)


def test_two_sweeps_at_once_do_each_run_once(fresh: Path, undisturbed: Path) -> None:
    both = [start(fresh), start(fresh, "--jobs", "2")]
    assert [process.wait(300) for process in both] == [1, 1]
    done = (fresh / "notebooks/executions").read_text().splitlines()
    assert sorted(done) == ["0 3", "0 4", "1 3", "1 4"]
    check(fresh, undisturbed)


def test_whoever_starts_a_notebook_takes_it_along_when_killed(
    tmp_path: Path, undisturbed: Path
) -> None:
    write_notebook(
        tmp_path / "notebooks/00_slow.ipynb",
        PARAMETERS,
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)",
    )
    process = start(tmp_path)
    pid = int(wait_for(tmp_path / "notebooks/pid"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == pid], timeout=30)
    assert not psutil.pid_exists(pid)


def wait_for(file: Path, seconds: float = 90) -> str:
    """The text of a file that another process is about to write."""
    deadline = time.monotonic() + seconds
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, f"{file} was not written"
        time.sleep(0.05)
    return file.read_text()


def test_a_sweep_that_is_killed_leaves_its_run_to_another(fresh: Path, undisturbed: Path) -> None:
    both = [start(fresh), start(fresh)]
    wait_for(fresh / "notebooks/executions")
    both[0].kill()
    assert both[1].wait(300) == 1
    check(fresh, undisturbed)

"""Runs of notebooks: each whole or absent, never done twice, on this machine or on many.

A folder `papermill_runs/NAME/` holds a folder `runs/…/` for each finished run: the executed
notebook and `run.json` with claims, parameters, versions and error. A run is prepared in
`.attempts/` and then renamed into place, so a folder in `runs/` is whole. Its name ends in the
run's identity (see `plan.Job`): what is there is never done again, and a changed notebook is
another run. Whoever works on a run holds its lock in `.locks/`, which the system takes back from a
process that dies, so any number of sweeps may share a folder. `plan.json` lists the runs that the
scorecard is of: all that were asked for in this folder, each in its latest identity.

Each run is a fresh kernel and loads its own model: a kernel that is kept warm would carry changed
weights and random states from one run into the next.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..claims import Record, validated
from . import execute, provenance
from .plan import Job

_DISK_FAULTS = ("[Errno 28]", "[Errno 122]", "[Errno 27]")  # full, over quota, file too large


class Outcome(NamedTuple):
    """What became of a job. Its state is done, failed, busy (someone else is at it) or edited."""

    state: str
    text: str = ""


# Calls `carry_out` on jobs, wherever, and yields the outcomes as they come (see `spread`).
Spread = Callable[[Iterable[Job], Callable[..., Outcome]], Iterator[tuple[Job, Outcome]]]
_EDITED = Outcome("edited", "the notebook or the package has changed; start again")


class Sweep:
    """A folder and the jobs asked of it; with `retry`, those that failed are done again."""

    def __init__(self, folder: Path, jobs: list[Job], retry: bool = False) -> None:
        self.folder, self.jobs, self.retry = folder, jobs, retry
        self.root = folder.parents[1]  # papermill_runs/ is beside notebooks/
        self.states = {job.folder: state(folder, job) for job in jobs}

    def count(self, wanted: str) -> int:
        """How many jobs are done, or failed."""
        return sum(found == wanted for found in self.states.values())

    def to_do(self) -> list[Job]:
        """The jobs without a result that counts."""
        undone = (None, "failed") if self.retry else (None,)
        return [job for job in self.jobs if self.states[job.folder] in undone]

    def finished(self) -> Iterator[tuple[Job, Path, dict[str, Any]]]:
        """Each job that has a result, with its folder and its record."""
        for job in self.jobs:
            if state(self.folder, job):
                folder = self.folder / "runs" / job.folder
                yield job, folder, read_run(folder / "run.json")

    def record_plan(self) -> None:
        """Add these jobs to `plan.json`, in place of earlier ones of the same name."""
        for name in ("runs", ".locks", ".attempts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".plan.lock"):
            plan = read_plan(self.folder) if (self.folder / "plan.json").exists() else {}
            plan |= {str(job): job.folder for job in self.jobs}
            write_atomic(self.folder / "plan.json", to_json(plan))

    def work(self, spread: Spread, **options: Any) -> Iterator[tuple[Job, Outcome]]:
        """Do what is to do, and yield each job with its outcome; `options` are of `carry_out`."""
        act = functools.partial(carry_out, folder=self.folder, retry=self.retry, **options)
        pending = self.to_do()
        while pending:
            busy = []
            for job, outcome in spread(pending, act):
                if outcome.state == "busy":
                    busy.append(job)
                else:
                    self.states[job.folder] = outcome.state
                    yield job, outcome
            if len(busy) == len(pending):
                time.sleep(0.5)
            pending = busy


def carry_out(
    job: Job,
    folder: Path,
    *,
    minutes: float,
    retry: bool = False,
    environment: Mapping[str, str] | None = None,
    on_cell: Callable[[Job, int], None] = lambda job, done: None,
) -> Outcome:
    """Execute one job and put the result into the folder, unless it is there already.

    Args:
        minutes: the time limit.
        retry: whether a job that failed is done again.
        environment, on_cell: as for `execute.execute`, but `on_cell` gets the job too.

    Raises OSError where the result cannot be written; then nothing is.
    """
    if not (folder / "plan.json").is_file():
        raise OSError(f"a worker does not see {folder}: all machines need one shared folder")
    try:
        with FileLock(folder / ".locks" / job.folder, timeout=0):
            found = state(folder, job)
            if found == "done" or (found == "failed" and not retry):
                return Outcome(found, "by another sweep")
            if _edited(job):
                return _EDITED
            for abandoned in (folder / ".attempts").glob(f"{job.folder}.*"):
                shutil.rmtree(abandoned, ignore_errors=True)  # of a process that was killed
            with _attempt(job, folder) as attempt:
                ended = execute.execute(
                    job.path,
                    attempt,
                    job.given,
                    seconds=60 * minutes,
                    environment=environment,
                    on_cell=functools.partial(on_cell, job),
                )
                return _keep(job, folder, attempt, ended)
    except Timeout:
        return Outcome("busy")


@contextlib.contextmanager
def _attempt(job: Job, folder: Path) -> Iterator[Path]:
    """A folder that is gone when its work has ended, however that was."""
    place, prefix = folder / ".attempts", f"{job.folder}."
    with tempfile.TemporaryDirectory(None, prefix, place, ignore_cleanup_errors=True) as attempt:
        yield Path(attempt)


def _keep(job: Job, folder: Path, attempt: Path, ended: execute.Ended) -> Outcome:
    """Rename what an execution left, as far as it is worth keeping, into place."""
    error, seconds, restarted = ended
    if error and any(fault in error for fault in _DISK_FAULTS):
        raise OSError(f"{job}: {error}")
    if _edited(job):  # while it ran, so that nobody knows which version this is of
        return _EDITED
    records: list[Record] = []
    try:
        records = read_lines(attempt / execute.CLAIMS) if error is None else []
    except ValueError as fault:
        error = str(fault)
    run = {
        "error": error,
        "traceback": execute.traceback(attempt) if error else None,
        "made_with": provenance.environment(folder.parents[1]),
        **execute.notes(attempt),
        "seconds": round(seconds, 1),
        "restarted": restarted,
        "records": records,
    }
    _install(attempt, folder, job, run)
    if error:
        return Outcome("failed", error)
    return Outcome("done", f"{seconds:.0f} s, {len(records)} claims")


def _edited(job: Job) -> bool:
    cells, code = job.inputs["cells"], job.inputs.get("code")
    return provenance.cells(job.path) != cells or code not in (None, provenance.code())


def fail(job: Job, folder: Path, error: str) -> Outcome:
    """Record a job that brought down whatever worked on it."""
    nothing = {"made_with": {}, "seconds": 0.0, "records": []}
    with _attempt(job, folder) as attempt:
        _install(attempt, folder, job, {"error": error, "traceback": error, **nothing})
    return Outcome("failed", error)


def _install(attempt: Path, folder: Path, job: Job, run: dict[str, Any]) -> None:
    """Put record and notebook together, and rename them into place: both appear, or nothing."""
    kept, target = attempt / "result", folder / "runs" / job.folder
    kept.mkdir()
    if (output := attempt / execute.OUTPUT).exists():
        output.replace(kept / f"{job.path.stem}{'.failed' if run['error'] else ''}.ipynb")
    write_atomic(kept / "run.json", to_json({"identity": job.identity, "inputs": job.inputs} | run))
    kept.chmod(0o755)
    if target.exists():  # a failed run that was tried again
        target.rename(attempt / "replaced")
    kept.rename(target)


# Files


def state(folder: Path, job: Job) -> str | None:
    """done, failed, or None for a job without a result."""
    file = folder / "runs" / job.folder / "run.json"
    if not file.is_file():
        return None
    return "failed" if read_run(file)["error"] else "done"


def read_plan(folder: Path) -> dict[str, str]:
    """The folders of the runs that a scorecard is of, by what was asked for."""
    try:
        return dict(json.loads((folder / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'plan.json'} is not a sweep's plan: {error}") from error


def read_run(file: Path) -> dict[str, Any]:
    """The record of a finished run; ValueError says what is wrong with it."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        validated(run["records"])
        run["inputs"]["parameters"], run["error"], run["seconds"]  # all that others read
    except (OSError, ValueError, LookupError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{file} is not the record of a run ({fault}); delete it to run it again"
        ) from error
    return run


def read_lines(path: Path) -> list[Record]:
    """The records that one notebook appended to its JSON-lines file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return validated([json.loads(line) for line in text.splitlines()])


def to_json(value: object) -> str:
    """The text of one of the JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed over it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

"""Sweeps: many runs of notebooks, which survive interruption and spread over many machines.

    mi sweep notebooks/sweeps/suite.yml --jobs 4

A sweep's folder, `papermill_runs/NAME/`, holds a folder `runs/…/` for each finished run: the
executed notebook, thumbnails of its figures and `run.json` with claims, parameters, versions and
error. A run is prepared in `.attempts/` and then renamed into place, so a folder in `runs/` is
whole. Its name ends in the run's identity (see `sweep_plan.Job`): what is there is never done
again, and a changed notebook is another run. Whoever works on a run holds its lock in `.locks/`,
which the system takes back from a process that dies, so any number of sweeps may share a folder.

`plan.json` lists the runs that the scorecard is of: all that were asked for in this folder, each in
its latest identity.

Runs go one after another, or through dask.distributed: a local cluster (`--jobs`) or any scheduler
(`--scheduler`). Each run is a fresh kernel and loads its own model: a kernel that is kept warm
would carry changed weights and random states from one run into the next. What runs of a model
share is its files, which are fetched once and then read from the system's memory, since runs of
one model follow one another.
"""

import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..claims import validate
from . import execute as notebooks
from . import fingerprint, provenance, scorecard, thumbnails
from .plan import Job

_DISK_FAULTS = ("[Errno 28]", "[Errno 122]", "[Errno 27]")  # full, over quota, file too large
_RECORD = {"inputs": dict, "seconds": float, "made_with": dict, "records": list, "figures": list}


class Outcome(NamedTuple):
    """What became of a job. Its state is done, failed, busy (someone else is at it) or edited."""

    state: str
    text: str = ""


# Calls a function on jobs, wherever, and yields the outcomes as they come.
Spread = Callable[[Iterable[Job], Callable[[Job], Outcome]], Iterator[tuple[Job, Outcome]]]
_EDITED = Outcome("edited", "notebook or package have changed; start the sweep again")


class Sweep:
    """A sweep's folder and the jobs asked of it."""

    def __init__(self, folder: Path, jobs: list[Job]) -> None:
        self.folder, self.jobs = folder, jobs
        self.states = {job.folder: state(folder, job) for job in jobs}

    def count(self, wanted: str | None) -> int:
        """How many jobs are in a state: done, failed, or None for neither."""
        return sum(found == wanted for found in self.states.values())

    def to_do(self, retry: bool) -> list[Job]:
        """The jobs without a result; with `retry` also those that failed."""
        undone = (None, "failed") if retry else (None,)
        return [job for job in self.jobs if self.states[job.folder] in undone]

    def record_plan(self) -> None:
        """Add these jobs to `plan.json`, in place of earlier ones of the same slots."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".plan.lock"):
            plan = read_plan(self.folder) if (self.folder / "plan.json").exists() else {}
            plan |= {job.slot: job.folder for job in self.jobs}
            scorecard.write_atomic(self.folder / "plan.json", json.dumps(plan, indent=1) + "\n")

    def work(
        self,
        spread: Spread,
        *,
        minutes: float,
        retry: bool = False,
        made_with: dict[str, Any] | None = None,
    ) -> Iterator[tuple[Job, Outcome]]:
        """Do what is to do, and yield each job with its outcome when it has one.

        Args:
            spread: `in_turn`, or `cluster.spread` of a client: calls the function on the jobs.
            minutes: the time limit of each.
            retry: repeat those that failed.
            made_with: `provenance.environment`, where this machine is the one that works.
        """
        act = functools.partial(
            carry_out, folder=self.folder, minutes=minutes, retry=retry, made_with=made_with
        )
        pending = self.to_do(retry)
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


def in_turn(jobs: Iterable[Job], act: Callable[[Job], Outcome]) -> Iterator[tuple[Job, Outcome]]:
    """One after another, in this process."""
    return ((job, act(job)) for job in jobs)


def carry_out(
    job: Job,
    folder: Path,
    *,
    minutes: float,
    retry: bool = False,
    made_with: dict[str, Any] | None = None,
) -> Outcome:
    """Execute one job and put the result into the sweep's folder, unless it is there already.

    Raises:
        OSError: the result cannot be written; then nothing is.
    """
    if not (folder / "plan.json").is_file():
        raise OSError(f"a worker does not see {folder}: all machines need one shared folder")
    for name in ("runs", ".locks", ".attempts"):
        (folder / name).mkdir(exist_ok=True)
    lock = FileLock(folder / ".locks" / job.folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return Outcome("busy")
    try:
        found = state(folder, job)
        if found == "done" or (found == "failed" and not retry):
            return Outcome(found, "by another sweep")
        if _edited(job):
            return _EDITED
        for abandoned in (folder / ".attempts").glob(f"{job.folder}.*"):
            shutil.rmtree(abandoned, ignore_errors=True)  # of a process that was killed
        attempt = Path(tempfile.mkdtemp(prefix=f"{job.folder}.", dir=folder / ".attempts"))
        try:
            return _attempt(job, attempt, folder, minutes, made_with)
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
    finally:
        lock.release()


def _attempt(
    job: Job, attempt: Path, folder: Path, minutes: float, made_with: dict[str, Any] | None
) -> Outcome:
    """Execute into the attempt's folder, and rename what is worth keeping into place."""
    output, lines, log = (attempt / name for name in ("running.ipynb", "claims.jsonl", "log"))
    error, seconds = notebooks.execute(
        job.path, output, job.given, seconds=60 * minutes, claims=lines, log=log
    )
    if error and any(fault in error for fault in _DISK_FAULTS):
        raise OSError(f"{job}: {error}")
    if _edited(job):  # while it ran, so that nobody knows which version this is of
        return _EDITED
    records: list[Any] = []
    try:
        records = scorecard.read_lines(lines) if error is None else []
    except ValueError as fault:
        error = str(fault)
    said = notebooks.traceback(output, log) if error else None
    kept = attempt / "result"
    kept.mkdir()
    if output.exists():
        output.replace(kept / f"{job.path.stem}{'.failed' if error else ''}.ipynb")
    figures = [] if error else _save_figures(kept / f"{job.path.stem}.ipynb", kept)
    record = {
        "identity": job.identity,
        "inputs": job.inputs,
        "error": error,
        "traceback": said,
        "seconds": round(seconds, 1),
        "made_with": made_with or _made_with(folder.parents[1]),
        "figures": figures,
        "records": records,
    }
    _install(kept, folder / "runs" / job.folder, record)
    return Outcome(
        "failed" if error else "done", error or f"{seconds:.0f} s, {len(records)} claims"
    )


def _edited(job: Job) -> bool:
    return any(job.inputs[key] != now for key, now in fingerprint.source(job.path).items())


def fail(job: Job, folder: Path, error: str) -> Outcome:
    """Record a job that brought down whatever worked on it."""
    record: dict[str, Any] = {"seconds": 0.0, "made_with": {}, "figures": [], "records": []}
    record |= {"identity": job.identity, "inputs": job.inputs, "error": error, "traceback": error}
    for name in ("runs", ".attempts"):
        (folder / name).mkdir(exist_ok=True)
    attempts = folder / ".attempts"
    with tempfile.TemporaryDirectory(dir=attempts, prefix=f"{job.folder}.") as attempt:
        kept = Path(attempt, "result")
        kept.mkdir()
        _install(kept, folder / "runs" / job.folder, record)
    return Outcome("failed", error)


def _install(kept: Path, target: Path, record: dict[str, Any]) -> None:
    """Make a finished folder durable, then rename it into place: all of it appears, or nothing."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    scorecard.write_atomic(kept / "run.json", text)
    for path in [*kept.iterdir(), kept]:
        _sync(path)
    kept.chmod(0o755)
    if target.exists():  # a failed run that was tried again
        target.rename(kept.with_name("replaced"))
    kept.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _save_figures(notebook: Path, folder: Path) -> list[dict[str, str]]:
    made = thumbnails.make(notebook)
    names = [f"figure-{number}.webp" for number in range(1, len(made) + 1)]
    for name, thumbnail in zip(names, made, strict=True):
        (folder / name).write_bytes(thumbnail.webp)
    return [{"file": n, "title": t.title} for n, t in zip(names, made, strict=True)]


@functools.cache
def _made_with(root: Path) -> dict[str, Any]:
    return provenance.environment(root)


def state(folder: Path, job: Job) -> str | None:
    """done, failed, or None for a job without a result."""
    file = folder / "runs" / job.folder / "run.json"
    if not file.is_file():
        return None
    return "failed" if read_run(file.parent)["error"] else "done"


def read_plan(folder: Path) -> dict[str, str]:
    """The folders of the runs that a sweep's scorecard is of, by slot."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        if not isinstance(plan, dict) or not all(isinstance(v, str) for v in plan.values()):
            raise ValueError("not a mapping of texts")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'plan.json'} is not a sweep's plan: {error}") from error
    return plan


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a finished run; ValueError says what is wrong with it."""
    file = folder / "run.json"
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError("not a mapping")
        for key, kind in _RECORD.items():
            if not isinstance(run.get(key), kind):
                raise ValueError(f"{key} is missing or no {kind.__name__}")
        for record in run["records"]:
            validate(record)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{file} is not the record of a run: {error}; delete its folder to run it again"
        ) from error
    return run

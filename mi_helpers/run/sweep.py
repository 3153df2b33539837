"""Runs of notebooks: each whole or absent, never done twice, by one sweep or by many.

A folder `papermill_runs/NAME/` holds a folder `runs/…/` for each run that was asked for: the
executed notebook and `run.json` with claims, parameters, versions and error. A run is prepared in
`.attempts/` and then renamed into place, so a folder in `runs/` is whole. It counts as long as its
identity is the one that is asked for (see `plan.Job`); a changed notebook or package is run again,
and takes the old one's place.

Whoever works on a run holds its lock in `.locks/`, which the system takes back from a process that
dies. So any number of sweeps may share a folder, on one machine or on many, and do each run once.

Each run is a fresh kernel and loads its own model: a kernel that is kept warm would carry changed
weights and random states from one run into the next.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..claims import validate
from . import execute, provenance
from .plan import Job


class Sweep:
    """A folder and the runs asked of it; with `retry`, those that failed are done again."""

    def __init__(self, folder: Path, jobs: list[Job], retry: bool = False) -> None:
        self.folder, self.jobs = folder, jobs
        self.root = folder.parents[1]  # papermill_runs/ is beside notebooks/
        found = {job.name: self.result(job) for job in jobs}
        self.failed = [job for job in jobs if (run := found[job.name]) and run["error"]]
        again = self.failed if retry else []
        self.to_do = [job for job in jobs if job in again or not found[job.name]]

    def result(self, job: Job) -> dict[str, Any] | None:
        """The record of a job that was executed; None where it was not, or in another version."""
        file = self.folder / "runs" / job.name / "run.json"
        run = read_run(file) if file.is_file() else None
        return run if run and run["identity"] == job.identity else None

    def finished(self) -> Iterator[tuple[Job, Path, dict[str, Any]]]:
        """Each job that has a result, with its folder and its record."""
        for job in self.jobs:
            if run := self.result(job):
                yield job, self.folder / "runs" / job.name, run

    def work(
        self,
        minutes: float,
        at_once: int = 1,
        on_cell: Callable[[Job, int], None] = lambda job, done: None,
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Do what is to do, `at_once` runs at a time, and yield each job with its record.

        A run is a process of its own, so threads of this one are enough to look after several. The
        cores are shared among them, unless OMP_NUM_THREADS is set. `on_cell` is as for
        `execute.execute`, with the job before it.

        Raises OSError where a result cannot be written; then nothing is.
        """
        for name in ("runs", ".locks", ".attempts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
        environment = share | dict(os.environ) if at_once > 1 else dict(os.environ)
        stopped = threading.Event()

        def one(job: Job) -> tuple[Job, dict[str, Any] | None]:
            def watched(done: int) -> None:
                if stopped.is_set():
                    raise KeyboardInterrupt
                on_cell(job, done)

            return job, self._carry_out(job, 60 * minutes, environment, watched)

        pending = self.to_do
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while pending:
                    busy = []
                    for future in as_completed([pool.submit(one, job) for job in pending]):
                        job, run = future.result()
                        if run:
                            yield job, run
                        else:
                            busy.append(job)
                    time.sleep(0.5 if len(busy) == len(pending) else 0)
                    pending = busy
            finally:  # on Ctrl-C the runs in other threads end as well
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, job: Job, *how: Any) -> dict[str, Any] | None:
        """Execute a job as `execute.execute` does, unless another sweep has done it; None where one
        is at it."""
        attempts = self.folder / ".attempts"
        with contextlib.suppress(Timeout), FileLock(self.folder / ".locks" / job.name, timeout=0):
            if job not in self.failed and (run := self.result(job)):
                return run
            for abandoned in attempts.glob(f"{job.name}.*"):  # of a process that was killed
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                dir=attempts, prefix=f"{job.name}.", ignore_cleanup_errors=True
            ) as attempt:
                told = execute.execute(job.path, Path(attempt), job.given, *how)
                return self._install(job, Path(attempt), told)
        return None

    def _install(self, job: Job, attempt: Path, told: dict[str, Any]) -> dict[str, Any]:
        """Put record and notebook together, and rename them into place: both appear, or nothing."""
        now = provenance.cells(job.path), provenance.code()
        if now != (job.inputs["cells"], job.inputs["code"]):
            error = "the notebook or the package was edited while it ran"
            told = told | {"error": error, "records": []}
        run = {"identity": job.identity, "asked": job.asked, "inputs": job.inputs}
        run |= {"commit": provenance.commit(self.root), **told}
        kept, target = attempt / "result", self.folder / "runs" / job.name
        kept.mkdir()
        if (output := attempt / execute.OUTPUT).exists():
            output.replace(kept / f"{job.path.stem}{'.failed' if run['error'] else ''}.ipynb")
        write_atomic(kept / "run.json", to_json(run))
        if target.exists():  # it failed before, or is of an older notebook
            target.rename(attempt / "replaced")
        kept.rename(target)
        return run


# Files


def read_run(file: Path) -> dict[str, Any]:
    """The record of a finished run; ValueError says what is wrong with it."""
    try:
        run = {"asked": {}} | json.loads(file.read_text(encoding="utf-8"))
        for record in run["records"]:
            validate(record)
        run["identity"], run["inputs"]["parameters"], run["error"], run["seconds"]  # all are read
    except (OSError, ValueError, LookupError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{file} is not the record of a run ({fault}); delete it to run it again"
        ) from error
    return run


def to_json(value: object) -> str:
    """The text of one of the JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed over it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

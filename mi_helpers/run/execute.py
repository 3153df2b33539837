"""The execution of one notebook by papermill, watched.

Papermill can hang after the last cell, so each notebook runs in a process of its own (`worker`),
whose whole family is killed at the time limit.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from .parameters import read_cells

PLOTLY = "application/vnd.plotly.v1+json"  # how an output holds an interactive figure
# What an execution leaves: the notebook, the records of `mi.claim` and notes of `load_model`, one a
# line, and what papermill printed.
OUTPUT, CLAIMS, NOTES, LOG = "running.ipynb", "claims.jsonl", "notes.jsonl", "log"
SILENT = 75  # the exit code of a worker whose kernel computes nothing
IDLE_S = 14.0  # a kernel that computes nothing for so long has lost a message


def execute(
    path: Path,
    folder: Path,
    parameters: Mapping[str, Any],
    seconds: float,
    environment: Mapping[str, str] = os.environ,
    on_cell: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Execute a notebook, cell by cell, for at most `seconds` an attempt; what is to be told of it.

    A message between papermill and its kernel can be lost; then both wait, for ever. So a kernel
    that computes nothing is given up, once, and the notebook starts again.

    `folder` gets `OUTPUT`, `CLAIMS`, `NOTES` and `LOG`; `on_cell` is called ten times a second with
    the number of cells that are done.

    Returns:
        `error`, None exactly when every cell was executed to its end, and `traceback`; the `models`
        that it loaded, each with dtype, device and BOS; `seconds` by the clock, `cpu_s` of the
        kernel's processor and `peak_gb`, the most memory that it held; `restarted`, where a kernel
        fell silent; `records` of its claims.
    """
    started, restarted, output = time.monotonic(), None, folder / OUTPUT
    job = {
        # papermill fills {…} in paths, so braces are doubled
        "input_path": str(path).replace("{", "{{").replace("}", "}}"),
        "output_path": str(output).replace("{", "{{").replace("}", "}}"),
        "parameters": dict(parameters),
        "cwd": str(path.parent),
        "kernel_name": "python3",
        "language": "python",
        "progress_bar": False,
        "start_timeout": 180,
        "iopub_timeout": 120,
        "idle_s": IDLE_S,
    }
    code = _attempt(job, folder, seconds, environment, on_cell)
    if code == SILENT and not _done(_cells(output)):
        restarted = f"the kernel fell silent in {_where(_cells(output))}"
        print(f"{path.stem}: {restarted}; starting it again", file=sys.stderr)
        for name in (OUTPUT, CLAIMS, NOTES):
            (folder / name).unlink(missing_ok=True)
        # not watched: a cell that only waits, for a download, needs its time
        code = _attempt(job | {"idle_s": None}, folder, seconds, environment, on_cell)
    error, notes = _error(folder, code, seconds), _lines(folder / NOTES)
    used = next((note for note in notes if "cpu_s" in note), {})
    return {
        "error": error,
        "traceback": _printed(folder) if error else None,
        "models": [note for note in notes if "model" in note],
        "seconds": round(time.monotonic() - started, 1),
        "cpu_s": used.get("cpu_s"),
        "peak_gb": used.get("peak_gb"),
        "restarted": restarted,
        "records": [] if error else _lines(folder / CLAIMS),
    }


def _attempt(
    job: dict[str, Any],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str],
    on_cell: Callable[[int], None],
) -> int | None:
    """Run papermill in a process of its own; its exit code, None where it is late.

    It speaks with its kernel over socket files: a port is chosen before the kernel binds it, and
    another process may take it meanwhile.
    """
    variables = {
        "OMP_WAIT_POLICY": "passive",  # waiting threads give up their core to other processes
        **environment,
        "MI_SCORECARD": str(folder / CLAIMS),
        "MI_NOTES": str(folder / NOTES),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with (
        tempfile.TemporaryDirectory(prefix="mi-", ignore_cleanup_errors=True) as sockets,
        (folder / LOG).open("w", encoding="utf-8") as log,
    ):
        files = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        config = {} if sys.platform == "win32" else {"KernelManager": files}
        process = subprocess.Popen(
            [sys.executable, "-m", "mi_helpers.run.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,  # Ctrl-C goes to this process alone, which then kills the rest
            text=True,
        )
        assert process.stdin is not None
        try:
            print(json.dumps({**job, "config": config}), file=process.stdin, flush=True)
            _wait(process, folder / OUTPUT, seconds, on_cell)
            return process.poll()
        finally:
            _kill_family(process)
            process.stdin.close()


def _wait(
    process: subprocess.Popen[str], output: Path, seconds: float, on_cell: Callable[[int], None]
) -> None:
    deadline, seen, done = time.monotonic() + seconds, None, 0
    while process.poll() is None and time.monotonic() < deadline:
        stamp = output.stat().st_mtime_ns if output.exists() else None
        if stamp != seen:  # papermill writes when a cell starts and when it ends
            seen, done = stamp, _states(_cells(output)).count("completed")
        on_cell(done)
        time.sleep(0.1)


def _kill_family(process: subprocess.Popen[str]) -> None:
    """Kill a process that is still alive, with its children in whatever session they are."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()


def _lines(file: Path) -> list[dict[str, Any]]:
    """What was appended to a JSON-lines file, each once."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in dict.fromkeys(lines)]


def _printed(folder: Path) -> str:
    """All that papermill printed, which ends with the traceback of the cell that failed."""
    said = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return re.sub(r"\x1b\[[0-9;]*m", "", said).strip()


def _done(cells: list[dict[str, Any]]) -> bool:
    """Whether every cell ran: papermill calls all completed when it gives up, whether or not."""
    work = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
    return bool(work) and all(cell["execution_count"] for cell in work)


def _error(folder: Path, code: int | None, seconds: float) -> str | None:
    """What went wrong, in a line; None when all cells are done, even if papermill then hung.

    Its exit `code` is None where it was given up after `seconds`.
    """
    cells = _cells(folder / OUTPUT)
    if code in (0, SILENT, None) and _done(cells):
        return None
    if code is None:
        return f"{_where(cells)}: time limit of {seconds / 60:.3g} min reached"
    outs = [
        out for cell in cells for out in cell.get("outputs", []) if out["output_type"] == "error"
    ]
    last = _printed(folder).splitlines()[-1:] or [f"papermill ended with code {code}"]
    said = f"{outs[0]['ename']}: {outs[0]['evalue']}" if outs else last[0]
    return f"{_where(cells)}: {said}"


def _cells(output: Path) -> list[dict[str, Any]]:
    """The cells of a notebook without papermill's notes; none while it is half written."""
    try:
        cells = read_cells(output)
    except ValueError:
        return []
    return [c for c in cells if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]


def _states(cells: list[dict[str, Any]]) -> list[str | None]:
    """What papermill notes of each cell: pending, running, completed, failed."""
    return [cell["metadata"].get("papermill", {}).get("status") for cell in cells]


def _where(cells: list[dict[str, Any]]) -> str:
    states = _states(cells)
    found = [n for n, state in enumerate(states, 1) if state in ("running", "failed")]
    return f"cell {found[0]} of {len(states)}" if found else "outside of the cells"

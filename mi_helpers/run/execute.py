"""One notebook: where it is, and its execution by papermill.

Papermill can hang after the last cell, so each notebook runs in a process of its own, whose whole
family is killed at the time limit.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .parameters import read_cells

PLOTLY = "application/vnd.plotly.v1+json"  # how an output holds an interactive figure
# what an execution leaves
OUTPUT, CLAIMS, NOTES, LOG = "running.ipynb", "claims.jsonl", "notes.jsonl", "log"
GRACE = 30.0  # seconds that papermill may take to end after the last cell
IDLE_S = 20.0  # a kernel that computes nothing for so long while a cell is out has lost a message
IDLE_SHARE = 0.03  # of one core: what a kernel and a browser use while they wait
# The job is the first line of stdin. When stdin ends, whoever started this has died, even by
# `kill -9`, and so it ends as well; its kernel follows.
_WORKER = """
import json, os, resource, sys, threading
import papermill
from traitlets.config import Config
from mi_helpers.run.execute import peak_gb
job = json.loads(sys.stdin.readline())
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
papermill.execute_notebook(**job | {"config": Config(job["config"])})
peak, used = peak_gb(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_CHILDREN)
note = {"peak_gb": round(peak, 2), "cpu_s": round(used.ru_utime + used.ru_stime, 1)}
with open(os.environ["MI_NOTES"], "a") as file:
    file.write(json.dumps(note) + "\\n")
"""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Outcome(NamedTuple):
    """How one execution ended; error is None exactly when every cell was executed to its end.

    `restarted` says where a kernel fell silent, None where none did.
    """

    error: str | None
    seconds: float
    restarted: str | None = None


def find_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that has `notebooks/`, else the one this package lies in."""
    start = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parents[2]
    return next((p for p in (start, *start.parents, package) if (p / "notebooks").is_dir()), start)


def find(names: Sequence[str], root: Path) -> list[Path]:
    """The notebooks of these names, beginnings of names or paths; for none, all of `notebooks/`."""
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if not known and not names:
        raise ValueError(f"there are no notebooks in {root / 'notebooks'}")
    return list(dict.fromkeys(_find_one(name, known) for name in names or known))


def _find_one(name: str, known: Mapping[str, Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem = name.removesuffix(".ipynb")
    matches = [stem] if stem in known else [other for other in known if other.startswith(stem)]
    if len(matches) != 1:
        fault = "several notebooks begin with" if matches else "no notebook is called"
        raise ValueError(f"{fault} {name!r}; there are {', '.join(matches or known) or 'none'}")
    return known[matches[0]]


def execute(
    path: Path,
    folder: Path,
    parameters: Mapping[str, Any],
    *,
    seconds: float,
    on_cell: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Execute a notebook, cell by cell, for at most `seconds` an attempt.

    A message between papermill and its kernel can be lost; then both wait, for ever. So a kernel
    that computes nothing while a cell is out is given up, once, and the notebook starts again. The
    two speak over socket files: a port is chosen before the kernel binds it, and another process
    may take it meanwhile.

    Args:
        folder: gets `OUTPUT`, the executed notebook; `CLAIMS`, the records that `mi.claim` appends,
            one a line; `NOTES`, for `notes`; and `LOG`, what papermill prints.
        on_cell: called with the number of cells that are done, when it grows and every second.
    """
    output, started, restarted = folder / OUTPUT, time.monotonic(), None
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
    }
    ended = _attempt(job, folder, seconds, on_cell, watch=True)
    if ended == "silent":
        restarted = f"the kernel fell silent {_where(output)}"
        print(f"{path.stem}: {restarted}; starting it again", file=sys.stderr)
        for file in (output, folder / CLAIMS, folder / NOTES):
            file.unlink(missing_ok=True)
        # a cell that only waits, for a download, needs its time
        ended = _attempt(job, folder, seconds, on_cell, watch=False)
    error = _error(folder, ended)
    if error and ended == "late":
        error = f"time limit of {seconds / 60:.3g} min reached {_where(output)}"
    return Outcome(error, time.monotonic() - started, restarted)


def _attempt(
    job: Mapping[str, Any],
    folder: Path,
    seconds: float,
    on_cell: Callable[[int], None],
    watch: bool,
) -> str:
    """Run papermill in a process of its own; how it ended: its exit code, "late" or "silent"."""
    deadline = time.monotonic() + seconds
    sockets = tempfile.TemporaryDirectory(prefix="mi-", ignore_cleanup_errors=True)
    files = {"transport": "ipc", "ip": f"{sockets.name}/kernel"}
    config = {} if sys.platform == "win32" else {"KernelManager": files}
    environment = {
        "OMP_WAIT_POLICY": "passive",  # waiting threads give up their core to other processes
        **os.environ,
        "MI_SCORECARD": str(folder / CLAIMS),
        "MI_NOTES": str(folder / NOTES),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with sockets, (folder / LOG).open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to this process alone, which then kills the rest
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**job, "config": config}).encode() + b"\n")
            process.stdin.flush()
            fault = _wait(process, folder / OUTPUT, deadline, on_cell, watch)
        finally:
            kill_family(process)
    return fault or f"code {process.returncode}"


def _wait(
    process: subprocess.Popen[bytes],
    output: Path,
    deadline: float,
    on_cell: Callable[[int], None],
    watch: bool,
) -> str | None:
    """Wait for the process, reporting progress; why it was given up, None where it ended."""
    seen, done, total, told = None, 0, 1, 0.0
    since, used = time.monotonic(), _computed(process)
    while process.poll() is None:
        now = time.monotonic()
        stamp = output.stat().st_mtime_ns if output.exists() else None
        if stamp != seen:  # papermill writes when a cell starts and when it ends
            seen, before, states = stamp, done, _states(output)
            done, total = states.count("completed"), len(states) or 1
            told = told if done == before else 0.0
            since, used = now, _computed(process)
            if done == total:
                deadline = min(deadline, now + GRACE)
        if now - told > 1:
            told = now
            on_cell(done)
        if time.monotonic() > deadline:
            return "late"
        if watch and now - since >= IDLE_S:
            more = _computed(process)
            idle = abs(more - used) < IDLE_SHARE * (now - since)
            if idle and done < total and _where(output).startswith("in cell"):
                return "silent"
            since, used = now, more
        time.sleep(0.1)
    return None


def _computed(process: subprocess.Popen[bytes]) -> float:
    """What a process's children, the kernel among them, have done: processor time in seconds, and
    a second for each 10 MB read from the disk, for which the first import on a machine waits."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        return sum(sum(member.cpu_times()[:2]) + _read_mb(member) / 10 for member in family)
    except psutil.Error:  # one of them ended meanwhile: that is work as well
        return -time.monotonic()


def _read_mb(process: psutil.Process) -> float:
    """Read from the disk so far; 0 where nobody says: on macOS, and of a browser's sandbox."""
    with contextlib.suppress(psutil.AccessDenied, AttributeError):
        return process.io_counters().read_bytes / 1e6
    return 0.0


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that is still alive, with its children in whatever session they are."""
    if process.poll() is None:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def peak_gb(who: int) -> float:
    """The most memory that this process held (`resource.RUSAGE_SELF`), or any one that it started
    and that has ended (`RUSAGE_CHILDREN`), in GB."""
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(who).ru_maxrss * unit / 1e9


def notes(folder: Path) -> dict[str, Any]:
    """What an execution noted beside its claims: the models that it loaded, each with dtype, device
    and BOS; `peak_gb`, the most memory that its kernel held; and `cpu_s`, the processor time that
    it used (None where these are not known)."""
    file = folder / NOTES
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = [json.loads(line) for line in dict.fromkeys(text.splitlines())]
    used: dict[str, float] = next((line for line in found if "peak_gb" in line), {})
    models = [line for line in found if "model" in line]
    return {"models": models, "peak_gb": used.get("peak_gb"), "cpu_s": used.get("cpu_s")}


def traceback(folder: Path) -> str:
    """All that a failed execution said: the traceback of its cell, else what papermill printed."""
    lines = [line for _, out in _errors(folder) for line in out["traceback"]]
    said = "\n".join(lines) or (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return _ANSI.sub("", said).strip()


def _error(folder: Path, ended: str) -> str | None:
    """What went wrong, in a line; None when all cells are done, even if papermill then hung.

    Papermill calls every cell completed when it gives up, those too that never ran.
    """
    if errors := _errors(folder):
        number, out = errors[0]
        return _ANSI.sub("", f"cell {number}: {out['ename']}: {out['evalue']}")
    code = [c for c in _cells(folder / OUTPUT) if c["cell_type"] == "code" and c["source"]]
    if ended in ("code 0", "late") and code and all(c["execution_count"] for c in code):
        return None
    last = traceback(folder).splitlines()[-1:]
    return f"papermill ended with {ended}: {''.join(last) or 'it printed nothing'}"


def _errors(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """The errors among the outputs, each with the number of its cell."""
    outs = [(n, o) for n, c in enumerate(_cells(folder / OUTPUT), 1) for o in c.get("outputs", [])]
    return [(number, out) for number, out in outs if out["output_type"] == "error"]


def _cells(output: Path) -> list[dict[str, Any]]:
    """The cells of a notebook without papermill's notes; none while it is half written."""
    try:
        cells = read_cells(output)
    except ValueError:
        return []
    return [c for c in cells if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]


def _states(output: Path) -> list[str | None]:
    """What papermill notes of each cell: pending, running, completed, failed."""
    return [cell["metadata"].get("papermill", {}).get("status") for cell in _cells(output)]


def _where(output: Path) -> str:
    states = _states(output)
    running = [n for n, state in enumerate(states, 1) if state == "running"]
    return f"in cell {running[-1]} of {len(states)}" if running else "before the first cell"

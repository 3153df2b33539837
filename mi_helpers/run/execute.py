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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

from .parameters import read_cells

PLOTLY = "application/vnd.plotly.v1+json"  # how an output holds an interactive figure
# What an execution leaves: the notebook, the records of `mi.claim`, one a line, what `notes` reads,
# and what papermill printed.
OUTPUT, CLAIMS, NOTES, LOG = "running.ipynb", "claims.jsonl", "notes.jsonl", "log"
GRACE = 30.0  # seconds that papermill may take to end after the last cell
IDLE_S = 20.0  # a kernel that computes nothing for so long while a cell is out has lost a message
IDLE_SHARE = 0.03  # of one core: what a kernel and a browser use while they wait
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Ended(NamedTuple):
    """How one execution ended; error is None exactly when every cell was executed to its end.

    `restarted` says where a kernel fell silent, None where none did.
    """

    error: str | None
    seconds: float
    restarted: str | None = None


def find_root() -> Path:
    """The nearest folder upwards that has `notebooks/`, else the one this package lies in."""
    here, package = Path.cwd(), Path(__file__).resolve().parents[2]
    return next((p for p in (here, *here.parents, package) if (p / "notebooks").is_dir()), here)


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
    environment: Mapping[str, str] | None = None,
    on_cell: Callable[[int], None] = lambda done: None,
) -> Ended:
    """Execute a notebook, cell by cell, for at most `seconds` an attempt.

    A message between papermill and its kernel can be lost; then both wait, for ever. So a kernel
    that computes nothing while a cell is out is given up, once, and the notebook starts again.

    Args:
        folder: gets `OUTPUT`, `CLAIMS`, `NOTES` and `LOG`.
        environment: variables for the kernel, beside those of this process.
        on_cell: called ten times a second with the number of cells that are done.
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
    variables = {
        "OMP_WAIT_POLICY": "passive",  # waiting threads give up their core to other processes
        **os.environ,
        **(environment or {}),
        "MI_SCORECARD": str(folder / CLAIMS),
        "MI_NOTES": str(folder / NOTES),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with (folder / LOG).open("w", encoding="utf-8") as log:
        with _papermill(job, variables, log) as process:
            fault = _wait(process, output, started + seconds, on_cell)
        if fault == "silent":
            restarted = f"the kernel fell silent {_where(output)}"
            print(f"{path.stem}: {restarted}; starting it again", file=sys.stderr)
            for file in (output, folder / CLAIMS, folder / NOTES):
                file.unlink(missing_ok=True)
            with _papermill(job, variables, log) as process:
                # a cell that only waits, for a download, needs its time
                late = time.monotonic() + seconds
                fault = _wait(process, output, late, on_cell, watch=False)
    error = _error(folder, None if fault else process.returncode, seconds)
    return Ended(error, time.monotonic() - started, restarted)


@contextlib.contextmanager
def _papermill(
    job: Mapping[str, Any], variables: Mapping[str, str], log: IO[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Papermill in a process of its own, which ends with this block, and its kernel too.

    The two speak over socket files: a port is chosen before the kernel binds it, and another
    process may take it meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="mi-", ignore_cleanup_errors=True) as sockets:
        files = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        config = {} if sys.platform == "win32" else {"KernelManager": files}
        process = subprocess.Popen(
            [sys.executable, "-m", "mi_helpers.run.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,  # Ctrl-C goes to this process alone, which then kills the rest
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**job, "config": config}).encode() + b"\n")
            process.stdin.flush()
            yield process
        finally:
            kill_family(process)


def _wait(
    process: subprocess.Popen[bytes],
    output: Path,
    deadline: float,
    on_cell: Callable[[int], None],
    watch: bool = True,
) -> str | None:
    """Wait for the process to end; "late" or "silent" where it is to be given up."""
    seen: int | None = None
    states: list[str | None] = []
    since, work = time.monotonic(), _work(process)
    while process.poll() is None:
        now = time.monotonic()
        stamp = output.stat().st_mtime_ns if output.exists() else None
        if stamp != seen:  # papermill writes when a cell starts and when it ends
            seen, states = stamp, _states(output)
            since, work = now, _work(process)
            if set(states) == {"completed"}:
                deadline = min(deadline, now + GRACE)
        on_cell(states.count("completed"))
        if time.monotonic() > deadline:
            return "late"
        if now - since >= IDLE_S:
            before, work = work, _work(process)
            idle = abs(work - before) < IDLE_SHARE * (now - since)
            if watch and idle and "running" in states:
                return "silent"
            since = now
        time.sleep(0.1)
    return None


def _work(process: subprocess.Popen[bytes]) -> float:
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


def _error(folder: Path, code: int | None, seconds: float) -> str | None:
    """What went wrong, in a line; None when all cells are done, even if papermill then hung.

    Papermill calls every cell completed when it gives up, those too that never ran.

    Args:
        code: papermill's exit code, None where it was given up after `seconds`.
    """
    if errors := _errors(folder):
        number, out = errors[0]
        return _ANSI.sub("", f"cell {number}: {out['ename']}: {out['evalue']}")
    cells = [c for c in _cells(folder / OUTPUT) if c["cell_type"] == "code" and c["source"]]
    if code in (0, None) and cells and all(c["execution_count"] for c in cells):
        return None
    if code is None:
        return f"time limit of {seconds / 60:.3g} min reached {_where(folder / OUTPUT)}"
    last = traceback(folder).splitlines()[-1:]
    return f"papermill ended with code {code}: {''.join(last) or 'it printed nothing'}"


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

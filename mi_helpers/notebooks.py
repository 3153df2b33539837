"""One notebook: where it is, which parameters it takes, and its execution by papermill.

Papermill only warns about an unknown parameter, takes any type, and can hang after the last cell.
So parameters are read from the `parameters` cell and checked before anything starts, and each
notebook runs in a process of its own, whose whole family is killed at the time limit.
"""

import ast
import difflib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

GRACE = 30.0  # seconds that papermill may take to end after the last cell
_WORKER = "import json, sys, papermill; papermill.execute_notebook(**json.load(sys.stdin))"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Parameter(NamedTuple):
    """A name assigned in the `parameters` cell; types is None where any literal will do."""

    name: str
    default: Any
    types: tuple[type, ...] | None


class Outcome(NamedTuple):
    """How one execution ended; error is None exactly when every cell was executed."""

    error: str | None
    seconds: float


def find_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that has `notebooks/`, else the one this package lies in."""
    start = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parent.parent
    return next((p for p in (start, *start.parents, package) if (p / "notebooks").is_dir()), start)


def find(names: Sequence[str], root: Path) -> list[Path]:
    """The notebooks of these names, beginnings of names or paths; all of `notebooks/` for none."""
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if not names:
        if not known:
            raise ValueError(f"there are no notebooks in {root / 'notebooks'}")
        return list(known.values())
    chosen = list(dict.fromkeys(_find_one(name, known) for name in names))
    if len({path.stem for path in chosen}) < len(chosen):
        raise ValueError(f"two of these notebooks have the same name: {', '.join(names)}")
    return chosen


def _find_one(name: str, known: Mapping[str, Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem = name.removesuffix(".ipynb")
    matches = [stem] if stem in known else [other for other in known if other.startswith(stem)]
    if len(matches) != 1:
        fault = "several notebooks begin with" if matches else "no notebook is called"
        raise ValueError(f"{fault} {name!r}; there are {', '.join(matches or known) or 'none'}")
    return known[matches[0]]


def read_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters of a notebook: what its first cell tagged `parameters` assigns."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        source = "".join(tagged[0]["source"]) if tagged else ""
        body = ast.parse(source).body
    except (ValueError, KeyError, TypeError, SyntaxError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error
    found = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = _parameter(target.id, node)
    return found


def all_values(path: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of a notebook with the chosen value, or else its default."""
    return {name: p.default for name, p in read_parameters(path).items()} | dict(chosen)


def count_cells(path: Path) -> int:
    """How many cells a notebook has."""
    return len(_cells(path))


def _parameter(name: str, node: Any) -> Parameter:
    """Types come from the default and, where it is annotated, from the plain names in there."""
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        return Parameter(name, ast.unparse(node.value), None)
    annotation = getattr(node, "annotation", None)
    named = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} if annotation else set()
    plain = {t.__name__: t for t in (str, int, float, bool, list, tuple, dict)}
    types = {type(default)} | {plain[n] for n in named if n in plain}
    return Parameter(name, default, None if types == {type(None)} else tuple(types))


def assign(
    paths: Sequence[Path], texts: Mapping[str, str]
) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """The values that each notebook gets for NAME=VALUE texts, and notes on those left out.

    A name must be a parameter of at least one of the notebooks, and its value must fit the type
    of the default in each that has it; ValueError says what does not.
    """
    known = {path: read_parameters(path) for path in paths}
    every = {name for parameters in known.values() for name in parameters}
    notes = []
    for name in texts:
        without = [path.stem for path in paths if name not in known[path]]
        if len(without) == len(paths):
            close = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(every))}"
            raise ValueError(f"no chosen notebook has a parameter {name}; {hint}")
        if without:
            notes.append(f"{name} is not a parameter of {', '.join(without)}: left alone there")
    values: dict[Path, dict[str, Any]] = {}
    for path in paths:
        values[path] = {}
        for name, text in texts.items():
            if name in known[path]:
                try:
                    values[path][name] = convert(known[path][name], text)
                except ValueError as error:
                    raise ValueError(f"{path.stem}: {error}") from None
    return values, notes


def convert(parameter: Parameter, text: str) -> Any:
    """The value that a text on the command line means for this parameter, or ValueError."""
    name, default, types = parameter
    if types and str in types and not (text == "None" and type(None) in types):
        return _model_directory(text) if name == "MODEL" else text
    literal = text.capitalize() if text.lower() in ("true", "false", "none") else text
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        value = text
    if types is None:
        return value
    if float in types and type(value) is int and int not in types:
        value = float(value)
    if list in types or tuple in types:  # papermill writes a tuple as a text
        value = list(value) if isinstance(value, tuple) else value
        fits = isinstance(value, list) and _elements_fit(value, default)
    else:
        fits = type(value) in types
    if not fits:
        wanted = " or ".join(sorted(t.__name__.replace("NoneType", "None") for t in types))
        raise ValueError(f"{name} is of type {wanted} (default {default!r}), got {text!r}")
    return value


def _elements_fit(value: list[Any], default: Any) -> bool:
    allowed = {type(element) for element in default or ()}
    if float in allowed:
        allowed.add(int)
    return not allowed or all(type(element) in allowed for element in value)


def _model_directory(name: str) -> str:
    """A model's directory as an absolute path, since a notebook runs in its own folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if name.startswith((".", "/", "~")):
        raise ValueError(f"MODEL={name}: there is no such directory")
    return name


def execute(
    path: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    seconds: float,
    claims: Path,
    log: Path,
    on_cell: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Execute a notebook into `output`, cell by cell, for at most `seconds`.

    Args:
        claims: the file that `claims.check` appends to.
        log: what papermill prints.
        on_cell: called with the number of cells that are done, whenever it grows.
    """
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
    environment = {
        **os.environ,
        "MI_SCORECARD": str(claims),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's own
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
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
            with process.stdin:
                process.stdin.write(json.dumps(job).encode())
            timed_out = not _wait(process, output, started + seconds, on_cell)
        finally:
            kill_family(process)
    error = _error(output, process.returncode, log)
    if error and timed_out:
        error = f"time limit of {seconds / 60:.3g} min reached {_where(output)}"
    return Outcome(error, time.monotonic() - started)


def _wait(
    process: subprocess.Popen[bytes], output: Path, deadline: float, on_cell: Callable[[int], None]
) -> bool:
    """Wait for the process, reporting progress; False when it had to be given up."""
    seen, done, total = None, 0, 1
    while process.poll() is None:
        stamp = output.stat().st_mtime_ns if output.exists() else None
        if stamp != seen:
            seen = stamp
            before = done
            done, total = _progress(output)
            if done > before:
                on_cell(done)
            if done == total:
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that is still alive, with its children in whatever session they are."""
    if process.poll() is None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        process.kill()
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)
    process.wait()


def _cells(output: Path) -> list[dict[str, Any]]:
    """The cells of a notebook without papermill's notes; none while it is half written."""
    try:
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return []
    return [c for c in cells if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]


def _status(cell: Mapping[str, Any]) -> str | None:
    return cell["metadata"].get("papermill", {}).get("status")


def _progress(output: Path) -> tuple[int, int]:
    cells = _cells(output)
    return sum(_status(cell) == "completed" for cell in cells), len(cells) or 1


def _where(output: Path) -> str:
    cells = _cells(output)
    running = [n for n, cell in enumerate(cells, 1) if _status(cell) == "running"]
    return f"in cell {running[-1]} of {len(cells)}" if running else "before the first cell"


def _error(output: Path, returncode: int, log: Path) -> str | None:
    """What went wrong, in a line; None when all cells are done, even if papermill then hung."""
    cells = _cells(output)
    for number, cell in enumerate(cells, 1):
        for out in cell.get("outputs", []):
            if out["output_type"] == "error":
                return _ANSI.sub("", f"cell {number}: {out['ename']}: {out['evalue']}")
    if cells and all(_status(cell) == "completed" for cell in cells):
        return None
    last = _ANSI.sub("", log.read_text(encoding="utf-8")).strip().splitlines()[-1:]
    return f"papermill ended with code {returncode}: {''.join(last) or 'it printed nothing'}"

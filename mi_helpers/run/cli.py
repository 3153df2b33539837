"""Runs of notebooks, and the command line `mi`.

A run executes notebooks with papermill, each in a process of its own, and leaves a folder
`papermill_runs/RUN/`: the executed notebooks, `scorecard.json`, `scorecard.md` and
`environment.json`. While a notebook runs it is called NAME.running.ipynb; one that failed keeps
what it got to as NAME.failed.ipynb. So NAME.ipynb is always whole. The scorecard is written anew
after every notebook, and holds the claims of finished notebooks alone.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..claims import Record, model_name
from . import execute as notebooks
from . import provenance, reference, scorecard
from .commands import add_to
from .markdown import write_readme
from .parameters import all_values, assign


class Run:
    """A run's folder, the outcome of each of its notebooks, and their claims."""

    def __init__(self, root: Path, name: str | None) -> None:
        taken = ("", "..", "reference", "scorecard")
        if name is not None and (Path(name).name != name or name in taken):
            raise ValueError(f"a run's name is a new folder's, not 'reference'; got {name!r}")
        self.root = root
        self.folder = root / "papermill_runs" / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(f"{self.folder} is there already; choose another --name") from None
        self.records: list[Record] = []
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, Path] = {}  # the notebooks that the outcomes are of
        self._weights: dict[str, dict[str, str]] = {}
        self.made_with = provenance.environment(root)

    @property
    def failures(self) -> dict[str, str]:
        """The error of each notebook that failed."""
        return {name: entry["error"] for name, entry in self.outcomes.items() if entry["error"]}

    def execute(
        self,
        path: Path,
        parameters: dict[str, Any],
        minutes: float,
        on_cell: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Execute one notebook into the folder and write the scorecard anew."""
        running = self.folder / f"{path.stem}.running.ipynb"
        lines = self.folder / f"{path.stem}.claims.jsonl"
        log = self.folder / f"{path.stem}.log"
        error, seconds = notebooks.execute(
            path, running, parameters, seconds=60 * minutes, claims=lines, log=log, on_cell=on_cell
        )
        records: list[Record] = []
        try:
            records = scorecard.read_lines(lines) if error is None else []
        except ValueError as fault:
            error = str(fault)
        if running.exists():
            running.replace(self.folder / f"{path.stem}{'.failed' if error else ''}.ipynb")
        lines.unlink(missing_ok=True)
        if error is None:
            log.unlink()
        self.records += records
        self.paths[path.stem] = path
        self.outcomes[path.stem] = {
            "error": error,
            "seconds": round(seconds, 1),
            "claims": len(records),
            **self._inputs(path, parameters),
        }
        self.write()

    def _inputs(self, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        """All parameters with the values they had, and the hash of the weights they name."""
        values = all_values(path, parameters)
        model = values.get("MODEL")
        if not isinstance(model, str):
            return {"parameters": values}
        if model not in self._weights:
            self._weights[model] = provenance.weights(model)
        named = {**values, "MODEL": model_name(model)}
        return {"parameters": named, "weights": self._weights[model]}

    def write(self) -> None:
        """Write the scorecard, with the outcomes, into the folder."""
        environment = {**self.made_with, "notebooks": self.outcomes}
        scorecard.write(self.folder, self.records, environment)


def run(
    names: Sequence[str] = (),
    parameters: dict[str, str] | None = None,
    *,
    full: bool = False,
    name: str | None = None,
    minutes: float | None = None,
    root: Path | None = None,
) -> Run:
    """Execute notebooks, all of them unless named, and return the finished run.

    Args:
        names: names, beginnings of names, or paths of notebooks.
        parameters: NAME to VALUE, texts as on the command line, checked before anything starts.
        full: whether all other parameters take the value that their comment names as full.
        name: the folder under `papermill_runs/`; date and time by default.
        minutes: the time limit of each notebook; None: 30, and a day with `full`.

    Raises:
        ValueError: an unknown notebook or parameter, a value of the wrong type, a name in use.
        OSError: a model that cannot be had.
    """
    root = root or notebooks.find_root()
    paths = notebooks.find(names, root)
    values, notes = assign(paths, parameters or {}, full)
    if minutes is None:
        minutes = 24.0 * 60 if full else 30.0
    if not minutes > 0:
        raise ValueError(f"the time limit must be above 0 minutes, got {minutes}")
    fetch_models(all_values(path, values[path]) for path in paths)
    result = Run(root, name)
    cells = [notebooks.count_cells(path) + bool(values[path]) for path in paths]
    with tqdm(total=sum(cells), unit="cell", disable=None) as bar:
        for note in notes:
            tqdm.write(note)
        for number, path in enumerate(paths):
            before = sum(cells[:number])

            def show(done: int, before: int = before) -> None:
                bar.n = before + done
                bar.refresh()  # even where no cell is new, so that the clock is seen to move

            bar.set_description(path.stem)
            result.execute(path, values[path], minutes, show)
            show(cells[number])
            tqdm.write(_outcome_line(path.stem, result.outcomes[path.stem]))
    return result


def fetch_models(parameters: Iterable[dict[str, Any]]) -> None:
    """Have every model that is named by a MODEL parameter here before a notebook asks for it."""
    from ..models import loading as models

    for name in dict.fromkeys(values.get("MODEL") for values in parameters):
        if isinstance(name, str):
            models.fetch(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line `mi`: parse, act, and return the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are killed
    try:
        return options.act(options)
    except (ValueError, OSError) as error:
        print(f"mi {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is in the run's folder", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mi", description="Run the notebooks and score them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        act: Callable[[argparse.Namespace], int], name: str, help: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=help, help=help)
        command.set_defaults(act=act)
        return command

    runs = [
        add(
            _run, "run", help="execute notebooks into papermill_runs/RUN and print their scorecard"
        ),
        add(_render, "render", help="execute notebooks; store outputs in place and the reference"),
    ]
    for command in runs:
        command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")
        command.add_argument(
            "--timeout",
            type=float,
            metavar="MIN",
            help="of each; default: 30 minutes",
        )
    command = runs[0]
    command.add_argument(
        "--full", action="store_true", help="at the papers' scale, for a GPU; --timeout is a day"
    )
    command.add_argument("--model", metavar="NAME", help="the same as -p MODEL=NAME")
    command.add_argument(
        "-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter"
    )
    command.add_argument("--name", metavar="RUN", help="default: date and time")
    command.add_argument("--save-reference", action="store_true", help="commit this as reference")
    command = add(_diff, "diff", help="compare two scorecards claim by claim; code 1 on a flip")
    command.add_argument("a", metavar="A", help="a run's name, a folder, or a scorecard.json")
    command.add_argument("b", metavar="B")
    add_to(add)
    add(_models, "models", help="list the models that load here")
    command = add(_fetch, "fetch", help="download a model into the cache")
    command.add_argument("name", nargs="?", metavar="NAME", help="default: smollm2-135m")
    return parser


def _run(options: argparse.Namespace) -> int:
    texts: dict[str, str] = {}
    for pair in [*options.p, *([f"MODEL={options.model}"] if options.model else [])]:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise ValueError(f"-p takes NAME=VALUE, got {pair!r}")
        if texts.setdefault(key, value) != value:
            raise ValueError(f"{key} is given twice, as {texts[key]!r} and {value!r}")
    finished = run(
        options.notebooks, texts, full=options.full, name=options.name, minutes=options.timeout
    )
    return _report(finished, options.save_reference)


def _render(options: argparse.Namespace) -> int:
    from . import render

    render.require_browser()
    finished = run(options.notebooks, minutes=options.timeout)
    faults = render.store(finished)
    code = _report(finished, save_reference=not faults)
    for fault in faults:
        print(f"NOT STORED {fault}")
    return code or int(bool(faults))


def _report(finished: Run, save_reference: bool) -> int:
    """Print scorecard, differences and failures; 1 when a notebook failed."""
    lines = [scorecard.text(finished.records), scorecard.tally(finished.records)]
    lines += reference.compare(finished.root, finished.records)
    if save_reference:
        made = (finished.records, finished.outcomes, finished.made_with)
        lines += [f"saved {folder}" for folder in reference.save(finished.root, *made)]
        write_readme(finished.root)
    lines += [f"FAILED {name}: {error}" for name, error in finished.failures.items()]
    print(*filter(None, lines), f"outputs: {finished.folder}", sep="\n")
    return 1 if finished.failures else 0


def _diff(options: argparse.Namespace) -> int:
    root = notebooks.find_root() / "papermill_runs"
    a, b = (
        scorecard.read(root / text if (root / text).is_dir() else Path(text))
        for text in (options.a, options.b)
    )
    names = [{record["notebook"] for record in records} for records in (a, b)]
    for text, only in ((options.a, names[0] - names[1]), (options.b, names[1] - names[0])):
        if only:
            print(f"only in {text}, left out: {', '.join(sorted(only))}")
    both = names[0] & names[1]
    a, b = ([record for record in records if record["notebook"] in both] for records in (a, b))
    changes = scorecard.compare(a, b)
    print(*changes, scorecard.summary(changes), sep="\n")
    return int(any(change.kind == "flip" for change in changes))


def _models(options: argparse.Namespace) -> int:
    from ..models.loading import available_models

    table = available_models()
    print(table.to_string(index=False))
    print(table.attrs["note"])
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from ..models.loading import DEFAULT, fetch

    print(fetch(options.name or DEFAULT))
    return 0


def _outcome_line(name: str, outcome: dict[str, Any]) -> str:
    if outcome["error"]:
        return f"{name}: FAILED after {outcome['seconds']:.0f} s: {outcome['error']}"
    return f"{name}: done in {outcome['seconds']:.0f} s, claims: {outcome['claims']}"


if __name__ == "__main__":
    sys.exit(main())

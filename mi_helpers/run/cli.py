"""The command line `mi`: run notebooks, sweep them, keep score.

`mi run` and `mi sweep` do the same work (see `sweep`). A run starts afresh in a folder of its own,
named by date and time; a sweep goes on where it was stopped. Both leave a scorecard in the folder,
`papermill_runs/NAME/scorecard.html`, `.md` and `.json`.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from ..claims import measured, verdict
from . import compare, execute, plan, scorecard, spread
from .sweep import Spread, Sweep

LAST = "10"  # the last notebook of the default run: the main topics; further works are asked for
SUMMARY_S = 30.0  # seconds between two scorecards while runs are at work


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit code."""
    parser = argparse.ArgumentParser(prog="mi", description="Run the notebooks and score them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (act, own) in COMMANDS.items():
        command = commands.add_parser(name, help=act.__doc__, description=act.__doc__)
        for argument in own.split():
            command.add_argument(argument, **ARGUMENTS[argument])
    options = vars(parser.parse_args(arguments))
    name = options.pop("command")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are killed
    try:
        return COMMANDS[name][0](**options)
    except (ValueError, OSError, MemoryError) as error:
        print(f"mi {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is in the run's folder", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    names: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    full: bool = False,
    name: str | None = None,
    minutes: float | None = None,
    root: Path | None = None,
) -> Sweep:
    """Execute notebooks into a new folder, as `mi run` does; the finished runs.

    Args:
        names: names, beginnings of names, or paths of notebooks; none: those numbered up to
            `LAST`; "all": all.
        parameters: NAME to VALUE, or to several, texts as on the command line.
        full: whether all other parameters take the value that their comment names as full.
        name: the folder under `papermill_runs/`; date and time by default.
        minutes: the time limit of each notebook; None: 30, and a day with `full`.
        root: the folder of `notebooks/`; the nearest one by default.

    Raises ValueError for a fault in what is asked for, OSError for a model that cannot be had.
    """
    root = root or execute.find_root()
    folder = _folder(name or time.strftime("%Y-%m-%d_%H-%M-%S"), root, fresh=True)
    settings = {"notebooks": _chosen(names, root), "parameters": dict(parameters or {})}
    jobs, notes = plan.make(settings, root, full=full, resumable=False)
    for note in notes:
        print(note)
    work = Sweep(folder, jobs)
    _work(work, 24 * 60 if full and minutes is None else minutes)
    return work


def _chosen(names: Sequence[str], root: Path) -> Sequence[str]:
    if list(names) == ["all"]:
        return ()
    known = [] if names else [path.stem for path in execute.find((), root)]
    main = [stem for stem in known if stem[:2] <= LAST]
    if main and len(main) < len(known):
        print(f"notebooks up to {LAST}; `all` executes {len(known) - len(main)} more")
    return names or main


# Commands


def _run(
    notebook: Sequence[str],
    full: bool,
    model: str | None,
    name: str | None,
    p: Sequence[str],
    timeout: float | None,
    save_reference: bool,
) -> int:
    """Execute notebooks into papermill_runs/RUN and print their scorecard."""
    values = _pairs([*p, *([f"MODEL={model}"] if model else [])])
    return _report(run(notebook, values, full=full, name=name, minutes=timeout), save_reference)


def _render(notebook: Sequence[str], timeout: float | None) -> int:
    """Execute notebooks; store outputs in place and the reference."""
    from . import render

    render.require_browser()
    finished = run(notebook, minutes=timeout)
    faults = render.store(finished)
    code = _report(finished, save_reference=not faults)
    for fault in faults:
        print(f"NOT STORED {fault}")
    return code or int(bool(faults))


def _sweep(
    file: Path | None,
    notebooks: Sequence[str] | None,
    models: Sequence[str] | None,
    seeds: Sequence[str] | None,
    p: Sequence[str],
    name: str | None,
    only_plan: bool,
    retry: bool,
    jobs: int,
    scheduler: str | None,
    timeout: float | None,
    save_reference: bool,
) -> int:
    """Run notebooks over models, seeds and parameters; resumable."""
    root = execute.find_root()
    # the file's settings, with those of the command line in their place
    settings = plan.read_settings(file) if file else {}
    given = {"notebooks": notebooks, "models": models, "seeds": seeds}
    settings |= plan.resolve({key: own for key, own in given.items() if own}, Path.cwd())
    if values := _pairs(p):
        settings["parameters"] = settings.get("parameters", {}) | values
    if not settings:
        raise ValueError("say what to run: a settings file, or --notebooks, --models, --seeds, -p")
    name = name or (file.stem if file else None)
    if not name:
        raise ValueError("a sweep without a settings file needs a --name, to be found again by")
    folder = _folder(name, root, fresh=False)
    if jobs < 1:
        raise ValueError("--jobs is above 0")
    if jobs > 1 and scheduler:
        raise ValueError("--jobs is for this machine; with --scheduler leave it out")
    planned, notes = plan.make(settings, root)
    work = Sweep(folder, planned, retry)
    before = f"{work.count('done')} finished and {work.count('failed')} failed before"
    to_do = len(work.to_do())
    print(*notes, f"plan: {len(planned)} runs, {before} (--retry); {to_do} to do", sep="\n")
    if only_plan:
        return 0
    _work(work, timeout, jobs, scheduler)
    return _report(work, save_reference)


def _scorecard(run: Sequence[str], out: Path | None, readme: bool) -> int:
    """Put runs side by side as HTML, Markdown and JSON."""
    from . import page

    root = execute.find_root()
    if readme and not page.write_readme(root):
        raise ValueError("the README has no <!-- scorecard --> markers, or there is no reference")
    if not run and not readme:
        raise ValueError("name at least one run, such as `reference`")
    if run:
        table = scorecard.collect([_named(text, root) for text in dict.fromkeys(run)], root)
        files = page.write(table, out or root / "papermill_runs" / "scorecard")
        print(f"{scorecard.tally(table.records)}, on {len(table.columns)} models", *files, sep="\n")
    return 0


def _diff(a: str, b: str) -> int:
    """Compare two runs claim by claim; code 1 on a flip."""
    root = execute.find_root()
    sides = [scorecard.collect([_named(text, root)], root).records for text in (a, b)]
    names = [{record["notebook"] for record in records} for records in sides]
    for text, only in ((a, names[0] - names[1]), (b, names[1] - names[0])):
        if only:
            print(f"only in {text}, left out: {', '.join(sorted(only))}")
    both = names[0] & names[1]
    changes = compare.compare(*([r for r in side if r["notebook"] in both] for side in sides))
    print(*changes, compare.summary(changes), sep="\n")
    return int(any(change.kind == "flip" for change in changes))


def _check(name: str, dtype: str | None, json: bool) -> int:
    """Print a model's passport: is it right here, and what can it be used for."""
    from ..models.agreement import HookError
    from . import passport

    try:
        about = passport.passport(name, execute.find_root(), dtype)
    except HookError as error:
        raise ValueError(str(error)) from error
    print(dumps(about, indent=1) if json else passport.as_text(about))
    return 0


def _models() -> int:
    """List the models that load here."""
    from ..models import available_models

    table = available_models()
    print(table.to_string(index=False), table.attrs["note"], sep="\n")
    return 0


def _fetch(name: str) -> int:
    """Download a model into the cache."""
    from ..models import fetch

    print(fetch(name))
    return 0


# Each command, and its arguments.
COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "run": (_run, "notebook --full --model --name -p --timeout --save-reference"),
    "render": (_render, "notebook --timeout"),
    "sweep": (
        _sweep,
        "file --notebooks --models --seeds -p --name --plan --retry --jobs --scheduler --timeout "
        "--save-reference",
    ),
    "scorecard": (_scorecard, "run --out --readme"),
    "diff": (_diff, "a b"),
    "check": (_check, "name --dtype --json"),
    "models": (_models, ""),
    "fetch": (_fetch, "name"),
}
_FLAG = {"action": "store_true"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "notebook": {"nargs": "*", "help": f"names or beginnings, or all; default: 00 to {LAST}"},
    "file": {"nargs": "?", "type": Path, "help": "settings, as YAML"},
    "run": {"nargs": "*", "help": "names or folders"},
    "a": {"help": "a run's name, or its folder"},
    "b": {"help": "another"},
    "name": {"nargs": "?", "default": "smollm2-135m", "metavar": "MODEL",
             "help": "default: %(default)s"},
    "--dtype": {"help": "float32, bfloat16 or float16; default: float32"},
    "--full": _FLAG | {"help": "at the papers' scale, for a GPU; --timeout: a day"},
    "--jobs": {"type": int, "default": 1, "metavar": "N", "help": "runs at a time"},
    "--json": _FLAG | {"help": "as JSON"},
    "--model": {"help": "the same as -p MODEL=…"},
    "--models": {"nargs": "+", "metavar": "MODEL", "help": "names, paths or patterns"},
    "--name": {"metavar": "RUN", "help": "default: date and time, or the name of FILE"},
    "--notebooks": {"nargs": "+", "metavar": "NOTEBOOK", "help": "default: all"},
    "--out": {"type": Path, "metavar": "FOLDER", "help": "default: papermill_runs/scorecard"},
    "--plan": _FLAG | {"dest": "only_plan", "help": "print the plan and stop"},
    "--readme": _FLAG | {"help": "renew the README's summary and times"},
    "--retry": _FLAG | {"help": "repeat the runs that failed"},
    "--save-reference": _FLAG | {"help": "save as the reference of its models"},
    "--scheduler": {"metavar": "ADDRESS", "help": "a dask scheduler, as tcp://…:8786"},
    "--seeds": {"nargs": "+", "metavar": "N", "help": "given as SEED"},
    "--timeout": {"type": float, "metavar": "MIN", "help": "of each; default: 30 minutes"},
    "-p": {"action": "append", "default": [], "metavar": "NAME=VALUE",
           "help": "once for each value"},
}  # fmt: skip


# What they share


def _pairs(texts: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for pair in texts:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"-p takes NAME=VALUE, got {pair!r}")
        values.setdefault(name, []).append(value)
    return values


def _named(text: str, root: Path) -> Path:
    """The folder of a run's name, or a path."""
    folder = root / "papermill_runs" / text
    return folder if folder.is_dir() else Path(text)


def _folder(name: str, root: Path, fresh: bool) -> Path:
    if Path(name).name != name or name in ("..", "reference", "scorecard"):
        raise ValueError(f"a run's name is that of a folder in papermill_runs; got {name!r}")
    folder = root / "papermill_runs" / name
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / "plan.json").exists()
    if foreign or (fresh and folder.is_dir()):
        raise ValueError(f"{folder} is there already; choose another --name")
    return folder


def _work(work: Sweep, minutes: float | None, jobs: int = 1, scheduler: str | None = None) -> None:
    """Run what is to do under a progress bar; each outcome is a line, and where to look another."""
    minutes = 30.0 if minutes is None else minutes
    if not minutes > 0:
        raise ValueError(f"the time limit must be above 0 minutes, got {minutes}")
    scorecard.references(work.root)  # a fault in what the report will need is told now
    to_do = len(work.to_do())
    at_once = min(jobs, to_do)
    options: dict[str, Any] = {"minutes": minutes}
    workers: contextlib.AbstractContextManager[Spread] = contextlib.nullcontext(spread.in_turn)
    if scheduler:
        workers = spread.connect(scheduler, work.folder)
    elif at_once > 1:
        workers = contextlib.nullcontext(spread.in_threads(spread.environments(at_once)))
    told = -SUMMARY_S  # so that the first result has a summary
    work.record_plan()
    try:
        with tqdm(total=to_do, unit="run", disable=None) as bar, workers as chosen:
            if chosen is spread.in_turn:  # of several runs at a time the bar shows none
                options["on_cell"] = lambda job, done: bar.set_description(
                    f"{job.path.stem}, cell {done + 1}"
                )
            for job, outcome in work.work(chosen, **options):
                bar.update()
                tqdm.write(f"{outcome.state}  {job}: {outcome.text}")
                if outcome.state == "done":
                    kept = work.folder / "runs" / job.folder / f"{job.path.stem}.ipynb"
                    tqdm.write(f"      to read it: {os.path.relpath(kept)}")
                    page = work.folder / "scorecard.html"
                    tqdm.write(f"      its claims: {os.path.relpath(page)}")
                if time.monotonic() - told > SUMMARY_S:
                    _summarise(work)
                    told = time.monotonic()
    finally:
        _summarise(work)


def _summarise(work: Sweep) -> None:
    """Write the scorecard anew from what is in the folder, by other sweeps too."""
    from . import page

    with FileLock(work.folder / ".plan.lock"):
        page.write(scorecard.collect([work.folder], work.root), work.folder)


def _report(work: Sweep, save_reference: bool) -> int:
    """Print what holds, what changed and what failed; 1 when a run failed or is missing."""
    table = scorecard.collect([work.folder], work.root)
    claims = [f"{verdict(r):<16}  {r['id']}  {r['model']}  {measured(r)}" for r in table.records]
    changes = [entry.change for entry in table.changes if entry.change]
    lines = claims if len(claims) <= 200 else []
    lines.append(scorecard.tally(table.records) if claims else "no run has finished yet")
    lines += [f"from the reference to this: {compare.summary(changes)}", *map(str, changes)]
    if save_reference:
        lines += [f"saved {file}" for file in scorecard.save_reference(work)]
        lines.append("to renew the README's summary: mi scorecard --readme")
    lines += [f"FAILED {run}: {run.error}" for run in table.failed]
    print(*lines, f"scorecard: {work.folder / 'scorecard.html'}", sep="\n")
    return int(work.count("done") < len(work.jobs))


if __name__ == "__main__":
    sys.exit(main())

"""The command line `mi`: run notebooks, sweep them, keep score.

`mi run` and `mi sweep` do the same work (see `sweep`). A run starts afresh in a folder of its own,
named by date and time; a sweep goes on where it was stopped. Both leave a scorecard in the folder,
`papermill_runs/NAME/scorecard.html`, `.md` and `.json`.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from ..claims import measured, verdict
from . import execute, plan, provenance, scorecard
from .plan import Job
from .sweep import Spread, Sweep, in_turn

LAST = "10"  # the last notebook of the default run: the main topics; further works are asked for
SUMMARY_S = 30.0  # seconds between two scorecards while runs are at work


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are killed
    try:
        return options.act(options)
    except (ValueError, OSError, MemoryError) as error:
        print(f"mi {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is in the run's folder", file=sys.stderr)
        return 130


def run(
    names: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    full: bool = False,
    name: str | None = None,
    minutes: float | None = None,
    root: Path | None = None,
) -> Sweep:
    """Execute notebooks into a new folder; the finished runs.

    Args:
        names: names, beginnings of names, or paths of notebooks; none: those numbered up to
            `LAST`; "all": all.
        parameters: NAME to VALUE, or to several, texts as on the command line.
        full: whether all other parameters take the value that their comment names as full.
        name: the folder under `papermill_runs/`; date and time by default.
        minutes: the time limit of each notebook; None: 30, and a day with `full`.
        root: the folder of `notebooks/`; the nearest one by default.

    Raises:
        ValueError: an unknown notebook or parameter, a value of the wrong type, a name in use.
        OSError: a model that cannot be had.
    """
    root = root or execute.find_root()
    folder = _folder(name or time.strftime("%Y-%m-%d_%H-%M-%S"), root, fresh=True)
    settings = {"notebooks": _chosen(names, root), "parameters": dict(parameters or {})}
    jobs, notes = plan.make(settings, root, full=full, resumable=False)
    if minutes is None:
        minutes = 24.0 * 60 if full else 30.0
    print(*notes, sep="\n", end="\n" if notes else "")
    work = Sweep(folder, jobs)
    _work(work, root, minutes)
    return work


def _chosen(names: Sequence[str], root: Path) -> Sequence[str]:
    if list(names) == ["all"]:
        return ()
    known = [] if names else [path.stem for path in execute.find((), root)]
    main = [stem for stem in known if stem[:2] <= LAST]
    if main and len(main) < len(known):
        print(f"notebooks up to {LAST}; `all` executes {len(known) - len(main)} more")
    return names or main


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mi", description="Run the notebooks and score them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(act: Callable[[argparse.Namespace], int], name: str, help: str) -> Callable[..., Any]:
        command = commands.add_parser(name, description=help, help=help)
        command.set_defaults(act=act)
        if name in ("run", "render", "sweep"):
            text = "of each; default: 30 minutes"
            command.add_argument("--timeout", type=float, metavar="MIN", help=text)
        if name in ("run", "sweep"):
            text = "a parameter; once for each of its values"
            command.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help=text)
            text = "save as the reference of its models"
            command.add_argument("--save-reference", action="store_true", help=text)
        return command.add_argument

    option = add(_run, "run", "execute notebooks into papermill_runs/RUN and print their scorecard")
    text = f"names or their beginnings, or all; default: 00 to {LAST}"
    option("notebooks", nargs="*", metavar="NOTEBOOK", help=text)
    option("--full", action="store_true", help="at the papers' scale, for a GPU; --timeout: a day")
    option("--model", metavar="NAME", help="the same as -p MODEL=NAME")
    option("--name", metavar="RUN", help="default: date and time")

    option = add(_render, "render", "execute notebooks; store outputs in place and the reference")
    option("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")

    option = add(_sweep, "sweep", "run notebooks over models, seeds and parameters; resumable")
    option("file", nargs="?", type=Path, metavar="FILE", help="settings, as YAML")
    option("--notebooks", nargs="+", metavar="NOTEBOOK", help="default: all")
    option("--models", nargs="+", metavar="NAME", help="names, paths or patterns")
    option("--seeds", nargs="+", metavar="N")
    option("--name", metavar="RUN", help="default: the name of FILE")
    option("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    option("--scheduler", metavar="ADDRESS", help="a dask scheduler, as tcp://…:8786")
    option("--retry", action="store_true", help="repeat the runs that failed")
    option("--plan", action="store_true", help="print the plan and stop")
    option("--yes", action="store_true", help=f"start even more than {plan.LIMIT} runs")

    option = add(_scorecard, "scorecard", "put runs side by side as HTML, Markdown and JSON")
    option("runs", nargs="*", metavar="RUN", help="names or folders")
    option("--out", type=Path, metavar="FOLDER", help="papermill_runs/scorecard")
    option("--readme", action="store_true", help="renew the README's summary and times")

    option = add(_diff, "diff", "compare two scorecards claim by claim; code 1 on a flip")
    option("a", metavar="A", help="a run's name, a folder, or a scorecard.json")
    option("b", metavar="B")

    text = "a model's passport: is it right here, and what can it be used for"
    option = add(_check, "check", text)
    option("name", nargs="?", metavar="MODEL", help="default: smollm2-135m")
    option("--revision", metavar="R", help="branch, tag or commit on the hub")
    option("--dtype", metavar="T", help="float32, bfloat16 or float16; default: float32")
    option("--json", action="store_true", help="as JSON")
    add(_models, "models", "list the models that load here")
    option = add(_fetch, "fetch", "download a model into the cache")
    option("name", nargs="?", metavar="NAME", help="default: smollm2-135m")
    return parser


def _run(options: argparse.Namespace) -> int:
    values = _pairs([*options.p, *([f"MODEL={options.model}"] if options.model else [])])
    more = {"full": options.full, "name": options.name, "minutes": options.timeout}
    return _report(run(options.notebooks, values, **more), options.save_reference)


def _render(options: argparse.Namespace) -> int:
    from . import render

    render.require_browser()
    finished = run(options.notebooks, minutes=options.timeout)
    faults = render.store(finished)
    code = _report(finished, save_reference=not faults)
    print(*(f"NOT STORED {fault}" for fault in faults), sep="\n", end="\n" if faults else "")
    return code or int(bool(faults))


def _sweep(options: argparse.Namespace) -> int:
    """Plan, run and summarise; 1 when a run failed."""
    root = execute.find_root()
    settings = _settings(options)
    name = options.name or (options.file and options.file.stem)
    if not name:
        raise ValueError("a sweep without a settings file needs a --name, to be found again by")
    folder = _folder(name, root, fresh=False)
    if options.jobs < 1:
        raise ValueError("--jobs is above 0")
    if options.jobs > 1 and options.scheduler:
        raise ValueError("--jobs is for a cluster on this machine; with --scheduler leave it out")
    limit = float("inf") if options.yes else plan.LIMIT
    jobs, notes = plan.make(settings, root, limit=limit)
    work = Sweep(folder, jobs)
    print(*notes, _plan_line(work, options.retry), sep="\n")
    if options.plan:
        return 0
    minutes = 30.0 if options.timeout is None else options.timeout
    _work(work, root, minutes, options.retry, options.jobs, options.scheduler)
    return _report(work, options.save_reference)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The file's settings, with those of the command line in their place."""
    settings = plan.read_settings(options.file) if options.file else {}
    given = {key: getattr(options, key) for key in ("notebooks", "models", "seeds")}
    given = {key: value for key, value in given.items() if value is not None}
    settings |= plan.resolve(given, Path.cwd())
    if values := _pairs(options.p):
        grids = settings.get("parameters", {})
        several = isinstance(grids, list)
        grids = [{**grid, **values} for grid in (grids if several else [grids])]
        settings["parameters"] = grids if several else grids[0]
    if not settings:
        raise ValueError("say what to run: a settings file, or --notebooks, --models, --seeds, -p")
    return settings


def _pairs(texts: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for pair in texts:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"-p takes NAME=VALUE, got {pair!r}")
        values.setdefault(name, []).append(value)
    return values


def _folder(name: str, root: Path, fresh: bool) -> Path:
    if Path(name).name != name or name in ("..", "reference", "scorecard"):
        raise ValueError(f"a run's name is that of a folder in papermill_runs; got {name!r}")
    folder = root / "papermill_runs" / name
    if folder.is_dir() and (
        fresh or (any(folder.iterdir()) and not (folder / "plan.json").exists())
    ):
        raise ValueError(f"{folder} is there already; choose another --name")
    return folder


def _plan_line(work: Sweep, retry: bool) -> str:
    failed = work.count("failed")
    parts = [f"{work.count('done')} finished before", f"{len(work.to_do(retry))} to do"]
    if failed:
        parts.insert(1, f"{failed} failed before{'' if retry else ' (--retry repeats them)'}")
    sizes = {
        "run": len(work.jobs),
        "notebook": len({job.path for job in work.jobs}),
        "model": len({job.inputs["parameters"].get("MODEL") for job in work.jobs} - {None}),
    }
    words = [f"{n} {word}{'s' * (n > 1)}" for word, n in sizes.items() if n]
    return f"plan: {', '.join(words)}: {', '.join(parts)}"


def _work(
    work: Sweep,
    root: Path,
    minutes: float,
    retry: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
) -> None:
    """Run what is to do under a progress bar; each outcome is a line, and where to look another."""
    if not minutes > 0:
        raise ValueError(f"the time limit must be above 0 minutes, got {minutes}")
    to_do = len(work.to_do(retry))
    told = -SUMMARY_S  # so that the first result has a summary
    work.record_plan()
    try:
        with (
            tqdm(total=to_do, unit="run", disable=None) as bar,
            _workers(work.folder, root, min(jobs, to_do), scheduler, bar) as (spread, more),
        ):
            for job, outcome in work.work(spread, minutes=minutes, retry=retry, **more):
                bar.update()
                tqdm.write(f"{outcome.state}  {job}: {outcome.text}")
                if outcome.state == "done":
                    kept = work.folder / "runs" / job.folder / f"{job.path.stem}.ipynb"
                    tqdm.write(f"      to read it: {os.path.relpath(kept)}")
                    page = work.folder / "scorecard.html"
                    tqdm.write(f"      its claims: {os.path.relpath(page)}")
                if time.monotonic() - told > SUMMARY_S:
                    _summarise(work.folder, root)
                    told = time.monotonic()
    finally:
        _summarise(work.folder, root)


@contextlib.contextmanager
def _workers(
    folder: Path, root: Path, jobs: int, scheduler: str | None, bar: tqdm
) -> Iterator[tuple[Spread, dict[str, Any]]]:
    """How runs are spread, and what else `sweep.carry_out` is told."""
    if scheduler:
        from . import cluster

        with cluster.connect(scheduler, folder) as spread:
            yield spread, {}
    elif jobs > 1:
        from . import cluster

        made_with = provenance.environment(root)
        with cluster.local(jobs, made_with["device"], folder) as spread:
            yield spread, {"made_with": made_with}
    else:

        def show(job: Job, done: int) -> None:
            bar.set_description(f"{job.path.stem}, cell {done + 1}")

        yield in_turn, {"on_cell": show}


def _summarise(folder: Path, root: Path) -> None:
    """Write the scorecard anew from what is in a folder."""
    from . import page

    with FileLock(folder / ".plan.lock"):
        page.write(scorecard.collect([folder], root), folder)


def _report(work: Sweep, save_reference: bool) -> int:
    """Print what holds, what changed and what failed; 1 when a run failed or is missing."""
    root = work.folder.parents[1]
    table = scorecard.collect([work.folder], root)
    claims = [f"{verdict(r):<16}  {r['id']}  {r['model']}  {measured(r)}" for r in table.records]
    changes = [entry.change for entry in table.changes if entry.change]
    lines = claims if len(claims) <= 200 else []
    lines.append(scorecard.tally(table.records) if claims else "no run has finished yet")
    lines += [f"from the reference to this: {scorecard.summary(changes)}", *map(str, changes)]
    if save_reference:
        lines += [f"saved {file}" for file in scorecard.save_reference(work, root)]
        lines.append("to renew the README's summary: mi scorecard --readme")
    lines += [f"FAILED {run}: {run.error}" for run in table.failed]
    print(*lines, f"scorecard: {work.folder / 'scorecard.html'}", sep="\n")
    return int(work.count("done") < len(work.jobs))


def _scorecard(options: argparse.Namespace) -> int:
    from . import page

    root = execute.find_root()
    if options.readme and not page.write_readme(root):
        raise ValueError("the README has no <!-- scorecard --> markers, or there is no reference")
    if not options.runs:
        if options.readme:
            return 0
        raise ValueError("name at least one run, such as `reference`")
    folders = list(dict.fromkeys(_named(text, root) for text in options.runs))
    table = scorecard.collect(folders, root)
    files = page.write(table, options.out or root / "papermill_runs" / "scorecard")
    print(f"{scorecard.tally(table.records)}, on {len(table.columns)} models", *files, sep="\n")
    return 0


def _diff(options: argparse.Namespace) -> int:
    root = execute.find_root()
    texts = (options.a, options.b)
    sides = [scorecard.read_records(_named(text, root), root) for text in texts]
    names = [{record["notebook"] for record in records} for records in sides]
    for text, only in zip(texts, (names[0] - names[1], names[1] - names[0]), strict=True):
        if only:
            print(f"only in {text}, left out: {', '.join(sorted(only))}")
    both = names[0] & names[1]
    changes = scorecard.compare(*([r for r in side if r["notebook"] in both] for side in sides))
    print(*changes, scorecard.summary(changes), sep="\n")
    return int(any(change.kind == "flip" for change in changes))


def _named(text: str, root: Path) -> Path:
    """The folder of a run's name, or a path."""
    folder = root / "papermill_runs" / text
    return folder if folder.is_dir() else Path(text)


def _check(options: argparse.Namespace) -> int:
    from ..models import DEFAULT
    from ..models.agreement import HookError
    from . import passport

    name, more = options.name or DEFAULT, {"revision": options.revision, "dtype": options.dtype}
    try:
        about = passport.passport(name, execute.find_root(), **more)
    except HookError as error:
        raise ValueError(str(error)) from error
    print(json.dumps(about, indent=1) if options.json else passport.as_text(about))
    return 0


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


if __name__ == "__main__":
    sys.exit(main())

"""The commands `mi sweep` and `mi scorecard`."""

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from . import execute as notebooks
from . import plan as sweep_plan
from . import provenance, reference
from . import sweep as sweeps
from . import table as scorecard_table
from .markdown import write_readme
from .scorecard import tally
from .table import Table

Add = Callable[[Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
SUMMARY_S = 30.0  # seconds between two scorecards of a sweep at work


def add_to(add: Add) -> None:
    """Add both commands to the command line `mi`."""
    command = add(sweep, "sweep", "run notebooks over models, seeds and parameters; resumable")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="settings, as YAML")
    command.add_argument("--notebooks", nargs="+", metavar="NOTEBOOK", help="default: all")
    command.add_argument("--models", nargs="+", metavar="NAME", help="names, paths or patterns")
    command.add_argument("--seeds", nargs="+", metavar="N")
    command.add_argument(
        "-p", action="append", default=[], metavar="NAME=VALUE",
        help="a parameter; once for each of its values",
    )  # fmt: skip
    command.add_argument("--name", metavar="RUN", help="default: the name of FILE")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    command.add_argument("--scheduler", metavar="ADDRESS", help="a dask scheduler, as tcp://…:8786")
    command.add_argument("--retry", action="store_true", help="repeat the runs that failed")
    command.add_argument("--plan", action="store_true", help="print the plan and stop")
    command.add_argument(
        "--yes", action="store_true", help=f"start even more than {sweep_plan.LIMIT} runs"
    )
    command.add_argument("--save-reference", action="store_true", help="commit this as reference")
    command.add_argument(
        "--timeout", type=float, default=30.0, metavar="MIN", help="of each; default: 30 minutes"
    )
    command = add(scorecard, "scorecard", "put runs side by side as HTML, Markdown and JSON")
    command.add_argument("runs", nargs="*", metavar="RUN", help="names or folders")
    command.add_argument("--paper", metavar="TEXT", help="only claims whose source has this in it")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="papermill_runs/scorecard")
    command.add_argument("--readme", action="store_true", help="renew the README's summary")


def sweep(options: argparse.Namespace) -> int:
    """Plan, run and summarise; 1 when a run failed."""
    root = notebooks.find_root()
    settings = _settings(options)
    folder = _folder(options, root)
    if options.jobs < 1 or not options.timeout > 0:
        raise ValueError("--jobs and --timeout are above 0")
    if options.jobs > 1 and options.scheduler:
        raise ValueError("--jobs is for a cluster on this machine; with --scheduler leave it out")
    limit = float("inf") if options.yes else sweep_plan.LIMIT
    jobs, notes = sweep_plan.make(settings, root, limit)
    work = sweeps.Sweep(folder, jobs)
    to_do = work.to_do(options.retry)
    print(*notes, _plan_line(work, len(to_do), options.retry), sep="\n")
    if options.plan:
        return 0
    work.record_plan()
    try:
        with _workers(options, root, folder, len(to_do)) as (spread, made_with):
            _work(work, spread, made_with, len(to_do), options, root)
    finally:
        table = _summarise(folder, root)
    return _report(work, table, root, options.save_reference)


def scorecard(options: argparse.Namespace) -> int:
    """Write the scorecard of a set of runs as HTML, Markdown and JSON."""
    from . import page as scorecard_page

    root = notebooks.find_root()
    if options.readme and not write_readme(root):
        raise ValueError("the README has no <!-- scorecard --> markers, or there is no reference")
    if not options.runs:
        if options.readme:
            return 0
        raise ValueError("name at least one run, such as `reference`")
    runs = root / "papermill_runs"
    folders = [runs / text if (runs / text).is_dir() else Path(text) for text in options.runs]
    table = scorecard_table.collect(list(dict.fromkeys(folders)), root, options.paper)
    files = scorecard_page.write(table, options.out or runs / "scorecard")
    print(f"{tally(table.records)}, on {len(table.columns)} models", *files, sep="\n")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The file's settings, with those of the command line in their place."""
    settings = sweep_plan.read_settings(options.file) if options.file else {}
    given = {key: getattr(options, key) for key in ("notebooks", "models", "seeds")}
    given = {key: value for key, value in given.items() if value is not None}
    settings |= sweep_plan.resolve(given, Path.cwd())
    values: dict[str, list[str]] = {}
    for pair in options.p:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"-p takes NAME=VALUE, got {pair!r}")
        values.setdefault(name, []).append(value)
    if values:
        grids = settings.get("parameters", {})
        several = isinstance(grids, list)
        grids = [{**grid, **values} for grid in (grids if several else [grids])]
        settings["parameters"] = grids if several else grids[0]
    if not settings:
        raise ValueError("say what to run: a settings file, or --notebooks, --models, --seeds, -p")
    return settings


def _folder(options: argparse.Namespace, root: Path) -> Path:
    name = options.name or (options.file and options.file.stem)
    if not name:
        raise ValueError("a sweep without a settings file needs a --name, to be found again by")
    if Path(name).name != name or name in ("..", "reference", "scorecard"):
        raise ValueError(f"a sweep's name is that of a folder in papermill_runs; got {name!r}")
    folder = root / "papermill_runs" / name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "plan.json").exists():
        raise ValueError(f"{folder} is there and holds no sweep; choose another --name")
    return folder


def _plan_line(work: sweeps.Sweep, to_do: int, retry: bool) -> str:
    failed = work.count("failed")
    parts = [f"{work.count('done')} finished before", f"{to_do} to do"]
    if failed:
        parts.insert(1, f"{failed} failed before{'' if retry else ' (--retry repeats them)'}")
    sizes = {
        "run": len(work.jobs),
        "notebook": len({job.path for job in work.jobs}),
        "model": len({job.inputs["parameters"].get("MODEL") for job in work.jobs} - {None}),
    }
    words = [f"{n} {word}{'s' * (n > 1)}" for word, n in sizes.items() if n]
    return f"plan: {', '.join(words)}: {', '.join(parts)}"


@contextlib.contextmanager
def _workers(
    options: argparse.Namespace, root: Path, folder: Path, to_do: int
) -> Iterator[tuple[sweeps.Spread, dict[str, Any] | None]]:
    """How runs are spread, and what they are made with where that is known beforehand."""
    if options.scheduler:
        from . import cluster

        with cluster.connect(options.scheduler, folder) as spread:
            yield spread, None
    elif min(options.jobs, to_do) > 1:
        from . import cluster

        made_with = provenance.environment(root)
        with cluster.local(min(options.jobs, to_do), made_with["device"], folder) as spread:
            yield spread, made_with
    else:
        yield sweeps.in_turn, None


def _work(
    work: sweeps.Sweep,
    spread: sweeps.Spread,
    made_with: dict[str, Any] | None,
    to_do: int,
    options: argparse.Namespace,
    root: Path,
) -> None:
    """Run what is to do under a progress bar; each outcome is one line."""
    options_of_each = {"minutes": options.timeout, "retry": options.retry, "made_with": made_with}
    told = time.monotonic()
    with tqdm(total=to_do, unit="run", disable=None) as bar:
        for job, outcome in work.work(spread, **options_of_each):
            bar.update()
            tqdm.write(f"{outcome.state}  {job}: {outcome.text}")
            if time.monotonic() - told > SUMMARY_S:
                _summarise(work.folder, root)
                told = time.monotonic()


def _summarise(folder: Path, root: Path) -> Table:
    """Write the sweep's scorecard anew from what is in its folder."""
    from . import page as scorecard_page

    with FileLock(folder / ".plan.lock"):
        table = scorecard_table.collect([folder], root)
        scorecard_page.write(table, folder)
    return table


def _report(work: sweeps.Sweep, table: Table, root: Path, save: bool) -> int:
    """Print what holds, what changed and what failed; 1 when a run failed or is missing."""
    lines = [tally(table.records)] if table.records else ["no run has finished yet"]
    lines += [str(entry.change) for entry in table.changes]
    if save:
        lines += [f"saved {folder}" for folder in _save_reference(work, root)]
        write_readme(root)
    failed = work.count("failed")
    if failed:
        lines.append(f"failed: {failed}, with their tracebacks in runs/…/run.json")
    print(*lines, f"scorecard: {work.folder / 'scorecard.html'}", sep="\n")
    return int(failed > 0 or work.count("done") < len(work.jobs))


def _save_reference(work: sweeps.Sweep, root: Path) -> list[Path]:
    """Commit the claims of the runs that were asked for as the references of their models."""
    done = [job.folder for job in work.jobs if work.states[job.folder] == "done"]
    runs = [sweeps.read_run(work.folder / "runs" / name) for name in done]
    runs = [run for run in runs if run["records"]]
    twice = Counter((run["inputs"]["notebook"], run["records"][0]["model"]) for run in runs)
    if several := [" on ".join(key) for key, n in twice.items() if n > 1]:
        raise ValueError(f"a reference is of one run each; there are several of {several[0]}")
    saved = []
    for run in runs:
        entry = {key: run["inputs"].get(key) for key in ("parameters", "weights")}
        entry = {"error": None, "seconds": run["seconds"], "claims": len(run["records"])} | entry
        outcomes = {run["inputs"]["notebook"]: entry}
        saved += reference.save(root, run["records"], outcomes, run["made_with"])
    return list(dict.fromkeys(saved))

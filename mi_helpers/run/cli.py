"""The command line `mi`: run notebooks, keep score.

`mi run` works in a folder, `papermill_runs/NAME/`. Started again with the same name, it goes on
where it was stopped. The folder holds the executed notebooks and their scorecard,
`scorecard.html`, `.md` and `.json`.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from ..claims import measured, verdict
from . import plan, scorecard
from .plan import Job
from .sweep import Sweep

SUMMARY_S = 30.0  # seconds between two scorecards while runs are at work


class _Parser(argparse.ArgumentParser):
    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """A line of a file that is named as `@FILE`."""
        return shlex.split(arg_line, comments=True)


def _parser() -> argparse.ArgumentParser:
    description = "Run the notebooks and score them. @FILE stands for the arguments in a file."
    parser = _Parser(prog="mi", description=description, fromfile_prefix_chars="@")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Callable[..., int]) -> Callable[..., Any]:
        made = commands.add_parser(name, help=act.__doc__, description=act.__doc__)
        made.set_defaults(act=act)
        return made.add_argument

    several: dict[str, Any] = {"action": "append", "default": []}
    names = {"nargs": "*", "help": f"names or beginnings, or all; default: 00 to {plan.LAST}"}
    model = {"nargs": "?", "default": "smollm2-135m", "help": "default: %(default)s"}
    add = command("run", _run)
    add("notebook", **names)
    add("--model", **several, help="the same as -p MODEL=…; * and ? match directories")
    add("-p", **several, metavar="NAME=VALUE", help="a parameter, once for each value")
    add("--full", action="store_true", help="at the papers' scale, for a GPU; --timeout: a day")
    add("--name", help="of the folder; default: date and time")
    add("--plan", action="store_true", dest="only_plan", help="print the plan and stop")
    add("--retry", action="store_true", help="repeat the runs that failed")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    add("--timeout", type=float, dest="minutes", metavar="MIN", help="of each; default: 30 minutes")
    command("render", _render)("notebook", **names)
    add = command("scorecard", _scorecard)
    add("run", nargs="*", help="names or folders")
    add("--readme", action="store_true", help="renew the README's summary and times")
    add = command("diff", _diff)
    add("a", help="a run's name, or its folder")
    add("b", help="another")
    add = command("check", _check)
    add("model", **model)
    add("--json", action="store_true", dest="as_json")
    command("models", _models)
    command("fetch", _fetch)("model", **model)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        return options.pop("act")(**options)
    except (ValueError, OSError, MemoryError) as error:
        print(f"mi: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is in the run's folder", file=sys.stderr)
        return 130


def run(
    names: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    full: bool = False,
    retry: bool = False,
    only_plan: bool = False,
    jobs: int = 1,
    minutes: float | None = None,
    root: Path | None = None,
) -> Sweep:
    """Execute notebooks, as `mi run` does, whose options these are; the finished runs.

    Args:
        names: names, beginnings of names, or paths of notebooks, as for `plan.find`.
        parameters: NAME to VALUE, or to several, texts as on the command line.
        name: the folder under `papermill_runs/`; what is done there is not done again.
        root: the folder of `notebooks/`; the nearest one by default.

    Raises ValueError for a fault in what is asked for, OSError for a model that cannot be had.
    """
    root = root or plan.find_root()
    folder = root / "papermill_runs" / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
    minutes = (24 * 60 if full else 30) if minutes is None else minutes
    foreign = folder.is_dir() and not (folder / "runs").is_dir()
    if foreign or folder.resolve().parent != (root / "papermill_runs").resolve():
        raise ValueError(f"{name!r} is no name for a folder of runs; choose another --name")
    if jobs < 1 or not minutes > 0:
        raise ValueError(f"--jobs and --timeout must be above 0, got {jobs} and {minutes}")
    planned, notes = plan.make(names, parameters or {}, root, full=full)
    work = Sweep(folder, planned, retry)
    failed = f"; {len(work.failed)} failed before (--retry)" if work.failed else ""
    print(*notes, f"plan: {len(planned)} runs, {len(work.to_do)} to do{failed}", sep="\n")
    if not only_plan:
        _work(work, minutes, jobs)
    return work


# Commands


def _run(notebook: Sequence[str], model: list[str], p: list[str], **options: Any) -> int:
    """Execute notebooks into a folder and print their scorecard."""
    work = run(notebook, _pairs([*(f"MODEL={one}" for one in model), *p]), **options)
    return 0 if options["only_plan"] else _report(work)


def _render(notebook: Sequence[str]) -> int:
    """Execute notebooks; store outputs in place and the reference."""
    from . import render

    render.require_browser()
    work = run(notebook)
    code, edited = _report(work), render.store(work)
    lines = [f"NOT STORED {name}: it was edited while it ran; render it again" for name in edited]
    lines += [] if edited else [f"saved {file}" for file in scorecard.save_reference(work)]
    print(*lines, sep="\n")
    return code or int(bool(edited))


def _scorecard(run: Sequence[str], readme: bool) -> int:
    """Put runs side by side as HTML, Markdown and JSON."""
    from . import page

    root = plan.find_root()
    if readme:
        page.write_readme(root)
    elif not run:
        raise ValueError("name at least one run, such as `reference`")
    if run:
        table = scorecard.collect([_named(text, root) for text in run], root)
        files = page.write(table, root / "papermill_runs" / "scorecard")
        print(f"{scorecard.tally(table.records)}, on {len(table.columns)} models", *files, sep="\n")
    return 0


def _diff(a: str, b: str) -> int:
    """Compare two runs claim by claim; code 1 on a flip."""
    root = plan.find_root()
    sides = [scorecard.collect([_named(text, root)], root).records for text in (a, b)]
    both = set.intersection(*({r["notebook"] for r in side} for side in sides))
    changes = scorecard.compare(*([r for r in side if r["notebook"] in both] for side in sides))
    print(*changes, f"{len(both)} notebooks in both: {scorecard.summary(changes)}", sep="\n")
    return int(any(change.kind == "flip" for change in changes))


def _check(model: str, as_json: bool) -> int:
    """Print a model's passport: is it right here, and what can it be used for."""
    from . import passport

    about = passport.passport(model, plan.find_root())
    print(json.dumps(about, indent=1) if as_json else passport.as_text(about))
    return 0


def _models() -> int:
    """List the models that load here."""
    from ..models import available_models

    table = available_models()
    print(table.to_string(index=False), table.attrs["note"], sep="\n")
    return 0


def _fetch(model: str) -> int:
    """Download a model into the cache."""
    from ..models import fetch

    print(fetch(model))
    return 0


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


def _work(work: Sweep, minutes: float, jobs: int) -> None:
    """Run what is to do under a progress bar; each outcome is a line, and where to look another."""
    scorecard.references(work.root)  # a fault in what the report will need is told now
    told = -SUMMARY_S  # so that the first result has a summary

    def show(job: Job, done: int) -> None:
        if jobs == 1:  # of several runs at a time the bar shows none
            bar.set_description(f"{job.path.stem}, cell {done + 1}")

    with tqdm(total=len(work.to_do), unit="run", disable=None) as bar:
        try:
            for job, found in work.work(minutes, jobs, show):
                bar.update()
                tqdm.write(f"{job}: {found['error'] or 'done'}, after {found['seconds']:.0f} s")
                if not found["error"]:
                    kept = work.folder / "runs" / job.name / f"{job.path.stem}.ipynb"
                    tqdm.write(f"      to read it: {os.path.relpath(kept)}")
                    tqdm.write(f"      its claims: {os.path.relpath(work.folder)}/scorecard.html")
                if time.monotonic() - told > SUMMARY_S:
                    _summarise(work)
                    told = time.monotonic()
        finally:
            _summarise(work)


def _summarise(work: Sweep) -> None:
    """Write the scorecard anew from what is in the folder, by other sweeps too."""
    from . import page

    with FileLock(work.folder / ".scorecard.lock"):
        page.write(scorecard.collect([work.folder], work.root), work.folder)


def _report(work: Sweep) -> int:
    """Print what holds, what changed and what failed; 1 when a run failed or is missing."""
    table = scorecard.collect([work.folder], work.root)
    changes = [entry.change for entry in table.changes if entry.change]
    lines = [f"{verdict(r):<16}  {r['id']}  {r['model']}  {measured(r)}" for r in table.records]
    lines.append(scorecard.tally(table.records) if lines else "no run has finished yet")
    lines += [f"from the reference to this: {scorecard.summary(changes)}", *map(str, changes)]
    lines += [f"FAILED {run}: {run.error}" for run in table.failed]
    print(*lines, f"scorecard: {work.folder / 'scorecard.html'}", sep="\n")
    finished = [run for *_, run in work.finished() if not run["error"]]
    return int(len(finished) < len(work.jobs))


if __name__ == "__main__":
    sys.exit(main())

"""The scorecard of many runs: claims as rows, models as columns.

Read from any set of folders: sweeps, runs of `mi run`, committed references, or a folder of these.
Where other parameters than MODEL and SEED differ between runs, or the same was run in several
folders, that difference, the `variant`, tells columns of one model apart. Runs that differ in the
seed alone share a cell.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..claims import Record
from . import reference, scorecard
from . import sweep as sweeps
from .parameters import all_values
from .plan import natural
from .scorecard import Change
from .thumbnails import Thumbnail, make

_PAPER = re.compile(r"\s*(arXiv \d{4}\.\d{4,5}|[^,(]*\b(?:19|20)\d\d)\b")
MARKS = {True: "✔", False: "✘", None: "–"}


class Column(NamedTuple):
    """A column of the scorecard."""

    model: str
    variant: str

    def __str__(self) -> str:
        return f"{self.model}, {self.variant}" if self.variant else self.model


@dataclass(frozen=True)
class Done:
    """One executed notebook: what it ran with, and what it found.

    Attributes:
        source: the name of the folder that it was read from.
        file: the executed notebook, None where it is not kept.
        saved: files and titles of its thumbnails, None where they are still in the notebook.
        variant: what tells it from other runs of its notebook and model but for the seed.
    """

    source: str
    notebook: str
    parameters: dict[str, Any]
    records: tuple[Record, ...]
    error: str | None
    file: Path | None
    saved: tuple[tuple[Path, str], ...] | None = None
    variant: str = ""

    @property
    def column(self) -> Column:
        model = self.records[0]["model"] if self.records else self.parameters.get("MODEL", "")
        return Column(model, self.variant)

    @property
    def seed(self) -> Any:
        return self.records[0]["seed"] if self.records else self.parameters.get("SEED")

    @property
    def order(self) -> tuple:
        model, variant = self.column
        return (self.notebook, natural(model), natural(variant), natural(str(self.seed)))

    def thumbnails(self) -> list[Thumbnail]:
        """Small pictures of its figures."""
        if self.saved is not None:
            return [Thumbnail(title, file.read_bytes()) for file, title in self.saved]
        return make(self.file) if self.file else []


class Entry(NamedTuple):
    """A claim of one run, with what it was in the reference where that differs."""

    record: Record
    run: Done
    change: Change | None


@dataclass(frozen=True)
class Table:
    """The scorecard: a cell, by claim id and column, holds an entry for each seed."""

    runs: list[Done]
    claims: dict[str, Record]
    columns: list[Column]
    cells: dict[tuple[str, Column], list[Entry]]

    @property
    def records(self) -> list[Record]:
        """All records, those of a variant marked with it."""
        return [
            Record(**record, variant=run.variant) if run.variant else record
            for run in self.runs
            for record in run.records
        ]

    @property
    def changes(self) -> list[Entry]:
        """The entries that differ from the reference, flips first."""
        entries = [entry for cell in self.cells.values() for entry in cell if entry.change]
        return sorted(entries, key=lambda e: e.change is not None and e.change.kind != "flip")

    @property
    def failed(self) -> list[Done]:
        """The runs that ended in an error."""
        return [run for run in self.runs if run.error]


def papers(record: Record) -> list[str]:
    """The papers in a claim's source, as "Wang et al. 2022" or by number; or that there is none."""
    parts = (_PAPER.match(part) for part in record["source"].split(";"))
    return list(dict.fromkeys(part[1] for part in parts if part)) or ["beyond the papers"]


def collect(folders: Sequence[Path], root: Path, paper: str | None = None) -> Table:
    """The scorecard of all runs in these folders, compared with the committed references.

    Args:
        paper: only claims whose source has this text in it.

    Raises:
        ValueError: a folder without a run, or a damaged scorecard, is named.
    """
    found = [run for folder in folders for run in read(folder, root)]
    runs = sorted(_told_apart(found), key=lambda run: run.order)
    if paper is not None:
        wanted = paper.casefold()
        runs = [
            replace(r, records=tuple(c for c in r.records if wanted in c["source"].casefold()))
            for r in runs
        ]
        if not any(run.records for run in runs):
            raise ValueError(f"no claim has {paper!r} in its source")
    return _tabulate(runs, _references(root))


def read(folder: Path, root: Path) -> list[Done]:
    """The executed notebooks of a sweep, a run, a reference, or of all such folders in it."""
    if (folder / "plan.json").is_file():
        names = dict.fromkeys(sweeps.read_plan(folder).values())
        kept = [folder / "runs" / name for name in names]
        return [_of_sweep(folder.name, run) for run in kept if (run / "run.json").is_file()]
    if (folder / "scorecard.json").is_file():
        return _of_run(folder, root)
    inner = sorted(p for p in folder.glob("*/") if (p / "scorecard.json").is_file())
    if not inner:
        raise ValueError(f"no run, sweep or reference in {folder}")
    return [run for each in inner for run in read(each, root)]


def _of_sweep(name: str, folder: Path) -> Done:
    run = sweeps.read_run(folder)
    inputs = run["inputs"]
    notebook = inputs["notebook"]
    file = folder / f"{notebook}{'.failed' if run['error'] else ''}.ipynb"
    return Done(
        source=name,
        notebook=notebook,
        parameters=inputs["parameters"],
        records=tuple(run["records"]),
        error=run["error"],
        file=file if file.is_file() else None,
        saved=tuple((folder / figure["file"], figure["title"]) for figure in run["figures"]),
    )


def _of_run(folder: Path, root: Path) -> list[Done]:
    records = scorecard.read(folder)
    outcomes = scorecard.read_environment(folder).get("notebooks", {})
    found = []
    for notebook in dict.fromkeys([*(r["notebook"] for r in records), *outcomes]):
        outcome = outcomes.get(notebook, {})
        own = tuple(r for r in records if r["notebook"] == notebook)
        parameters = outcome.get("parameters", {})
        files = [folder / f"{notebook}.ipynb", folder / f"{notebook}.failed.ipynb"]
        stored = root / "notebooks" / f"{notebook}.ipynb"
        if reference.holds(root, folder) and _is_of(stored, parameters.get("MODEL")):
            files.append(stored)  # `mi render` made both
        file = next((file for file in files if file.is_file()), None)
        found.append(Done(folder.name, notebook, parameters, own, outcome.get("error"), file))
    return found


def _is_of(notebook: Path, model: Any) -> bool:
    """Whether a notebook's stored outputs are of this model: that of its parameters cell."""
    return notebook.is_file() and all_values(notebook, {}).get("MODEL") in (model, None)


def _told_apart(runs: Sequence[Done]) -> list[Done]:
    """The runs with their variants; of two that nothing tells apart, the later one."""
    varied = {name: _varied([r for r in runs if r.notebook == name]) for name in _names(runs)}
    runs = [
        replace(run, variant=", ".join(f"{n}={run.parameters[n]}" for n in varied[run.notebook]))
        for run in runs
    ]
    sources: dict[tuple, set[str]] = {}
    for run in runs:
        sources.setdefault(run.order, set()).add(run.source)
    if any(len(names) > 1 for names in sources.values()):
        runs = [
            replace(run, variant=f"{run.source}, {run.variant}" if run.variant else run.source)
            for run in runs
        ]
    return list({run.order: run for run in runs}.values())


def _names(runs: Iterable[Done]) -> list[str]:
    return list(dict.fromkeys(run.notebook for run in runs))


def _varied(runs: Sequence[Done]) -> list[str]:
    """The parameters of a notebook that all its runs have, but not all with one value."""
    shared = set.intersection(*(set(run.parameters) for run in runs)) - {"MODEL", "SEED"}
    return [
        name
        for name in runs[0].parameters
        if name in shared and any(r.parameters[name] != runs[0].parameters[name] for r in runs)
    ]


def _references(root: Path) -> dict[tuple, Record]:
    committed = root / "papermill_runs" / "reference"
    files = sorted(committed.glob("*/scorecard.json"))
    return {(r["id"], r["model"], r["seed"]): r for file in files for r in scorecard.read(file)}


def _tabulate(runs: list[Done], references: dict[tuple, Record]) -> Table:
    claims: dict[str, Record] = {}
    cells: dict[tuple[str, Column], list[Entry]] = {}
    for run in runs:
        for record in run.records:
            claims.setdefault(record["id"], record)
            expected = references.get((record["id"], record["model"], record["seed"]))
            change = scorecard.change(expected, record) if expected else None
            entry = Entry(record, run, change)
            cells.setdefault((record["id"], run.column), []).append(entry)
    columns = {run.column for run in runs if run.records or run.column.model}
    ordered = sorted(columns, key=lambda c: (natural(c.model), natural(c.variant)))
    return Table(runs, claims, ordered, cells)


def outcome(entries: Sequence[Entry]) -> str:
    """A cell's verdict: ✔, ✘ or – where all seeds agree, `✔ 2 of 3` where they do not."""
    verdicts = [entry.record["holds"] for entry in entries]
    if len(set(verdicts)) == 1:
        return MARKS[verdicts[0]]
    return f"✔ {verdicts.count(True)} of {len(verdicts)}"

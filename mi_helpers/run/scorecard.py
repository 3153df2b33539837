"""The scorecard of many runs: claims as rows, models as columns.

Read from any set of folders: runs, sweeps, or the committed references. Where other parameters than
MODEL and SEED differ between runs, or the same was run in several folders, that difference, the
`variant`, tells columns of one model apart. Runs that differ in the seed alone share a cell.

The references, `papermill_runs/reference/MODEL/NOTEBOOK.json`, are records of one run each, so that
a change to a notebook touches one file.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..claims import VERDICTS, Record
from . import parameters, sweep
from .compare import Change, change
from .plan import natural

_PAPER = re.compile(r"\s*(arXiv \d{4}\.\d{4,5}|[^,(]*\b(?:19|20)\d\d)\b")


class Column(NamedTuple):
    """A column of the scorecard."""

    model: str
    variant: str

    def __str__(self) -> str:
        return f"{self.model}, {self.variant}" if self.variant else self.model


@dataclass(frozen=True)
class Run:
    """One executed notebook: what it ran with, and what it found.

    Attributes:
        source: the name of the folder that it was read from.
        file: the executed notebook, None where it is not kept.
        seconds: how long it ran on one core, other work not counted, where that is known.
        peak_gb: the most memory that its kernel held, None where that is not known.
        variant: what tells it from other runs of its notebook and model but for the seed.
    """

    source: str
    notebook: str
    parameters: dict[str, Any]
    records: tuple[Record, ...]
    error: str | None
    file: Path | None
    seconds: float
    peak_gb: float | None = None
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

    def __str__(self) -> str:
        words = [self.notebook, str(self.column), "" if self.seed is None else f"seed {self.seed}"]
        return ", ".join(word for word in words if word)


class Entry(NamedTuple):
    """A claim of one run, with what differs from the reference."""

    record: Record
    run: Run
    change: Change | None


@dataclass(frozen=True)
class Table:
    """The scorecard: a cell, by claim id and column, holds an entry for each seed."""

    runs: list[Run]
    references: dict[tuple, Record]

    @cached_property
    def claims(self) -> dict[str, Record]:
        """By id, the replications of each notebook before its checks."""
        first: dict[str, Record] = {}
        for run in self.runs:
            for record in run.records:
                first.setdefault(record["id"], record)
        ordered = sorted(first.values(), key=lambda r: (r["notebook"], r["kind"] == "check"))
        return {record["id"]: record for record in ordered}

    @cached_property
    def columns(self) -> list[Column]:
        found = {run.column for run in self.runs if run.records or run.column.model}
        return sorted(found, key=lambda c: (natural(c.model), natural(c.variant)))

    @cached_property
    def cells(self) -> dict[tuple[str, Column], list[Entry]]:
        """The entries of a claim in a column, one for each seed."""
        cells: dict[tuple[str, Column], list[Entry]] = defaultdict(list)
        for run in self.runs:
            for record in run.records:
                expected = self.references.get((record["id"], record["model"], record["seed"]))
                found = change(expected, record) if expected else None
                cells[record["id"], run.column].append(Entry(record, run, found))
        return cells

    def of(self, column: Column, notebook: str | None = None) -> list[Record]:
        """The records in a column, of one notebook or of all."""
        runs = [run for run in self.runs if run.column == column]
        return [r for run in runs for r in run.records if notebook in (None, run.notebook)]

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
        return sorted(entries, key=lambda entry: entry.change.kind if entry.change else "")

    @property
    def failed(self) -> list[Run]:
        """The runs that ended in an error."""
        return [run for run in self.runs if run.error]


def papers(record: Record) -> list[str]:
    """The papers in a claim's source, as "Wang et al. 2022" or by number; or that there is none."""
    parts = (_PAPER.match(part) for part in record["source"].split(";"))
    return list(dict.fromkeys(part[1] for part in parts if part)) or ["beyond the papers"]


def counts(records: Iterable[Record], kind: str = "replication") -> dict[str, int]:
    """How many records of a kind have each of the four verdicts."""
    found = Counter(record["verdict"] for record in records if record["kind"] == kind)
    return {word: found[word] for word in VERDICTS}


def tally(records: Sequence[Record]) -> str:
    """How many replications hold, in words; and how many checks."""
    found, checks = counts(records), counts(records, "check")
    text = (
        f"{found['holds']} of {sum(found.values())} replications hold, {found['does not hold']} do "
        f"not, {found['undecided']} undecided, {found['not applicable']} not applicable"
    )
    total = sum(checks.values())
    return f"{text}; {checks['holds']} of {total} checks of our own code hold" if total else text


def outcome(entries: Sequence[Entry]) -> str:
    """A cell's verdict: its mark where all seeds agree, `✔ 2 of 3` where they do not."""
    verdicts = [entry.record["verdict"] for entry in entries]
    if len(set(verdicts)) == 1:
        return VERDICTS[verdicts[0]][0]
    return f"✔ {verdicts.count('holds')} of {len(verdicts)}"


# Reading runs


def collect(folders: Sequence[Path], root: Path) -> Table:
    """The scorecard of all runs in these folders, compared with the committed references.

    Of two runs that nothing tells apart, the later one counts. Raises ValueError that names a
    folder without a run, or a damaged record.
    """
    runs = [run for folder in folders for run in read(folder, root)]
    varied = {
        name: _varied([r for r in runs if r.notebook == name])
        for name in {r.notebook for r in runs}
    }
    words = [[f"{n}={run.parameters[n]}" for n in varied[run.notebook]] for run in runs]
    runs = [replace(run, variant=", ".join(own)) for run, own in zip(runs, words, strict=True)]
    if len({run.order for run in runs}) < len({(*run.order, run.source) for run in runs}):
        pairs = zip(runs, words, strict=True)
        runs = [replace(run, variant=", ".join([run.source, *own])) for run, own in pairs]
    runs = sorted({run.order: run for run in runs}.values(), key=lambda run: run.order)
    expected = [record for run in references(root) for record in run.records]
    return Table(runs, {(r["id"], r["model"], r["seed"]): r for r in expected})


def references(root: Path) -> list[Run]:
    """The committed runs that others are compared with; none where there is no collection."""
    folder = root / "papermill_runs" / "reference"
    return read(folder, root) if folder.is_dir() else []


def _varied(runs: Sequence[Run]) -> list[str]:
    """The parameters of a notebook that all its runs have, but not all with one value."""
    shared = set.intersection(*(set(run.parameters) for run in runs)) - {"MODEL", "SEED"}
    return [n for n in sorted(shared) if len({str(run.parameters[n]) for run in runs}) > 1]


def read(folder: Path, root: Path) -> list[Run]:
    """The executed notebooks of a run, of a sweep, or of the references; ValueError for none."""
    if (folder / "plan.json").is_file():
        names = dict.fromkeys(sweep.read_plan(folder).values())
        files = [folder / "runs" / name / "run.json" for name in names]
        return [_read_one(file, folder.name, root) for file in files if file.is_file()]
    files = sorted(folder.glob("[0-9][0-9]_*.json")) + sorted(folder.glob("*/[0-9][0-9]_*.json"))
    if not files:
        raise ValueError(f"no run, sweep or reference in {folder}")
    return [_read_one(file, folder.name, root) for file in files]


def _read_one(file: Path, source: str, root: Path) -> Run:
    run = sweep.read_run(file)
    name, given = run["inputs"]["notebook"], run["inputs"]["parameters"]
    beside = file.parent / f"{name}{'.failed' if run['error'] else ''}.ipynb"
    stored = root / "notebooks" / f"{name}.ipynb"
    kept: Path | None = beside if beside.is_file() else None
    if file.name != "run.json" and stored.is_file():  # a reference: `mi render` made both
        own = parameters.read(stored).get("MODEL")
        kept = stored if own is None or own.default == given.get("MODEL") else None
    used = run.get("cpu_s") or run["seconds"], run.get("peak_gb")
    return Run(source, name, given, tuple(run["records"]), run["error"], kept, *used)


def save_reference(work: sweep.Sweep) -> list[Path]:
    """Commit the runs that were asked for as references; ValueError for two of one model."""
    files: dict[Path, dict[str, Any]] = {}
    for job, _, run in work.finished():
        if not run["error"] and run["records"]:
            model = run["records"][0]["model"]
            folder = work.root / "papermill_runs" / "reference" / model.replace("/", "--")
            file = folder / f"{job.path.stem}.json"
            if files.setdefault(file, run) is not run:
                several = f"{job.path.stem} on {model}"
                raise ValueError(f"a reference is of one run; there are several of {several}")
    for file, run in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        sweep.write_atomic(file, sweep.to_json(run))
    return list(files)

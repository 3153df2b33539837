"""The scorecard of many runs: claims as rows, models as columns.

Read from any set of folders: of runs, or the committed references. A column is named by a model and
its `variant`: the other parameters that were given, and the folder where several are read. Runs
that differ in the seed alone share a cell.

The references, `papermill_runs/reference/MODEL/NOTEBOOK.json`, are records of one run each, so that
a change to a notebook touches one file. `mi render` makes them with the outputs that are stored.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..claims import VERDICTS, Record, measured, verdict
from . import sweep
from .plan import natural

_PAPER = re.compile(r"\s*(arXiv \d{4}\.\d{4,5}|[^,(]*\b(?:19|20)\d\d)\b")


class Change(NamedTuple):
    """One difference between two scorecards: flip, moved, missing (from B) or new (in B)."""

    kind: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}  {self.id}  {self.text}"


@dataclass(frozen=True)
class Executed:
    """One executed notebook: what it ran with, and what it found.

    Attributes:
        file: the executed notebook, None where it is not kept.
        seconds: how long it ran on one core, other work not counted, where that is known.
        peak_gb: the most memory that it held, where that is known.
    """

    notebook: str
    model: str
    variant: str
    seed: Any
    records: list[Record]
    error: str | None
    file: Path | None
    seconds: float
    peak_gb: float | None = None

    @property
    def column(self) -> str:
        return ", ".join(filter(None, [self.model, self.variant]))

    @property
    def order(self) -> tuple:
        return self.notebook, natural(self.column), natural(str(self.seed))

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed}"
        return ", ".join(filter(None, [self.notebook, self.column, seed]))


class Entry(NamedTuple):
    """A claim of one run, with what differs from the reference."""

    record: Record
    run: Executed
    change: Change | None


class Table:
    """The scorecard.

    Attributes:
        runs, failed: in the order of notebooks, models and seeds.
        claims: by id, the replications of each notebook before its checks.
        columns: by the names of models.
        cells: by a claim's id and column, an entry for each seed.
        changes: the entries that differ from the reference, flips first.
    """

    def __init__(self, runs: Sequence[Executed], references: Sequence[Executed]) -> None:
        known = {_key(record): record for run in references for record in run.records}
        self.runs = sorted({run.order: run for run in runs}.values(), key=lambda run: run.order)
        self.failed = [run for run in self.runs if run.error]
        entries = [
            Entry(record, run, change(known.get(_key(record), record), record))
            for run in self.runs
            for record in run.records
        ]
        made = sorted(entries, key=lambda e: (e.run.notebook, e.record["kind"] == "check"))
        self.claims: dict[str, Record] = {}
        for entry in made:
            self.claims.setdefault(entry.record["id"], entry.record)
        self.columns = sorted({run.column for run in self.runs if run.model}, key=natural)
        self.cells: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            self.cells[entry.record["id"], entry.run.column].append(entry)
        changed = [entry for cell in self.cells.values() for entry in cell if entry.change]
        self.changes = sorted(changed, key=lambda entry: entry.change.kind if entry.change else "")

    def of(self, column: str, notebook: str | None = None) -> list[Record]:
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


def _key(record: Record) -> tuple:
    return record["id"], record["model"], record["seed"]


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


# What differs


def compare(a: Sequence[Record], b: Sequence[Record]) -> list[Change]:
    """Claim by claim, what differs from scorecard A to scorecard B; flips first.

    Claims are matched by id, and also by model, variant and seed where an id occurs more than once,
    so that one model can be compared with another.
    """
    several = any(len({r["id"] for r in records}) < len(records) for records in (a, b))

    def key(record: Record) -> tuple:
        more = (record["model"], record.get("variant", ""), record["seed"])
        return (record["id"], *more) if several else (record["id"],)

    first, second = ({key(record): record for record in records} for records in (a, b))
    changes = [change(first.get(k), second.get(k)) for k in {**first, **second}]
    return sorted((c for c in changes if c), key=lambda c: c.kind)


def summary(changes: Sequence[Change]) -> str:
    """The changes counted by kind, in words."""
    found = Counter(c.kind for c in changes)
    return ", ".join(f"{n} {kind}" for kind, n in found.items()) or "no difference"


def change(a: Record | None, b: Record | None) -> Change | None:
    """What differs from one record of a claim to another; None for nothing worth saying."""
    was, now = (f"{verdict(r)} {measured(r)}".rstrip() if r else "nothing" for r in (a, b))
    if a is None or b is None:
        kind = "new" if a is None else "missing"
    elif a["verdict"] != b["verdict"]:
        kind = "flip"
    elif _moved(a, b):
        kind = "moved"
    else:
        return None
    return Change(kind, (a or b)["id"], f"{was} -> {now}")  # type: ignore[index]


def _moved(a: Record, b: Record) -> bool:
    """Whether a value lies outside the other's interval, and the other outside its own.

    Without intervals, whether they differ by over 1 %, and by over a tenth of a limit that they lie
    below: what a check finds is often a rounding error, which another processor makes another time.
    """
    x, y = a["value"], b["value"]
    if x is None or y is None:
        return x != y
    if math.isclose(x, y, rel_tol=1e-3):
        return False
    inside = [
        record["low"] <= value <= record["high"]
        for record, value in ((a, y), (b, x))
        if record["low"] is not None and record["high"] is not None
    ]
    if inside:
        return not any(inside)
    below = re.fullmatch(r"< (\S+)", a["rule"])
    slack = 0.1 * abs(float(below[1])) if below else 0.0
    return not math.isclose(x, y, rel_tol=0.01, abs_tol=max(1e-6, slack))


# Reading runs


def collect(folders: Sequence[Path], root: Path) -> Table:
    """The scorecard of all runs in these folders, compared with the committed references.

    Raises ValueError that names a folder without a run, or a damaged record.
    """
    several = len(folders) > 1
    runs = [r for f in folders for r in read(f, root, f.name if several else "")]
    return Table(runs, references(root))


def references(root: Path) -> list[Executed]:
    """The committed runs that others are compared with; none where there is no collection."""
    folder = root / "papermill_runs" / "reference"
    return read(folder, root) if folder.is_dir() else []


def read(folder: Path, root: Path, label: str = "") -> list[Executed]:
    """The executed notebooks in a folder of runs, or of references; ValueError for none.

    A label goes into the variant of each.
    """
    if (folder / "runs").is_dir():
        files = sorted(folder.glob("runs/*/run.json"))
        return [_read_one(file, file.parent, label) for file in files]
    files = sorted([*folder.glob("[0-9][0-9]_*.json"), *folder.glob("*/[0-9][0-9]_*.json")])
    if not files:
        raise ValueError(f"no run and no reference in {folder}")
    return [_read_one(file, root / "notebooks", label) for file in files]


def _read_one(made: Path, notebooks: Path, label: str) -> Executed:
    run = sweep.read_run(made)
    name, records, own = run["inputs"]["notebook"], run["records"], run["inputs"]["parameters"]
    more = {n: value for n, value in run["asked"].items() if n not in ("MODEL", "SEED")}
    variant = ", ".join(filter(None, [label, *(f"{n}={value}" for n, value in more.items())]))
    model = records[0]["model"] if records else own.get("MODEL", "")
    file = notebooks / f"{name}{'.failed' if run['error'] else ''}.ipynb"
    kept, seconds = file if file.is_file() else None, run.get("cpu_s") or run["seconds"]
    told = run["error"], kept, seconds, run.get("peak_gb")
    return Executed(name, model, variant, own.get("SEED"), records, *told)


def save_reference(work: sweep.Sweep) -> list[Path]:
    """Commit finished runs as the references of their models; the files."""
    saved = []
    for job, _, run in work.finished():
        if run["records"]:
            model = run["records"][0]["model"].replace("/", "--")
            file = work.root / "papermill_runs" / "reference" / model / f"{job.path.stem}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            sweep.write_atomic(file, sweep.to_json(run))
            saved.append(file)
    return saved

"""Scorecards: lists of claim records, written, read and compared.

A run's folder and `papermill_runs/reference/<model>/` have the same layout, so every function that
reads one reads the other: `scorecard.json` (a list of records), `scorecard.md` (the same to read)
and `environment.json` (what it was made with).
"""

import html
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..claims import Record, measured, validate, verdict


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed over it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write(folder: Path, records: Sequence[Record], environment: dict[str, Any]) -> None:
    """Write the three files of a scorecard folder; records in the order of their notebooks."""
    ordered = sorted(records, key=lambda record: record["notebook"])  # stable within a notebook
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "environment.json", to_json(environment))
    write_atomic(folder / "scorecard.md", markdown(ordered))
    write_atomic(folder / "scorecard.json", to_json(ordered))


def read(path: Path) -> list[Record]:
    """The records of a scorecard file, of a folder with one, or of all such folders in a folder.

    Raises:
        ValueError: there is none, or it is damaged; the message names the file and the fault.
    """
    file = path / "scorecard.json" if path.is_dir() else path
    if not file.is_file():
        if inner := sorted(path.glob("*/scorecard.json")):
            return [record for each in inner for record in read(each)]
        raise ValueError(f"no scorecard at {file}")
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise ValueError("not a list of records")
        for record in records:
            validate(record)
    except ValueError as error:
        raise ValueError(f"{file} is not a scorecard: {error}") from error
    return records


def read_environment(folder: Path) -> dict[str, Any]:
    """What a scorecard folder was made with: its `environment.json`."""
    file = folder / "environment.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def read_lines(path: Path) -> list[Record]:
    """The records that one notebook appended to its JSON-lines file."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        validate(record)
    return records


def markdown(records: Iterable[Record]) -> str:
    """The scorecard as Markdown: a table for each notebook and model, claims as rows."""
    groups: dict[tuple[str, str, int | None], list[Record]] = {}
    for record in records:
        groups.setdefault((record["notebook"], record["model"], record["seed"]), []).append(record)
    lines = ["# Scorecard", "", f"{tally([r for g in groups.values() for r in g])}."]
    for (notebook, model, seed), rows in groups.items():
        title = f"## {escape_cell(notebook)} on {escape_cell(model)}"
        lines += ["", title if seed is None else f"{title}, seed {seed}", ""]
        lines += ["| | claim | measured | rule | source |", "|---|---|---|---|---|"]
        lines += [_markdown_row(record) for record in rows]
    return "\n".join(lines) + "\n"


def text(records: Iterable[Record]) -> str:
    """The scorecard for a terminal: one line a claim."""
    rows = [(verdict(r), r["id"], r["model"], measured(r)) for r in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def tally(records: Iterable[Record]) -> str:
    """How many claims hold, do not hold and do not apply, in words."""
    counts = Counter(record["holds"] for record in records)
    hold, fail, skip = counts[True], counts[False], counts[None]
    return f"{hold} of {counts.total()} claims hold, {fail} do not, {skip} not applicable"


class Change(NamedTuple):
    """One difference between two scorecards: flip, moved, missing (from B) or new (in B)."""

    kind: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}  {self.id}  {self.text}"


def compare(a: Sequence[Record], b: Sequence[Record]) -> list[Change]:
    """Claim by claim, what differs from scorecard A to scorecard B; flips first.

    Claims are matched by id, and also by model, variant and seed where an id occurs more than once,
    so that one model can be compared with another. A value has moved when it lies outside the
    other's interval and the other lies outside its own, and they differ by over 0.1 %; without any
    interval, when they differ by over 1 %.
    """
    several = any(len({r["id"] for r in records}) < len(records) for records in (a, b))

    def index(records: Sequence[Record]) -> dict[tuple, Record]:
        keys = [_key(r) if several else (r["id"],) for r in records]
        if twice := [key for key, n in Counter(keys).items() if n > 1]:
            raise ValueError(f"{' '.join(map(str, twice[0]))} is in one scorecard twice")
        return dict(zip(keys, records, strict=True))

    first, second = index(a), index(b)
    changes = [change(first.get(key), second.get(key)) for key in {**first, **second}]
    kinds = ("flip", "moved", "missing", "new")
    return sorted((c for c in changes if c), key=lambda c: kinds.index(c.kind))


def summary(changes: Sequence[Change]) -> str:
    """The changes counted by kind, in words."""
    counts = Counter(c.kind for c in changes)
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "no difference"


def _key(record: Record) -> tuple:
    return (record["id"], record["model"], record.get("variant", ""), record["seed"])


def change(a: Record | None, b: Record | None) -> Change | None:
    """What differs from one record of a claim to another; None for nothing worth saying."""
    if b is None:
        assert a is not None
        return Change("missing", a["id"], f"{_short(a)} -> nothing")
    if a is None:
        return Change("new", b["id"], f"nothing -> {_short(b)}")
    if a["holds"] != b["holds"]:
        return Change("flip", a["id"], f"{_short(a)} -> {_short(b)}")
    if _moved(a, b):
        return Change("moved", a["id"], f"{measured(a) or 'no value'} -> {measured(b)}")
    return None


def _moved(a: Record, b: Record) -> bool:
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
    return not any(inside) if inside else not math.isclose(x, y, rel_tol=0.01, abs_tol=1e-6)


def _short(record: Record) -> str:
    return f"{verdict(record)} {measured(record)}".rstrip()


def to_json(value: object) -> str:
    """The text of one of a scorecard's JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def escape_cell(text: str) -> str:
    """Text that stays text inside a Markdown table."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _markdown_row(record: Record) -> str:
    mark = verdict(record) + (f": {escape_cell(record['why'])}" if record["why"] else "")
    claim = f"`{record['id']}` {escape_cell(record['says'])}"
    cells = (
        mark,
        claim,
        measured(record),
        escape_cell(record["rule"]),
        escape_cell(record["source"]),
    )
    return "| " + " | ".join(cells) + " |"

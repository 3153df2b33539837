"""The scorecard of many runs as Markdown, and the summary of the references in the README."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ..claims import measured
from . import scorecard
from . import table as scorecard_table
from .scorecard import escape_cell, tally
from .table import MARKS, Column, Done, Entry, Table, outcome

_BLOCK = re.compile(r"(?<=<!-- scorecard -->\n).*?(?=<!-- /scorecard -->)", re.DOTALL)


def markdown(table: Table, base: Path) -> str:
    """Claims as rows, models as columns, notebook by notebook; links are relative to `base`."""
    lines = ["# Scorecard", "", f"{tally(table.records)}.", "", *summary(table)]
    for notebook in dict.fromkeys(record["notebook"] for record in table.claims.values()):
        claims = {id: r for id, r in table.claims.items() if r["notebook"] == notebook}
        columns = [c for c in table.columns if any((id, c) in table.cells for id in claims)]
        lines += ["", f"## {escape_cell(notebook)}", ""]
        lines += _header("claim", [escape_cell(str(column)) for column in columns])
        for id, record in claims.items():
            cells = [_cell(table.cells.get((id, column), []), base) for column in columns]
            says = f"`{id}` {escape_cell(record['says'])} ({escape_cell(record['source'])})"
            lines.append(_row(says, cells))
    if table.changes:
        lines += ["", "## Changed against the reference", ""]
        lines += [f"- {escape_cell(change_line(entry))}" for entry in table.changes]
    if table.failed:
        lines += ["", "## Failed runs", ""]
        lines += [f"- {_link(escape_cell(run_name(r)), r, base)}: {escape_cell(r.error or '')}"
                  for r in table.failed]  # fmt: skip
    return "\n".join(lines) + "\n"


def summary(table: Table) -> list[str]:
    """A line for each notebook and a column for each model: how many claims hold, fail, do not
    apply."""
    names = dict.fromkeys(record["notebook"] for record in table.claims.values())
    lines = _header("✔ holds ✘ does not – n/a", [escape_cell(str(c)) for c in table.columns])
    for name in names:
        ids = [id for id, record in table.claims.items() if record["notebook"] == name]
        lines.append(_row(escape_cell(name), [_counted(table, ids, c) for c in table.columns]))
    every = [f"**{_counted(table, list(table.claims), c)}**" for c in table.columns]
    return [*lines, _row("**all**", every)]


def write_readme(root: Path) -> bool:
    """Put the summary of the committed references between the README's scorecard markers.

    Returns False where there is nothing to do: no README, no markers in it, or no reference.
    """
    file = root / "README.md"
    if not file.is_file() or not (root / "papermill_runs" / "reference").is_dir():
        return False
    text = file.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        return False
    new = _BLOCK.sub(lambda _: readme_table(root), text)
    if new != text:
        scorecard.write_atomic(file, new)
    return True


def readme_table(root: Path) -> str:
    """The summary of the committed references, with links to each."""
    folder = root / "papermill_runs" / "reference"
    head, rule, *rows = summary(scorecard_table.collect([folder], root))
    for model in sorted(folder.glob("*/")):
        name = model.name.replace("--", "/")
        link = f"[{name}](papermill_runs/reference/{model.name}/scorecard.md)"
        head = head.replace(f"| {name} |", f"| {link} |")
    return "\n".join([head, rule, *rows]) + "\n"


def change_line(entry: Entry) -> str:
    """`flip  00.task  ✔ holds 4.08 -> … (smollm2-135m, seed 0)`."""
    return f"{entry.change} ({run_name(entry.run)})"


def run_name(run: Done) -> str:
    """A run in words: notebook, model and seed."""
    words = [run.notebook, str(run.column), "" if run.seed is None else f"seed {run.seed}"]
    return ", ".join(word for word in words if word)


def link(run: Done, base: Path) -> str | None:
    """The address of a run's executed notebook, from a page in the folder `base`."""
    if run.file is None:
        return None
    return quote(os.path.relpath(run.file, base).replace(os.sep, "/"))


def _cell(entries: Sequence[Entry], base: Path) -> str:
    several = len(entries) > 1
    lines = [outcome(entries)] if several else []
    for record, run, change in entries:
        text = f"{MARKS[record['holds']]} {measured(record)}".strip()
        text = f"seed {record['seed']}: {text}" if several else text
        flip = " (flip)" if change and change.kind == "flip" else ""
        lines.append(_link(text, run, base) + flip)
    return "<br>".join(lines)


def _link(text: str, run: Done, base: Path) -> str:
    address = link(run, base)
    return f"[{text}]({address})" if address else text


def _counted(table: Table, ids: Sequence[str], column: Column) -> str:
    entries = [entry for id in ids for entry in table.cells.get((id, column), [])]
    counts = Counter(entry.record["holds"] for entry in entries)
    return " ".join(f"{MARKS[holds]} {counts[holds]}" for holds in MARKS) if entries else ""


def _header(first: str, columns: Sequence[str]) -> list[str]:
    return [_row(first, columns), "|" + "---|" * (1 + len(columns))]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"

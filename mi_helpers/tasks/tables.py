"""Reads tables of prompt pairs: a DataFrame, or a CSV, JSON-lines or parquet file."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

NEEDED = ("clean", "corrupted", "answer", "wrong")

COLUMNS = {  # of the tables of EAP-IG and its kin, with token numbers
    "correct_idx": "answer",
    "incorrect_idx": "wrong",
    "clean_answer_idx": "answer",
    "corrupted_answer_idx": "wrong",
    "country_idx": "answer",
    "corrupted_country_idx": "wrong",
}


# Of the data sets of MIB (Mueller et al. 2025, arXiv 2504.13151), which hold `prompt` and such a
# column with the corrupted prompt: IOI; multiple choice and ARC; arithmetic.
MIB = ("s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")


def columns(table: pd.DataFrame | str | Path) -> dict[str, list[Any]]:
    """The columns `NEEDED` and those named `role:…`.

    Raises ValueError for a table without lines, a column that is missing or misspelt, and for a
    cell that is empty or no text where one is needed, by its line.
    """
    found = _from_mib(_read(table))
    if not len(found):
        raise ValueError("the table has no lines")
    known = {name: new for name, new in COLUMNS.items() if new not in found.columns}
    found = found.rename(columns=known)
    if missing := [name for name in NEEDED if name not in found.columns]:
        raise ValueError(f"the table has no columns {missing}; it has {list(found.columns)}")
    roles = [name for name in found.columns if str(name).startswith("role:")]
    for name in found.columns.difference(roles):
        if like := re.match(r"roles?\s*[:_.]\s*(.+)", str(name), re.IGNORECASE):
            raise ValueError(f"the column {name!r} is not read: write 'role:{like[1]}'")
    for name in [*NEEDED, *roles]:
        for line, cell in enumerate(found[name], start=1):
            _check(name, cell, f"line {line}")
    return {name: found[name].tolist() for name in [*NEEDED, *roles]}


def _check(name: str, cell: Any, line: str) -> None:
    prompt = name in ("clean", "corrupted")
    text = cell.strip() if prompt and isinstance(cell, str) else cell
    if text is None or text == "" or (isinstance(text, float) and math.isnan(text)):
        raise ValueError(f"{line}: {name} is empty")
    if prompt and not isinstance(cell, str):
        raise ValueError(f"{line}: {name} is no text but {cell!r}")
    if name.startswith("role:") and not isinstance(cell, str) and int(cell) != cell:
        role = name.removeprefix("role:")
        raise ValueError(f"{line}: role {role} is at {cell}, neither a word nor a whole number")


def _from_mib(found: pd.DataFrame) -> pd.DataFrame:
    """The columns of one of MIB's data sets; any other table as it is."""
    other = next((found[name] for name in MIB if name in found), None)
    if "prompt" not in found or other is None:
        return found

    def said(line: dict[str, Any]) -> Any:
        if "label" in line:
            return str(line["label"])
        return line["choices"]["label"][line["answerKey"]] if line else None

    rows = []
    for line, flipped in zip(found.to_dict("records"), other, strict=True):
        flipped = flipped if isinstance(flipped, dict) else {}
        names = line.get("metadata") or {}
        row = {"clean": line["prompt"], "corrupted": flipped.get("prompt")}
        if "indirect_object" in names:
            io, s = names["indirect_object"], names["subject"]
            row |= {"answer": f" {io}", "wrong": f" {s}"}
            row |= {"role:IO": io, "role:S1": f"{s}#1", "role:S2": f"{s}#2"}
        else:
            row |= {"answer": said(line), "wrong": said(flipped)}
        rows.append(row)
    return pd.DataFrame(rows)


def _read(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Raises ValueError for a kind of file that is not known, and for one that is no such table."""
    if isinstance(table, pd.DataFrame):
        return table
    path = Path(table)
    # "7" and "NA" are answers like any other
    known: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": lambda p: pd.read_csv(
            p, dtype=dict.fromkeys(NEEDED, str), keep_default_na=False, na_values=[""]
        ),
        ".jsonl": lambda p: pd.read_json(p, lines=True, dtype=False),
        ".parquet": pd.read_parquet,
    }
    if path.suffix not in known:
        raise ValueError(f"{path.name} is none of {', '.join(known)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return known[path.suffix](path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as a table: {error}") from error

"""Reads tables of prompt pairs: a DataFrame, or a CSV, JSON-lines or parquet file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def columns(table: pd.DataFrame | str | Path) -> dict[str, list[Any]]:
    """The columns `NEEDED` and those named `role:…`.

    Raises ValueError for a column that is missing, and for an empty cell, by its line.
    """
    found = _read(table)
    known = {name: new for name, new in COLUMNS.items() if new not in found.columns}
    found = found.rename(columns=known)
    if missing := [name for name in NEEDED if name not in found.columns]:
        raise ValueError(f"the table has no columns {missing}; it has {list(found.columns)}")
    roles = [name for name in found.columns if str(name).startswith("role:")]
    for name in [*NEEDED, *roles]:
        if len(empty := np.flatnonzero(found[name].isna())):
            raise ValueError(f"line {empty[0] + 1}: {name} is empty")
    return {name: found[name].tolist() for name in [*NEEDED, *roles]}


def _read(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Raises ValueError for a kind of file that is not known, and for a table without lines."""
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
    found = known[path.suffix](path)
    if not len(found):
        raise ValueError(f"{path.name} has no lines")
    return found

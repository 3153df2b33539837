"""Heads by name, "layer.head": their effects prompt by prompt, and what they attend to."""

from collections.abc import Sequence

import pandas as pd

from ..engine.execution import Run


def by_prompt(table: pd.DataFrame, metric: str = "logit_diff") -> pd.DataFrame:
    """Effects of heads with a line per prompt and a column per head, from a table with
    `per_prompt=True` and one position. Means and intervals over prompts are then one call each.

    Raises ValueError for a table without prompts or heads, or with several rows for one head.
    """
    missing = {"layer", "head", "prompt", metric} - set(table.columns)
    if missing or table["head"].isna().any():
        raise ValueError(f"by_prompt needs heads, one line per prompt; lacking: {sorted(missing)}")
    names = [f"{row.layer}.{row.head}" for row in table[["layer", "head"]].itertuples()]
    named = table.assign(name=names)
    if named.duplicated(["prompt", "name"]).any():
        raise ValueError("several rows share one head and prompt; sweep one position at a time")
    wide = named.pivot(index="prompt", columns="name", values=metric)
    return wide[list(dict.fromkeys(names))].rename_axis(columns=None)


def split(name: str) -> tuple[int, int]:
    """ "9.6" as (9, 6)."""
    layer, head = name.split(".")
    return int(layer), int(head)


def attention(run: Run, names: Sequence[str], query: int = -1) -> pd.DataFrame:
    """How much each head attends from one position to every other: head, prompt, pos, attention.

    The run must have been recorded with the site `pattern`.
    """
    tables = []
    for name in names:
        layer, head = split(name)
        weights = run.activation("pattern", layer)[:, query, head].float().cpu().numpy()
        table = pd.DataFrame(weights).rename_axis("prompt").reset_index()
        table = table.melt("prompt", var_name="pos", value_name="attention")
        tables.append(table.assign(head=name))
    return pd.concat(tables, ignore_index=True)[["head", "prompt", "pos", "attention"]]

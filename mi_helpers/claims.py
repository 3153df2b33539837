"""Claims: what a paper says, what was measured here, and whether it holds.

A notebook names itself once with `start`, then calls `check` for each claim. Every call shows one
row, and under `mi run` also appends one JSON line to the file named by `MI_SCORECARD`. `table`
shows all rows again at the end of the notebook. The rule that decides whether a claim holds is
written before the result is looked at; "does not hold here" is a result like any other.
"""

import html
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

SIGNIFICANT = 4  # digits kept of every number, so that two machines write the same record


class Record(TypedDict):
    """One claim as the scorecard stores it. `holds` is None where the claim does not apply.

    A scorecard of many runs adds `variant` where more than model and seed tells its runs apart.
    """

    id: str
    notebook: str
    model: str
    says: str
    source: str
    value: float | None
    low: float | None
    high: float | None
    rule: str
    holds: bool | None
    why: str | None
    seed: int | None
    variant: NotRequired[str]


KEYS = tuple(key for key in Record.__annotations__ if key != "variant")
_ID = re.compile(r"(\d\d)\.[a-z0-9]+(-[a-z0-9]+)*")
# Blue and orange of the Okabe-Ito palette; the mark and the word say the same without colour.
_VERDICTS = {
    True: ("✔", "holds", "#0072B2"),
    False: ("✘", "does not hold", "#D55E00"),
    None: ("–", "not applicable", "#767676"),
}
_context: dict[str, Any] = {}
_records: dict[str, Record] = {}


def start(notebook: str, *, model: object, seed: int | None) -> None:
    """Name the notebook, the model and the seed that the following claims belong to.

    Args:
        notebook: the notebook's file name without `.ipynb`, such as "00_tour".
        model: the name given to `load_model`, or a loaded model; a directory is recorded by its
            last part alone, so that no path of this machine enters a scorecard.
        seed: the seed of the notebook, None where nothing is random.
    """
    if not re.match(r"\d\d_", notebook):
        raise ValueError(f"a notebook's name starts with two digits and '_', got {notebook!r}")
    _context.update(notebook=notebook, model=model_name(model), seed=seed)
    _records.clear()


def model_name(model: object) -> str:
    """The short name of a model: its `.name`, or the last part of a directory's path."""
    name = getattr(model, "name", None) if not isinstance(model, str | Path) else str(model)
    if not isinstance(name, str) or not name:
        raise TypeError(f"a model is named by a string, a path or its .name, got {type(model)}")
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def check(
    *,
    id: str,
    says: str,
    source: str,
    value: float | None,
    interval: tuple[float, float] | None,
    holds: bool | None,
    rule: str,
    why: str | None = None,
) -> None:
    """Show one claim as a row and record it.

    Args:
        id: `<notebook number>.<slug>`, such as "01.or-gate-denoise"; once in a notebook.
        says: the claim in the paper's sense, one sentence.
        source: paper and section.
        value: the measured number; None only where the claim does not apply.
        interval: its uncertainty (low, high), from `bootstrap` over prompts or seeds.
        holds: what the rule says of the value; None where the claim does not apply.
        rule: the condition under which it holds, written before the result was seen.
        why: the reason; needed where `holds` is None.

    Raises:
        ValueError: a malformed or repeated id, an empty text, a NaN, an interval out of order.
    """
    if not _context:
        raise RuntimeError('call mi.claims.start("00_tour", model=MODEL, seed=SEED) before check')
    low, high = (None, None) if interval is None else interval
    record = Record(
        id=id,
        notebook=_context["notebook"],
        model=_context["model"],
        says=says,
        source=source,
        value=_number(value),
        low=_number(low),
        high=_number(high),
        rule=rule,
        holds=_plain(holds),
        why=why,
        seed=_context["seed"],
    )
    validate(record)
    scorecard = os.environ.get("MI_SCORECARD")
    _refuse_second(record, rerun_allowed=not scorecard)
    if scorecard:
        with open(scorecard, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    _records[id] = record
    _show(Rows([record]))


def records() -> list[Record]:
    """The claims checked so far, in the order of their first check."""
    return list(_records.values())


def table() -> "Rows":
    """All claims checked so far: the closing table of a notebook."""
    if not _records:
        raise RuntimeError("no claim has been checked yet, so there is no table to show")
    return Rows(records(), header=True)


def validate(record: Record) -> None:
    """Raise ValueError, naming the claim and the fault, unless the record is well-formed."""

    def fail(fault: str) -> None:
        raise ValueError(f"claim {record.get('id')!r}: {fault}")

    if faults := (set(record) - {"variant"}) ^ set(KEYS):
        fail(f"keys differ from the expected ones: {sorted(faults)}")
    for key in ("id", "notebook", "model", "says", "source", "rule", "variant"):
        text = record.get(key, "none")
        if not isinstance(text, str) or not text.strip():
            fail(f"{key} must be a text that is not empty")
    match = _ID.fullmatch(record["id"])
    if not match:
        fail("an id is two digits, a dot, and lower-case words joined by '-'")
    elif not record["notebook"].startswith(match[1] + "_"):
        fail(f"the id's number is not that of notebook {record['notebook']!r}")
    low, high = record["low"], record["high"]
    for key, number in (("value", record["value"]), ("low", low), ("high", high)):
        if number is not None and (not _is_number(number) or not math.isfinite(number)):
            fail(f"{key} must be a finite number or None, got {number!r}")
    if (low is None) != (high is None):
        fail("an interval has two ends")
    if low is not None and high is not None and low > high:
        fail(f"the interval [{low}, {high}] is out of order")
    if record["holds"] not in (True, False, None) or _is_number(record["holds"]):
        fail(f"holds must be True, False or None, got {record['holds']!r}")
    if record["holds"] is not None and record["value"] is None:
        fail("a claim that holds, or does not, needs its measured value")
    if record["why"] is not None and not isinstance(record["why"], str):
        fail("why must be a text or None")
    if record["holds"] is None and not (record["why"] or "").strip():
        fail("a claim that does not apply (holds=None) needs why=")


def verdict(record: Record) -> str:
    """`✔ holds`, `✘ does not hold` or `– not applicable`."""
    return " ".join(_VERDICTS[record["holds"]][:2])


def measured(record: Record) -> str:
    """`0.83 [0.71, 0.9]`, or an empty text where nothing was measured."""
    if record["value"] is None:
        return ""
    text = digits(record["value"])
    if record["low"] is not None and record["high"] is not None:
        text += f" [{digits(record['low'])}, {digits(record['high'])}]"
    return text


class Rows:
    """Claims as a small table: HTML in a notebook, plain text elsewhere."""

    def __init__(self, records: list[Record], header: bool = False) -> None:
        self.records = records
        self.header = header

    def __repr__(self) -> str:
        return "\n".join(_text_row(record) for record in self.records)

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(record) for record in self.records)
        heads = ("", "claim", "measured", "rule", "source") if self.header else ()
        cells = "".join(f'<th style="text-align:left">{head}</th>' for head in heads)
        head = f"<thead><tr>{cells}</tr></thead>" if heads else ""
        return f'<table class="mi-claims">{head}<tbody>{rows}</tbody></table>'


def _text_row(record: Record) -> str:
    head = f"{verdict(record)}  {record['id']}  {measured(record)}".rstrip()
    lines = [head, f"  {record['says']} ({record['source']})", f"  rule: {record['rule']}"]
    return "\n".join([*lines, f"  why: {record['why']}"] if record["why"] else lines)


def _html_row(record: Record) -> str:
    says, rule, source, why = (
        html.escape(record[key] or "") for key in ("says", "rule", "source", "why")
    )
    colour = _VERDICTS[record["holds"]][2]
    mark = f'<b style="color:{colour}">{verdict(record)}</b>' + (f"<br>{why}" if why else "")
    claim = f"<code>{html.escape(record['id'])}</code><br>{says}"
    cells = (mark, claim, measured(record), rule, source)
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def _refuse_second(record: Record, rerun_allowed: bool) -> None:
    """Running a cell again replaces its claim; another claim of the same id is a mistake."""
    first = _records.get(record["id"])
    if first is None:
        return
    same = all(first[key] == record[key] for key in ("says", "source", "rule"))
    if not (same and rerun_allowed):
        raise ValueError(f"claim {record['id']!r} was already checked in this notebook")


def _plain(value: Any) -> Any:
    """A numpy or torch scalar as the Python value it holds."""
    return value.item() if hasattr(value, "item") else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """Round to `SIGNIFICANT` digits; what is no finite number passes through, for `validate`."""
    value = _plain(value)
    if not _is_number(value) or not math.isfinite(value):
        return value
    return float(f"{value:.{SIGNIFICANT}g}") + 0.0  # -0.0 becomes 0.0


def digits(value: float) -> str:
    text = f"{value:.{SIGNIFICANT}g}"
    return f"{value:.0f}" if "e" in text and 1 <= abs(value) < 1e7 else text


def _show(rows: Rows) -> None:
    try:
        from IPython.display import display
    except ImportError:  # the package works without the notebooks' extra
        print(rows)
    else:
        display(rows)

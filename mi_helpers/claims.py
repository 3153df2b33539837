"""Claims: what a paper says, what was measured here, and the verdict that follows.

A notebook names itself once with `start`, then makes one `claim` for each statement. The verdict
follows from the estimate's interval and a rule that is code, fixed before the result is seen:

- holds: the whole interval is on the right side of the rule's limit, and the null is ruled out;
- does not hold: the whole interval is on the wrong side, or the null keeps the rule by more than
  the value does, their intervals apart;
- undecided: the interval spans the limit, or the null is not ruled out: its own value passes, or
  its interval and the other one overlap. Where the limit is that of no effect, 0 or a ratio of 1, a
  control that does nothing lies on either side by chance, and only has to lie apart;
- not applicable: the model, or a parent claim, lacks what the claim is about.

Exact identities and truth tables are checks of our own code (`kind="check"`), shown and counted
apart. Every claim shows one row, and under `mi run` also appends one JSON line to the file named by
`MI_SCORECARD`. `table` shows all rows again at the end of the notebook.
"""

import html
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

from .stats import Estimate

SIGNIFICANT = 4  # digits kept of every number, so that two machines write the same record
Verdict = Literal["holds", "does not hold", "undecided", "not applicable"]
Kind = Literal["replication", "check"]


class Record(TypedDict):
    """One claim as the scorecard stores it.

    A scorecard of many runs adds `variant` where more than model and seed tells its runs apart.
    """

    id: str
    notebook: str
    model: str
    says: str
    source: str
    kind: Kind
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    unit: str
    rule: str
    null: str | None
    verdict: Verdict
    why: str | None
    seed: int | None
    variant: NotRequired[str]


KEYS = tuple(key for key in Record.__annotations__ if key != "variant")
# The Okabe-Ito palette; the mark and the word say the same without colour.
VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("✔", "#0072B2"),
    "does not hold": ("✘", "#D55E00"),
    "undecided": ("?", "#CC79A7"),
    "not applicable": ("–", "#767676"),
}


# Rules


@dataclass(frozen=True)
class Rule:
    """Holds where a number lies between two limits, both excluded; one may be infinite."""

    low: float
    high: float
    text: str

    def __str__(self) -> str:
        return self.text

    def verdict(self, low: float, high: float) -> Verdict:
        """What an interval says: all of it inside, all of it outside on one side, or neither."""
        if self.low < low and high < self.high:
            return "holds"
        return "does not hold" if high <= self.low or low >= self.high else "undecided"


def above(limit: float) -> Rule:
    """The whole interval lies above `limit`."""
    return Rule(limit, math.inf, f"> {limit:g}")


def below(limit: float) -> Rule:
    """The whole interval lies below `limit`."""
    return Rule(-math.inf, limit, f"< {limit:g}")


def between(low: float, high: float) -> Rule:
    """The whole interval lies between two limits."""
    if not low < high:
        raise ValueError(f"between needs low < high, got {low:g} and {high:g}")
    return Rule(low, high, f"between {low:g} and {high:g}")


def equals(value: float, tolerance: float) -> Rule:
    """The whole interval lies within `tolerance` of `value`."""
    if not tolerance > 0:
        raise ValueError(f"a tolerance is above 0, got {tolerance:g}")
    return Rule(value - tolerance, value + tolerance, f"{value:g} ± {tolerance:g}")


# The notebook's claims


_context: dict[str, Any] = {}
_conditions: dict[str, str | None] = {}  # None where it applies, else why not
_records: dict[str, Record] = {}


def start(
    notebook: str,
    *,
    model: object,
    seed: int | None,
    applies: Mapping[str, bool | str] | None = None,
) -> None:
    """Name the notebook, the model and the seed that the following claims belong to.

    Args:
        notebook: the notebook's file name without `.ipynb`, such as "00_tour".
        model: the name given to `load_model`, or a loaded model; a directory is recorded by its
            last part alone, so that no path of this machine enters a scorecard.
        seed: the seed of the notebook, None where nothing is random.
        applies: conditions that claims name in `needs`: True, or the reason why it does not apply.
    """
    if not re.match(r"\d\d_", notebook):
        raise ValueError(f"a notebook's name starts with two digits and '_', got {notebook!r}")
    _context.update(notebook=notebook, model=model_name(model), seed=seed)
    _records.clear()
    _conditions.clear()
    for name, state in (applies or {}).items():
        condition(name, state is True, state if isinstance(state, str) else "")


def condition(name: str, applies: bool, why: str) -> None:
    """Set once what several claims need; where it does not apply, `why` says so to the reader."""
    if not applies and not why.strip():
        raise ValueError(f"say why {name!r} does not apply")
    _conditions[name] = None if applies else why


def model_name(model: object) -> str:
    """The short name of a model: its `.name`, or the last part of a directory's path."""
    name = model if isinstance(model, str | Path) else getattr(model, "name", None)
    if not name:
        raise TypeError(f"a model is named by a string, a path or its .name, got {type(model)}")
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else str(name)


def claim(
    id: str,
    *,
    says: str,
    source: str,
    value: Estimate | float | None,
    rule: Rule,
    null: tuple[str, Estimate | float | None] | None = None,
    kind: Kind = "replication",
    needs: str | None = None,
) -> None:
    """Show one claim as a row, with the verdict that follows, and record it.

    Args:
        id: `<notebook number>.<slug>`, such as "01.or-gate-denoise"; once in a notebook.
        says: the claim in the paper's sense, one sentence.
        source: paper and section.
        value: what was measured: an `Estimate`, or for a check a plain number. None only where
            the claim does not apply.
        rule: `above`, `below`, `between` or `equals`, its limit fixed before the result was seen.
        null: a control's name and what it measured, which the claim has to be told from (see
            above). Its value, too, may be None only where the claim does not apply.
        needs: a condition of `start` or `condition`, or the id of a parent claim.

    Raises ValueError for a malformed or repeated id, an empty text, a replication without an
    interval, an unknown `needs`, or NaN.
    """
    from IPython.display import display

    if not _context:
        raise RuntimeError('call mi.claims.start("00_tour", model=MODEL, seed=SEED) before claim')
    why, found = _absence(id, needs), _interval(value)
    control, level = (null[0], _interval(null[1])) if null else ("", None)
    verdict: Verdict = "not applicable"
    if why is None:
        if found is None or (null and level is None):
            fault = "value and null may be None only where the claim does not apply"
            raise ValueError(f"claim {id!r}: {fault}")
        if kind == "replication" and not isinstance(value, Estimate):
            raise ValueError(f"claim {id!r}: a replication needs an interval: use mi.estimate(...)")
        verdict, why = _judge(rule, found, control, level)
    middle, low, high = _ends(found)
    record = Record(
        id=id,
        notebook=_context["notebook"],
        model=_context["model"],
        says=says,
        source=source,
        kind=kind,
        value=middle,
        low=low,
        high=high,
        n=found.n or None if found else None,
        unit=found.unit if found else "",
        rule=str(rule),
        null=f"{control}: {_in_words(*_ends(level))}" if level else None,
        verdict=verdict,
        why=why,
        seed=_context["seed"],
    )
    validate(record)
    _keep(record)
    display(Rows([record]))


def records() -> list[Record]:
    """The claims made so far, in the order of their first making."""
    return list(_records.values())


def table() -> "Rows":
    """All claims made so far: the closing table of a notebook."""
    if not _records:
        raise RuntimeError("no claim has been made yet, so there is no table to show")
    return Rows(records(), header=True)


def _absence(id: str, needs: str | None) -> str | None:
    """Why the claim does not apply, None where it does."""
    if needs is None:
        return None
    if needs in _conditions:
        return _conditions[needs]
    if needs not in _records:
        known = ", ".join([*_conditions, *_records]) or "none"
        raise ValueError(f"claim {id!r} needs {needs!r}, which was not set before it; set: {known}")
    verdict = _records[needs]["verdict"]
    return None if verdict == "holds" else f"its parent {needs}: {verdict}"


def _judge(
    rule: Rule, found: Estimate, control: str, null: Estimate | None
) -> tuple[Verdict, str | None]:
    """The verdict, and where it is undecided what would decide."""
    verdict = rule.verdict(found.low, found.high)
    if verdict == "undecided":
        return verdict, _deciding(rule, found)
    if verdict != "holds" or null is None or _ruled_out(rule, found, null):
        return verdict, None
    further = math.isinf(rule.high) and null.low > found.high  # intervals apart
    if further or (math.isinf(rule.low) and null.high < found.low):
        return "does not hold", f"the null keeps the rule by more ({control})"
    return "undecided", f"the null is not ruled out ({control})"


def _ruled_out(rule: Rule, found: Estimate, null: Estimate) -> bool:
    """Whether a value that the rule holds for is told from its null, and the null does not pass."""
    alone = rule.verdict(null.low, null.high)
    if alone != "undecided":
        return alone == "does not hold"
    passes = rule.verdict(null.value, null.value) == "holds"
    no_effect = (1.0 if found.unit == "×" else 0.0) in (rule.low, rule.high)
    apart = null.high < found.low or found.high < null.low
    return apart and (no_effect or not passes)


def _deciding(rule: Rule, found: Estimate) -> str:
    """About how many samples would bring the nearer end of the interval to the nearest limit.

    An interval narrows with the root of the number of samples.
    """
    distance = min(abs(found.value - limit) for limit in (rule.low, rule.high))
    half = (found.high - found.low) / 2
    needed = math.inf if distance == 0 else found.n * (half / distance) ** 2
    if not needed <= 1000 * found.n:  # NaN is refused later, with its claim's name
        return f"at n = {found.n} {found.over} the value lies on its limit"
    rounded = int(float(f"{max(needed, found.n + 1):.2g}"))
    return f"n = {found.n} {found.over}; about {max(rounded, found.n + 1)} would decide"


def _interval(value: Estimate | float | None) -> Estimate | None:
    """A plain number is an interval of no width, with n = 0."""
    if value is None or isinstance(value, Estimate):
        return value
    return Estimate(float(value), float(value), float(value), 0, "")


def _ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """The value and the ends of its interval, which a plain number has none of, rounded."""
    if found is None:
        return None, None, None
    value, low, high = (
        float(f"{float(number):.{SIGNIFICANT}g}") + 0.0  # -0.0 becomes 0.0
        for number in (found.value, found.low, found.high)
    )
    return (value, low, high) if found.n else (value, None, None)


def _keep(record: Record) -> None:
    """Running a cell again replaces its claim; another claim of the same id is a mistake."""
    scorecard = os.environ.get("MI_SCORECARD")
    first = _records.get(record["id"])
    same = first and all(first[key] == record[key] for key in ("says", "source", "rule"))
    if first is not None and (scorecard or not same):
        raise ValueError(f"claim {record['id']!r} was already made in this notebook")
    if scorecard:
        with open(scorecard, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    _records[record["id"]] = record


def validate(record: Record) -> None:
    """Raise ValueError, naming the claim and the fault, unless the record is well-formed."""
    if faults := (set(record) - {"variant"}) ^ set(KEYS):
        raise ValueError(f"a claim's keys differ from the expected ones: {sorted(faults)}")
    id, number = record["id"], record["notebook"][:2]
    numbers = [n for n in (record["value"], record["low"], record["high"]) if n is not None]
    rules = {
        f"an id is {number!r}, the notebook's number, a dot, and lower-case words joined by '-'":
            re.fullmatch(rf"{number}\.[a-z0-9]+(-[a-z0-9]+)*", id),
        "says and source are not empty": record["says"].strip() and record["source"].strip(),
        "value and interval are finite numbers": all(map(math.isfinite, numbers)),
        "an interval's low end is not above its high end": numbers[1:] == sorted(numbers[1:]),
        "kind is 'replication' or 'check'": record["kind"] in get_args(Kind),
        f"verdict is one of {', '.join(VERDICTS)}": record["verdict"] in VERDICTS,
    }  # fmt: skip
    for fault, fine in rules.items():
        if not fine:
            raise ValueError(f"claim {id!r}: {fault}")


def verdict(record: Record) -> str:
    """`✔ holds`, `✘ does not hold`, `? undecided` or `– not applicable`."""
    return f"{VERDICTS[record['verdict']][0]} {record['verdict']}"


def measured(record: Record) -> str:
    """`0.83 [0.71, 0.9] nats`, or an empty text where nothing was measured."""
    words = _in_words(record["value"], record["low"], record["high"])
    return f"{words} {record['unit']}".strip()


def _in_words(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    if low is None or high is None:
        return digits(value)
    return f"{digits(value)} [{digits(low)}, {digits(high)}]"


class Rows:
    """Claims as a small table: HTML in a notebook, plain text elsewhere."""

    def __init__(self, records: list[Record], header: bool = False) -> None:
        self.records, self.header = records, header

    def __repr__(self) -> str:
        return "\n".join(map(_text_row, self.records))

    def _repr_html_(self) -> str:
        names = ("", "claim", "measured", "rule", "null", "source") if self.header else ()
        cells = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
        head = f"<thead><tr>{cells}</tr></thead>" if names else ""
        rows = "".join(map(_html_row, self.records))
        return f'<table class="mi-claims">{head}<tbody>{rows}</tbody></table>'


def _text_row(record: Record) -> str:
    lines = [
        f"{verdict(record)}  {record['id']}  {measured(record)}".rstrip(),
        f"  {record['says']} ({record['source']})",
        *(f"  {key}: {record[key]}" for key in ("rule", "null", "why") if record[key]),
    ]
    return "\n".join(lines)


def _html_row(record: Record) -> str:
    says, rule, null, source, why, id = (
        html.escape(record[key] or "") for key in ("says", "rule", "null", "source", "why", "id")
    )
    colour = VERDICTS[record["verdict"]][1]
    mark = f'<b style="color:{colour}">{verdict(record)}</b>' + (f"<br>{why}" if why else "")
    name = f"<code>{id}</code>{' (check)' if record['kind'] == 'check' else ''}<br>{says}"
    cells = (mark, name, html.escape(measured(record)), rule, null, source)
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def digits(value: float) -> str:
    text = f"{value:.{SIGNIFICANT}g}"
    return f"{value:.0f}" if "e" in text and 1 <= abs(value) < 1e7 else text

"""What differs between two scorecards, claim by claim."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..claims import Record, measured, verdict


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
    interval, when they differ by over 1 %, and by over a tenth of a limit that they lie below: what
    a check finds is often a rounding error, which another processor makes another time.
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
    known = a or b
    assert known is not None
    return Change(kind, known["id"], f"{was} -> {now}")


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
    if inside:
        return not any(inside)
    below = re.fullmatch(r"< (\S+)", a["rule"])
    slack = 0.1 * abs(float(below[1])) if below else 0.0
    return not math.isclose(x, y, rel_tol=0.01, abs_tol=max(1e-6, slack))

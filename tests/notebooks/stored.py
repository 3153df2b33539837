"""Whether what a notebook shows now agrees with what is stored in it.

Compared, cell by cell: which kinds of outputs there are, in order; of a figure the kinds of traces
and the titles; of a table its headers and its number of rows; of text the words, and each number
to within 5 % or 0.01. A value with its interval, such as `0.5 [0.4, 0.6]`, agrees where the value
lies in the stored interval. So do claims, which are compared by their records, and their verdict is
the same. Progress bars, warnings, durations and addresses are left out, and so
is all of a cell with the tag `varies`, whose text a model wrote.
"""

import html
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from mi_helpers.claims import VERDICTS, Record
from mi_helpers.run import scorecard
from mi_helpers.run.execute import PLOTLY
from mi_helpers.run.render import is_progress

VARIES = "varies"  # a cell's tag
RELATIVE, ABSOLUTE = 0.05, 0.01  # tolerance of numbers in text
SOLUTION = re.compile(r"<details>(.*?)</details>", re.DOTALL)
FENCED = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_INTERVAL = re.compile(rf"({_NUMBER.pattern}) \[({_NUMBER.pattern}), ({_NUMBER.pattern})\]")
_LEFT_OUT = re.compile(
    r"0x[0-9a-fA-F]{6,}|\b\d+(\.\d+)? ?(µs|ms|s|min|seconds|minutes)\b|\d+(\.\d+)?(it/s|s/it)"
)


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the folded solution of each exercise as a cell after its last one."""
    folded = [
        block
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for solution in SOLUTION.findall(cell.source)
        for block in FENCED.findall(solution)
    ]
    for source in folded:
        notebook.cells.append(new_code_cell(source, metadata={"tags": ["solution"]}))
    return notebook


def differences(stored: NotebookNode, new: NotebookNode) -> Iterator[str]:
    """A line for each cell whose outputs say something else than the stored ones."""
    code = [[c for c in nb.cells if c.cell_type == "code"] for nb in (stored, new)]
    for number, (old, now) in enumerate(zip(*code, strict=False), 1):
        if VARIES in old.metadata.get("tags", []) or "NBVAL_IGNORE_OUTPUT" in old.source:
            continue
        expected, found = (shown(cell) for cell in (old, now))
        if [kind for kind, _ in expected] != [kind for kind, _ in found]:
            kinds = (", ".join(kind for kind, _ in outs) or "nothing" for outs in (expected, found))
            yield "code cell {}: {} stored, {} now".format(number, *kinds)
            continue
        for (kind, a), (_, b) in zip(expected, found, strict=True):
            if (said := _first_difference(a, b)) is not None:
                yield f"code cell {number}, {kind}: {said}"


def shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """Kind and comparable text of each output; of text in a row, and of claims, one."""
    found: list[tuple[str, str]] = []
    for out in cell.outputs:
        if is_progress(out) or out.output_type == "error":
            continue
        kind, text = _describe(out)
        if kind == "text" and found and found[-1][0] == "text":
            text = found.pop()[1] + text
        if kind != "claims":
            found.append((kind, text))
    return found


def _describe(out: NotebookNode) -> tuple[str, str]:
    if "text" in out:
        return "text", out.text
    page, plain = out.data.get("text/html", ""), out.data.get("text/plain", "")
    if PLOTLY in out.data:
        return "figure", _figure(out.data[PLOTLY])
    if 'class="mi-claims"' in page:
        return "claims", ""
    if "<table" in page:
        heads = [re.sub("<.*?>", "", head) for head in re.findall(r"<th\b.*?</th>", _head(page))]
        return "table", html.unescape(f"{heads}, {page.count('<tr')} rows")
    if page or "image/png" in out.data or "image/svg+xml" in out.data:
        return "page" if page else "image", ""
    return "text", plain + "\n"


def _head(page: str) -> str:
    found = re.search(r"<thead>.*?</thead>", page, re.DOTALL)
    return found[0] if found else ""


def _figure(figure: dict[str, Any]) -> str:
    """Kinds of traces, each once for a run of the same, and the titles of figure and axes."""
    layout = figure.get("layout", {})
    titles = [
        f"{name}: {axis.get('title', {}).get('text', '')}"
        for name, axis in sorted({"figure": layout, **layout}.items())
        if re.fullmatch(r"figure|[xy]axis\d*", name)
    ]
    traces = [trace.get("type", "scatter") for trace in figure.get("data", [])]
    return f"{', '.join(traces)}; {'; '.join(titles)}"


def _first_difference(stored: str, new: str) -> str | None:
    """Where two texts say something else; None where only spaces or last digits differ."""
    for a, b in zip(*map(_INTERVAL.finditer, (stored, new)), strict=False):
        if not float(a[2]) <= float(b[1]) <= float(a[3]):
            return f"{a[0]!r} stored, {b[0]!r} now"
    texts = (_LEFT_OUT.sub("…", _INTERVAL.sub("…", text)) for text in (stored, new))
    for a, b in zip_longest(*(text.split() for text in texts)):
        if a != b and not (a and b and _agree(a, b)):
            return f"{a!r} stored, {b!r} now"
    return None


def _agree(a: str, b: str) -> bool:
    """Whether two words are the same but for the last digits of their numbers."""
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(math.isclose(float(x), float(y), rel_tol=RELATIVE, abs_tol=ABSOLUTE)
               for x, y in pairs)  # fmt: skip


def changed_claims(reference: list[Record], measured: list[Record]) -> list[str]:
    """Lines for the claims whose verdict flipped, or whose value left the stored interval.

    A flip to or from undecided counts only where the interval changed: an end that lies on the
    limit goes over it by a rounding.
    """
    assert all(record["verdict"] in VERDICTS for record in measured)
    was, now = ({record["id"]: record for record in records} for records in (reference, measured))
    return [
        str(change)
        for change in scorecard.compare(reference, measured)
        if change.kind != "flip" or not _on_its_limit(was[change.id], now[change.id])
    ]


def _on_its_limit(a: Record, b: Record) -> bool:
    """Whether one of two verdicts is undecided, and the intervals agree within 5 % of the width."""
    ends = [(a["low"], b["low"]), (a["high"], b["high"])]
    if "undecided" not in (a["verdict"], b["verdict"]) or a["low"] is None or a["high"] is None:
        return False
    near = 0.05 * (a["high"] - a["low"])
    return all(None not in end and abs(end[0] - end[1]) <= near for end in ends)  # type: ignore[operator]

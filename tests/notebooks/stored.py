"""nbval over stored outputs, comparing what should agree between machines.

nbval executes each cell and compares its outputs with the stored ones. Three things are changed:
- decimal numbers agree when they differ by less than 1 %, whole numbers when they are equal;
- a figure is compared by its kinds of traces and its titles, not by its JSON or its pixels;
- HTML is left out, since the plain text says the same, and so are progress bars and stderr.

After its last cell, the claims that a notebook recorded go through `mi diff` against the reference.
"""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile

from mi_helpers.run import cli as runs
from mi_helpers.run import sweep
from mi_helpers.run.render import PLOTLY, is_progress
from tests.notebooks.listing import NOTEBOOKS

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class StoredOutputs(pytest.File):
    """All listed notebooks; collected in place of `nbval.cfg`."""

    def collect(self) -> Iterator[IPyNbFile]:
        for listed in NOTEBOOKS:
            if listed.path.exists():  # where it does not, test_policies says so
                yield StoredNotebook.from_parent(self, path=listed.path)


class StoredNotebook(IPyNbFile):
    """One notebook, executed in one kernel of this environment, which records its claims."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.skip_compare += ("text/html", "image/svg+xml")
        self.claims = Path("claims.jsonl")

    def setup(self) -> None:
        self.claims = Path(tempfile.mkdtemp(prefix="claims-")) / "claims.jsonl"
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "MI_SCORECARD", str(self.claims))
            super().setup()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.claims.parent, ignore_errors=True)

    def collect(self) -> Iterator[IPyNbCell]:
        for cell in super().collect():
            yield StoredCell.from_parent(
                self, name=cell.name, cell_num=cell.cell_num, cell=cell.cell, options=cell.options
            )
        for listed in NOTEBOOKS:
            if listed.path == self.path:
                folder = f"reference/{listed.model}"
                yield Drift.from_parent(self, name="mi diff with the reference", reference=folder)


class Drift(pytest.Item):
    """What the cells recorded, compared with the reference by `mi diff`; a flip fails."""

    def __init__(self, *, reference: str, **options: Any) -> None:
        super().__init__(**options)
        self.reference = reference

    def runtest(self) -> None:
        assert isinstance(self.parent, StoredNotebook)
        claims = self.parent.claims
        if not claims.exists():
            pytest.skip("the cells that check claims did not run")
        recorded = claims.with_name("recorded.json")
        recorded.write_text(sweep.to_json(sweep.read_lines(claims)))
        if runs.main(["diff", self.reference, str(recorded)]) != 0:
            pytest.fail("claims flipped, see above", pytrace=False)


class StoredCell(IPyNbCell):
    """One code cell, compared within a tolerance."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.output_timeout = 120  # seconds; 5 are too few for a large figure on a busy machine

    def compare_outputs(
        self, test: list[NotebookNode], ref: list[NotebookNode], skip_compare: Any = None
    ) -> bool:
        new, stored = ([_comparable(out) for out in outs if not is_progress(out)]
                       for outs in (test, ref))  # fmt: skip
        for a, b in zip(new, stored, strict=False):  # nbval reports a difference in number
            _settle_output(a, b)
        return super().compare_outputs(new, stored, skip_compare)


def _comparable(out: NotebookNode) -> NotebookNode:
    """A copy of an output, with a figure replaced by a line that describes it."""
    out = deepcopy(out)
    if PLOTLY in out.get("data", {}):
        out.data = NotebookNode({"text/plain": _describe(out.data[PLOTLY])})
    return out


def _describe(figure: dict[str, Any]) -> str:
    layout = figure.get("layout", {})
    title = layout.get("title", {}).get("text", "")
    axes = [
        f"{name}: {axis.get('title', {}).get('text', '')}"
        for name, axis in sorted(layout.items())
        if re.fullmatch(r"[xy]axis\d*", name)
    ]
    traces = [trace.get("type", "scatter") for trace in figure.get("data", [])]
    return f"figure of {', '.join(traces)} | {title} | {' | '.join(axes)}"


def _settle_output(new: NotebookNode, stored: NotebookNode) -> None:
    if "text" in new and "text" in stored:
        new.text, stored.text = settle(new.text, stored.text), _one_space(stored.text)
    for key in set(new.get("data", {})) & set(stored.get("data", {})):
        if key.startswith("text/"):
            new.data[key], stored.data[key] = (
                settle(new.data[key], stored.data[key]), _one_space(stored.data[key]),
            )  # fmt: skip


def settle(new: str, stored: str) -> str:
    """`new` with every number that agrees with its counterpart in `stored` written like it.

    Runs of spaces become one, since the width of a table's columns follows its numbers.
    """
    counterparts = _NUMBER.findall(stored)
    if len(counterparts) != len(_NUMBER.findall(new)):
        return _one_space(new)
    following = iter(counterparts)

    def write(match: re.Match[str]) -> str:
        other = next(following)
        return other if _agree(match[0], other) else match[0]

    return _one_space(_NUMBER.sub(write, new))


def _agree(a: str, b: str) -> bool:
    if not set(".e") & set(a + b):
        return a == b
    return math.isclose(float(a), float(b), rel_tol=0.01, abs_tol=1e-3)


def _one_space(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text)

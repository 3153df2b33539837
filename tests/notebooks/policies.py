"""What holds for every notebook as it is stored. A policy yields a line for each fault it finds."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
from nbformat import NotebookNode

from mi_helpers.run.execute import PLOTLY
from mi_helpers.run.render import is_progress

MAX_BYTES = 1_500_000
MAX_LINES = 25
MACHINE_PATH = re.compile(
    r"(?<![\w.~])/(home|root|tmp|work|Users|private|mnt|var)/\S+|[A-Z]:\\Users"
)
Policy = Callable[[NotebookNode, str], Iterator[str]]


def code(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """The code cells, numbered from 1 among all cells."""
    return [(n, cell) for n, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]


def valid(notebook: NotebookNode, name: str) -> Iterator[str]:
    """It is nbformat 4.5 or later, and each cell has an id of its own."""
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield "cells have no ids before nbformat 4.5"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "cell ids are missing or repeated"
        return
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"


def small(notebook: NotebookNode, name: str) -> Iterator[str]:
    """Under 1.5 MB as stored."""
    size = len(json.dumps(notebook, indent=1, ensure_ascii=False).encode())
    if size >= MAX_BYTES:
        yield f"{size} bytes, {MAX_BYTES} allowed"


def titled(notebook: NotebookNode, name: str) -> Iterator[str]:
    """The first cell is a title with a paragraph."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# .+\n\s*\n\S", first.source):
        yield "the first cell is a '# ' title and a paragraph"


def parametrised(notebook: NotebookNode, name: str) -> Iterator[str]:
    """The first code cell is tagged `parameters` and assigns literals, each with a comment."""
    cells = code(notebook)
    tagged = [n for n, cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells or tagged != [cells[0][0]]:
        yield "the first code cell, and no other, is tagged 'parameters'"
        return
    source = cells[0][1].source
    lines = source.splitlines()
    for node in ast.parse(source).body:
        line = lines[node.lineno - 1]
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not _is_literal(node.value):
            yield f"not a plain assignment: {line}"
        comment_above = node.lineno > 1 and lines[node.lineno - 2].lstrip().startswith("#")
        beside = any("#" in text for text in lines[node.lineno - 1 : node.end_lineno])
        if not (beside or comment_above):
            yield f"a parameter without a comment: {line}"


def _is_literal(node: ast.expr | None) -> bool:
    try:
        ast.literal_eval(node or ast.parse("None"))
    except ValueError:
        return False
    return node is not None


def executed(notebook: NotebookNode, name: str) -> Iterator[str]:
    """All code cells were executed, once, from top to bottom."""
    counts = [cell.execution_count for _, cell in code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}"


def error_free(notebook: NotebookNode, name: str) -> Iterator[str]:
    """No cell ended in an error."""
    for number, cell in code(notebook):
        for out in cell.outputs:
            if out.output_type == "error":
                yield f"cell {number}: {out.ename}"


def pictured(notebook: NotebookNode, name: str) -> Iterator[str]:
    """Each plotly figure has a static PNG beside it."""
    for number, cell in code(notebook):
        for out in cell.outputs:
            if PLOTLY in out.get("data", {}) and "image/png" not in out.data:
                yield f"cell {number}: a figure without its static PNG"


def placeless(notebook: NotebookNode, name: str) -> Iterator[str]:
    """No path of a machine in sources or outputs."""
    for number, cell in enumerate(notebook.cells, 1):
        for text in _texts([cell.source, cell.get("outputs", [])]):
            for match in MACHINE_PATH.finditer(text):
                yield f"cell {number}: a path of this machine, {match[0][:60]!r}"


def _texts(value: Any) -> Iterator[str]:
    """All texts inside nested data but for images and packed arrays, which are base64."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "bdata" and not key.startswith("image/png"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def clean(notebook: NotebookNode, name: str) -> Iterator[str]:
    """No progress bars, nothing on stderr, no metadata beyond kernel, language and tags."""
    if set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"metadata of the notebook: {sorted(notebook.metadata)}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    for number, cell in enumerate(notebook.cells, 1):
        if set(cell.metadata) - {"tags", "jupyter"}:
            yield f"cell {number}: metadata {sorted(cell.metadata)}"
        if any(is_progress(out) for out in cell.get("outputs", [])):
            yield f"cell {number}: a stored progress bar or stderr"


def short(notebook: NotebookNode, name: str) -> Iterator[str]:
    """No code cell is over 25 lines."""
    for number, cell in code(notebook):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES:
            yield f"cell {number}: {lines} lines, {MAX_LINES} allowed"


def paced(notebook: NotebookNode, name: str) -> Iterator[str]:
    """Half the code cells have at most 7 lines, nine of ten at most 15, blank ones not counted."""
    cells = [cell.source.splitlines() for _, cell in code(notebook)]
    lengths = sorted(sum(bool(line.strip()) for line in lines) for lines in cells)
    for share, allowed in ((0.5, 7), (0.9, 15)):
        longest = lengths[math.ceil(share * len(lengths)) - 1]
        if longest > allowed:
            yield f"{share:.0%} of the cells have up to {longest} lines, {allowed} allowed"


def set_up(notebook: NotebookNode, name: str) -> Iterator[str]:
    """The package comes by `import mi_helpers as mi`, and no cell installs anything."""
    sources = [(number, cell.source) for number, cell in code(notebook)]
    if not any(re.search(r"^import mi_helpers as mi$", text, re.MULTILINE) for _, text in sources):
        yield "there is no 'import mi_helpers as mi'"
    for number, text in sources:
        if re.search(r"^\s*(from mi_helpers\b|import mi_helpers\.)", text, re.MULTILINE):
            yield f"cell {number}: import mi_helpers as mi, and use mi.…"
        if re.search(r"\b(pip|conda|uv)\s+(install|add)\b", text) or "sys.path" in text:
            yield f"cell {number}: installs something or changes sys.path"


def scored(notebook: NotebookNode, name: str) -> Iterator[str]:
    """Claims start under the notebook's own name, and a table after the last of them shows all."""
    sources = [(number, cell) for number, cell in code(notebook)]
    if not any(re.search(rf"""claims\.start\(\s*["']{name}["']""", c.source) for _, c in sources):
        yield f"there is no mi.claims.start({name!r}, …)"
    made = [number for number, cell in sources if re.search(r"\bmi\.claim\(", cell.source)]
    tables = [(number, cell) for number, cell in sources if "claims.table(" in cell.source]
    if not made:
        yield "no claim is made"
    if not tables or (made and tables[-1][0] < made[-1]):
        yield "no mi.claims.table() after the last claim"
    elif "mi-claims" not in str(tables[-1][1].outputs):
        yield "the claims table is not among the stored outputs"


def exercised(notebook: NotebookNode, name: str) -> Iterator[str]:
    """There are exercises with folded solutions."""
    if not any("<details>" in c.source for c in notebook.cells if c.cell_type == "markdown"):
        yield "no exercise with a folded solution (<details>)"


POLICIES: tuple[Policy, ...] = (
    valid, small, titled, parametrised, executed, error_free, pictured, placeless, clean, short,
    paced, set_up, scored, exercised,
)  # fmt: skip

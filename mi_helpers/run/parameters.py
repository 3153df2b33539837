"""A notebook's parameters: read from its `parameters` cell, and set from texts.

A comment that ends in `full: VALUE` names a parameter's value at a paper's scale.

Papermill only warns about an unknown parameter, and takes a value of any type. So names and types
are checked here and in `plan`, before anything starts.
"""

import ast
import json
from pathlib import Path
from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """A name that the `parameters` cell of a notebook assigns.

    Its default is a literal, or the text of what is computed; `type` is that of the literal, None
    where any will do. `full` is its value at full scale, None where that is the default.
    """

    notebook: str
    name: str
    default: Any
    type: type | None
    full: Any = None


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook; ValueError that names the file where there are none to read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error


def read(path: Path) -> dict[str, Parameter]:
    """The parameters of a notebook: what its first cell tagged `parameters` assigns."""
    tagged = [c for c in read_cells(path) if "parameters" in c["metadata"].get("tags", [])]
    source = "".join(tagged[0]["source"]) if tagged else ""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"the parameters of {path} cannot be read: {error}") from error
    found, lines = {}, source.encode().splitlines()
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            comment = lines[(node.end_lineno or 0) - 1][node.end_col_offset :].decode()
            _, named, full = comment.rpartition("full: ")
            text = ast.unparse(node.value)
            default = _literal(text)
            kind = None if default is None or default == text else type(default)
            one = Parameter(path.stem, ast.unparse(target), default, kind)
            larger = convert(one, _literal(full.strip())) if named else None
            found[one.name] = one._replace(full=larger)
    return found


def convert(parameter: Parameter, given: Any) -> Any:
    """The value that a text on the command line, or one that is a value already, means here.

    Raises ValueError, naming the notebook, where it is of another type than the default.
    """
    notebook, name, default, kind, _ = parameter
    if kind is str:
        return str(given)
    value = _literal(given) if isinstance(given, str) else given
    if kind is float and type(value) is int:
        return float(value)
    if kind in (list, tuple) and isinstance(value, list | tuple):
        return list(value)  # papermill writes a tuple as a text
    if kind is not None and kind is not type(value):
        wanted = f"{kind.__name__} (default {default!r})"
        raise ValueError(f"{notebook}: {name} is of type {wanted}, got {given!r}")
    return value


def _literal(text: str) -> Any:
    """The value of a Python literal; any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

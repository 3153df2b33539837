"""A notebook's parameters: read from its `parameters` cell, and set from texts.

A comment that ends in `full: VALUE` names a parameter's value at a paper's scale.

Papermill only warns about an unknown parameter, and takes a value of any type. So names and types
are checked here and in `plan`, before anything starts.
"""

import ast
import io
import json
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_KINDS = {"MODEL": "directory", "PROMPTS": "file"}  # parameters that may be a path


class Parameter(NamedTuple):
    """A name assigned in the `parameters` cell; types is None where any literal will do. `full` is
    the text of its value at full scale, None where that is the default."""

    name: str
    default: Any
    types: tuple[type, ...] | None
    full: str | None = None


def read(path: Path) -> dict[str, Parameter]:
    """The parameters of a notebook: what its first cell tagged `parameters` assigns."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        source = "".join(tagged[0]["source"]) if tagged else ""
        body, full = ast.parse(source).body, _full(source)
    except (ValueError, KeyError, TypeError, SyntaxError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error
    found = {}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = _parameter(target.id, node, full.get(node.end_lineno))
    return found


def all_values(path: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of a notebook with the chosen value, or else its default."""
    return {name: p.default for name, p in read(path).items()} | dict(chosen)


def _full(source: str) -> dict[int | None, str]:
    """What follows `full:` in a comment, by the comment's line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    return {n: text.split("full: ")[-1].strip() for n, text in comments.items() if "full: " in text}


def _parameter(name: str, node: Any, full: str | None) -> Parameter:
    """Types come from the default and, where it is annotated, from the plain names in there."""
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        return Parameter(name, ast.unparse(node.value), None, full)
    annotation = getattr(node, "annotation", None)
    named = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} if annotation else set()
    plain = {t.__name__: t for t in (str, int, float, bool, list, tuple, dict)}
    types = {type(default)} | {plain[n] for n in named if n in plain}
    return Parameter(name, default, None if types == {type(None)} else tuple(types), full)


def convert(parameter: Parameter, text: str) -> Any:
    """The value that a text on the command line means for this parameter, or ValueError."""
    name, default, types, _ = parameter
    if types and str in types and not (text == "None" and type(None) in types):
        return _absolute(name, text) if name in _KINDS else text
    literal = text.capitalize() if text.lower() in ("true", "false", "none") else text
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        value = text
    if types is None:
        return value
    if float in types and type(value) is int and int not in types:
        value = float(value)
    if list in types or tuple in types:  # papermill writes a tuple as a text
        value = list(value) if isinstance(value, tuple) else value
        fits = isinstance(value, list) and _elements_fit(value, default)
    else:
        fits = type(value) in types
    if not fits:
        wanted = " or ".join(sorted(t.__name__.replace("NoneType", "None") for t in types))
        raise ValueError(f"{name} is of type {wanted} (default {default!r}), got {text!r}")
    return value


def _elements_fit(value: list[Any], default: Any) -> bool:
    allowed = {type(element) for element in default or ()}
    allowed |= {int} if float in allowed else set()
    return not allowed or all(type(element) in allowed for element in value)


def _absolute(name: str, text: str) -> str:
    """A model's directory or a table's file by its absolute path, since a notebook runs in its own
    folder."""
    path = Path(text).expanduser()
    if text and (path.is_dir() if name == "MODEL" else path.is_file()):
        return str(path.resolve())
    if text.startswith((".", "/", "~")) or (text and name == "PROMPTS"):
        raise ValueError(f"{name}={text}: there is no such {_KINDS[name]}")
    return text

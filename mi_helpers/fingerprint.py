"""The hashes that tell whether a notebook, or code that it uses, has changed."""

import ast
import functools
import hashlib
import json
import re
import threading
from pathlib import Path

from .provenance import sha256

PACKAGE = Path(__file__).parent
_PARSER = threading.Lock()  # CPython 3.11 confuses how deep two threads have got in parsing
_DATA = re.compile(r"""["'/]data["'/]""")  # how a module names the folder


def source(path: Path) -> dict[str, str]:
    """The hashes of a notebook's cells, and of the modules of this package that they reach."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = [
            [c["cell_type"], "".join(c["source"]), sorted(c["metadata"].get("tags", []))]
            for c in cells
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error
    text = "\n".join(text for kind, text, _ in parts if kind == "code")
    return {"cells": hashlib.sha256(json.dumps(parts).encode()).hexdigest(), "code": _code(text)}


def _code(text: str) -> str:
    """The hash of every module that code names, and of those they import.

    Whatever word is a module's name counts as that module, so too much is taken, never too little.
    The package's data counts as a whole where one of the modules reads from it.
    """
    modules = {path.stem: path for path in PACKAGE.glob("*.py")}
    words = {*re.findall(r"\w+", text), "__init__", "models", "claims"}
    files: set[Path] = set()
    new = {modules[name] for name in words & modules.keys()}
    while new:
        files |= new
        names = set().union(*map(_imports, new))
        new = {modules[name] for name in names & modules.keys()} - files
    if any(_DATA.search(path.read_text(encoding="utf-8")) for path in files):
        files |= {path for path in (PACKAGE / "data").rglob("*") if path.is_file()}
    lines = [f"{path.relative_to(PACKAGE)} {_hash(path, _stamp(path))}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _hash(path: Path, stamp: tuple[int, int]) -> str:
    """A file's hash, taken again when its size or time of change differ."""
    return sha256([path])


def _imports(module: Path) -> set[str]:
    """The first names in a module's imports from its own package."""
    found = set()
    with _PARSER:
        tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return found

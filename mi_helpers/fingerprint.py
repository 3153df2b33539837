"""The hashes that tell whether a notebook, or code that it uses, has changed."""

import ast
import hashlib
import json
import re
from pathlib import Path

from .provenance import sha256

PACKAGE = Path(__file__).parent


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
    """The hash of every module that code names, of those they import, and of the package's data.

    Whatever word is a module's name counts as that module, so too much is taken, never too little.
    """
    modules = {path.stem: path for path in PACKAGE.glob("*.py")}
    words = {*re.findall(r"\w+", text), "__init__", "models", "claims"}
    reached, new = set(), words & modules.keys()
    while new:
        reached |= new
        new = {name for module in new for name in _imports(modules[module])}
        new = (new & modules.keys()) - reached
    data = (path for path in (PACKAGE / "data").rglob("*") if path.is_file())
    files = sorted(str(p.relative_to(PACKAGE)) for p in [*data, *(modules[m] for m in reached)])
    lines = [f"{name} {sha256([PACKAGE / name])}" for name in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _imports(module: Path) -> set[str]:
    """The first names in a module's imports from its own package."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return found

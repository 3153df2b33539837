"""The hashes that tell whether a notebook, or the package that it uses, has changed."""

import functools
import hashlib
import json
from pathlib import Path

from .provenance import sha256

PACKAGE = Path(__file__).parents[1]


def source(path: Path) -> dict[str, str]:
    """The hashes of a notebook's cells, and of this package with its data.

    The package counts as a whole: a result is repeated once too often rather than kept too long.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = [
            [c["cell_type"], "".join(c["source"]), sorted(c["metadata"].get("tags", []))]
            for c in cells
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error
    return {"cells": hashlib.sha256(json.dumps(parts).encode()).hexdigest(), "code": _code()}


def _code() -> str:
    files = sorted(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    lines = [f"{path.relative_to(PACKAGE)} {_hash(path, _stamp(path))}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _hash(path: Path, stamp: tuple[int, int]) -> str:
    """A file's hash, taken again when its size or time of change differ."""
    return sha256([path])

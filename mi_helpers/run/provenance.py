"""What a run was made with, and the hashes that tell whether it has to be done again."""

import contextlib
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ..models import default as default_model
from ..models.files import fetch
from .parameters import read_cells

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("numpy", "pandas", "torch", "transformers", "transformer-lens", "sae-lens")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def commit(root: Path) -> str:
    """The collection's commit, with `+changes` where tracked files differ; empty without git."""
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    command = ["git", "-C", str(root), "describe", *options]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def versions() -> dict[str, str]:
    """Versions of Python and the packages that results depend on, without the build (`+cpu`)."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name).split("+")[0]
    return found


def weights(name: str) -> dict[str, str]:
    """Fetch a model; what tells its weights from others: a hash of files, or the hub's commit."""
    directory = fetch(name)
    if name == default_model.NAME:
        return {"sha256": default_model.SMOLLM.sha256}
    if Path(name).is_dir():
        return {"sha256": sha256(p for p in directory.iterdir() if p.suffix in _WEIGHTS)}
    return {"revision": directory.name}


def cells(path: Path) -> str:
    """The hash of a notebook's cells without their outputs."""
    parts = [
        [c["cell_type"], "".join(c["source"]), sorted(c["metadata"].get("tags", []))]
        for c in read_cells(path)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def code() -> str:
    """The hash of this package with its data, as a whole: rather run too often than too rarely."""
    return sha256(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def sha256(files: Iterable[Path]) -> str:
    """The hash of a file; of the hashes of several, in the order of their names."""
    hashes = []
    for path in sorted(files):
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

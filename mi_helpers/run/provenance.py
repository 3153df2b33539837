"""What a run was made with, and the hashes that tell whether it has to be done again."""

import contextlib
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from ..models import default as default_model
from ..models.files import split_revision
from . import parameters

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("numpy", "pandas", "torch", "transformers", "transformer-lens", "sae-lens", "plotly")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


@functools.cache
def environment(root: Path) -> dict[str, Any]:
    """Versions, platform and git commit; nothing that names this machine or its user."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "commit": commit(root),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit(root: Path) -> str | None:
    """The commit of the collection, with `+changes` where tracked files differ from it."""
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "-C", str(root), "describe", *options],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    return None


def weights(name: str) -> dict[str, str]:
    """What tells a model's weights from others: a hash of the files, or the hub's own commit."""
    from huggingface_hub import try_to_load_from_cache

    if name == default_model.NAME:
        return {"sha256": default_model.SMOLLM.sha256}
    if Path(name).is_dir():
        return {"sha256": sha256(p for p in Path(name).iterdir() if p.suffix in _WEIGHTS)}
    plain, revision = split_revision(name)
    config = try_to_load_from_cache(plain, "config.json", revision=revision)
    return {"revision": Path(config).parent.name} if isinstance(config, str) else {}


def cells(path: Path) -> str:
    """The hash of a notebook's cells without their outputs."""
    parts = [
        [c["cell_type"], "".join(c["source"]), sorted(c["metadata"].get("tags", []))]
        for c in parameters.read_cells(path)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def code() -> str:
    """The hash of this package with its data.

    It counts as a whole: a result is repeated once too often rather than kept too long.
    """
    files = sorted(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    lines = [
        f"{path.relative_to(PACKAGE)} {_hash(path, status.st_size, status.st_mtime_ns)}"
        for path in files
        for status in [path.stat()]
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def _hash(path: Path, size: int, changed: int) -> str:
    """A file's hash, taken again when its size or time of change differ."""
    return sha256([path])


def sha256(files: Iterable[Path]) -> str:
    """The hash of a file; of the hashes of several, in the order of their names."""
    hashes = []
    for path in sorted(files):
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

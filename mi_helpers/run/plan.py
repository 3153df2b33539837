"""What is to run: settings, their grid, and the identity of each run.

Settings are a YAML file, or the same on the command line:

    notebooks: [00_tour, 03]          # names, beginnings of names or paths; all if left out
    models: [smollm2-135m, ./out/d*]  # given as MODEL; * and ? match directories
    seeds: [0, 1, 2]                  # given as SEED
    parameters:                       # every combination of the values
      N_PROMPTS: [4, 8]

`parameters` may also be a list of such mappings, whose grids run one after another. Paths are
relative to the file. A notebook without a parameter of that name runs without it, once.
"""

import difflib
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
from . import execute, parameters, provenance

KEYS = ("notebooks", "models", "seeds", "parameters")
LIMIT = 500  # runs that start without being asked for twice


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
        """What was asked for. A run of the same slot and another identity replaces it."""
        return _json([self.path.stem, self._asked])

    @property
    def folder(self) -> str:
        """The name of this run's folder."""
        model = self.inputs["parameters"].get("MODEL")
        parts = [self.path.stem, model if isinstance(model, str) else "", self.identity[:16]]
        return "-".join(re.sub(r"[^\w.@=-]+", "--", part) for part in parts if part)

    @property
    def _asked(self) -> dict[str, Any]:
        return {name: self.inputs["parameters"][name] for name in self.given}

    def __str__(self) -> str:
        return " ".join([self.path.stem, *(f"{n}={value}" for n, value in self._asked.items())])


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
        models = (_with_revision(model) for model in _several("models", found["models"]))
        found["models"] = [path for name in models for path in _models(name, base)]
    if "notebooks" in found:
        names = (  # YAML reads 03 as a number
            f"{name:02d}" if isinstance(name, int) else str(name)
            for name in _several("notebooks", found["notebooks"])
        )
        found["notebooks"] = [
            str((base / n).resolve()) if n.endswith(".ipynb") and (base / n).is_file() else n
            for n in names
        ]
    return found


def _with_revision(model: Any) -> str:
    """A model's name; `{name: …, revision: …}` becomes "name@revision"."""
    if not isinstance(model, Mapping):
        return str(model)
    if set(model) != {"name", "revision"}:
        raise ValueError(f"a model is a name, or has the keys name and revision, got {dict(model)}")
    return f"{model['name']}@{model['revision']}"


def _models(name: str, base: Path) -> list[str]:
    """A model's name as it is, or the directories that a path or pattern stands for."""
    path = base / Path(name).expanduser()  # an absolute one stays as it is
    if not re.search(r"[*?\[]", name):
        return [str(path.resolve())] if path.is_dir() else [name]
    found = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
    directories = [p for p in found if (p / "config.json").is_file()]
    if not directories:
        raise ValueError(f"models: no directory of weights matches {name!r} in {base}")
    return [str(p.resolve()) for p in sorted(directories, key=lambda p: natural(p.name))]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts d16 before d128."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def make(
    settings: Mapping[str, Any],
    root: Path,
    *,
    full: bool = False,
    resumable: bool = True,
    limit: float = LIMIT,
) -> tuple[list[Job], list[str]]:
    """The runs that settings ask for, those of one model together; and notes.

    Models are fetched where they are not on this machine, since their weights are part of the
    identity.

    Args:
        full: whether parameters that are not given take their value at full scale.
        resumable: whether the identity has the package's code in it.

    Raises:
        ValueError: an unknown notebook or parameter, a value of another type, two models of one
            name, more runs than the limit; before any model is fetched.
        OSError: a model that cannot be had.
    """
    paths = execute.find(settings.get("notebooks", ()), root)
    known = {path: parameters.read(path) for path in paths}
    larger = {path: full_values(path, known[path]) if full else {} for path in paths}
    grids = _grids(settings)
    notes = _check_names(grids, known)
    if small := [path.stem for path in paths if full and not larger[path]]:
        notes.append(f"no full set in {', '.join(small)}: run as always")
    wanted = [(path, _values(path, known[path], grid)) for grid in grids for path in paths]
    asked = sum(math.prod(map(len, values.values())) for _, values in wanted)
    if asked > limit:
        raise ValueError(
            f"these settings ask for {asked} runs; to start more than {limit}, give --yes"
        )
    requests = {}  # each once
    for path, values in wanted:
        for chosen in itertools.product(*values.values()):
            given = larger[path] | dict(zip(values, chosen, strict=True))
            requests[_json([str(path), given])] = path, given
    models = list(dict.fromkeys(given.get("MODEL") for _, given in requests.values()))
    ordered = sorted(requests.values(), key=lambda request: models.index(request[1].get("MODEL")))
    return list(_identify(ordered, resumable)), notes


def _grids(settings: Mapping[str, Any]) -> list[dict[str, list[str]]]:
    """Models and seeds, and each mapping of `parameters`, as grids of texts; MODEL outermost."""
    shared = {
        name: settings[key]
        for key, name in (("models", "MODEL"), ("seeds", "SEED"))
        if key in settings
    }
    mappings = settings.get("parameters", {})
    mappings = mappings if isinstance(mappings, list) else [mappings]
    if not mappings or not all(isinstance(mapping, dict) for mapping in mappings):
        raise ValueError("parameters is a mapping of names to values, or a list of such mappings")
    if twice := [name for mapping in mappings for name in mapping if name in shared]:
        raise ValueError(f"{twice[0]} is given twice, in parameters and as models or seeds")
    names = {"MODEL": "models", "SEED": "seeds"}
    return [
        {
            name: [_text(name, value) for value in _several(names.get(name, name), values)]
            for name, values in (shared | mapping).items()
        }
        for mapping in mappings
    ]


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


def _check_names(
    grids: Sequence[Mapping[str, Any]], known: Mapping[Path, Mapping[str, Any]]
) -> list[str]:
    """Notes on the notebooks that lack a parameter; ValueError where all do."""
    notes = []
    every = {name for found in known.values() for name in found}
    for name in dict.fromkeys(name for grid in grids for name in grid):
        if name not in every:
            close = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(every))}"
            raise ValueError(f"no chosen notebook has a parameter {name}; {hint}")
        if without := [path.stem for path, found in known.items() if name not in found]:
            notes.append(f"{name} is not a parameter of {', '.join(without)}: left alone there")
    return notes


def full_values(path: Path, known: Mapping[str, parameters.Parameter]) -> dict[str, Any]:
    """The values at full scale of the parameters whose comments name one."""
    named = {name: [p.full] for name, p in known.items() if p.full is not None}
    return {name: value for name, (value,) in _values(path, known, named).items()}


def _values(
    path: Path, known: Mapping[str, parameters.Parameter], grid: Mapping[str, list[str]]
) -> dict[str, list[Any]]:
    """The values, each once, of the grid's parameters that this notebook has."""
    try:
        return {
            name: list({t: parameters.convert(known[name], t) for t in texts}.values())
            for name, texts in grid.items()
            if name in known
        }
    except ValueError as error:
        hint = "; one list for each run, so write [[1, 2]]" if "of type list" in str(error) else ""
        raise ValueError(f"{path.stem}: {error}{hint}") from None


def _identify(requests: Sequence[tuple[Path, dict[str, Any]]], resumable: bool) -> Iterator[Job]:
    """Each request with all that its result depends on."""
    code = {"code": provenance.code()} if resumable else {}
    defaults = {path: parameters.all_values(path, {}) for path, _ in requests}
    cells = {path: provenance.cells(path) for path in defaults}
    values = [defaults[path] | given for path, given in requests]
    weights = _weights([v["MODEL"] for v in values if isinstance(v.get("MODEL"), str)])
    packages = {
        name: version.split("+")[0]  # the build, such as +cpu, is the machine's affair
        for name, version in provenance.versions().items()
        if name != "plotly"  # draws the numbers and does not change them
    }
    for (path, given), own in zip(requests, values, strict=True):
        inputs = {"notebook": path.stem, "cells": cells[path], **code, "packages": packages}
        if isinstance(own.get("MODEL"), str):
            inputs["weights"] = weights[own["MODEL"]]
            own = own | {"MODEL": model_name(own["MODEL"])}
        yield Job(path, given, inputs | {"parameters": own})


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

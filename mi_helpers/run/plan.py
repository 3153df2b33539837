"""What is to run: settings, their grid, and the identity of each run.

Settings are a YAML file, or the same on the command line:

    notebooks: [00_tour, 03]          # names, beginnings of names or paths; all if left out
    models: [smollm2-135m, ./out/d*]  # given as MODEL; * and ? match directories
    seeds: [0, 1, 2]                  # given as SEED
    parameters:                       # every combination of the values
      N_PROMPTS: [4, 8]

Paths are relative to the file. A notebook without a parameter of that name runs without it, once.
"""

import difflib
import glob
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claims import model_name
from . import execute, parameters, provenance

KEYS = ("notebooks", "models", "seeds", "parameters")


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
    def folder(self) -> str:
        """The name of this run's folder."""
        model = self.inputs["parameters"].get("MODEL")
        parts = [self.path.stem, model if isinstance(model, str) else "", self.identity[:16]]
        return "-".join(re.sub(r"[^\w.@=-]+", "--", part) for part in parts if part)

    def __str__(self) -> str:
        """What was asked for. A run of the same and another identity replaces it."""
        own = self.inputs["parameters"]
        return " ".join([self.path.stem, *(f"{name}={own[name]}" for name in self.given)])


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, with its paths made absolute; ValueError says what is wrong."""
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"the sweep's settings cannot be read from {file}: {why}") from error
    if not isinstance(settings, dict) or not set(settings) <= set(KEYS):
        raise ValueError(f"{file} is a mapping with keys among {', '.join(KEYS)}, got {settings}")
    return resolve(settings, file.parent)


def resolve(settings: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The settings with models and notebooks that are paths relative to `base` made absolute."""
    found = dict(settings)
    if "models" in found:
        models = _several(found["models"])
        found["models"] = [path for name in models for path in _models(str(name), base)]
    if "notebooks" in found:  # YAML reads 03 as a number
        names = (f"{n:02d}" if isinstance(n, int) else n for n in _several(found["notebooks"]))
        found["notebooks"] = [
            str((base / n).resolve()) if (base / n).is_file() else n for n in names
        ]
    return found


def _models(name: str, base: Path) -> list[str]:
    """A model's name as it is, or the directories that a path or pattern stands for."""
    path = base / Path(name).expanduser()  # an absolute one stays as it is
    if not re.search(r"[*?\[]", name):
        return [str(path.resolve())] if path.is_dir() else [name]
    found = [Path(p) for p in glob.glob(str(path)) if (Path(p) / "config.json").is_file()]
    if not found:
        raise ValueError(f"models: no directory of weights matches {name!r} in {base}")
    return [str(p.resolve()) for p in sorted(found, key=lambda p: natural(p.name))]


def natural(text: str) -> tuple[Any, ...]:
    """A key that sorts d16 before d128: texts and numbers in turn."""
    return tuple(int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", text)))


def make(
    settings: Mapping[str, Any], root: Path, *, full: bool = False, resumable: bool = True
) -> tuple[list[Job], list[str]]:
    """The runs that settings ask for, each once, those of one model together; and notes.

    Models are fetched where they are not on this machine, since their weights are part of the
    identity.

    Args:
        full: whether parameters that are not given take their value at full scale.
        resumable: whether the identity has the package's code in it.

    Raises:
        ValueError: an unknown notebook or parameter, a value of another type, two models of one
            name, no run at all; before any model is fetched.
        OSError: a model that cannot be had.
    """
    known = {
        path: parameters.read(path) for path in execute.find(settings.get("notebooks", ()), root)
    }
    grid = _grid(settings)
    notes, requests = _check_names(grid, known), {}
    for path, own in known.items():
        larger = {n: p.full for n, p in own.items() if full and p.full is not None}
        if full and not larger:
            notes.append(f"no full set in {path.stem}: run as always")
        asked = {name: values for name, values in grid.items() if name in own}
        axes = {n: [parameters.convert(own[n], v) for v in vs] for n, vs in asked.items()}
        for chosen in itertools.product(*axes.values()):
            given = larger | dict(zip(axes, chosen, strict=True))
            requests[_json([str(path), given])] = path, given
    if not requests:
        raise ValueError("these settings ask for no run: one of their lists is empty")
    models = list(dict.fromkeys(given.get("MODEL") for _, given in requests.values()))
    ordered = sorted(requests.values(), key=lambda request: models.index(request[1].get("MODEL")))
    return _identify(ordered, known, resumable), notes


def _grid(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each parameter that settings give; MODEL outermost."""
    shared = {"MODEL": settings.get("models"), "SEED": settings.get("seeds")}
    shared = {name: values for name, values in shared.items() if values is not None}
    more = settings.get("parameters", {})
    if not isinstance(more, Mapping):
        raise ValueError(f"parameters is a mapping of names to values, got {more!r}")
    if twice := set(shared) & set(more):
        raise ValueError(f"{min(twice)} is given twice, in parameters and as models or seeds")
    return {name: _several(values) for name, values in (shared | dict(more)).items()}


def _several(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _check_names(grid: Mapping[str, Any], known: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Notes on the notebooks that lack a parameter; ValueError where all do."""
    notes = []
    every = {name for found in known.values() for name in found}
    for name in grid:
        if name not in every:
            close = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(every))}"
            raise ValueError(f"no chosen notebook has a parameter {name}; {hint}")
        if without := [path.stem for path, found in known.items() if name not in found]:
            notes.append(f"{name} is not a parameter of {', '.join(without)}: left alone there")
    return notes


def _identify(
    requests: Sequence[tuple[Path, dict[str, Any]]],
    known: Mapping[Path, Mapping[str, parameters.Parameter]],
    resumable: bool,
) -> list[Job]:
    """Each request with all that its result depends on."""
    defaults = {path: {name: p.default for name, p in own.items()} for path, own in known.items()}
    cells = {path: provenance.cells(path) for path in known}
    weights = _weights([(defaults[path] | given).get("MODEL") for path, given in requests])
    shared: dict[str, Any] = {"code": provenance.code()} if resumable else {}
    shared["packages"] = {
        name: version.split("+")[0]  # the build, such as +cpu, is the machine's affair
        for name, version in provenance.versions().items()
        if name != "plotly"  # draws the numbers and does not change them
    }
    jobs = []
    for path, given in requests:
        own = defaults[path] | given
        inputs: dict[str, Any] = {"notebook": path.stem, "cells": cells[path], **shared}
        if isinstance(model := own.get("MODEL"), str):
            inputs["weights"] = weights[model]
            own["MODEL"] = model_name(model)
        jobs.append(Job(path, given, inputs | {"parameters": own}))
    return jobs


def _weights(models: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Fetch each model once and say what tells its weights from others."""
    from ..models import fetch

    by_name: dict[str, str] = {}
    for model in dict.fromkeys(model for model in models if isinstance(model, str)):
        if (other := by_name.setdefault(model_name(model), model)) != model:
            raise ValueError(f"two models are called {model_name(model)!r}: {other} and {model}")
    for model in by_name.values():
        fetch(model)
    return {model: provenance.weights(model) for model in by_name.values()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

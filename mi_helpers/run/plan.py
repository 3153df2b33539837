"""What is to run: notebooks, every combination of parameters, and the identity of each run.

A notebook without one of the parameters runs without it, once.
"""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claims import model_name
from . import parameters, provenance
from .parameters import Parameter

LAST = "10"  # the last notebook of the default run: the main topics; further works are asked for
PATHS = ("MODEL", "PROMPTS", "SAES")  # parameters that may be a path


@dataclass
class Job:
    """One run of a notebook.

    Attributes:
        asked: the parameters that were named, and `full`.
        given: the parameters that the notebook gets.
        inputs: all that the result depends on.
    """

    path: Path
    asked: dict[str, Any]
    given: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def identity(self) -> str:
        """The hash of notebook, code, package versions, parameters and weights."""
        text = json.dumps(self.inputs, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Its folder's name, which follows what was asked for: a later identity replaces it."""
        model = self.inputs["parameters"].get("MODEL", "")
        asked = hashlib.sha256(str(self).encode()).hexdigest()[:12]
        parts = filter(None, [self.path.stem, str(model), asked])
        return "-".join(re.sub(r"[^\w.@=-]+", "--", part) for part in parts)

    def __str__(self) -> str:
        asked = (f"{name}={value}" for name, value in self.asked.items())
        return " ".join([self.path.stem, *asked])


def find_root() -> Path:
    """The nearest folder upwards that has `notebooks/`, else the one this package lies in."""
    here, package = Path.cwd(), Path(__file__).resolve().parents[2]
    return next((p for p in (here, *here.parents, package) if (p / "notebooks").is_dir()), here)


def find(names: Sequence[str], root: Path) -> list[Path]:
    """The notebooks of these names, beginnings of names or paths.

    For none, those of `notebooks/` numbered up to `LAST`; for "all", all.
    """
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if list(names) == ["all"]:
        return list(known.values())
    names = names or [stem for stem in known if stem[:2] <= LAST]
    return list(dict.fromkeys(_find_one(name, known) for name in names))


def _find_one(name: str, known: Mapping[str, Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    matches = [name] if name in known else [stem for stem in known if stem.startswith(name)]
    if len(matches) != 1:
        fault = "several notebooks begin with" if matches else "no notebook is called"
        raise ValueError(f"{fault} {name!r}; there are {', '.join(matches or known) or 'none'}")
    return known[matches[0]]


def natural(text: str) -> tuple[Any, ...]:
    """A key that sorts d16 before d128: texts and numbers in turn."""
    return tuple(int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", text)))


def make(
    names: Sequence[str], grid: Mapping[str, Any], root: Path, *, full: bool = False
) -> tuple[list[Job], list[str]]:
    """The runs that are asked for, each once; and notes.

    Models are fetched where they are not on this machine, since their weights are part of the
    identity.

    Args:
        names: of notebooks, as for `find`.
        grid: the values of parameters, each a list or one value, texts as on the command line.
        full: whether parameters that are not given take their value at full scale.

    Raises:
        ValueError: an unknown notebook or parameter, a value of another type, two models of one
            name, no run at all; before any model is fetched.
        OSError: a model that cannot be had.
    """
    known = {path: parameters.read(path) for path in find(names, root)}
    every = sorted({name for own in known.values() for name in own})
    for name in grid:
        if name not in every:
            fault = f"no chosen notebook has a parameter {name}"
            raise ValueError(f"{fault}; known: {', '.join(every)}")
    jobs, notes = [], []
    for path, own in known.items():
        if without := [name for name in grid if name not in own]:
            notes.append(f"{path.stem} has no parameter {', '.join(without)}: it runs without")
        larger = {n: p.full for n, p in own.items() if full and p.full is not None}
        if full and not larger:
            notes.append(f"no full set in {path.stem}: run as always")
        axes = {n: _values(own[n], values) for n, values in grid.items() if n in own}
        for chosen in itertools.product(*axes.values()):
            asked = dict(zip(axes, chosen, strict=True))
            defaults = {name: parameter.default for name, parameter in own.items()}
            inputs = {"notebook": path.stem, "parameters": defaults | larger | asked}
            jobs.append(
                Job(path, asked | {"full": True} if larger else asked, larger | asked, inputs)
            )
    if not jobs:
        raise ValueError("this asks for no run: there is no notebook, or a parameter has no value")
    _identify(jobs)
    return list({job.name: job for job in jobs}.values()), notes


def _values(parameter: Parameter, values: Any) -> list[Any]:
    """The values asked for of a parameter, in its own type.

    Paths become absolute, since a notebook runs in its own folder; patterns match several.
    """
    several = values if isinstance(values, list) else [values]
    if parameter.name in PATHS:
        several = [path for text in several for path in _paths(str(text))]
    return [parameters.convert(parameter, value) for value in several]


def _paths(text: str) -> list[str]:
    """The absolute paths that a path or pattern stands for; any other text as it is."""
    found = sorted(glob.glob(os.path.expanduser(text)), key=natural)
    if not found and re.search(r"^[./~]|[*?]", text):
        raise ValueError(f"there is no {text}")
    return [os.path.abspath(path) for path in found] or [text]


def _identify(jobs: Sequence[Job]) -> None:
    """Fetch the models of jobs, and fill in what else their results depend on.

    A model is from here on known by its short name.
    """
    names = [job.inputs["parameters"].get("MODEL") for job in jobs]
    models = dict.fromkeys(name for name in names if isinstance(name, str))
    if len({model_name(model) for model in models}) < len(models):
        raise ValueError(f"two models have one name: {', '.join(sorted(models))}")
    weights = {model: provenance.weights(model) for model in models}
    cells = {path: provenance.cells(path) for path in {job.path for job in jobs}}
    code, packages = provenance.code(), provenance.versions()
    for job, name in zip(jobs, names, strict=True):
        job.inputs.update(cells=cells[job.path], code=code, packages=packages)
        if name in weights:
            job.inputs["weights"] = weights[name]
            for own in (job.asked, job.inputs["parameters"]):
                own.update({"MODEL": model_name(name)} if "MODEL" in own else {})

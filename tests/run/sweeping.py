"""Small collections for the tests of sweeps: notebooks that need no model and run in a moment."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, writes

from mi_helpers import claims
from mi_helpers.run import execute as notebooks
from mi_helpers.run import parameters

PARAMETERS = "SEED = 0  # of the numbers\nN = 3  # numbers"
CHECK = """import random
from mi_helpers import claims, stats
claims.start("00_toy", model="toy", seed=SEED)
draw = random.Random(f"{SEED} {N}").random
values = [draw() for _ in range(N)]
claims.claim(
    "00.mean", says="The <b>mean</b> is large", source="Wang et al. 2022, section 1",
    value=stats.estimate(values), rule=claims.above(0.5),
)"""
MODEL = 'MODEL = "a"  # a directory\nSEED = 0  # unused'


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook of a title, the parameters cell and code cells."""
    cells = [new_markdown_cell("# A title", id="title")]
    cells += [new_code_cell(text, id=f"cell-{n}") for n, text in enumerate(sources)]
    cells[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writes(new_notebook(cells=cells)))
    return path


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    """A directory that counts as a model, as long as nobody loads it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def record(id: str, **changes: Any) -> claims.Record:
    """A claim that holds, with changes."""
    base = {
        "id": id, "notebook": f"{id[:2]}_topic", "model": "toy", "says": f"{id} is so",
        "source": "Wang et al. 2022, section 1", "kind": "replication", "value": 1.0, "low": None,
        "high": None, "n": None, "unit": "", "rule": "> 0.5", "null": None, "verdict": "holds",
        "why": None, "seed": 0,
    }  # fmt: skip
    return claims.Record(**{**base, **changes})  # type: ignore[typeddict-item]


class Executor:
    """Stands in for `notebooks.execute`: writes what papermill would leave, without a kernel.

    The claim's value is SEED + N, and it holds where that is even. Notebooks that have "bad" in
    their name fail where SEED is 0, or always with `cured` False.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.cured = False
        self.says = "The <b>sum</b> is even & small"
        patch.setattr(notebooks, "execute", self)

    def __call__(
        self,
        path: Path,
        folder: Path,
        given: Mapping[str, Any],
        seconds: float,
        environment: Mapping[str, str],
        on_cell: Callable[[int], None],
    ) -> dict[str, Any]:
        values = {name: p.default for name, p in parameters.read(path).items()} | dict(given)
        self.calls.append(f"{path.stem} {values['SEED']}")
        bad = "bad" in path.stem and values["SEED"] == 0 and not self.cured
        out = new_output("error", ename="ValueError", evalue="no", traceback=[])
        cell = new_code_cell("1", id="one", outputs=[out] if bad else [])
        (folder / notebooks.OUTPUT).write_text(writes(new_notebook(cells=[cell])))
        return {
            "error": "cell 1 of 1: ValueError: no" if bad else None,
            "traceback": "line 1\nno" if bad else None,
            "seconds": 0.01,
            "records": [] if bad else [self.record(path.stem, values)],
        }

    def record(self, notebook: str, values: Mapping[str, Any]) -> claims.Record:
        value = float(values["SEED"] + values.get("N", 0))
        return record(
            f"{notebook[:2]}.sum",
            notebook=notebook,
            model=claims.model_name(values.get("MODEL", "toy")),
            says=self.says,
            value=value,
            low=value - 1,
            high=value + 1,
            n=9,
            verdict="does not hold" if value % 2 else "holds",
            seed=values["SEED"],
        )

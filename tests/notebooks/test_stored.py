"""Each notebook, executed as it is stored, says again what is stored; its solutions run after it.

Every third notebook, another third each day, runs with the rounding of another processor: torch
with vectors of another width. `make test-portable` runs all without vectors, which takes three
times as long, and with other matrix kernels.
"""

import time
from pathlib import Path

import nbformat
import pytest

from mi_helpers.run import execute, sweep
from tests.notebooks.listing import FINISHED, FOLDER, Listed
from tests.notebooks.stored import changed_claims, differences, with_solutions
from tests.test_arithmetic import OTHER_WIDTH

MINUTES = 60  # without vectors, and beside other work, one took fifty


def on_another_processor(day: int) -> list[Listed]:
    """The third of the notebooks whose turn it is."""
    return list(FINISHED[day % 3 :: 3])


@pytest.mark.parametrize("listed", FINISHED, ids=lambda listed: listed.name)
def test_a_notebook_says_again_what_is_stored(
    listed: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if listed in on_another_processor(time.gmtime().tm_yday):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", OTHER_WIDTH)  # the kernel inherits it
    stored = nbformat.read(listed.path, as_version=4)
    path = tmp_path / listed.path.name
    nbformat.write(with_solutions(nbformat.read(listed.path, as_version=4)), path)
    outcome = execute.execute(path, tmp_path, {}, seconds=60 * MINUTES)
    assert outcome["error"] is None, outcome["traceback"]
    model = listed.model.replace("/", "--")
    file = FOLDER.parent / "papermill_runs" / "reference" / model / path.with_suffix(".json").name
    reference = sweep.read_run(file)["records"]
    lines = changed_claims(reference, outcome["records"])
    lines += differences(stored, nbformat.read(tmp_path / execute.OUTPUT, as_version=4))
    assert not lines, "\n".join(lines)


def test_every_notebook_has_its_turn_on_another_processor() -> None:
    turns = [one.name for day in range(3) for one in on_another_processor(day)]
    assert sorted(turns) == [one.name for one in FINISHED]

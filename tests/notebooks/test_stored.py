"""Each notebook, executed as it is stored, says again what is stored; its solutions run after it.

Half of the notebooks have their turn on one day, the other half on the next: each takes minutes.
`--exhaustive` executes all. Of those in turn a third, another one each time, runs with the
rounding of another processor: torch with vectors of another width. `make test-portable` runs all
without vectors, which takes three times as long, and with other matrix kernels.
"""

import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from mi_helpers.run import execute, sweep
from tests.notebooks.listing import FINISHED, FOLDER, Listed
from tests.notebooks.stored import changed_claims, differences, with_solutions
from tests.test_arithmetic import OTHER_WIDTH

MINUTES = 60  # without vectors, and beside other work, one took fifty


def in_turn(day: int) -> list[Listed]:
    """The notebooks that are executed on this day."""
    return list(FINISHED[day % 2 :: 2])


def on_another_processor(day: int) -> list[Listed]:
    """The third of them that runs with vectors of another width."""
    return in_turn(day)[day // 2 % 3 :: 3]


@pytest.mark.parametrize("listed", FINISHED, ids=lambda listed: listed.name)
def test_a_notebook_says_again_what_is_stored(
    listed: Listed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    day = int(time.time() // 86_400)
    if not (listed in in_turn(day) or pytestconfig.getoption("exhaustive")):
        pytest.skip("its turn is tomorrow; --exhaustive executes all")
    if listed in on_another_processor(day):
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


@pytest.mark.parametrize(("turn", "days"), [(in_turn, 2), (on_another_processor, 6)])
def test_every_notebook_has_its_turn(turn: Callable[[int], list[Listed]], days: int) -> None:
    for first in range(days):
        names = [one.name for day in range(first, first + days) for one in turn(day)]
        assert sorted(names) == [one.name for one in FINISHED]

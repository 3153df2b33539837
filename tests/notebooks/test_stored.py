"""Each notebook, executed as it is stored, says again what is stored; its solutions run after it.

`MI_NOTEBOOKS=2/3` leaves all but the second third of the notebooks out; `today/3` takes the third
whose turn it is by the day of the year.
"""

import os
import time
from pathlib import Path

import nbformat
import pytest

from mi_helpers.run import execute, sweep
from tests.notebooks.listing import FINISHED, FOLDER, Listed
from tests.notebooks.stored import changed_claims, differences, with_solutions

MINUTES = 20


def part(wanted: str, day: int) -> list[Listed]:
    """Every notebook for "", else every n-th, from the k-th on, for "k/n"."""
    if not wanted:
        return list(FINISHED)
    which, n = wanted.split("/")
    first = day if which == "today" else int(which) - 1
    return list(FINISHED[first % int(n) :: int(n)])


@pytest.mark.parametrize(
    "listed",
    part(os.environ.get("MI_NOTEBOOKS", ""), time.gmtime().tm_yday),
    ids=lambda listed: listed.name,
)
def test_a_notebook_says_again_what_is_stored(listed: Listed, tmp_path: Path) -> None:
    stored = nbformat.read(listed.path, as_version=4)
    path, output = tmp_path / listed.path.name, tmp_path / "executed.ipynb"
    nbformat.write(with_solutions(nbformat.read(listed.path, as_version=4)), path)
    claims, log = tmp_path / "claims.jsonl", tmp_path / "log"
    outcome = execute.execute(path, output, {}, seconds=60 * MINUTES, claims=claims, log=log)
    assert outcome.error is None, execute.traceback(output, log)
    model = listed.model.replace("/", "--")
    file = FOLDER.parent / "papermill_runs" / "reference" / model / path.with_suffix(".json").name
    reference = sweep.read_run(file)["records"]
    lines = changed_claims(reference, sweep.read_lines(claims))
    lines += differences(stored, nbformat.read(output, as_version=4))
    assert not lines, "\n".join(lines)


def test_the_parts_cover_all_notebooks() -> None:
    days = [part("today/3", day) for day in range(3)]
    assert sorted(one.name for day in days for one in day) == [one.name for one in FINISHED]
    assert part("1/3", 5) == days[0]

"""Every notebook keeps every policy, is listed, and stores what the reference scorecard says."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

from mi_helpers.claims import VERDICTS, verdict
from mi_helpers.run import parameters, sweep
from tests.notebooks.listing import FINISHED, FOLDER, NOTEBOOKS, Listed
from tests.notebooks.policies import POLICIES, Policy

MARKS = [f"{mark} {word}" for word, (mark, _) in VERDICTS.items()]
LINKS = runpy.run_path(str(FOLDER.parent / "docs" / "links.py"))
ROW = re.compile(rf"^({'|'.join(map(re.escape, MARKS))})  (\d\d\.[a-z0-9-]+)", re.MULTILINE)


def unlisted(folder: Path, names: list[str]) -> list[str]:
    """Notebooks that are only in the folder or only in the list."""
    return sorted({path.stem for path in folder.glob("*.ipynb")} ^ set(names))


def test_the_list_names_every_notebook_and_no_other() -> None:
    assert unlisted(FOLDER, [listed.name for listed in NOTEBOOKS]) == []


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("listed", FINISHED, ids=lambda listed: listed.name)
def test_policy(listed: Listed, policy: Policy) -> None:
    notebook = nbformat.read(listed.path, as_version=nbformat.NO_CONVERT)
    assert list(policy(notebook, listed.name)) == [], policy.__doc__


def test_each_notebook_leads_on_and_says_what_it_needs_alone() -> None:
    """`python docs/links.py` writes both cells; the links lead to files of this repository."""
    last = LINKS["following"]()
    assert set(last) == {listed.name for listed in NOTEBOOKS}
    for listed in NOTEBOOKS:
        cells = nbformat.read(listed.path, as_version=4).cells
        assert (cells[1].source, cells[-1].source) == (LINKS["ALONE"], last[listed.name])
        for address in re.findall(r"\]\(([^)#]+)", cells[-1].source):
            built = address.startswith("../papermill_runs/book/")
            assert built or (FOLDER / address).is_file(), address


def test_the_readme_shows_the_tour_as_it_is_stored() -> None:
    assert LINKS["PICTURE"].read_bytes() == LINKS["picture"]()


@pytest.mark.parametrize("listed", FINISHED, ids=lambda listed: listed.name)
def test_the_stored_claims_are_those_of_the_reference(listed: Listed) -> None:
    """`mi render` writes both; a difference means that one was changed alone."""
    tables = [
        out.data["text/plain"]
        for cell in nbformat.read(listed.path, as_version=4).cells
        for out in cell.get("outputs", [])
        if "mi-claims" in out.get("data", {}).get("text/html", "")
    ]
    shown = {id: words for words, id in ROW.findall("\n".join(tables))}
    model = listed.model.replace("/", "--")
    file = FOLDER.parent / "papermill_runs" / "reference" / model / f"{listed.name}.json"
    expected = {record["id"]: verdict(record) for record in sweep.read_run(file)["records"]}
    assert shown == expected
    assert listed.model_free <= set(expected)


@pytest.mark.parametrize("listed", NOTEBOOKS, ids=lambda listed: listed.name)
def test_a_full_value_can_be_read_and_is_not_the_default(listed: Listed) -> None:
    known = parameters.read(listed.path)
    larger = [p for p in known.values() if p.full is not None]
    assert all(p.full != p.default for p in larger)
    named = listed.path.read_text(encoding="utf-8").count("; full: ")
    assert len(larger) == named


@pytest.mark.parametrize("listed", NOTEBOOKS, ids=lambda listed: listed.name)
def test_a_draft_is_named_as_one(listed: Listed) -> None:
    """In its title, so that nobody takes it for a result, and never with outputs that are old."""
    notebook = nbformat.read(listed.path, as_version=4)
    assert ("(draft)" in notebook.cells[0].source.splitlines()[0]) == bool(listed.draft)
    assert not (listed.draft and any(cell.get("outputs") for cell in notebook.cells))

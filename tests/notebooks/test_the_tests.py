"""The tests of notebooks find what they are for: each is shown a notebook with that fault."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import NbCellError

from mi_helpers.run import sweep
from mi_helpers.run.render import PLOTLY
from tests.notebooks import stored
from tests.notebooks.policies import POLICIES
from tests.notebooks.stored import StoredCell, StoredNotebook, settle
from tests.notebooks.test_policies import unlisted
from tests.run.sweeping import record

NAME = "00_example"
PARAMETERS = """MODEL = "smollm2-135m"  # any model
SEED = 0  # of the prompts
# which layers
LAYERS = [
    1, 2,
]"""
CHECK = """import mi_helpers as mi
mi.claims.start("00_example", model=MODEL, seed=SEED)
mi.claim("00.x")"""


def figure(**data: str) -> NotebookNode:
    json = {"data": [{"type": "heatmap"}], "layout": {"title": {"text": "Effect"}}}
    return new_output("display_data", data={PLOTLY: json, **data})


def good() -> NotebookNode:
    """A notebook that keeps every policy."""
    table = {"text/html": '<table class="mi-claims">', "text/plain": "✔ holds  00.x"}
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# A title\n\nA question."),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_code_cell(CHECK, outputs=[figure(**{"image/png": "/tmp/x"})]),
            new_code_cell("mi.claims.table()", outputs=[new_output("display_data", data=table)]),
            new_markdown_cell("<details>the answer</details>"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    for count, cell in enumerate(notebook.cells[1:4], 1):
        cell.execution_count = count
    return notebook


def set_source(index: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].update(source=source)


def add_source(index: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].update(
        source=notebook.cells[index].source + "\n" + source
    )


def set_outputs(*outputs: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[2].update(outputs=list(outputs))


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


FAULTS: list[tuple[str, Callable[[NotebookNode], object]]] = [
    ("valid", lambda nb: nb.cells[1].update(id=nb.cells[2].id)),
    ("valid", lambda nb: nb.update(nbformat_minor=4)),
    ("small", set_outputs(stream("x" * 1_500_000))),
    ("titled", set_source(0, "A title")),
    ("titled", set_source(0, "# A title and no more")),
    ("parametrised", lambda nb: nb.cells[1].metadata.clear()),
    ("parametrised", lambda nb: nb.cells[3].metadata.update(tags=["parameters"])),
    ("parametrised", add_source(1, "MORE = 3")),
    ("parametrised", add_source(1, "MORE = SEED + 1  # computed")),
    ("parametrised", add_source(1, "print(SEED)  # not an assignment")),
    ("executed", lambda nb: nb.cells[2].update(execution_count=None)),
    ("executed", lambda nb: nb.cells[3].update(execution_count=7)),
    ("executed", add_source(2, "# NBVAL_SKIP")),
    ("error_free", set_outputs(new_output("error", ename="E", evalue="", traceback=[]))),
    ("pictured", set_outputs(figure())),
    ("placeless", set_outputs(stream("/home/someone/file"))),
    ("placeless", set_outputs(stream("in '/Users/someone/file'"))),
    ("placeless", add_source(2, "open('/root/file')")),
    ("clean", set_outputs(stream("100%", "stderr"))),
    ("clean", lambda nb: nb.metadata.update(papermill={})),
    ("clean", lambda nb: nb.cells[2].metadata.update(execution={})),
    ("clean", lambda nb: nb.metadata.kernelspec.update(name="my-env")),
    ("short", add_source(2, "\n" * 23 + "1")),
    ("paced", add_source(2, "x = 1\n" * 15)),
    ("set_up", set_source(2, CHECK.replace("import mi_helpers as mi", "import mi_helpers"))),
    ("set_up", add_source(2, "from mi_helpers import plots")),
    ("set_up", add_source(2, "%pip install torch==2.13.0")),
    ("set_up", add_source(2, "import sys; sys.path.append('..')")),
    ("scored", set_source(2, CHECK.replace("00_example", "00_other"))),
    ("scored", set_source(3, "1")),
    ("scored", lambda nb: nb.cells[3].update(outputs=[])),
    ("scored", set_source(2, "import mi_helpers as mi\nmi.claims.start('00_example')")),
    ("exercised", set_source(4, "no answer")),
]


def broken(notebook: NotebookNode) -> list[str]:
    return [policy.__name__ for policy in POLICIES if list(policy(notebook, NAME))]


def test_a_good_notebook_keeps_every_policy() -> None:
    assert broken(good()) == []


@pytest.mark.parametrize(("policy", "spoil"), FAULTS)
def test_each_fault_breaks_its_policy_and_no_other(
    policy: str, spoil: Callable[[NotebookNode], object]
) -> None:
    notebook = good()
    spoil(notebook)
    assert broken(notebook) == [policy]


def test_each_policy_is_shown_a_fault() -> None:
    assert {name for name, _ in FAULTS} == {policy.__name__ for policy in POLICIES}


def test_notebooks_and_their_list_must_agree(tmp_path: Path) -> None:
    (tmp_path / "00_there.ipynb").touch()
    (tmp_path / "01_new.ipynb").touch()
    assert unlisted(tmp_path, ["00_there", "01_new"]) == []
    assert unlisted(tmp_path, ["00_there"]) == ["01_new"]
    assert unlisted(tmp_path, ["00_there", "01_new", "02_gone"]) == ["02_gone"]


@pytest.mark.parametrize(
    ("new", "stored", "agree"),
    [
        ("loss 0.1234", "loss 0.1235", True),
        ("loss 0.1234", "loss 0.1334", False),
        ("0.9999 of 3", "1 of 3", True),
        ("4 layers", "5 layers", False),
        ("1.00e-03", "1.01e-03", True),
        ("-0.0001", "0.0001", True),
        ("-0.1", "0.1", False),
        ("a   1.5", "a 1.5", True),
        ("✔ holds 0.5", "✘ does not hold 0.5", False),
        ("0.5", "0.5 0.5", False),
    ],
)
def test_numbers_agree_within_one_percent_and_words_exactly(
    new: str, stored: str, agree: bool
) -> None:
    assert (settle(new, stored) == settle(stored, stored)) is agree


FIGURE = f"""from IPython.display import publish_display_data
json = {{"data": [{{"type": "heatmap", "z": [1]}}], "layout": {{"title": {{"text": "Effect"}}}}}}
publish_display_data({{{PLOTLY!r}: json}})"""
CELLS: list[tuple[str, list[NotebookNode], bool]] = [
    ("print('one 0.12345')", [stream("one 0.12346\n")], True),
    ("print('two')", [stream("three\n")], False),
    ("print('four')", [], False),
    ("1 / 0", [], False),
    (FIGURE, [figure(**{"image/png": "x"})], True),
    (FIGURE.replace("heatmap", "bar"), [figure()], False),
    (FIGURE.replace("Effect", "Cause"), [figure()], False),
    ("0", [figure()], False),
    ("import sys; print('warning', file=sys.stderr)", [], True),
    ("print('took 3.2 s')", [stream("took 95.1 s\n")], True),
    ("print('ignored', id(3))  \n# NBVAL_IGNORE_OUTPUT", [stream("ignored 1\n")], True),
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator:
    """The cells above as nbval collects them, in one running kernel."""
    path = tmp_path_factory.mktemp("stored") / "00_stored.ipynb"
    cells = [
        new_code_cell(source, outputs=outputs, execution_count=n)
        for n, (source, outputs, _) in enumerate(CELLS, 1)
    ]
    nbformat.write(new_notebook(cells=cells), path)
    notebook = StoredNotebook.from_parent(request.session, path=path)
    collected = list(notebook.collect())
    notebook.setup()
    yield collected
    notebook.teardown()


@pytest.mark.parametrize("index", range(len(CELLS)), ids=lambda i: f"{i}-{CELLS[i][2]}")
def test_nbval_compares_what_should_agree(cells: list[StoredCell], index: int) -> None:
    if CELLS[index][2]:
        cells[index].runtest()
    else:
        with pytest.raises(NbCellError):
            cells[index].runtest()


def test_a_flipped_claim_fails_after_the_last_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "notebooks/00_stored.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("1", execution_count=1)]), path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stored, "NOTEBOOKS", [SimpleNamespace(path=path, model="toy")])
    notebook = StoredNotebook.from_parent(request.session, path=path)
    *_, drift = notebook.collect()
    notebook.claims = tmp_path / "claims.jsonl"
    with pytest.raises(pytest.skip.Exception):
        drift.runtest()
    claim = record("00.a", notebook="00_stored")
    inputs = {"notebook": "00_stored", "parameters": {}}
    run = {"inputs": inputs, "error": None, "seconds": 1.0, "made_with": {}, "records": [claim]}
    file = tmp_path / "papermill_runs/reference/toy/00_stored.json"
    file.parent.mkdir(parents=True)
    file.write_text(sweep.to_json(run))
    notebook.claims.write_text(json.dumps(claim) + "\n")
    drift.runtest()
    notebook.claims.write_text(json.dumps({**claim, "verdict": "does not hold"}) + "\n")
    with pytest.raises(pytest.fail.Exception):
        drift.runtest()

"""The tests of notebooks find what they are for: each is shown a notebook with that fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mi_helpers.run import execute
from mi_helpers.run.execute import PLOTLY
from tests.notebooks.policies import POLICIES
from tests.notebooks.stored import changed_claims, differences, with_solutions
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
    ("now", "stored", "agree"),
    [
        ("loss 0.1234", "loss 0.1235", True),
        ("loss 12.34", "loss 13.34", False),
        ("0.9999 of 3", "1 of 3", True),
        ("4 layers", "5 layers", False),
        ("1.00e-03", "1.01e-03", True),
        ("-0.0001", "0.0001", True),
        ("-0.1", "0.1", False),
        ("a   1.5", "a 1.5", True),
        ("✔ holds 0.5", "✘ does not hold 0.5", False),
        ("0.5", "0.5 0.5", False),
        ("gain: 0.55 [0.3, 0.7] nats (6 seeds)", "gain: 0.5 [0.4, 0.6] nats (6 seeds)", True),
        ("gain: 0.65 [0.4, 0.6] nats (6 seeds)", "gain: 0.5 [0.4, 0.6] nats (6 seeds)", False),
        ("gain: 0.5 [0.4, 0.6] nats (7 seeds)", "gain: 0.5 [0.4, 0.6] nats (6 seeds)", False),
        ("gain: 0.5", "gain: 0.5 [0.4, 0.6]", False),
        ("took 3.2 s", "took 95.1 s", True),
        ("<object at 0x7f0001112>", "<object at 0x7f00022>", True),
    ],
)
def test_numbers_agree_within_the_tolerance_and_words_exactly(
    now: str, stored: str, agree: bool
) -> None:
    assert agrees([stream(stored)], [stream(now)]) is agree


def agrees(stored: list[NotebookNode], now: list[NotebookNode], *tags: str) -> bool:
    notebooks = [
        new_notebook(cells=[new_code_cell("1", outputs=outs, metadata={"tags": list(tags)})])
        for outs in (stored, now)
    ]
    return not list(differences(*notebooks))


def table(*heads: str, rows: int = 2) -> NotebookNode:
    head = "".join(f"<th>{head}</th>" for head in heads)
    page = f"<table><thead><tr>{head}</tr></thead>{rows * '<tr><td>1</td></tr>'}</table>"
    return new_output("display_data", data={"text/html": page, "text/plain": str(rows)})


def plot(kind: str = "heatmap", **layout: object) -> NotebookNode:
    title = {"title": {"text": "Effect"}}
    return new_output(
        "display_data", data={PLOTLY: {"data": [{"type": kind}], "layout": title | layout}}
    )


def test_figures_agree_by_traces_and_titles_and_tables_by_heads_and_rows() -> None:
    assert agrees([figure(**{"image/png": "x"})], [plot(width=3)])
    assert not agrees([plot()], [plot("bar")])
    assert not agrees([plot()], [plot(title={"text": "Cause"})])
    assert not agrees([plot()], [plot(xaxis={"title": {"text": "layer"}})])
    assert not agrees([plot()], [])
    assert not agrees([plot()], [stream("heatmap")])
    assert agrees([table("a", "b")], [table("a", "b")])
    assert not agrees([table("a", "b")], [table("a", "c")])
    assert not agrees([table("a", "b")], [table("a", "b", rows=3)])


def test_what_may_vary_is_not_compared() -> None:
    assert agrees([stream("one")], [stream("two")], "varies")
    assert agrees([], [stream("warning", "stderr")])
    assert agrees([stream("a"), stream("b")], [stream("ab")])


def test_a_claim_must_keep_its_verdict_and_its_interval() -> None:
    stored: Any = dict(record("00.a")) | {"value": 0.8, "low": 0.7, "high": 0.9, "n": 20}
    exact: Any = dict(record("00.b")) | {"value": 3.0, "low": None, "high": None, "n": None}
    assert changed_claims([stored, exact], [stored | {"value": 0.71}, exact]) == []
    moved: Any = stored | {"value": 0.5, "low": 0.4, "high": 0.6}
    assert changed_claims([stored], [moved])[0].startswith("moved")
    assert changed_claims([stored], [stored | {"verdict": "does not hold"}])[0].startswith("flip")
    near, off = (
        stored | {"verdict": "undecided", "low": low, "high": 0.905} for low in (0.691, 0.68)
    )
    assert changed_claims([stored], [near]) == []  # the limit is at 0.7, say
    assert changed_claims([stored], [off])[0].startswith("flip")
    assert changed_claims([exact], [exact | {"value": 3.2}])[0].startswith("moved")
    assert changed_claims([stored, exact], [stored])[0].startswith("missing")
    assert changed_claims([stored], [stored, exact])[0].startswith("new")


def test_folded_solutions_become_cells_at_the_end() -> None:
    text = "### 1\n<details><summary>s</summary>\n\n```python\nx = 1\n```\n</details>"
    notebook = new_notebook(cells=[new_markdown_cell(text + "\n```python\nnot this\n```")])
    assert [cell.source for cell in with_solutions(notebook).cells[1:]] == ["x = 1\n"]


SWALLOW = """import os
if not os.path.exists("swallowed"):
    open("swallowed", "w").close()
    session = get_ipython().kernel.session
    send = session.send

    def swallow(stream, kind, *more, **options):
        if kind == "execute_reply":
            session.send = send
        else:
            return send(stream, kind, *more, **options)

    session.send = swallow"""


def test_a_kernel_whose_reply_is_lost_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execute, "IDLE_S", 5)
    path = tmp_path / "00_lost.ipynb"
    cells = [new_code_cell("x = 3"), new_code_cell(SWALLOW), new_code_cell("print(x)")]
    nbformat.write(new_notebook(cells=cells), path)
    outcome = execute.execute(path, tmp_path, {}, seconds=120)
    assert outcome["error"] is None
    assert outcome["restarted"] == "the kernel fell silent in cell 2 of 3"
    assert "00_lost: the kernel fell silent" in capsys.readouterr().err
    assert nbformat.read(tmp_path / execute.OUTPUT, as_version=4).cells[2].outputs[0].text == "3\n"

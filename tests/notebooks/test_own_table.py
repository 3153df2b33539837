"""Notebook 01 on a user's own table: nothing but PROMPTS is another."""

from pathlib import Path

import nbformat
import pandas as pd

from mi_helpers.run import cli as runs
from mi_helpers.run import scorecard
from tests.notebooks.listing import FOLDER
from tests.notebooks.test_papermill import save_random

# Three lengths, both orders, answers of one to three tokens, two of which begin alike. Where S2
# stands, the corrupted prompt has another name of as many tokens.
LINES = [
    ("After {IO} and {S} left, {} gave a drink to", "Mary", "John", "Mary"),
    ("Last night {IO} and {S} met at school, and {} gave it to", "Ann Smith", "Ann Stone", "Ann W"),
    ("When {S} and {IO} went to the store together, {} gave a ring to", "Tom", "Kate", "Tom"),
    ("After {S} and {IO} left, {} gave a drink to", "Evangeline", "Peter", "Paul"),
]


def own_table(copies: int) -> pd.DataFrame:
    rows = []
    for text, io, s, other in LINES * copies:
        names = {"IO": io, "S": s}
        row = {"clean": text.format(s, **names), "corrupted": text.format(other, **names)}
        row |= {"answer": f" {io}", "wrong": f" {s}"}
        rows.append(row | {"role:IO": f"{io}", "role:S1": f"{s}#1", "role:S2": f"{s}#2"})
    return pd.DataFrame(rows)


def test_a_table_goes_through_the_whole_of_01(tmp_path: Path) -> None:
    own_table(2).to_csv(tmp_path / "own.csv", index=False)
    model = str(save_random("llama", tmp_path / "random-llama"))
    parameters = {"MODEL": model, "PROMPTS": str(tmp_path / "own.csv")}
    path = FOLDER / "01_activation_patching.ipynb"
    run = runs.run([str(path)], parameters, minutes=10, root=tmp_path)
    assert [found["error"] for *_, found in run.finished()] == [None]
    records = scorecard.collect([run.folder], tmp_path).records
    by_id = {record["id"]: record for record in records}
    for identity in ("01.by-hand", "01.path-by-hand"):  # hooks at each prompt's own END
        assert by_id[identity]["verdict"] == "holds"
    [executed] = run.folder.rglob(path.name)
    done = nbformat.read(executed, as_version=4)
    performance = next(
        c for c in done.cells if c.source.endswith("find.performance(model).round(2)")
    )
    shown = performance.outputs[0].data["text/html"]
    assert "first" in shown  # which token of an answer counts
    assert "<td>4</td>" in shown  # prompts, half of the lines

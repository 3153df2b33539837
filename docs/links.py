"""The two cells by which notebooks lead on, and the README's picture: python docs/links.py.

The second cell says how to install the package where a notebook is opened alone; the last one leads
to the next notebook, in the order of the README's tables, and to the notebook's page in the book.
The picture is the tour's heat map as it is stored.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ALONE = (
    "*Opened alone, for example in Colab? The package beneath comes with "
    '`%pip install "mi-helpers[notebooks] @ git+ADDRESS"`, where ADDRESS is that of the '
    'repository, or with `%pip install ".[notebooks]"` in a copy of it.*'
)
IDS = ("alone", "next")
PICTURE = ROOT / "notebooks" / "figures" / "tour_patch.png"
_ROW = re.compile(r"\| \[(\w+)\]\(notebooks/\w+\.ipynb\) \| (.*?) \| (.*?) \| (.*?) \|")


class Listed(NamedTuple):
    """A notebook's line in the README."""

    name: str
    question: str
    papers: str
    time: str


def parts() -> dict[str, list[Listed]]:
    """The README's parts, each with its notebooks in reading order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- notebooks -->")[1].split("<!-- /notebooks -->")[0]
    found: dict[str, list[Listed]] = {}
    for line in block.splitlines():
        if line.startswith("### "):
            found[line.removeprefix("### ")] = []
        elif row := _ROW.match(line):
            found[list(found)[-1]].append(Listed(*row.groups()))
    return found


def following() -> dict[str, str]:
    """Each notebook's last cell, by the notebook's name."""
    rows = [row for part in parts().values() for row in part]
    leads = [f"**Next:** [{row.name}]({row.name}.ipynb). {row.question}" for row in rows[1:]]
    leads.append("**All claims:** [the scorecard](../papermill_runs/reference/scorecard.md)")
    index, book = "[All notebooks](../README.md#notebooks)", "../papermill_runs/book/notebooks"
    return {
        row.name: f"---\n{lead}\n\n{index} · [this page in the book]({book}/{row.name}.html), "
        "where `make book` has built it"
        for row, lead in zip(rows, leads, strict=True)
    }


def linked(notebook: dict[str, Any], last: str) -> dict[str, Any]:
    """The notebook with its two cells anew, everything else as it was."""
    cells = [cell for cell in notebook["cells"] if cell["id"] not in IDS]
    first, end = (
        {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(True)}
        for name, text in zip(IDS, (ALONE, last), strict=True)
    )
    return notebook | {"cells": [cells[0], first, *cells[1:], end]}


def picture() -> bytes:
    """The tour's heat map, by the title that its cell gives it."""
    tour = json.loads((ROOT / "notebooks" / "00_tour.ipynb").read_text(encoding="utf-8"))
    (cell,) = (cell for cell in tour["cells"] if "Denoising the stream" in "".join(cell["source"]))
    (png,) = (out["data"]["image/png"] for out in cell["outputs"] if "image/png" in out["data"])
    return base64.b64decode("".join(png))


if __name__ == "__main__":
    PICTURE.write_bytes(picture())
    for name, last in following().items():
        path = ROOT / "notebooks" / f"{name}.ipynb"
        made = linked(json.loads(path.read_text(encoding="utf-8")), last)
        text = json.dumps(made, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

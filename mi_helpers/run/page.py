"""The scorecard as one HTML page, as Markdown, and as the summary in the README.

All three are Jinja2 templates in `assets/`. HTML is escaped as it is filled in. The page is one
file and takes nothing from the network: style, script and small pictures of the figures are in it.
"""

import base64
import functools
import html
import io
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from .. import claims
from . import scorecard
from .execute import PLOTLY
from .parameters import read_cells
from .scorecard import Entry, Executed, Table
from .sweep import to_json, write_atomic

PICTURES = 400  # at most, so that the page stays under some megabytes
SIZE, QUALITY = (360, 260), 60  # of a picture: pixels at most, of WebP out of 100
_ROW = re.compile(r"^(\| \[(\d\d_\w+)\]\(.*\| )[^|]*\|$", re.MULTILINE)
_BLOCK = re.compile(r"(?<=<!-- scorecard -->\n).*?(?=<!-- /scorecard -->)", re.DOTALL)


def html_page(table: Table, base: Path, title: str = "Which findings hold on which model") -> str:
    """The page; links to executed notebooks are relative to the folder `base`."""
    return _fill("scorecard.html", table, base, title=title, figures=list(_figures(table)))


def markdown(table: Table, base: Path) -> str:
    """Claims as rows, models as columns, notebook by notebook; links are relative to `base`."""
    return _fill("scorecard.md", table, base)


def write(table: Table, folder: Path) -> list[Path]:
    """Write scorecard.html, .md and .json into a folder; the files, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "scorecard.html": html_page(table, folder),
        "scorecard.md": markdown(table, folder),
        "scorecard.json": to_json(table.records),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]


def write_readme(root: Path) -> None:
    """Renew the README's summary of the references and its times, and their scorecard.md."""
    file, folder = root / "README.md", root / "papermill_runs" / "reference"
    text = file.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ValueError(f"{file} has no <!-- scorecard --> markers")
    table = scorecard.collect([folder], root)
    write_atomic(file, renewed(text, table))
    write_atomic(folder / "scorecard.md", markdown(table, folder))


def renewed(readme: str, table: Table) -> str:
    """The README with the summary of a scorecard, and in the last column of its tables of notebooks
    the minutes that each took; a notebook without a run keeps what stands there."""
    minutes = {run.notebook: max(1, round(run.seconds / 60)) for run in table.runs}

    def timed(row: re.Match[str]) -> str:
        return f"{row[1]}{minutes[row[2]]} min |" if row[2] in minutes else row[0]

    return _ROW.sub(timed, _BLOCK.sub(lambda _: _fill("readme.md", table, Path()), readme))


def _fill(name: str, table: Table, base: Path, **more: Any) -> str:
    notebooks = list(dict.fromkeys(record["notebook"] for record in table.claims.values()))
    template = templates().get_template(name)
    return template.render(table=table, base=base, notebooks=notebooks, **more)


@functools.cache
def templates() -> jinja2.Environment:
    """The templates, each compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "assets"),
        autoescape=lambda name: str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown = (claims.measured, claims.digits, scorecard.papers, scorecard.outcome)
    filters = (*shown, _plain, _link, _axis)
    environment.filters |= {each.__name__.lstrip("_"): each for each in filters}
    environment.globals |= {
        "marks": {word: mark for word, (mark, _) in claims.VERDICTS.items()},
        "counts": scorecard.counts,
        "tally": scorecard.tally,
    }
    return environment


def _plain(text: object) -> str:
    """A text for one cell of a Markdown table: in one line, without markup."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


@jinja2.pass_context
def _link(context: jinja2.runtime.Context, run: Executed) -> str | None:
    """The address of a run's executed notebook, from a page in the folder `base`."""
    if run.file is None:
        return None
    return quote(os.path.relpath(run.file, context["base"]).replace(os.sep, "/"))


def _axis(entries: Sequence[Entry]) -> tuple[float, float] | None:
    """The range of a row's values and intervals; None where there are no intervals."""
    records = [entry.record for entry in entries]
    numbers = [n for r in records for n in (r["value"], r["low"], r["high"]) if n is not None]
    if not any(r["low"] is not None for r in records) or min(numbers) == max(numbers):
        return None
    margin = 0.15 * (max(numbers) - min(numbers))
    return (min(numbers) - margin, max(numbers) + margin)


def _figures(table: Table) -> Iterator[tuple[str, list[Any]]]:
    """The figures of each notebook, models side by side, from the first seed of each."""
    first = {(r.notebook, r.column): r for r in reversed(table.runs) if r.records and r.file}
    share = PICTURES // max(1, len(first))
    ordered = sorted(first.values(), key=lambda run: run.order)
    for notebook, runs in groupby(ordered, key=lambda run: run.notebook):
        found = [
            [(run, *each) for each in thumbnails(run.file, run.file.stat().st_mtime_ns)[:share]]
            for run in runs
            if run.file
        ]
        strips = found if len(found) == 1 else list(zip_longest(*found))
        if any(strips):
            yield notebook, strips


@functools.cache  # a page is written anew every half a minute of a sweep
def thumbnails(notebook: Path, changed: int) -> list[tuple[str, str]]:
    """The title and a small picture, as a data address, of each static figure in a notebook, as it
    was `changed`."""
    from PIL import Image

    made = []
    for out in (out for cell in read_cells(notebook) for out in cell.get("outputs", [])):
        data = out.get("data", {})
        try:
            picture = Image.open(io.BytesIO(base64.b64decode("".join(data["image/png"]))))
            small = picture.convert("RGB")
        except (KeyError, OSError, ValueError):
            continue  # what is no picture, or is damaged, is left out
        small.thumbnail(SIZE, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY, method=6)
        title = data.get(PLOTLY, {}).get("layout", {}).get("title", {}).get("text") or ""
        address = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        made.append((re.sub(r"<[^>]*>", " ", title), address))
    return made

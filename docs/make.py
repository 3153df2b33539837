"""Build the book: python docs/make.py [FOLDER], by default papermill_runs/book.

Pages are this folder's Markdown, the notebooks with their stored outputs, the scorecard of the
committed references, and the docstrings of `mi_helpers`. Nothing is executed and nothing comes from
the network. It is made in a folder of the result's name with a dot before, which a failure leaves.
"""

import importlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from links import ROOT, parts
from outputs import Extra, for_the_book, frame
from sphinx.cmd.build import build_main

import mi_helpers
from mi_helpers.run import page, scorecard

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
HOW = ("own_prompts", "own_model", "own_sae", "own_metric", "own_claim", "sweep")
SWEEPS = "notebooks/sweeps/README"
ROOMS = ("models", *mi_helpers._ROOMS)


def main(out: Path) -> int:
    """Assemble, build, and return Sphinx's exit code; a warning is an error."""
    if out.exists() and not (out / "objects.inv").is_file():
        raise SystemExit(f"{out} is there and is no book; name another folder")
    source = out.with_name(f".{out.name}")
    shutil.rmtree(source, ignore_errors=True)
    assemble(source)
    options = ["-q", "-W", "--keep-going", "-E", "-j", "auto", "-b", "html", "-c", str(DOCS)]
    options += ["-D", f"html_extra_path={source / 'extra'}", "-d", str(source / "doctrees")]
    code = build_main([*options, str(source / "pages"), str(source / "site")])
    if code == 0:
        shutil.rmtree(out, ignore_errors=True)  # an older one, with pages that may be no more
        (source / "site").rename(out)
        shutil.rmtree(source)
    return code


def assemble(source: Path) -> None:
    """Write the pages' sources under `pages/`, files that are copied as they are under `extra/`."""
    pages, extra = source / "pages", Extra(source / "extra")
    for path in DOCS.rglob("*.md"):
        _write(pages / path.relative_to(DOCS), path.read_text(encoding="utf-8"))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        made = for_the_book(json.loads(text), path.stem, extra)
        _write(pages / "notebooks" / path.name, json.dumps(made))
        _write(extra.folder / "notebooks" / path.name, text)
    _write(pages / "contributing.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    shutil.copytree(NOTEBOOKS / "figures", pages / "notebooks" / "figures")
    shutil.copytree(NOTEBOOKS / "sweeps", pages / "notebooks" / "sweeps")
    for room in ROOMS:
        _write(pages / "reference" / f"{room}.md", reference(room))
    claims, whole = _scorecard()
    _write(extra.folder / "claims.html", whole)
    _fill(pages / "scorecard.md", claims=claims)
    _fill(pages / "graph.md", explorer=frame(extra.explorers[-1], "Features across layers"))
    _fill(pages / "index.md", parts=_parts_shown(), contents=_contents())
    rooms = [f"- [`mi.{room}`]({room}.md): {_first_line(room)}" for room in ROOMS]
    _fill(pages / "reference" / "index.md", rooms="\n".join(rooms), contents=_toctree("", ROOMS))


def reference(room: str) -> str:
    """The page of a room: its docstring, and that of each public name, in the order of its list."""
    module = importlib.import_module(f"mi_helpers.{room}")
    listed = getattr(module, "__all__", None)
    named = [getattr(module, name) for name in listed or ()]
    inner = [one for one in named if inspect.ismodule(one)]
    options = "   :members:\n" + ("   :imported-members:\n" if listed else "")
    blocks = [f".. automodule:: {module.__name__}\n{options}"]
    blocks += [f".. automodule:: {other.__name__}\n   :members:\n" for other in inner]
    return f"# `mi.{room}`\n\n```{{eval-rst}}\n" + "\n".join(blocks) + "```\n"


def _scorecard() -> tuple[str, str]:
    """The references as Markdown, for the search, and as the page of `mi scorecard`, to filter."""
    table = scorecard.collect([ROOT / "papermill_runs" / "reference"], ROOT)
    _, _, text = page.markdown(table, ROOT).partition("\n")
    whole = page.html_page(table, ROOT)
    return text, re.sub(r'href="(notebooks/\w+)\.ipynb"', r'href="\1.html"', whole)


def _parts_shown() -> str:
    shown = []
    for part, rows in parts().items():
        lines = [
            f"| [{r.name}](notebooks/{r.name}.ipynb) | {r.question} | {r.time} |" for r in rows
        ]
        shown += [f"### {part}", "", "| notebook | question | time |", "|---|---|---|", *lines, ""]
    return "\n".join(shown)


def _contents() -> str:
    trees = [
        _toctree(part, (f"notebooks/{r.name}" for r in rows)) for part, rows in parts().items()
    ]
    trees.append(_toctree("How do I …", (f"how/{name}" for name in HOW)))
    look_up = ("scorecard", "graph", "reference/index", "errors/index", SWEEPS, "contributing")
    return "\n".join([*trees, _toctree("Look up", look_up)])


def _toctree(caption: str, pages: Iterable[str]) -> str:
    head = f":caption: {caption}\n" if caption else ""
    return f"```{{toctree}}\n:hidden:\n{head}\n" + "\n".join(pages) + "\n```\n"


def _first_line(room: str) -> str:
    module = importlib.import_module(f"mi_helpers.{room}")
    return (module.__doc__ or "").partition("\n")[0]


def _fill(path: Path, **texts: str) -> None:
    """Put texts in the place of `<!-- NAME -->`."""
    found = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        found = found.replace(f"<!-- {name} -->", text)
    path.write_text(found, encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    chosen = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "papermill_runs" / "book"
    sys.exit(main(chosen))

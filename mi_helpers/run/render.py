"""Store the outputs of executed notebooks in the notebooks themselves, cleaned for git.

Kept: outputs, execution counts, cell ids and tags. Dropped: papermill's and the kernel's metadata,
progress bars and everything else on stderr. Refused: an error, a figure without its static PNG, a
path of this machine, a notebook that was edited while it ran.
"""

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from ..errors import explained
from .execute import PLOTLY
from .sweep import Sweep, write_atomic

_WIDGET = "application/vnd.jupyter.widget-view+json"
_MACHINE_PATH = re.compile(
    r"(?<![\w.~])/(home|root|tmp|work|Users|private|mnt|var)/\S+|[A-Z]:\\Users"
)
LARGE = 100_000  # bytes of a picture in base64
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def require_browser() -> None:
    """Raise unless there is a Chrome or Chromium to draw the static figures with."""
    from choreographer.browsers.chromium import Chromium

    if not Chromium.find_browser(skip_local=False):
        message = (
            "stored notebooks need a PNG of each figure, and there is no Chrome or Chromium to draw"
            " it with. Debian and Ubuntu: apt-get install chromium. Elsewhere: plotly_get_chrome"
        )
        raise ValueError(explained("MI-E05", message))


def store(work: Sweep) -> list[str]:
    """Put the outputs of runs into their notebooks; return a line for each that was refused."""
    refused = []
    for job, folder, run in work.finished():
        if run["error"]:
            continue  # the report says so
        name = job.path.stem
        executed = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        written = nbformat.read(job.path, as_version=4)
        if [cell.source for cell in written.cells] != [cell.source for cell in executed.cells]:
            refused.append(f"{name}: it was edited while it ran; render it again")
            continue
        cleaned = clean(written, executed)
        if faults := [*machine_paths(cleaned), *figures_without_png(cleaned)]:
            refused += [f"{name}: {fault}" for fault in faults]
        else:
            write_atomic(job.path, nbformat.writes(cleaned) + "\n")
    return refused


def clean(written: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook as written, with the outputs and counts of its execution, cleaned."""
    for cell, done in zip(written.cells, executed.cells, strict=True):
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = [_clean(out) for out in done.outputs if not is_progress(out)]
    written.metadata = nbformat.from_dict(_METADATA)
    return CoalesceStreamsPreprocessor().preprocess(written, {})[0]


def machine_paths(notebook: NotebookNode) -> Iterator[str]:
    """`cell N: /home/…` for each path of a machine in sources and outputs."""
    for number, cell in enumerate(notebook.cells, 1):
        for text in _texts([cell.source, cell.get("outputs", [])]):
            for match in _MACHINE_PATH.finditer(text):
                yield f"cell {number}: a path of this machine, {match[0][:60]!r}"


def figures_without_png(notebook: NotebookNode) -> Iterator[str]:
    """`cell N: …` for each plotly figure that has no static image beside it."""
    for number, cell in enumerate(notebook.cells, 1):
        for out in cell.get("outputs", []):
            if PLOTLY in out.get("data", {}) and "image/png" not in out.data:
                yield f"cell {number}: a figure without its static PNG"


def is_progress(out: NotebookNode) -> bool:
    """Whether an output is a progress bar, or anything else that a stored notebook leaves out."""
    return out.get("name") == "stderr" or _WIDGET in out.get("data", {})


def _clean(out: NotebookNode) -> NotebookNode:
    if "metadata" in out:
        out.metadata = NotebookNode()
    if len(out.get("data", {}).get("image/png", "")) > LARGE:
        out.data["image/png"] = with_palette(out.data["image/png"])
    return out


def with_palette(png: str) -> str:
    """A picture, in base64, with a palette of 256 colours: as good for figures and far smaller."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(
        small, "PNG", optimize=True
    )
    return base64.b64encode(small.getvalue()).decode()


def _texts(value: Any) -> Iterator[str]:
    """All texts inside nested data but for images and packed arrays, which are base64."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "bdata" and not key.startswith("image/png"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)

"""Store the outputs of executed notebooks in the notebooks themselves, cleaned for git.

Kept: outputs, execution counts, cell ids and tags. Dropped: papermill's and the kernel's metadata,
progress bars and everything else on stderr.
"""

import base64
import io

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from ..errors import explained
from .sweep import Sweep, write_atomic

_WIDGET = "application/vnd.jupyter.widget-view+json"
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
    """Put the outputs of runs into their notebooks; the names of those that were edited since."""
    edited = []
    for job, folder, run in work.finished():
        if run["error"]:
            continue  # the report says so
        executed = nbformat.read(folder / f"{job.path.stem}.ipynb", as_version=4)
        written = nbformat.read(job.path, as_version=4)
        if [cell.source for cell in written.cells] == [cell.source for cell in executed.cells]:
            write_atomic(job.path, nbformat.writes(clean(written, executed)) + "\n")
        else:
            edited.append(job.path.stem)
    return edited


def clean(written: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook as written, with the outputs and counts of its execution, cleaned."""
    for cell, done in zip(written.cells, executed.cells, strict=True):
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = [out for out in done.outputs if not is_progress(out)]
            for out in cell.outputs:
                if "metadata" in out:
                    out.metadata = NotebookNode()
                if len(out.get("data", {}).get("image/png", "")) > LARGE:
                    out.data["image/png"] = with_palette(out.data["image/png"])
    written.metadata = nbformat.from_dict(_METADATA)
    return CoalesceStreamsPreprocessor().preprocess(written, {})[0]


def is_progress(out: NotebookNode) -> bool:
    """Whether an output is a progress bar, or anything else that a stored notebook leaves out."""
    return out.get("name") == "stderr" or _WIDGET in out.get("data", {})


def with_palette(png: str) -> str:
    """A picture, in base64, with a palette of 256 colours: as good for figures and far smaller."""
    from PIL import Image

    picture, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()

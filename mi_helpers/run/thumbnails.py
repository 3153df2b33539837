"""Small pictures of the figures in an executed notebook, for the scorecard's page."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .execute import PLOTLY

SIZE = (360, 260)  # pixels, at most
QUALITY = 60  # of WebP, out of 100


class Thumbnail(NamedTuple):
    """A picture as WebP bytes, with the figure's title where it has one."""

    title: str
    webp: bytes


def make(notebook: Path) -> list[Thumbnail]:
    """A thumbnail of each static figure in a notebook's outputs, in their order.

    What is no picture, or is damaged, is left out.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [out.get("data", {}) for cell in cells for out in cell.get("outputs", [])]
    return list(_thumbnails(data for data in outputs if "image/png" in data))


def _thumbnails(outputs: Iterator[dict[str, Any]]) -> Iterator[Thumbnail]:
    from PIL import Image, UnidentifiedImageError

    for data in outputs:
        try:
            picture = Image.open(io.BytesIO(base64.b64decode("".join(data["image/png"]))))
            small = picture.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError):
            continue
        small.thumbnail(SIZE, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY, method=6)
        title = data.get(PLOTLY, {}).get("layout", {}).get("title", {}).get("text") or ""
        yield Thumbnail(re.sub(r"<[^>]*>", " ", title), file.getvalue())

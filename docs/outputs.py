"""A notebook's stored outputs as the book shows them.

A figure is its picture, with its plotly form in a file beside it, which `style/book.js` draws
where a reader comes to it. An explorer becomes a file of its own in a frame. All else stays as it
is.
"""

import base64
import html
import json
import re
import struct
from pathlib import Path
from typing import Any

from links import IDS

PLOTLY = "application/vnd.plotly.v1+json"
_FRAME = re.compile(r"<iframe[^>]*? srcdoc='([^']*)'></iframe>")
_TITLE = re.compile(r"<title>(.*?)</title>")
_TAG = re.compile(r"<[^>]*>")
_HEADS = "".join(
    f'<th style="text-align:left">{word}</th>'
    for word in ("verdict", "claim", "measured", "rule", "null", "source")
)
_KINDS = {"heatmap": "Map", "bar": "Bars", "histogram": "Bars", "box": "Boxes"}

Notebook = dict[str, Any]


class Extra:
    """The folder of files that the site copies as they are; names are given in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.explorers: list[str] = []

    def add(self, name: str, content: bytes) -> str:
        """Write a file; its address from a notebook's page."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"../{name}"


def for_the_book(notebook: Notebook, name: str, extra: Extra) -> Notebook:
    """The notebook with its figures and explorers as HTML, and a link to the file itself."""
    for number, cell in enumerate(notebook["cells"]):
        for n, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if PLOTLY in data:
                shown = figure(data, f"{name}-{number}-{n}", extra)
                output["data"] = {"text/html": shown}
            elif "text/html" in data:
                text = with_heads("".join(data["text/html"]))
                data["text/html"] = explorers(text, f"{name}-{number}-{n}", extra)
    link = (
        f'<p><a href="{name}.ipynb" download>Download this notebook</a>. It needs '
        'the package: <code>pip install ".[notebooks]"</code> in a checkout of the repository.</p>'
    )
    download = {"cell_type": "markdown", "id": "download", "metadata": {}, "source": link}
    cells = [cell for cell in notebook["cells"] if cell["id"] not in IDS]  # the page has its own
    notebook["cells"] = [cells[0], download, *cells[1:]]
    return notebook


def figure(data: dict[str, Any], name: str, extra: Extra) -> str:
    """Picture, with words for those who cannot see it; the interactive form lies beside it."""
    plot, words = data[PLOTLY], html.escape(describe(data[PLOTLY]))
    image = base64.b64decode("".join(data["image/png"]))
    width, height = struct.unpack(">II", image[16:24])
    address = extra.add(f"figures/{name}.png", image)
    # A script, because a page that is opened from its file may read nothing else.
    inert = json.dumps(plot, separators=(",", ":"))
    extra.add(f"figures/{name}.js", f"miFigures[document.currentScript.src]={inert}".encode())
    size = f'width="{width}" height="{height}" loading="lazy"'
    picture = f'<img src="{address}" alt="{words}" {size}>'
    return f'<figure class="mi-figure">{picture}</figure>'


def describe(plot: dict[str, Any]) -> str:
    """A figure in words: its title, what is drawn against what, and the names in its legend."""
    layout, traces = plot.get("layout", {}), plot.get("data", [])
    title = _text(layout)
    axes = {k: _text(v) for k, v in layout.items() if re.fullmatch(r"[xy]axis\d*", k)}
    across, up = (
        next((text for name, text in axes.items() if name[0] == letter and text), "")
        for letter in "xy"
    )
    kinds = list(dict.fromkeys(_kind(trace) for trace in traces))
    what = " and ".join(kinds).capitalize() or "Figure"
    against = " against ".join(text for text in (up, across) if text)
    bar = _text(layout.get("coloraxis", {}).get("colorbar", {}))
    named = [trace.get("name") for trace in traces if trace.get("showlegend") and trace.get("name")]
    panels = [_plain(note.get("text", "")) for note in layout.get("annotations", [])]
    words = [f"{title}." if title else "", what + (f": {against}" if against else "") + "."]
    words += [f"Colour: {bar}." if bar else ""]
    for label, names in (("Series", list(dict.fromkeys(named))), ("Panels", panels)):
        if names := [n for n in names if n]:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            words.append(f"{label}: {', '.join(map(str, names[:8]))}{more}.")
    return " ".join(word for word in words if word)


def _kind(trace: dict[str, Any]) -> str:
    if trace.get("type", "scatter") != "scatter":
        return _KINDS.get(trace["type"], trace["type"])
    return "lines" if "lines" in trace.get("mode", "lines") else "points"


def _text(holder: dict[str, Any]) -> str:
    title = holder.get("title") or ""
    return _plain(title.get("text") or "" if isinstance(title, dict) else title)


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def explorers(text: str, name: str, extra: Extra) -> str:
    """An explorer in a frame becomes a file, which can also be opened by itself."""

    def framed(found: re.Match[str]) -> str:
        content = found[1].replace("&#39;", "'").replace("&amp;", "&")
        title = _TITLE.search(content)
        label = title[1] if title else "Explorer"
        address = extra.add(f"explorers/{name}.html", content.encode())
        extra.explorers.append(address.removeprefix("../"))
        return frame(address, label)

    return _FRAME.sub(framed, text)


def frame(address: str, label: str) -> str:
    """A frame with a link to what is in it."""
    return (
        f'<iframe class="mi-explorer" sandbox="allow-scripts" loading="lazy" src="{address}" '
        f'title="{label}"></iframe><p><a href="{address}">Open on a page of its own</a></p>'
    )


def with_heads(text: str) -> str:
    """Claims look like other tables; one that stands alone gets the claims table's column names."""
    text = text.replace('<table class="mi-claims">', '<table class="mi-claims dataframe">')
    head = f"<thead><tr>{_HEADS}</tr></thead>"
    text = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", text)  # a corner heads nothing
    return text.replace('dataframe"><tbody>', f'dataframe">{head}<tbody>')

"""What the figures of `plots.py` stand on: theme, panels, axes, readable text, and display.

In a notebook a figure shows as interactive plotly and, where no script runs, as a PNG. The PNG is
drawn by a headless Chrome or Chromium through kaleido. One browser stays open for all figures of a
process, because starting one takes seconds and a figure only half a second. Where none is found or
none starts, figures are interactive alone, and one warning says so.
"""

import asyncio
import atexit
import base64
import contextlib
import html
import io
import os
import textwrap
import threading
import warnings
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.io.base_renderers import MimetypeRenderer
from plotly.subplots import make_subplots

from .errors import explained

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DIVERGING = [[0, "#0B3C7D"], [0.25, "#6AA6D8"], [0.5, "#FFFFFF"], [0.75, "#F2A65A"], [1, "#9C4A00"]]
SEQUENTIAL = "Cividis"
BLUES = [[0, "#FFFFFF"], [0.5, "#6AA6D8"], [1, "#0B3C7D"]]
AXIS_NAMES = {  # what a column means, with its unit; other columns show their own name
    "pos": "position",
    "logit_diff": "logit difference (nats)",
    "log_prob": "log-probability (nats)",
    "prob": "probability",
    "prob_diff": "difference in probability",
    "kl": "KL divergence (nats)",
    "rank": "rank of the answer (0 = top)",
}
_WIDEST, _TALLEST = 1100, 1000  # pixels

_AXIS: dict[str, Any] = {"gridcolor": "#E6E6E6", "zerolinecolor": "#BBBBBB", "linecolor": "#444"}
_AXIS |= {"ticks": "outside", "automargin": True, "title": {"standoff": 8}}
THEME = go.layout.Template(
    layout={
        "font": {"family": "DejaVu Sans, Arial, sans-serif", "size": 13, "color": "#222222"},
        "title": {"font": {"size": 15}, "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"},
        "colorway": COLOURS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)

# The cell of each subplot, and its part of the table.
Panels = list[tuple[dict[str, int], pd.DataFrame]]


def make_panels(
    table: pd.DataFrame, facet: str | None, width: float, height: float, per_row: int | None = None
) -> tuple[go.Figure, Panels]:
    """An empty figure with a panel for each value of `facet`, sized in pixels, wrapped in rows."""
    groups = parts_by(table, facet)
    per_row = min(len(groups), per_row or max(1, int((_WIDEST - 150) // width)))
    n_rows = -(-len(groups) // per_row)
    height = max(120, min(height, (_TALLEST - 200) / n_rows))
    figure = make_subplots(
        n_rows,
        per_row,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=20 / (width * per_row + 20),
        vertical_spacing=40 / (height * n_rows + 40 * n_rows),
        subplot_titles=None if facet is None else [name for name, _ in groups],
    )
    figure.update_layout(width=width * per_row + 80, height=height * n_rows + 40 * (n_rows - 1))
    cells = [{"row": i // per_row + 1, "col": i % per_row + 1} for i in range(len(groups))]
    lowest = {cell["col"]: cell for cell in cells}.values()
    for cell in lowest:  # the last row may be short: its neighbours need their own tick labels
        figure.update_xaxes(showticklabels=True, **cell)
    return figure, [(cell, part) for cell, (_, part) in zip(cells, groups, strict=True)]


def chart_size(facet: str | None) -> tuple[float, float]:
    """Width and height of a panel of a chart, in pixels."""
    return (640 if facet is None else 320), 330


def series(
    table: pd.DataFrame, panels: Panels, color: str | None, facet: str | None
) -> Iterator[tuple[pd.DataFrame, dict[str, Any], str, str]]:
    """What a chart draws, panel by panel and colour by colour: the rows, the trace's cell and its
    name in the legend, its colour and its dash."""
    styles = line_styles(table, color)
    for number, (cell, panel) in enumerate(panels):
        shown = number == 0 and color not in (None, facet)
        for name, part in parts_by(panel, color):
            place = {**cell, "name": name, "legendgroup": name, "showlegend": shown}
            yield part, place, *styles[name]


def title_axes(
    figure: go.Figure, panels: Panels, x_title: str, y_title: str, log_x: bool, log_y: bool
) -> None:
    for cell in {cell["col"]: cell for cell, _ in panels}.values():
        figure.update_xaxes(title=x_title, **cell)
    figure.update_yaxes(title=y_title, col=1)
    for letter, is_log in (("x", log_x), ("y", log_y)):
        if is_log:
            log_axes(figure, letter)


def log_axes(figure: go.Figure, letter: str) -> None:
    """Make the "x" or "y" axes logarithmic, each with round numbers for the values that it shows;
    axes that match share theirs."""
    axes = {name.replace("axis", ""): figure.layout[name] for name in figure.layout
            if name.startswith(f"{letter}axis")}  # fmt: skip
    shared = {name: (axis.matches or name) for name, axis in axes.items()}
    shown: dict[str, list[np.ndarray]] = {}
    for trace in figure.data:
        values = np.asarray(trace[letter], dtype=float)
        name = shared[trace[f"{letter}axis"] or letter]
        shown.setdefault(name, []).append(values[np.isfinite(values) & (values > 0)])
    for name, axis in axes.items():
        values = np.concatenate(shown.get(shared[name], [np.zeros(0)]))
        axis.update(type="log", **(log_ticks(values) if len(values) else {}))


def log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Round numbers for a logarithmic axis: powers of ten, or 1, 2, 5 in each decade, or closer."""
    low, high = np.log10(values.min()), np.log10(values.max())
    if np.ceil(high) - np.floor(low) > 4 or low < -4 or high > 5:
        return {"dtick": max(1, round((high - low) / 8)), "exponentformat": "power"}
    steps = next((some for span, some in _LOG_STEPS if high - low >= span), _LOG_STEPS[-1][1])
    decades = np.arange(np.floor(low), np.ceil(high) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:.10g}" for tick in ticks]}


_LOG_STEPS: list[tuple[float, tuple[float, ...]]] = [  # decades that a range spans, and its ticks
    (2.5, (1,)),
    (1, (1, 2, 5)),
    (0.3, (1, 1.5, 2, 3, 5, 7)),
    (0, (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)),
]


def is_text(column: pd.Series) -> bool:
    """Names rather than quantities; plotly would read a head's name 9.6 as a number."""
    return not pd.api.types.is_numeric_dtype(column)


def standing_out(panel: pd.DataFrame, x: str, y: str) -> list[Any]:
    """The 16 rows furthest out, for labels in a picture without hover, the furthest first."""
    distance = pd.Series(0.0, index=panel.index)
    for column in (x, y):
        offset = (panel[column] - panel[column].median()).abs()
        distance += (offset / (offset.max() or 1)) ** 2
    return list(distance.sort_values(ascending=False, kind="stable").index[:16])


SIDES = {"middle right": (1, 0), "top center": (0, 1), "bottom center": (0, -1),
         "middle left": (-1, 0)}  # fmt: skip


def label_sides(
    points: pd.DataFrame, labels: Mapping[Any, str], prefer: pd.Series, size: tuple[float, float]
) -> pd.Series:
    """The side of its point on which each label, in turn, covers no point and no earlier label, the
    preferred one if it can; "" for the others. `points` hold x and y from 0 to 1; size in pixels.
    """
    place = points.to_numpy(float) * size
    boxes, found = np.hstack([place - 4, place + 4]), pd.Series("", index=points.index)
    for row, label in labels.items():
        half, middle = np.array([3.8 * len(label), 6.5]), points.loc[row].to_numpy(float) * size
        for side in (prefer[row], *SIDES):
            at = middle + np.array(SIDES[side]) * (half + 5)
            low, high = at - half, at + half
            covered = ((low < boxes[:, 2:]) & (high > boxes[:, :2])).all(1).any()
            if not covered and (low >= 0).all() and (high <= size).all():
                found[row], boxes = side, np.vstack([boxes, np.hstack([low, high])])
                break
    return found


def unit_square(columns: pd.DataFrame, logs: Sequence[bool], alike: bool) -> pd.DataFrame:
    """Columns as shares of their axes, which leave a margin; `alike`: both show the same range."""
    seen = columns.astype(float)
    for name, log in zip(columns, logs, strict=True):
        seen[name] = np.log10(seen[name].where(seen[name] > 0)) if log else seen[name]
    low, high = seen.min(), seen.max()
    if alike:
        low[:], high[:] = low.min(), high.max()
    return 0.06 + 0.88 * (seen - low) / (high - low).replace(0, 1)


def frame_maps(figure: go.Figure, panels: Panels, x_title: str, y_title: str) -> None:
    """Axes of a map: an outline, no grid, grey where there is no value."""
    title_axes(figure, panels, x_title, y_title, False, False)
    outline = {"showline": True, "mirror": True, "linecolor": "#999999"}
    figure.update_xaxes(showgrid=False, zeroline=False, **outline)
    figure.update_yaxes(showgrid=False, zeroline=False, **outline)
    figure.update_layout(plot_bgcolor="#EFEFEF")


def finish(figure: go.Figure, title: str | None, more: dict[str, Any]) -> go.Figure:
    """The figure with its title and legend, and with room for them."""
    top = 25 + (35 if title else 0) + (20 if figure.layout.annotations else 0)
    labelled = any(axis.ticktext for axis in figure.select_xaxes())
    bottom = 110 if labelled else 60
    right = 130 if "coloraxis" in more or more.get("showlegend", True) else 30
    return figure.update_layout(
        title=title,
        margin={"t": top, "b": bottom, "r": 30},
        width=min(_WIDEST, round(figure.layout.width + right)),
        height=round(figure.layout.height + top + bottom),
        **more,
    )


def colour_bar(scale: Any, limits: tuple[float, float], title: str) -> dict[str, Any]:
    text = "<br>".join(textwrap.wrap(title, 14)) + "<br> "  # a line of air above the bar
    bar = {"title": {"text": text, "side": "top"}, "thickness": 14, "ticks": "outside"}
    low, high = limits
    return {"coloraxis": {"colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}}


def legend(color: str | None) -> dict[str, Any]:
    return {"legend": {"title": {"text": axis_name(color or "")}, "tracegroupgap": 0}}


def line_styles(table: pd.DataFrame, color: str | None) -> dict[str, tuple[str, str]]:
    """Colour and dash for each value of a column; many numbers get a scale, many words dashes."""
    names = [name for name, _ in parts_by(table, color)]
    if len(names) > len(COLOURS) and not is_text(table[color]):
        order = np.argsort(np.argsort(table[color].drop_duplicates().to_numpy()))
        shades = sample_colorscale(SEQUENTIAL, list(order / (len(names) - 1)))
        return {name: (shade, "solid") for name, shade in zip(names, shades, strict=True)}
    dashes = ("solid", "dash", "dot", "dashdot")
    return {
        name: (COLOURS[i % len(COLOURS)], dashes[i // len(COLOURS) % len(dashes)])
        for i, name in enumerate(names)
    }


def require_columns(table: pd.DataFrame, *columns: str | None) -> None:
    missing = [column for column in columns if column is not None and column not in table.columns]
    if missing:
        raise ValueError(f"no column {missing}; the table has {list(table.columns)}")
    if not len(table):
        raise ValueError("the table has no rows")


def parts_by(table: pd.DataFrame, column: str | None) -> list[tuple[str, pd.DataFrame]]:
    """The parts of a table by a column's values, in the order of their first row."""
    if column is None:
        return [("", table)]
    return [(safe_text(key), part) for key, part in table.groupby(column, sort=False, dropna=False)]


def ordered(column: pd.Series) -> list[Any]:
    """A column's distinct values: numbers by size, words by first appearance."""
    values = column.drop_duplicates()
    return list(values if is_text(column) else values.sort_values())


def whole_ticks(update: Any, column: pd.Series, skip: bool = False) -> None:
    """Ticks at whole numbers only, for layers and heads; names stay names."""
    if is_text(column):
        update(type="category")
    elif not skip and pd.api.types.is_integer_dtype(column):
        span = int(column.max() - column.min())
        update(tick0=0, dtick=1 if span <= 12 else 5 if span <= 60 else 10 ** len(str(span)) // 100)


def label_ticks(update: Any, labels: Sequence[str], **more: Any) -> None:
    ticks = [safe_text(label) for label in labels]
    update(tickmode="array", tickvals=list(range(len(ticks))), ticktext=ticks, **more)


def axis_name(column: str) -> str:
    return AXIS_NAMES.get(column, column.replace("_", " "))


def safe_text(value: object) -> str:
    """Text for a figure, in which plotly would read tags, and formulas between dollar signs."""
    return html.escape(str(value), quote=False).replace("$", "&#36;")


# --- Display --------------------------------------------------------------------------

SCALE = 1.25  # PNG pixels per figure pixel: sharp in GitHub's column, small enough to commit
START_S, DRAW_S, STOP_S = 120, 90, 10


class Chrome:
    """A headless browser in a thread of its own, so that a notebook's event loop is not in its way.

    Raises whatever kaleido raises if there is no browser or it does not start in START_S seconds.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.process = os.getpid()
        self._kaleido = self._wait(self._start(), START_S)
        atexit.register(self.close)

    async def _start(self) -> Any:
        from kaleido import Kaleido

        return await Kaleido(mathjax=False, timeout=DRAW_S)  # MathJax would come from the network

    def png(self, figure: dict[str, Any]) -> bytes:
        """The figure as PNG bytes; raises if it takes longer than DRAW_S seconds."""
        options = {"format": "png", "scale": SCALE}
        return squeeze(self._wait(self._kaleido.calc_fig(figure, opts=options), DRAW_S + 5))

    def close(self) -> None:
        """Ends the browser. A browser that does not answer ends with this process's pipe to it."""
        atexit.unregister(self.close)
        if self.process == os.getpid() and self._loop.is_running():
            with contextlib.suppress(Exception):
                self._wait(self._kaleido.close(), STOP_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except FutureTimeoutError:
            future.cancel()
            raise TimeoutError(f"the browser did not answer within {seconds} s") from None


def squeeze(png: bytes) -> bytes:
    """The same picture in a quarter fewer bytes: browsers compress PNGs in haste."""
    from PIL import Image

    squeezed = io.BytesIO()
    Image.open(io.BytesIO(png)).save(squeezed, "PNG", compress_level=9)
    return squeezed.getvalue()


@dataclass
class _Shared:
    chrome: Chrome | None = None
    gave_up: bool = False


class InteractiveAndStatic(MimetypeRenderer):
    """Plotly's JSON for pages that run scripts, and a PNG for those that do not."""

    def __init__(self) -> None:
        # Plotly draws with a shallow copy of its renderer: what copies share lies in one object.
        self._shared = _Shared()

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        bundle: dict[str, Any] = {"application/vnd.plotly.v1+json": fig_dict}
        png = self._png(fig_dict)
        return bundle if png is None else bundle | {"image/png": base64.b64encode(png).decode()}

    def _png(self, figure: dict[str, Any]) -> bytes | None:
        shared = self._shared
        if shared.gave_up:
            return None
        try:
            if shared.chrome is None or shared.chrome.process != os.getpid():  # none, or a parent's
                shared.chrome = Chrome()
            return shared.chrome.png(figure)
        except Exception as error:  # whatever stops it, the interactive figure is still there
            shared.gave_up = True
            if shared.chrome is not None:
                shared.chrome.close()
            why = str(next(iter(error.args), type(error).__name__)).split("\n")[0]
            message = (
                f"Figures are interactive only, without PNG: {why} (Debian and Ubuntu: "
                "apt-get install chromium; elsewhere: plotly_get_chrome)"
            )
            warnings.warn(explained("MI-E05", message), stacklevel=2)
            return None

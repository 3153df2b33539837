"""Figures: a table in, a plotly figure out, and nothing else.

One theme for all: white ground, colours that colour-blind readers can tell apart (Okabe & Ito
2008), a blue-white-orange scale centred at zero where zero means "no effect", and cividis
elsewhere. Importing this module makes every figure show twice in a notebook: interactive, and as
a PNG for pages that run no scripts. Where no Chrome or Chromium is found the PNG is left out, with
one note.
"""

import atexit
import base64
import html
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from jaxtyping import Float
from plotly.io.base_renderers import MimetypeRenderer
from plotly.subplots import make_subplots
from torch import Tensor

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DIVERGING = [[0, "#0B3C7D"], [0.25, "#6AA6D8"], [0.5, "#FFFFFF"], [0.75, "#F2A65A"], [1, "#9C4A00"]]
SEQUENTIAL = "Cividis"
_CELL, _GAP = 15, 0.03


# --- Figures ------------------------------------------------------------------------------------


def heatmap(
    table: pd.DataFrame,
    value: str,
    x: str = "pos",
    y: str = "layer",
    labels: Sequence[str] | None = None,
    facet: str | None = None,
    title: str | None = None,
    zero_centred: bool = True,
    x_title: str | None = None,
    y_title: str | None = None,
    value_title: str | None = None,
) -> go.Figure:
    """A map of `value` over two columns, one panel for each value of `facet`.

    `labels` are the tick labels of x (tokens, for positions). With `zero_centred` the scale is
    symmetric about zero, and white means no effect. Raises ValueError for a column that the table
    lacks, and for several rows in one cell.
    """
    _need(table, value, x, y, facet)
    panels = [(None, table)] if facet is None else list(table.groupby(facet, sort=False))
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, horizontal_spacing=_GAP,
        subplot_titles=None if facet is None else [_text(name) for name, _ in panels],
    )  # fmt: skip
    for number, (_, part) in enumerate(panels, 1):
        if part.duplicated([x, y]).any():
            raise ValueError(f"several rows share one ({x}, {y}); choose or average them, or facet")
        grid = part.pivot(index=y, columns=x, values=value).sort_index()
        trace = go.Heatmap(
            z=grid.to_numpy(np.float32), x=list(grid.columns), y=list(grid.index),
            coloraxis="coloraxis", hoverongaps=False,
            hovertemplate=f"{x} %{{x}}<br>{y} %{{y}}<br>{value} %{{z:.3f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=1, col=number)
        if labels is not None:
            ticks = {"tickvals": list(range(len(labels))), "ticktext": [_text(t) for t in labels]}
            figure.update_xaxes(**ticks, tickangle=-60, row=1, col=number)
        figure.update_xaxes(title=x_title or _name(x), row=1, col=number)
    figure.update_yaxes(title=y_title or _name(y), row=1, col=1)
    low, high = table[value].min(), table[value].max()
    reach = max(abs(low), abs(high)) or 1.0
    scale = (
        {"colorscale": DIVERGING, "cmin": -reach, "cmax": reach}
        if zero_centred
        else {"colorscale": SEQUENTIAL, "cmin": low, "cmax": high}
    )
    bar = {"title": {"text": value_title or _name(value), "side": "right"}, "thickness": 14}
    figure.update_layout(coloraxis=scale | {"colorbar": bar}, title=title)
    columns, lines = (table[c].nunique() for c in (x, y))
    return _size(
        figure, len(panels) * max(220, min(560, columns * 30)) + 160, max(260, lines * _CELL + 190)
    )


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    band: tuple[str, str] | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
) -> go.Figure:
    """`y` against `x`, a line for each value of `color`; `band` names the columns of its bounds."""
    _need(table, x, y, color, *(band or ()))
    figure = go.Figure()
    for number, (name, part) in enumerate(_groups(table, color)):
        part, colour = part.sort_values(x), COLOURS[number % len(COLOURS)]
        if band:
            edge = part[[band[0], band[1]]].to_numpy(np.float32)
            figure.add_scatter(
                x=[*part[x], *part[x][::-1]], y=np.concatenate([edge[:, 0], edge[::-1, 1]]),
                fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0},
                hoverinfo="skip", showlegend=False, legendgroup=name, mode="lines",
            )  # fmt: skip
        figure.add_scatter(
            x=part[x], y=part[y].to_numpy(np.float32), name=name, legendgroup=name,
            mode="lines+markers" if markers else "lines", marker={"size": 5},
            line={"color": colour, "width": 2, "dash": "solid" if number < 7 else "dash"},
        )  # fmt: skip
    return _dress(figure, table, x, y, color, title, x_title, y_title, log_x, log_y)


def scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    text: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    diagonal: bool = False,
) -> go.Figure:
    """A point for each row; `text` shows on hover; `diagonal` adds the line y = x."""
    _need(table, x, y, color, text)
    figure = go.Figure()
    for number, (name, part) in enumerate(_groups(table, color)):
        figure.add_scatter(
            x=part[x].to_numpy(np.float32), y=part[y].to_numpy(np.float32), mode="markers",
            name=name, text=None if text is None else [_text(t) for t in part[text]],
            marker={"size": 7, "opacity": 0.75, "color": COLOURS[number % len(COLOURS)]},
        )  # fmt: skip
    if diagonal:
        ends = [min(table[x].min(), table[y].min()), max(table[x].max(), table[y].max())]
        line = {"color": "#777777", "dash": "dot", "width": 1}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="y = x", hoverinfo="skip")
    return _dress(figure, table, x, y, color, title, x_title, y_title, log_x, log_y)


def histogram(
    table: pd.DataFrame,
    x: str,
    color: str | None = None,
    bins: int = 40,
    title: str | None = None,
    x_title: str | None = None,
    log_x: bool = False,
) -> go.Figure:
    """Share of rows by `x`, the bins the same for each value of `color`."""
    _need(table, x, color)
    values = np.log10(table[x]) if log_x else table[x]
    edges = np.histogram_bin_edges(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    for number, (name, part) in enumerate(_groups(table, color)):
        here = values.loc[part.index]
        counts = np.histogram(here, edges)[0] / max(1, len(here))
        figure.add_bar(
            x=10**centres if log_x else centres, y=counts, name=name,
            width=10 ** edges[1:] - 10 ** edges[:-1] if log_x else np.diff(edges),
            marker={"color": COLOURS[number % len(COLOURS)], "line": {"width": 0}}, opacity=0.6,
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0)
    return _dress(figure, table, x, "", color, title, x_title, "share of rows", log_x, False)


def attention(
    pattern: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    heads: Sequence[str] | None = None,
    title: str | None = None,
    columns: int = 3,
) -> go.Figure:
    """Where each query (row) looks: attention weights, 0 to 1, one panel for each head."""
    n_heads, n_query, n_key = pattern.shape
    if n_key != len(tokens) or n_query != n_key:
        raise ValueError(f"the pattern is {n_query} by {n_key}, but there are {len(tokens)} tokens")
    names = list(heads or (f"head {h}" for h in range(n_heads)))
    lines_ = -(-n_heads // columns)
    figure = make_subplots(
        lines_, min(columns, n_heads), subplot_titles=[_text(name) for name in names],
        shared_xaxes=True, shared_yaxes=True, horizontal_spacing=_GAP,
        vertical_spacing=0.3 / lines_ / 3,
    )  # fmt: skip
    shown = pattern.detach().float().cpu().numpy()
    upper = np.triu(np.ones((n_query, n_key), bool), 1)
    for head in range(n_heads):
        trace = go.Heatmap(
            z=np.where(upper, np.nan, shown[head]), coloraxis="coloraxis", hoverongaps=False,
            hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=head // columns + 1, col=head % columns + 1)
    ticks = {"tickvals": list(range(n_key)), "ticktext": [_text(token) for token in tokens]}
    figure.update_xaxes(**ticks, tickangle=-60)
    figure.update_yaxes(**ticks, autorange="reversed")
    figure.update_yaxes(title="query (looks from)", col=1)
    figure.update_xaxes(title="key (looks at)", row=lines_)
    bar = {"title": {"text": "attention", "side": "right"}, "thickness": 14}
    scale = [[0, "#FFFFFF"], [0.5, "#6AA6D8"], [1, "#0B3C7D"]]
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_layout(title=title)
    side = max(220, n_key * 18)
    return _size(figure, min(columns, n_heads) * side + 200, lines_ * side + 150)


# --- What they share ----------------------------------------------------------------------------


def _need(table: pd.DataFrame, *columns: str | None) -> None:
    missing = [column for column in columns if column and column not in table.columns]
    if missing:
        raise ValueError(f"no column {missing}; the table has {list(table.columns)}")
    if not len(table):
        raise ValueError("the table has no rows")


def _groups(table: pd.DataFrame, color: str | None) -> list[tuple[str, pd.DataFrame]]:
    if color is None:
        return [("", table)]
    return [(_text(name), part) for name, part in table.groupby(color, sort=False)]


def _name(column: str) -> str:
    return {"pos": "position"}.get(column, column.replace("_", " "))


def _text(value: object) -> str:
    """Text for a figure, in which plotly would read tags."""
    return html.escape(str(value), quote=False)


def _dress(
    figure: go.Figure,
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str | None,
    title: str | None,
    x_title: str | None,
    y_title: str | None,
    log_x: bool,
    log_y: bool,
) -> go.Figure:
    figure.update_xaxes(title=x_title or _name(x), type="log" if log_x else None)
    figure.update_yaxes(title=y_title or _name(y), type="log" if log_y else None)
    figure.update_layout(
        title=title, showlegend=color is not None, legend={"title": {"text": _name(color or "")}}
    )
    return _size(figure, 760, 420)


def _size(figure: go.Figure, width: float, height: float) -> go.Figure:
    return figure.update_layout(width=min(1100, round(width)), height=min(900, round(height)))


# --- Theme and display --------------------------------------------------------------------------

_AXIS: dict[str, Any] = {"gridcolor": "#E6E6E6", "zerolinecolor": "#BBBBBB", "linecolor": "#444"}
_AXIS |= {"ticks": "outside", "automargin": True, "title": {"standoff": 8}}
pio.templates["mi"] = go.layout.Template(
    layout={
        "font": {"family": "DejaVu Sans, Arial, sans-serif", "size": 13, "color": "#222222"},
        "title": {"font": {"size": 15}, "x": 0.02, "xanchor": "left"},
        "colorway": COLOURS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 30, "t": 60, "b": 60},
        "hoverlabel": {"align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
pio.templates.default = "mi"


class _InteractiveAndStatic(MimetypeRenderer):
    """Plotly's JSON for notebooks that run scripts, a PNG for pages that do not."""

    browser: bool | None = None

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        bundle = {"application/vnd.plotly.v1+json": fig_dict}
        png = self._png(fig_dict)
        return bundle if png is None else bundle | {"image/png": base64.b64encode(png).decode()}

    def _png(self, fig_dict: dict[str, Any]) -> bytes | None:
        if self.browser is None:
            self.browser = _start_browser()
        if not self.browser:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # options that a running browser does not take
            return pio.to_image(fig_dict, "png", scale=1.5, validate=False)


def _start_browser() -> bool:
    """Keep one browser open for all figures of this process: a new one takes seconds."""
    try:
        import kaleido

        kaleido.start_sync_server(silence_warnings=True)
        atexit.register(kaleido.stop_sync_server, silence_warnings=True)
        pio.to_image({"data": []}, "png")
    except Exception as error:  # whatever stops it, the interactive figure is still there
        print(
            f"Figures are interactive only: no Chrome or Chromium could be started ({error!r:.80})"
        )
        return False
    return True


pio.renderers["mi"] = _InteractiveAndStatic()
pio.renderers.default = "mi"

"""Figures: a table in, a plotly figure out, and nothing else.

One theme for all: white ground, colours that colour-blind readers can tell apart (Okabe & Ito
2008), a blue-white-orange scale centred at zero where zero means "no effect", and cividis
elsewhere. Importing this module makes every figure show twice in a notebook: interactive, and as
a PNG for pages that run no scripts (`rendering.py`).

Every function takes the names of the table's columns; a name that the table lacks raises a
ValueError that lists its columns. `facet` draws one panel for each value of a column.
"""

import html
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from torch import Tensor

from .rendering import InteractiveAndStatic

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
    """A map of `value` over two columns, with one colour scale for all panels; gaps are grey.

    `labels` are the tick labels of x (tokens, for positions). With `zero_centred` the scale is
    symmetric about zero, and white means no effect. Raises ValueError for several rows in one cell.
    """
    _need(table, value, x, y, facet)
    across, up = _in_order(table[x]), _in_order(table[y])
    panel_width = max(150, min(560, len(across) * 30))
    if facet is not None:
        panel_width = max(150, min(panel_width, len(across) * 17))
    figure, panels = _panels(table, facet, panel_width, max(150, len(up) * 15))
    for cell, part in panels:
        if part.duplicated([x, y]).any():
            raise ValueError(f"several rows share one ({x}, {y}); choose or average them, or facet")
        grid = part.pivot(index=y, columns=x, values=value).reindex(index=up, columns=across)
        trace = go.Heatmap(
            z=grid.to_numpy(np.float32),
            x=across,
            y=up,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate=f"{x} %{{x}}<br>{y} %{{y}}<br>{value} %{{z:.4g}}<extra></extra>",
        )
        figure.add_trace(trace, **cell)
    if labels is not None:
        _label(figure.update_xaxes, labels, tickangle=-60)
    _whole_ticks(figure.update_xaxes, table[x], skip=labels is not None)
    _whole_ticks(figure.update_yaxes, table[y])
    _frame(figure, panels, x_title or _name(x), y_title or _name(y))
    low, high = table[value].min(), table[value].max()
    reach = max(abs(low), abs(high)) or 1.0
    scale = DIVERGING if zero_centred else SEQUENTIAL
    limits = (-reach, reach) if zero_centred else (low, high)
    return _finish(figure, title, _colour_bar(scale, limits, value_title or _name(value)))


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    band: tuple[str, str] | None = None,
    facet: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
) -> go.Figure:
    """`y` against `x`, a line for each value of `color`; `band` names the columns of its bounds."""
    _need(table, x, y, color, facet, *(band or ()))
    figure, panels = _panels(table, facet, 640 if facet is None else 320, 330)
    styles = _styles(table, color)
    for number, (cell, panel) in enumerate(panels):
        for name, part in _groups(panel, color):
            part, (colour, dash) = part.sort_values(x), styles[name]
            shared: dict[str, Any] = {"name": name, "legendgroup": name}
            if band:
                low, high = (part[column].to_numpy(np.float32) for column in band)
                edge = go.Scatter(
                    x=[*part[x], *part[x][::-1]],
                    y=np.concatenate([low, high[::-1]]),
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.18,
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    **shared,
                )
                figure.add_trace(edge, **cell)
            trace = go.Scatter(
                x=part[x],
                y=part[y].to_numpy(np.float32),
                mode="lines+markers" if markers else "lines",
                marker={"size": 5},
                line={"color": colour, "width": 2, "dash": dash},
                showlegend=color is not None and number == 0,
                **shared,
            )
            figure.add_trace(trace, **cell)
    _whole_ticks(figure.update_xaxes, table[x], skip=log_x)
    _axes(figure, panels, x_title or _name(x), y_title or _name(y), log_x, log_y)
    return _finish(figure, title, _legend(color))


def scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str | None = None,
    text: str | None = None,
    facet: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    diagonal: bool = False,
) -> go.Figure:
    """A point for each row; `text` shows on hover; `diagonal` adds the line y = x."""
    _need(table, x, y, color, text, facet)
    figure, panels = _panels(table, facet, 640 if facet is None else 320, 330)
    styles = _styles(table, color)
    for number, (cell, panel) in enumerate(panels):
        for name, part in _groups(panel, color):
            trace = go.Scatter(
                x=part[x].to_numpy(np.float32),
                y=part[y].to_numpy(np.float32),
                mode="markers",
                name=name,
                legendgroup=name,
                text=None if text is None else [_text(t) for t in part[text]],
                marker={"size": 7, "opacity": 0.75, "color": styles[name][0]},
                showlegend=color is not None and number == 0,
            )
            figure.add_trace(trace, **cell)
        if diagonal:
            ends = [min(table[x].min(), table[y].min()), max(table[x].max(), table[y].max())]
            line = {"color": "#777777", "dash": "dot", "width": 1}
            equal = go.Scatter(x=ends, y=ends, mode="lines", line=line, name="y = x")
            equal.update(hoverinfo="skip", showlegend=number == 0)
            figure.add_trace(equal, **cell)
    _axes(figure, panels, x_title or _name(x), y_title or _name(y), log_x, log_y)
    return _finish(figure, title, _legend(color))


def histogram(
    table: pd.DataFrame,
    x: str,
    color: str | None = None,
    bins: int = 40,
    title: str | None = None,
    x_title: str | None = None,
    log_x: bool = False,
) -> go.Figure:
    """Share of rows by `x`, the bins the same for each value of `color`; log_x: even in log x."""
    _need(table, x, color)
    if log_x and table[x].min() <= 0:
        raise ValueError(f"{x!r} has values of zero or less, which a logarithmic axis cannot show")
    values = np.log10(table[x]) if log_x else table[x]
    edges = np.histogram_bin_edges(values.dropna(), bins)
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    if log_x:
        middle, width = 10**middle, np.diff(10**edges)
    figure, panels = _panels(table, None, 640, 330)
    styles = _styles(table, color)
    for name, part in _groups(table, color):
        here = values.loc[part.index].dropna()
        share = np.histogram(here, edges)[0] / max(1, len(here))
        figure.add_bar(
            x=middle.astype(np.float32),
            y=share.astype(np.float32),
            width=width.astype(np.float32),
            name=name,
            marker={"color": styles[name][0], "line": {"width": 0}},
            opacity=0.6,
            showlegend=color is not None,
        )
    figure.update_layout(barmode="overlay", bargap=0)
    _axes(figure, panels, x_title or _name(x), "share of rows", log_x, False)
    return _finish(figure, title, _legend(color))


def attention(
    pattern: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    heads: Sequence[str] | None = None,
    title: str | None = None,
    columns: int = 3,
) -> go.Figure:
    """Where each query (row) looks: attention weights, 0 to 1, one panel for each head."""
    if pattern.ndim != 3:
        raise ValueError(f"a pattern is [head, query, key]; got shape {tuple(pattern.shape)}")
    n_heads, n_query, n_key = pattern.shape
    names = list(heads or (f"head {h}" for h in range(n_heads)))
    if n_key != len(tokens) or n_query != n_key or len(names) != n_heads:
        raise ValueError(
            f"the pattern has {n_heads} heads and is {n_query} by {n_key}, but there are "
            f"{len(names)} head names and {len(tokens)} tokens"
        )
    rows = pd.DataFrame({"head": range(n_heads)})
    side = max(220, n_key * 18)
    figure, panels = _panels(rows, "head", side, side, per_row=2 if n_heads == 4 else columns)
    weights = pattern.detach().float().cpu().numpy()
    weights = np.where(np.triu(np.ones((n_query, n_key), bool), 1), np.nan, weights)
    for head, (cell, _) in enumerate(panels):
        trace = go.Heatmap(z=weights[head], coloraxis="coloraxis", hoverongaps=False)
        trace.update(hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>")
        figure.add_trace(trace, **cell)
        figure.layout.annotations[head].text = _text(names[head])
    _label(figure.update_xaxes, tokens, tickangle=-60)
    _label(figure.update_yaxes, tokens, autorange="reversed")
    _frame(figure, panels, "key (looks at)", "query (looks from)")
    return _finish(figure, title, _colour_bar(BLUES, (0, 1), "attention"))


# --- Panels, axes, colours -----------------------------------------------------------------------

Panels = list[
    tuple[dict[str, int], pd.DataFrame]
]  # the cell of a subplot, and its part of the table


def _panels(
    table: pd.DataFrame, facet: str | None, width: float, height: float, per_row: int | None = None
) -> tuple[go.Figure, Panels]:
    """An empty figure with a panel for each value of `facet`, sized in pixels, wrapped in rows."""
    groups = _groups(table, facet)
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


def _axes(
    figure: go.Figure, panels: Panels, x_title: str, y_title: str, log_x: bool, log_y: bool
) -> None:
    for cell in {cell["col"]: cell for cell, _ in panels}.values():
        figure.update_xaxes(title=x_title, **cell)
    figure.update_yaxes(title=y_title, col=1)
    if log_x:
        figure.update_xaxes(type="log")
    if log_y:
        figure.update_yaxes(type="log")


def _frame(figure: go.Figure, panels: Panels, x_title: str, y_title: str) -> None:
    """Axes of a map: an outline, no grid, grey where there is no value."""
    _axes(figure, panels, x_title, y_title, False, False)
    outline = {"showline": True, "mirror": True, "linecolor": "#999999"}
    figure.update_xaxes(showgrid=False, zeroline=False, **outline)
    figure.update_yaxes(showgrid=False, zeroline=False, **outline)
    figure.update_layout(plot_bgcolor="#EFEFEF")


def _finish(figure: go.Figure, title: str | None, more: dict[str, Any]) -> go.Figure:
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


def _colour_bar(scale: Any, limits: tuple[float, float], title: str) -> dict[str, Any]:
    text = "<br>".join(textwrap.wrap(title, 14)) + "<br> "  # a line of air above the bar
    bar = {"title": {"text": text, "side": "top"}, "thickness": 14, "ticks": "outside"}
    low, high = limits
    return {"coloraxis": {"colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}}


def _legend(color: str | None) -> dict[str, Any]:
    return {"legend": {"title": {"text": _name(color or "")}, "tracegroupgap": 0}}


def _styles(table: pd.DataFrame, color: str | None) -> dict[str, tuple[str, str]]:
    """Colour and dash for each value of a column; many numbers get a scale, many words dashes."""
    names = [name for name, _ in _groups(table, color)]
    if len(names) > len(COLOURS) and pd.api.types.is_numeric_dtype(table[color]):
        order = np.argsort(np.argsort(table[color].drop_duplicates().to_numpy()))
        shades = sample_colorscale(SEQUENTIAL, list(order / (len(names) - 1)))
        return {name: (shade, "solid") for name, shade in zip(names, shades, strict=True)}
    dashes = ("solid", "dash", "dot", "dashdot")
    return {
        name: (COLOURS[i % len(COLOURS)], dashes[i // len(COLOURS) % len(dashes)])
        for i, name in enumerate(names)
    }


# --- Tables and text -----------------------------------------------------------------------------


def _need(table: pd.DataFrame, *columns: str | None) -> None:
    missing = [column for column in columns if column is not None and column not in table.columns]
    if missing:
        raise ValueError(f"no column {missing}; the table has {list(table.columns)}")
    if not len(table):
        raise ValueError("the table has no rows")


def _groups(table: pd.DataFrame, column: str | None) -> list[tuple[str, pd.DataFrame]]:
    """The parts of a table by a column's values, in the order of their first row."""
    if column is None:
        return [("", table)]
    return [(_text(key), part) for key, part in table.groupby(column, sort=False, dropna=False)]


def _in_order(column: pd.Series) -> list[Any]:
    """A column's distinct values: numbers by size, words by first appearance."""
    values = column.drop_duplicates()
    return list(values.sort_values() if pd.api.types.is_numeric_dtype(column) else values)


def _whole_ticks(update: Any, column: pd.Series, skip: bool = False) -> None:
    """Ticks at whole numbers only, for layers and heads."""
    if not skip and pd.api.types.is_integer_dtype(column):
        span = int(column.max() - column.min())
        update(tick0=0, dtick=1 if span <= 12 else 5 if span <= 60 else 10 ** len(str(span)) // 100)


def _label(update: Any, labels: Sequence[str], **more: Any) -> None:
    ticks = [_text(label) for label in labels]
    update(tickmode="array", tickvals=list(range(len(ticks))), ticktext=ticks, **more)


def _name(column: str) -> str:
    return AXIS_NAMES.get(column, column.replace("_", " "))


def _text(value: object) -> str:
    """Text for a figure, in which plotly would read tags, and formulas between dollar signs."""
    return html.escape(str(value), quote=False).replace("$", "&#36;")


# --- Theme ---------------------------------------------------------------------------------------

_AXIS: dict[str, Any] = {"gridcolor": "#E6E6E6", "zerolinecolor": "#BBBBBB", "linecolor": "#444"}
_AXIS |= {"ticks": "outside", "automargin": True, "title": {"standoff": 8}}
pio.templates["mi"] = go.layout.Template(
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
pio.templates.default = "mi"
pio.renderers["mi"] = InteractiveAndStatic()
pio.renderers.default = "mi"

"""Figures: a table in, a plotly figure out, and nothing else.

One theme for all: white ground, colours that colour-blind readers can tell apart (Okabe & Ito
2008), a blue-white-orange scale centred at zero where zero means "no effect", and cividis
elsewhere. Importing this module makes every figure show twice in a notebook: interactive, and as
a PNG for pages that run no scripts (`panels.py`).

Every function takes the names of the table's columns; a name that the table lacks raises a
ValueError that lists its columns. `facet` draws one panel for each value of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from .panels import (
    BLUES,
    DIVERGING,
    SEQUENTIAL,
    THEME,
    InteractiveAndStatic,
    axis_name,
    chart_size,
    colour_bar,
    finish,
    frame_maps,
    is_text,
    label_sides,
    label_ticks,
    legend,
    make_panels,
    ordered,
    require_columns,
    safe_text,
    series,
    standing_out,
    title_axes,
    unit_square,
    whole_ticks,
)

if TYPE_CHECKING:  # a notebook without a tensor does not wait for torch
    from jaxtyping import Float
    from torch import Tensor

pio.templates["mi"] = THEME
pio.templates.default = "mi"
pio.renderers["mi"] = InteractiveAndStatic()
pio.renderers.default = "mi"


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
    require_columns(table, value, x, y, facet)
    across, up = ordered(table[x]), ordered(table[y])
    panel_width = max(150, min(560, len(across) * 30))
    if facet is not None:
        panel_width = max(150, min(panel_width, len(across) * 17))
    figure, panels = make_panels(
        table, facet, panel_width, len(up) * max(15, min(26, 400 / len(up)))
    )
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
        label_ticks(figure.update_xaxes, labels, tickangle=-60)
    whole_ticks(figure.update_xaxes, table[x], skip=labels is not None)
    whole_ticks(figure.update_yaxes, table[y])
    frame_maps(figure, panels, x_title or axis_name(x), y_title or axis_name(y))
    low, high = table[value].min(), table[value].max()
    reach = max(abs(low), abs(high)) or 1.0
    scale = DIVERGING if zero_centred else SEQUENTIAL
    limits = (-reach, reach) if zero_centred else (low, high)
    return finish(figure, title, colour_bar(scale, limits, value_title or axis_name(value)))


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
    """`y` against `x`, a line for each value of `color`; `band` names the columns of its bounds.

    Where x holds names, their order is that of the table, points stand alone, and `band` is drawn
    as bars.
    """
    require_columns(table, x, y, color, facet, *(band or ()))
    figure, panels = make_panels(table, facet, *chart_size(facet))
    named = is_text(table[x])
    mode = "markers" if named else "lines+markers" if markers else "lines"
    for part, place, colour, dash in series(table, panels, color, facet):
        part = part if named else part.sort_values(x)
        middle, bars = part[y].to_numpy(np.float32), None
        if band:
            low, high = (part[column].to_numpy(np.float32) for column in band)
            bars = {"array": high - middle, "arrayminus": middle - low, "thickness": 1.5}
        if band and not named:
            figure.add_scatter(
                x=[*part[x], *part[x][::-1]],
                y=np.concatenate([low, high[::-1]]),
                fill="toself",
                fillcolor=colour,
                opacity=0.18,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                **place | {"showlegend": False},
            )
        figure.add_scatter(
            x=part[x],
            y=middle,
            mode=mode,
            error_y=bars if named else None,
            offsetgroup=place["name"] if named else None,
            marker={"size": 9 if named else 5, "color": colour},
            line={"color": colour, "width": 2, "dash": dash},
            **place,
        )
    if named:  # names side by side, each with its bar
        figure.update_layout(scattermode="group", scattergap=0.6)
    whole_ticks(figure.update_xaxes, table[x], skip=log_x)
    title_axes(figure, panels, x_title or axis_name(x), y_title or axis_name(y), log_x, log_y)
    return finish(figure, title, legend(color))


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
    """A point for each row; `diagonal` adds the line y = x.

    `text` shows on hover, and beside the points that stand out most, where it covers nothing; away
    from the diagonal if it can.
    """
    require_columns(table, x, y, color, text, facet)
    table = table.reset_index(drop=True)  # rows of one index are different rows
    figure, panels = make_panels(table, facet, *chart_size(facet))
    labels = None if text is None else table[text].map(safe_text)
    sides = pd.Series("", index=table.index)  # of its point, on which a label stands
    if labels is not None:
        points = unit_square(table[[x, y]], (log_x, log_y), diagonal)
        away = np.where(table[y] > table[x], "middle left", "middle right")
        prefer = pd.Series(away if diagonal else "top center", index=table.index)
        for _, panel in panels:
            far, here = labels[standing_out(panel, x, y)], points.loc[panel.index]
            sides[panel.index] = label_sides(here, far, prefer, chart_size(facet))
    for part, place, colour, _ in series(table, panels, color, facet):
        beside = sides[part.index]
        figure.add_scatter(
            x=part[x].to_numpy(np.float32),
            y=part[y].to_numpy(np.float32),
            mode="markers" if labels is None else "markers+text",
            hovertext=None if labels is None else list(labels[part.index]),
            text=None if labels is None else list(labels[part.index].where(beside != "", "")),
            textposition=beside.where(beside != "", "top center"),
            textfont={"size": 11},
            marker={"size": 7, "opacity": 0.75, "color": colour},
            **place,
        )
    if diagonal:
        ends = [min(table[x].min(), table[y].min()), max(table[x].max(), table[y].max())]
        line = {"color": "#777777", "dash": "dot", "width": 1}
        for number, (cell, _) in enumerate(panels):
            equal = go.Scatter(x=ends, y=ends, mode="lines", line=line, name="y = x")
            equal.update(hoverinfo="skip", showlegend=number == 0)
            figure.add_trace(equal, **cell)
    title_axes(figure, panels, x_title or axis_name(x), y_title or axis_name(y), log_x, log_y)
    return finish(figure, title, legend(color))


def histogram(
    table: pd.DataFrame,
    x: str,
    color: str | None = None,
    bins: int = 40,
    facet: str | None = None,
    title: str | None = None,
    x_title: str | None = None,
    log_x: bool = False,
) -> go.Figure:
    """Share of rows by `x`, the bins the same everywhere; log_x: even in log x.

    Shares are of the rows of one panel and colour.
    """
    require_columns(table, x, color, facet)
    table = table.reset_index(drop=True)  # rows of one index are different rows
    if log_x and table[x].min() <= 0:
        raise ValueError(f"{x!r} has values of zero or less, which a logarithmic axis cannot show")
    values = np.log10(table[x]) if log_x else table[x]
    edges = np.histogram_bin_edges(values.dropna(), bins)
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    if log_x:
        middle, width = 10**middle, np.diff(10**edges)
    figure, panels = make_panels(table, facet, *chart_size(facet))
    for part, place, colour, _ in series(table, panels, color, facet):
        here = values.loc[part.index].dropna()
        share = np.histogram(here, edges)[0] / max(1, len(here))
        figure.add_bar(
            x=middle.astype(np.float32),
            y=share.astype(np.float32),
            width=width.astype(np.float32),
            marker={"color": colour, "line": {"width": 0}},
            opacity=0.6,
            **place,
        )
    figure.update_layout(barmode="overlay", bargap=0)
    title_axes(figure, panels, x_title or axis_name(x), "share of rows", log_x, False)
    return finish(figure, title, legend(color))


def attention(
    pattern: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    heads: Sequence[str] | None = None,
    title: str | None = None,
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
    figure, panels = make_panels(rows, "head", side, side, per_row=2 if n_heads == 4 else 3)
    weights = pattern.detach().float().cpu().numpy()
    weights = np.where(np.triu(np.ones((n_query, n_key), bool), 1), np.nan, weights)
    for head, (cell, _) in enumerate(panels):
        trace = go.Heatmap(z=weights[head], coloraxis="coloraxis", hoverongaps=False)
        trace.update(hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>")
        figure.add_trace(trace, **cell)
        figure.layout.annotations[head].text = safe_text(names[head])
    label_ticks(figure.update_xaxes, tokens, tickangle=-60)
    label_ticks(figure.update_yaxes, tokens, autorange="reversed")
    frame_maps(figure, panels, "key (looks at)", "query (looks from)")
    return finish(figure, title, colour_bar(BLUES, (0, 1), "attention"))


def explorer(show: Callable[..., Any], button: str = "", **controls: Any) -> Any:
    """Widgets for a live notebook: `show(**chosen)` returns what is shown below them.

    `controls` are as for ipywidgets.interact: a text, a list to choose from, (low, high, step), or
    any widget. `show` runs at each change, or where `button` has a label, when it is clicked. A
    ValueError of `show` is printed. A stored notebook keeps no trace of it.
    """
    from IPython.display import display
    from ipywidgets import interactive

    def shown(**chosen: Any) -> None:
        try:
            display(show(**chosen))
        except ValueError as error:
            print(error)

    manual = {"manual": True, "manual_name": button} if button else {}
    return interactive(shown, manual, **controls)

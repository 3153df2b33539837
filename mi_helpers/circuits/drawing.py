"""Draws a circuit: layers upward, edges as wide as their score is large, colours for its sign."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..panels import COLOURS
from .graph import Circuit, Graph

LEVELS = 5  # widths of edges, and stops of the slider
_UNIT = 75  # pixels from head to head
_PORT = {"q": -0.16, "k": 0.0, "v": 0.16}  # where an edge enters a head
Point = tuple[float, float]


def draw(
    circuit: Circuit,
    scores: pd.DataFrame | None = None,
    column: str = "score",
    title: str | None = None,
    sweeps: int = 4,
) -> go.Figure:
    """The circuit as a figure: embedding at the bottom, output at the top, a row for each layer's
    heads and above it its MLP. Edges enter a head from the left as q, in the middle as k, from the
    right as v; on grouped-query models a key or value edge goes to every head that shares it.

    With `scores` (a table with `edge` and `column`), width is the absolute score in five steps,
    blue is positive and orange negative, and a slider hides the weaker edges. Hovering shows the
    numbers. Rows are ordered in a few `sweeps` so that nodes stand near those they talk to.

    Raises ValueError for an empty circuit, and for more than 1500 edges.
    """
    if not 0 < len(circuit) <= 1500:
        raise ValueError(f"the circuit has {len(circuit)} edges; up to 1500 can be drawn")
    lines = _lines(circuit, scores, column)
    at = _layout(circuit.graph, lines, sweeps)
    figure = go.Figure()
    for level in range(LEVELS):
        for positive in (True, False):
            part = lines[(lines["level"] == level) & (lines["positive"] == positive)]
            _add_edges(figure, part, at, level, positive, scores is not None)
    _add_nodes(figure, circuit, at)
    if scores is not None and lines["level"].nunique() > 1:
        figure.update_layout(sliders=[_slider(lines)])
    rows = len({y for _, y in at.values()})
    xs = [x for trace in figure.data for x in trace.x if x is not None]
    middle, wide = (min(xs) + max(xs)) / 2, max(max(xs) - min(xs) + 1.2, 6.0)
    figure.update_xaxes(visible=False, range=[middle - wide / 2, middle + wide / 2])
    figure.update_yaxes(visible=False)
    return figure.update_layout(
        title=title,
        width=int(min(1100, _UNIT * wide + 40)),
        height=int(min(1000, 50 * rows + 140)),
        margin={"l": 20, "r": 20, "t": 50 if title else 20, "b": 20},
        plot_bgcolor="white",
        hovermode="closest",
    )


def _lines(circuit: Circuit, scores: pd.DataFrame | None, column: str) -> pd.DataFrame:
    """One line per drawn edge: sender, node (where it enters), port, score, level, positive."""
    graph = circuit.graph
    value = {} if scores is None else dict(zip(scores["edge"], scores[column], strict=True))
    nodes, rows = set(circuit.nodes), []
    for edge in circuit:
        sender, receiver = edge.split(" -> ")
        for node, port in _entries(graph, receiver, nodes):
            rows.append((edge, sender, node, port, float(value.get(edge, 0.0))))
    lines = pd.DataFrame(rows, columns=["edge", "sender", "node", "port", "score"])
    if scores is None:
        return lines.assign(level=1, positive=True)
    size = lines["score"].abs()
    level = np.floor(LEVELS * np.sqrt(size / max(size.max(), 1e-30))).clip(upper=LEVELS - 1)
    return lines.assign(level=level.astype(int), positive=lines["score"] >= 0)


def _entries(graph: Graph, receiver: str, nodes: set[str]) -> list[tuple[str, str]]:
    """The nodes that a receiver belongs to, and the port; heads of the circuit, or else the first
    head that reads it."""
    parts = receiver.split(".")
    if len(parts) < 3:
        return [(receiver, "")]
    layer, number, port = parts
    share = 1 if port == "q" else graph.n_heads // graph.n_kv
    heads = [f"{layer}.{int(number) * share + i}" for i in range(share)]
    return [(head, port) for head in heads if head in nodes] or [(heads[0], port)]


def _height(name: str) -> float:
    if name in ("embed", "out"):
        return -1.0 if name == "embed" else np.inf
    layer = int(name[1:].split(".")[0])
    return layer + 0.5 * (name[0] == "M")


def _layout(graph: Graph, lines: pd.DataFrame, sweeps: int) -> dict[str, Point]:
    """Places of all nodes: rows by height, in a row by the mean place of the neighbours."""
    names = list(dict.fromkeys([*lines["sender"], *lines["node"]]))
    names.sort(key=lambda n: (_height(n), int(n.split(".")[1]) if "." in n else 0))
    heights = sorted({_height(name) for name in names})
    rows = [[name for name in names if _height(name) == height] for height in heights]
    x = {name: i - (len(row) - 1) / 2 for row in rows for i, name in enumerate(row)}
    neighbours: dict[str, list[str]] = {name: [] for name in names}
    for sender, node in lines[["sender", "node"]].itertuples(index=False):
        neighbours[sender].append(node)
        neighbours[node].append(sender)
    for _ in range(sweeps):
        for row in rows:
            row.sort(key=lambda n: (np.mean([x[m] for m in neighbours[n]]), n))
            x |= {name: i - (len(row) - 1) / 2 for i, name in enumerate(row)}
    half = max(len(row) for row in rows) / 2
    for row in rows:
        if row[0][0] == "M":  # MLPs stand aside, so that edges do not run through them
            x[row[0]] = half + 0.6
    return {name: (x[name], float(y)) for y, row in enumerate(rows) for name in row}


def _bow(start: Point, end: Point) -> tuple[list[float], list[float]]:
    """A line from a node to a port, bowed the more the further it goes, so that long edges pass
    beside the nodes between."""
    t = np.linspace(0, 1, 13)
    rise = end[1] - start[1]
    side = 1.0 if end[0] + start[0] >= 0 else -1.0
    bend = side * 0.16 * max(0.0, rise - 1) * (abs(end[0] - start[0]) < 1.5)
    x = start[0] + (end[0] - start[0]) * t + 4 * bend * t * (1 - t)
    return [*x.round(3).tolist(), None], [*(start[1] + rise * t).round(3).tolist(), None]


def _add_edges(
    figure: go.Figure,
    part: pd.DataFrame,
    at: dict[str, Point],
    level: int,
    positive: bool,
    scored: bool,
) -> None:
    """One trace for all edges of a width and sign, and one of points that carry the hover text."""
    xs: list[float] = []
    ys: list[float] = []
    middles: list[tuple[float, float]] = []
    for line in part.itertuples():
        end = at[line.node]
        x, y = _bow(at[line.sender], (end[0] + _PORT.get(line.port, 0.0), end[1] - 0.2))
        xs, ys = xs + x, ys + y
        middles.append((x[6], y[6]))
    colour = COLOURS[0 if positive else 1] if scored else "#777777"
    width = 0.6 + 1.1 * level
    figure.add_scatter(
        x=xs, y=ys, mode="lines", hoverinfo="skip", showlegend=False, opacity=0.35 + 0.13 * level,
        line={"color": colour, "width": width},
    )  # fmt: skip
    text = [f"{row.edge}<br>{row.score:.3g}" if scored else row.edge for row in part.itertuples()]
    figure.add_scatter(
        x=[x for x, _ in middles], y=[y for _, y in middles], text=text, mode="markers",
        hoverinfo="text", showlegend=False, marker={"size": 9, "color": colour, "opacity": 0},
    )  # fmt: skip


def _add_nodes(figure: go.Figure, circuit: Circuit, at: dict[str, Point]) -> None:
    names = list(at)
    heads = ["." in name for name in names]
    sent = dict(zip(circuit.graph.senders, circuit.kept.sum(1).tolist(), strict=True))
    colours = ["#DCEAF7" if head else "#FBE8D3" for head in heads]
    figure.add_scatter(
        x=[at[name][0] for name in names],
        y=[at[name][1] for name in names],
        text=[name.removeprefix("A") for name in names],
        hovertext=[f"{name}: {sent.get(name, 0)} edges leave it" for name in names],
        mode="markers+text",
        textfont={"size": 11},
        hoverinfo="text",
        showlegend=False,
        marker={
            "size": [30 if "." in name or name[0] == "M" else 42 for name in names],
            "symbol": ["circle" if head else "square" for head in heads],
            "color": colours,
            "opacity": 1,
            "line": {"color": "#555555", "width": 1},
        },
    )


def _slider(lines: pd.DataFrame) -> dict:
    """A slider that hides all edges below a width; two traces for each width and sign."""
    steps = []
    for lowest in range(LEVELS):
        shown: Sequence[bool] = [level >= lowest for level in range(LEVELS) for _ in range(4)]
        least = lines["score"].abs().max() * (lowest / LEVELS) ** 2
        visible = [*shown, True]
        steps.append({"method": "restyle", "label": f"{least:.2g}", "args": ["visible", visible]})
    return {"steps": steps, "currentvalue": {"prefix": "edges of absolute score from "},
            "pad": {"t": 10, "b": 10}, "len": 0.6, "x": 0.2}  # fmt: skip

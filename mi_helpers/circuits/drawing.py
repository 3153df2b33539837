"""Draws a circuit: nodes in rows by layer, edges as arrows, wide where the score is large."""

import itertools
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..panels import COLOURS
from .graph import Circuit, Graph

CHARACTER = 9  # of the title, in pixels
ENTRY, LETTER, LINE = 45, 6.5, 32  # of the legend: an entry's line and gaps, a letter, a row
SWEEPS = 4  # over the rows, to order their nodes
LEVELS = 5  # widths of edges, and stops of the slider
UNIT, ROW = 75, 50  # pixels from head to head, and from row to row
FEW, WIDER = 8, 1.7  # up to so many rows stand further apart, by this factor
PORT = {"q": -0.13, "k": 0.0, "v": 0.13}  # where an edge enters a head
COLOUR = {"lowers": COLOURS[0], "raises": COLOURS[1], "": "#777777"}
Point = tuple[float, float]


def draw(
    circuit: Circuit,
    scores: pd.DataFrame | None = None,
    title: str | None = None,
    metric: str = "the metric",
) -> go.Figure:
    """The circuit as a figure: embedding at the bottom, output at the top, a row for each layer's
    heads and above it its MLP. An arrow enters a head at its mark q, k or v. On grouped-query
    models an edge into a shared key or value is one arrow, into the first head that reads it, and
    a dotted line joins the heads that share.

    With `scores` (a table with `edge` and `score`, the change of a metric when the edge is
    removed), width is the absolute score in five steps; removal of a blue edge lowers the metric,
    of an orange one raises it; a slider hides the weaker edges. Hovering shows the numbers. Rows
    are ordered so that nodes stand near those they talk to, heads that share side by side. `metric`
    names what the scores are of, with its unit. A picture says nothing about how good a circuit
    is: put its faithfulness in the `title`.

    Raises ValueError for an empty circuit, and for more than 1500 edges.
    """
    if not 0 < len(circuit) <= 1500:
        raise ValueError(f"the circuit has {len(circuit)} edges; up to 1500 can be drawn")
    lines = _lines(circuit, scores)
    at = _layout(lines, circuit.graph)
    figure = go.Figure()
    for (level, effect), part in lines.groupby(["level", "effect"]):
        _add_arrows(figure, part, at, int(level), str(effect), metric)
    _add_shared(figure, circuit.graph, at)
    _add_marks(figure, lines, at)
    _add_nodes(figure, circuit, at)
    if lines["level"].nunique() > 1:
        figure.update_layout(sliders=[_slider(figure, lines, metric)])
    return _framed(figure, at, title)


def _lines(circuit: Circuit, scores: pd.DataFrame | None) -> pd.DataFrame:
    """One line per edge: edge, sender, node (where it enters), port, score, level, effect."""
    value = {} if scores is None else dict(zip(scores["edge"], scores["score"], strict=True))
    nodes, rows = set(circuit.nodes), []
    for edge in circuit:
        sender, receiver = edge.split(" -> ")
        node, port = _entry(circuit.graph, receiver, nodes)
        rows.append((edge, sender, node, port, float(value.get(edge, 0.0))))
    lines = pd.DataFrame(rows, columns=["edge", "sender", "node", "port", "score"])
    if scores is None:
        return lines.assign(level=1, effect="")
    size = lines["score"].abs()
    level = np.floor(LEVELS * np.sqrt(size / max(size.max(), 1e-30))).clip(upper=LEVELS - 1)
    effect = np.where(lines["score"] < 0, "lowers", "raises")
    return lines.assign(level=level.astype(int), effect=effect)


def _entry(graph: Graph, receiver: str, nodes: set[str]) -> tuple[str, str]:
    """The node that a receiver belongs to, and the port: of several heads that share a key or a
    value, the first in the circuit."""
    parts = receiver.split(".")
    if len(parts) < 3:
        return receiver, ""
    layer, number, port = parts
    share = 1 if port == "q" else graph.n_heads // graph.n_kv
    heads = [f"{layer}.{int(number) * share + i}" for i in range(share)]
    return next((head for head in heads if head in nodes), heads[0]), port


def _layout(lines: pd.DataFrame, graph: Graph) -> dict[str, Point]:
    """Places of all nodes: rows by layer, in a row by the mean place of the neighbours, heads that
    share keys and values side by side."""

    def height(name: str) -> float:
        if name in ("embed", "out"):
            return -1.0 if name == "embed" else np.inf
        return int(name[1:].split(".")[0]) + 0.5 * (name[0] == "M")

    def spread(row: list[str]) -> dict[str, float]:
        return {name: i - (len(row) - 1) / 2 for i, name in enumerate(row)}

    def group(name: str) -> int:
        return int(name.split(".")[1]) * graph.n_kv // graph.n_heads if "." in name else 0

    names = list(dict.fromkeys([*lines["sender"], *lines["node"]]))
    names.sort(key=lambda n: (height(n), int(n.split(".")[1]) if "." in n else 0))
    rows = [list(row) for _, row in itertools.groupby(names, height)]
    x = {name: place for row in rows for name, place in spread(row).items()}
    neighbours: dict[str, list[str]] = {name: [] for name in names}
    for sender, node in lines[["sender", "node"]].itertuples(index=False):
        neighbours[sender].append(node)
        neighbours[node].append(sender)
    for _ in range(SWEEPS):
        for row in rows:
            near = {n: float(np.mean([x[m] for m in neighbours[n]])) for n in row}
            shared = pd.Series(near).groupby(group).mean()
            row.sort(key=lambda n: (shared[group(n)], group(n), near[n], n))
            x |= spread(row)
    half = max(len(row) for row in rows) / 2
    for row in rows:
        if row[0][0] == "M":  # MLPs stand aside, so that edges do not run through them
            x[row[0]] = half + 0.6
    gap = WIDER if len(rows) <= FEW else 1.0
    return {name: (x[name], gap * y) for y, row in enumerate(rows) for name in row}


def _bow(start: Point, end: Point) -> tuple[list[float], list[float]]:
    """A line from a node to a port, bowed the more the further it goes, so that long edges pass
    beside the nodes between."""
    t = np.linspace(0, 1, 13)
    rise = end[1] - start[1]
    side = 1.0 if end[0] + start[0] >= 0 else -1.0
    bend = side * 0.16 * max(0.0, rise - 1) * (abs(end[0] - start[0]) < 1.5)
    x = start[0] + (end[0] - start[0]) * t + 4 * bend * t * (1 - t)
    return x.round(3).tolist(), (start[1] + rise * t).round(3).tolist()


def _add_arrows(
    figure: go.Figure,
    part: pd.DataFrame,
    at: dict[str, Point],
    level: int,
    effect: str,
    metric: str,
) -> None:
    """A trace of lines for all edges of one width and colour, and one of their heads, which carry
    the hover text, as does a point half-way."""
    xs, ys, points = list[float | None](), list[float | None](), list[tuple[float, float, float]]()
    for line in part.itertuples():
        end = at[line.node]
        x, y = _bow(at[line.sender], (end[0] + PORT.get(line.port, 0.0), end[1] - 0.45))
        xs, ys = [*xs, *x, None], [*ys, *y, None]
        slope = math.atan2((x[-1] - x[-3]) * UNIT, (y[-1] - y[-3]) * ROW)  # 0: upwards
        points += [(x[6], y[6], 0.0), (x[-1], y[-1], math.degrees(slope))]
    style = {"meta": level, "showlegend": False}
    opacity = 0.35 + 0.13 * level
    figure.add_scatter(
        x=xs, y=ys, mode="lines", hoverinfo="skip", opacity=opacity,
        line={"color": COLOUR[effect], "width": 0.6 + 1.1 * level}, **style,
    )  # fmt: skip
    text = [f"{row.edge}<br>{row.score:.3g}" if effect else row.edge for row in part.itertuples()]
    across, up, angle = zip(*points, strict=True)
    figure.add_scatter(
        x=across, y=up, mode="markers", text=[t for t in text for _ in range(2)], hoverinfo="text",
        marker={
            "symbol": ["circle", "arrow"] * len(part), "angle": angle, "color": COLOUR[effect],
            "size": 7 + 1.5 * level, "opacity": [0.0, min(1.0, opacity + 0.3)] * len(part),
        }, **style,
    )  # fmt: skip
    if effect and effect not in {trace.legendgroup for trace in figure.data}:
        figure.add_scatter(
            x=[None], y=[None], mode="lines", legendgroup=effect,
            line={"color": COLOUR[effect], "width": 3}, name=f"removal {effect} {metric}",
        )  # fmt: skip


def _add_shared(figure: go.Figure, graph: Graph, at: dict[str, Point]) -> None:
    """Dotted lines between heads with the same keys and values."""
    if graph.n_kv == graph.n_heads:
        return
    groups: dict[tuple[str, int], list[Point]] = {}
    for name, place in at.items():
        if "." in name:
            layer, head = name.split(".")
            groups.setdefault((layer, int(head) * graph.n_kv // graph.n_heads), []).append(place)
    places = [[*sorted(group), (None, None)] for group in groups.values() if len(group) > 1]
    if places:
        xs, ys = zip(*itertools.chain(*places), strict=True)
        figure.add_scatter(
            x=xs, y=ys, mode="lines", hoverinfo="skip", name="shared keys and values",
            line={"color": "#555555", "width": 1.5, "dash": "dot"},
        )  # fmt: skip


def _add_marks(figure: go.Figure, lines: pd.DataFrame, at: dict[str, Point]) -> None:
    """The letters q, k and v where arrows enter."""
    used = lines[lines["port"] != ""].drop_duplicates(["node", "port"])
    figure.add_scatter(
        x=[at[line.node][0] + PORT[line.port] for line in used.itertuples()],
        y=[at[line.node][1] - 0.21 for line in used.itertuples()],
        text=used["port"].tolist(), mode="text", textfont={"size": 9, "color": "#333333"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _add_nodes(figure: go.Figure, circuit: Circuit, at: dict[str, Point]) -> None:
    """Heads as circles, the others as squares; below the marks, so that these can be read."""
    names = list(at)
    heads = ["." in name for name in names]
    sent = dict(zip(circuit.graph.senders, circuit.kept.sum(1).tolist(), strict=True))
    figure.add_scatter(
        x=[x for x, _ in at.values()], y=[y for _, y in at.values()],
        text=[name.removeprefix("A") for name in names],
        hovertext=[f"{name}: {sent.get(name, 0)} edges leave it" for name in names],
        mode="markers+text", textfont={"size": 10}, textposition="middle center",
        hoverinfo="text", showlegend=False,
        marker={
            "size": [34 if "." in name else 28 if name[0] == "M" else 42 for name in names],
            "symbol": ["circle" if head else "square" for head in heads],
            "color": ["#DCEAF7" if head else "#FBE8D3" for head in heads],
            "opacity": 1, "line": {"color": "#555555", "width": 1},
        },
    )  # fmt: skip
    *others, marks, nodes = figure.data
    figure.data = (*others, nodes, marks)


def _slider(figure: go.Figure, lines: pd.DataFrame, metric: str) -> dict:
    """A slider that hides all edges below a width."""
    steps = []
    for lowest in range(LEVELS):
        least = lines["score"].abs().max() * (lowest / LEVELS) ** 2
        visible = [trace.meta is None or trace.meta >= lowest for trace in figure.data]
        steps.append({"method": "restyle", "label": f"{least:.2g}", "args": ["visible", visible]})
    return {"steps": steps, "currentvalue": {"prefix": f"edges that move {metric} by at least "},
            "pad": {"t": 10, "b": 10}, "len": 0.6, "x": 0.2}  # fmt: skip


def _framed(figure: go.Figure, at: dict[str, Point], title: str | None) -> go.Figure:
    """Axes around all of it, and a size in pixels that fits it."""
    top = max(y for _, y in at.values())
    xs = [x for trace in figure.data for x in trace.x if x is not None]
    middle, needed = (min(xs) + max(xs)) / 2, (CHARACTER * len(title or "") - 40) / UNIT
    wide = max(max(xs) - min(xs) + 1.2, 6.0, needed)
    width = int(min(1100, UNIT * wide + 40))
    # A legend that is wider than the figure goes on in more rows, in columns of its widest entry.
    entries = [ENTRY + LETTER * len(x.name) for x in figure.data if x.name and x.showlegend is None]
    fit = max(1, (width - 40) // max(entries, default=1))
    more = LINE * (math.ceil(len(entries) / fit) - 1) if sum(entries) > width - 40 else 0
    figure.update_xaxes(visible=False, range=[middle - wide / 2, middle + wide / 2])
    figure.update_yaxes(visible=False, range=[-1, top + 1])
    return figure.update_layout(
        title=title,
        width=width,
        height=int(min(1800, ROW * (top + 1) + 170)) + more,
        margin={"l": 20, "r": 20, "t": (75 if title else 45) + more, "b": 20},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        plot_bgcolor="white",
        hovermode="closest",
    )

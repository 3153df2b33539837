"""A graph of features across layers to search, click and follow, as one self-contained HTML page.

The page needs no network and no server: the graph libraries (sigma and graphology, MIT licence,
under `data/graph`), the graph and all texts are inside. Texts reach the page as data and are shown
as text nodes, so that nothing in a token or a title can act as markup.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ..panels import COLOURS, safe_text
from .contexts import Card

ASSETS = Path(__file__).parents[1] / "data" / "graph"
KINDS = ("passed through", "gate", "appearing", "disappearing")
HEIGHT = 640  # pixels
_FLOW = dict(zip(("passed on", "related", "appearing", "disappearing"), COLOURS, strict=False))
_LEVELS = 10  # of activation, for shading
_LINE = 0.03  # of the first view's height, which a line of words takes


@dataclass(frozen=True)
class Explorer:
    """The page, to show as a cell's output or to `save`; `first_view` is a picture of it as it
    opens, for pages that run no scripts."""

    page: str
    first_view: go.Figure
    features: int
    edges: int

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file."""
        path = Path(path)
        path.write_text(self.page, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"explorer of {self.features} features and {self.edges} edges"

    def _repr_html_(self) -> str:
        page = self.page.replace("&", "&amp;").replace("'", "&#39;")
        frame = f"width:100%;height:{HEIGHT}px;border:1px solid #ccc"
        return f"<iframe sandbox='allow-scripts' style='{frame}' srcdoc='{page}'></iframe>"


def explorer(
    nodes: pd.DataFrame,
    joined: pd.DataFrame,
    cards: Mapping[tuple[int, int], Card],
    title: str = "Features across layers",
    about: str = "",
    statistics: Mapping[str, str] = MappingProxyType({"Pearson's r": "weight"}),
) -> Explorer:
    """The explorer of a graph.

    `nodes`: layer, feature, and if known community (-1 for none) and kinds (a collection of names
    out of KINDS); `joined`: a table as from `feature_graph.edges`, of which the edges between
    these nodes are shown; `cards`: one for each (layer, feature); `statistics`: the similarities
    to choose from, each with its column of `joined`. Raises ValueError for a repeated node, an
    unknown kind, a node without a card, and a similarity without its column.
    """
    nodes = _checked(nodes, cards)
    layers = sorted(nodes["layer"].unique().tolist())
    number = {key: n for n, key in enumerate(zip(nodes["layer"], nodes["feature"], strict=True))}
    ends = [
        [number.get(key, -1) for key in zip(joined[layer], joined[feature], strict=True)]
        for layer, feature in (("layer", "up"), ("next", "down"))
    ]
    inside = [n for n, pair in enumerate(zip(*ends, strict=True)) if min(pair) >= 0]
    if missing := set(statistics.values()) - set(joined.columns):
        raise ValueError(f"no column {sorted(missing)}; the edges have {list(joined.columns)}")
    weights = [joined[column].iloc[inside].round(3).tolist() for column in statistics.values()]
    found = [cards[key] for key in number]
    words = _Numbers()
    x, y, columns = _layout(nodes, layers)
    data = {
        "layers": layers,
        "kinds": KINDS,
        "columns": columns,
        "statistics": list(statistics),
        "least": [math.floor(100 * min(column, default=0.0)) / 100 for column in weights],
        "about": about,
        "nodes": {
            "layer": [layers.index(layer) for layer in nodes["layer"]],
            "feature": nodes["feature"].tolist(),
            "community": nodes["community"].tolist(),
            "kinds": [sum(1 << KINDS.index(k) for k in set(kinds)) for kinds in nodes["kinds"]],
            "fires": [float(f"{card.fires:.3g}") for card in found],
            "word": [card.word for card in found],
            "size": [round(2 + 1.2 * np.log10(1 + 1e4 * card.fires), 2) for card in found],
            "x": x,
            "y": y,
        },
        "edges": {
            "source": [ends[0][n] for n in inside],
            "target": [ends[1][n] for n in inside],
            "weights": weights,
        },
        "cards": [_packed(card, words) for card in found],
    }
    data["words"] = list(words)
    return Explorer(_page(title, data), _first_view(title, data), len(nodes), len(inside))


def _checked(nodes: pd.DataFrame, cards: Mapping[tuple[int, int], Card]) -> pd.DataFrame:
    nodes = nodes.reset_index(drop=True)
    if nodes.empty:
        raise ValueError("there is no feature to show")
    if nodes.duplicated(["layer", "feature"]).any():
        raise ValueError("a feature of `nodes` is repeated")
    if "community" not in nodes:
        nodes = nodes.assign(community=-1)
    if "kinds" not in nodes:
        nodes = nodes.assign(kinds=[()] * len(nodes))
    if unknown := {kind for kinds in nodes["kinds"] for kind in kinds} - set(KINDS):
        raise ValueError(f"unknown kinds {sorted(unknown)}; there are {', '.join(KINDS)}")
    lacking = [
        key for key in zip(nodes["layer"], nodes["feature"], strict=True) if key not in cards
    ]
    if lacking:
        raise ValueError(
            f"no card for {len(lacking)} features, such as (layer, feature) {lacking[0]}"
        )
    return nodes


class _Numbers(dict[str, int]):
    """A number for each text, in the order in which they first come."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def _packed(card: Card, words: _Numbers) -> dict[str, Any]:
    contexts = [
        {
            "t": [words[w] for w in context.tokens],
            "a": [int(np.ceil(a * _LEVELS)) for a in context.activation],
        }
        for context in card.contexts
    ]
    said = {"p": card.promoted, "s": card.suppressed}
    return {"c": contexts} | {key: [words[w] for w in found] for key, found in said.items()}


def _layout(
    nodes: pd.DataFrame, layers: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """A column for each layer; a community lies at one height in all of them, the largest on top,
    and features without one at the bottom."""
    group = nodes["community"].where(nodes["community"] >= 0, nodes["community"].max() + 1)
    counts = pd.crosstab(group, nodes["layer"])
    tall = counts.max(axis=1) + 1
    top = -(tall.cumsum() - tall)
    within = nodes.groupby([group, "layer"]).cumcount()
    members = nodes.groupby([group, "layer"])["feature"].transform("size")
    y = group.map(top) - (within + 0.5) * group.map(tall) / members
    total = float(tall.sum())
    # Alternating offsets, so that neighbours in a tall column do not lie on each other.
    band = 0.1 if len(nodes) < 2000 else 0.2
    shift = band * ((y.groupby(nodes["layer"]).rank() * 0.618034) % 1 - 0.5)
    columns = [1.1 * k / max(1, len(layers) - 1) for k in range(len(layers))]
    x = nodes["layer"].map(dict(zip(layers, columns, strict=True))) + shift
    return (x.round(4).tolist(), (y / total).round(5).tolist(), columns)


def flow_chart(
    shares: Mapping[int, Mapping[str, float]], live: Mapping[int, int], title: str
) -> go.Figure:
    """A Sankey chart of what becomes of features from layer to layer; widths are their numbers.

    `shares` holds what `features.flow` gives for each downstream layer, `live` the number of
    features of each layer. Links into a layer sum to its features. Those out of one need not: one
    feature may be related to several of the next layer, or several to one.
    """
    layers, links, labels = list(live), [], [f"layer {n}: {live[n]}" for n in live]
    x, y = [float(k) for k in range(len(live))], [0.5] * len(live)
    for k, (m, n) in enumerate(pairwise(layers)):
        new, lost = live[n] * shares[n]["appearing"], live[m] * shares[n]["disappearing"]
        passed, at = live[n] * shares[n]["passed"], len(labels)
        labels += [f"new {shares[n]['appearing']:.0%}", f"lost {shares[n]['disappearing']:.0%}"]
        links += [(k, k + 1, passed, 0), (k, k + 1, live[n] - new - passed, 1)]
        links += [(at, k + 1, new, 2), (k, at + 1, lost, 3)]
        x, y = [*x, k + 0.45, k + 0.5], [*y, 0.05, 0.95]
    source, target, value, kind = zip(*links, strict=True)
    shades = [f"rgba{(*hex_to_rgb(colour), 0.6)}" for colour in _FLOW.values()]
    figure = go.Figure(go.Sankey(
        arrangement="fixed",
        node={"label": labels, "color": "#777777", "thickness": 12,
              "x": [min(0.999, max(0.001, at / (len(live) - 1))) for at in x], "y": y},
        link={"source": source, "target": target, "value": value,
              "color": [shades[k] for k in kind], "label": [list(_FLOW)[k] for k in kind]},
    ))  # fmt: skip
    key = " · ".join(f'<span style="color:{c}">{name}</span>' for name, c in _FLOW.items())
    said = {"text": f"{safe_text(title)}<br><sup>{key}</sup>", "y": 0.94, "yanchor": "top"}
    return figure.update_layout(title=said, width=900, height=400, margin_t=90)


def _first_view(title: str, data: dict[str, Any], named: int = 40) -> go.Figure:
    """The graph as the page shows it first; of the features with the strongest edges at most
    `named` carry words, none so near another of its column that the two would overlap."""
    nodes, edges = data["nodes"], data["edges"]
    x, y = np.array(nodes["x"]), np.array(nodes["y"])
    ends = np.array([edges["source"], edges["target"]], int).reshape(2, -1)
    gap = np.full(ends.shape[1], np.nan)
    strength = np.zeros(len(x))
    np.maximum.at(strength, ends, np.tile(edges["weights"][0], (2, 1)) if ends.size else 0)
    shown: list[int] = []
    for n in np.argsort(-strength, kind="stable").tolist():
        beside = [y[k] for k in shown if nodes["layer"][k] == nodes["layer"][n]]
        if len(shown) < named and np.abs(y[n] - np.array(beside)).min(initial=1.0) > _LINE:
            shown.append(n)
    words = [safe_text(nodes["word"][n]) if n in shown else "" for n in range(len(x))]
    colours = [COLOURS[c % len(COLOURS)] if c >= 0 else "#AAAAAA" for c in nodes["community"]]
    figure = go.Figure()
    lines = [np.stack([*values[ends], gap], axis=1).ravel().astype(np.float32) for values in (x, y)]
    grey = {"color": "#CCCCCC", "width": 0.6}
    figure.add_scatter(x=lines[0], y=lines[1], mode="lines", line=grey, hoverinfo="skip")
    figure.add_scatter(
        x=x, y=y, text=words, mode="markers+text", textposition="middle right",
        textfont={"size": 10}, marker={"color": colours, "size": 6},
    )  # fmt: skip
    ticks = [f"layer {layer}" for layer in data["layers"]]
    figure.update_xaxes(tickvals=data["columns"], ticktext=ticks, showgrid=False, zeroline=False)
    figure.update_yaxes(visible=False)
    title = f"{safe_text(title)}<br><sup>{safe_text(data['about'])}</sup>"
    return figure.update_layout(title=title, width=1000, height=HEIGHT, showlegend=False)


def _page(title: str, data: dict[str, Any]) -> str:
    # "<" would let a text end the script element that holds the data.
    inert = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(_asset("explorer.html")).substitute(
        title=html.escape(title),
        data=inert,
        graphology=_asset("graphology.umd.min.js").split("\n//# sourceMappingURL")[0],
        sigma=_asset("sigma.min.js"),
        page=_asset("explorer.js"),
    )


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")

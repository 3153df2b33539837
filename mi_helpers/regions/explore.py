"""Maps of stable regions as figures, and a small explorer for a live notebook."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import plots
from .paths import slice_map


def slice_figure(
    side: Float[Tensor, "side"],
    closeness: Float[Tensor, "beta alpha three"],
    where: Float[Tensor, "three two"],
    names: Sequence[str] = "ABC",
    title: str | None = None,
) -> go.Figure:
    """A map from `regions.slice_map` as an image: red, green and blue are closeness to A, B, C."""
    step = float(side[1] - side[0])
    start = float(side[0])
    image = (255 * closeness).round().byte().numpy()
    figure = go.Figure(go.Image(z=image, x0=start, dx=step, y0=start, dy=step))
    figure.add_scatter(
        x=where[:, 0].tolist(), y=where[:, 1].tolist(), text=list(names), mode="markers+text",
        marker={"color": "white", "size": 9, "line": {"color": "black", "width": 1}},
        textfont={"color": "white", "size": 15}, textposition="top right", showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(title="α: from A to B", constrain="domain")
    figure.update_yaxes(title="β: from the line AB to C", autorange=True)
    return figure.update_layout(title=title, width=480, height=460)


def explorer(model: TransformerBridge, texts: Sequence[str], layer: int = 0, size: int = 21) -> Any:
    """Widgets to choose three texts of equal token length and a layer; the button draws the map."""
    from ipywidgets import IntSlider

    def draw(A: str, B: str, C: str, layer: int) -> go.Figure:
        tokens = [model.to_tokens(text) for text in (A, B, C)]
        lengths = [t.shape[1] for t in tokens]
        if len(set(lengths)) > 1:
            raise ValueError(f"The texts must have equal token lengths; these have {lengths}.")
        found = slice_map(model, torch.cat(tokens), layer=layer, size=size)
        return slice_figure(*found, title=f"after block {layer}")

    named = dict(zip("ABC", texts, strict=True))
    depth = IntSlider(layer, 0, model.cfg.n_layers - 1)
    return plots.explorer(draw, "Draw the map", **named, layer=depth)

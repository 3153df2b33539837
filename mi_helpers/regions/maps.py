"""Maps of stable regions: a plane through three activations, its figure, and an explorer."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine, plots
from ..tasks import token_ids
from .paths import activation, point_rows, take, walk


def slice_points(
    corners: Float[Tensor, "three d_model"], side: Float[Tensor, "side"]
) -> Float[Tensor, "point d_model"]:
    """The plane through A, B and C: A + α(B - A) + β(C - P) for α (fast) and β (slow) in `side`,
    where P is the foot of C on the line AB. Source: arXiv 2409.17113."""
    a, b, c = corners
    along, up = b - a, c - a
    up = up - (up @ along) / (along @ along) * along
    beta, alpha = torch.meshgrid(side, side, indexing="ij")
    return a + alpha.reshape(-1, 1) * along + beta.reshape(-1, 1) * up


@torch.no_grad()
def slice_map(
    model: TransformerBridge,
    tokens: Int[Tensor, "three pos"],
    layer: int = 0,
    size: int = 31,
) -> tuple[Float[Tensor, "side"], Float[Tensor, "beta alpha three"], Float[Tensor, "three two"]]:
    """A map of the plane through three prompts' activations, with the first prompt as context.

    Returns the coordinates of the grid's side (-0.25 to 1.25), the closeness of each point's
    read-out (behind the final norm) to those at A, B and C (1 there, 0 at the distance of the other
    two or beyond), and the (α, β) of the three corners.
    """
    recorded = engine.record(model, tokens)
    corners = activation(recorded, layer)
    side = torch.linspace(-0.25, 1.25, size)
    grid = slice_points(corners, side.to(corners))
    points = torch.cat([corners, grid])[:, None]
    values = walk(take(recorded, [0]), point_rows(points, layer)).post[:, 0]
    ends, values = values[:3], values[3:]
    apart = torch.cdist(ends, ends)
    reach = apart.masked_fill(torch.eye(3, device=apart.device).bool(), torch.inf).amin(0)
    closeness = (1 - torch.cdist(values, ends) / reach).clamp(0, 1)
    along = corners[1] - corners[0]
    foot = float((corners[2] - corners[0]) @ along / (along @ along))
    where = torch.tensor([[0.0, 0.0], [1.0, 0.0], [foot, 1.0]])
    return side, closeness.view(size, size, 3).cpu(), where


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
        tokens = [token_ids(model, text) for text in (A, B, C)]
        lengths = [len(ids) for ids in tokens]
        if len(set(lengths)) > 1:
            raise ValueError(f"The texts must have equal token lengths; these have {lengths}.")
        found = slice_map(
            model, torch.tensor(tokens, device=model.cfg.device), layer=layer, size=size
        )
        return slice_figure(*found, title=f"after block {layer}")

    named = dict(zip("ABC", texts, strict=True))
    depth = IntSlider(layer, 0, model.cfg.n_layers - 1)
    return plots.explorer(draw, "Draw the map", **named, layer=depth)

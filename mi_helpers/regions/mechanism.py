"""A first look at what turns a smooth path in the residual stream into a jump of the output.

All points of some paths are copies of their prompts in one batch, step by step, [step * pair, 1,
width], so that a plain hook on a module sees whole paths, and can count gate signs or hold a norm's
scale along them.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..engine import Run
from .paths import (
    Walk,
    activation,
    chain,
    path_rows,
    point_rows,
    take,
    walk,
    with_frozen_patterns,
)

COPIES = 512  # of prompts in one batch: bounds the copies of keys and values
NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")  # of a block, as TransformerLens names them


def line(start: Run, end: Run, layer: int = 0, steps: int = 50) -> Float[Tensor, "step pair d"]:
    """The straight lines from one run's last-position activations to those of the other."""
    a, b = activation(start, layer), activation(end, layer)
    return torch.stack([torch.lerp(a, b, alpha) for alpha in torch.linspace(0, 1, steps).tolist()])


def walk_points(
    base: Run,
    points: Float[Tensor, "step pair d"],
    layer: int = 0,
    frozen_norms: Sequence[int] = (),
) -> Walk:
    """As `regions.walk`, for the points of one path in each prompt of `base`.

    The norms of the blocks `frozen_norms` are held at the scale that they have at the path's first
    point: the root mean square (LayerNorm: the standard deviation) that the norm divides by.
    """
    pairs = points.shape[1]
    if pairs != len(base.tokens):
        raise ValueError(f"one path for each prompt: {pairs} paths, {len(base.tokens)} prompts")
    blocks = [base.model.blocks[number] for number in frozen_norms]
    norms = [getattr(block, name) for block in blocks for name in NORMS if hasattr(block, name)]
    parts = [_walk_batch(take(base, part), points[:, part], layer, norms)
             for part in _batches(points)]  # fmt: skip
    pre, post = (torch.cat([part.read(read) for part in parts], dim=1) for read in ("pre", "post"))
    return Walk(base.model, pre, post)


def _batches(points: Float[Tensor, "step pair d"]) -> Sequence[Int[Tensor, "pair"]]:
    steps, pairs, _ = points.shape
    return torch.arange(pairs).split(max(1, COPIES // steps))


def _walk_batch(
    base: Run, points: Float[Tensor, "step pair d"], layer: int, norms: Sequence[nn.Module]
) -> Walk:
    steps, pairs, width = points.shape
    copies = take(base, list(range(pairs)) * steps)
    hold = partial(_hold_scale, (steps, pairs))
    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(norm.register_forward_hook(hold))
        found = walk(copies, point_rows(points.reshape(1, steps * pairs, width), layer))
    return Walk(found.model, found.pre.view_as(points), found.post.view_as(points))


def _hold_scale(
    shape: tuple[int, int], module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    steps, pairs = shape
    _require_whole(output, shape)
    stream = args[0]
    original = module.original_component
    if "RMS" not in type(original).__name__:
        stream = stream - stream.mean(-1, keepdim=True)
    scale = stream.float().pow(2).mean(-1, keepdim=True).sqrt().to(output)
    bias = getattr(original, "bias", None)
    bias = 0 if bias is None else bias
    return (output - bias) * scale / scale[:pairs].repeat(steps, 1, 1) + bias


def _require_whole(output: Tensor, shape: tuple[int, int]) -> None:
    if output.shape[:2] != (shape[0] * shape[1], 1):
        raise RuntimeError("paths did not run in one batch: too little memory; walk fewer at once")


def gate_signs(
    base: Run, points: Float[Tensor, "step pair d"], layer: int = 0, read_layer: int = -1
) -> Bool[Tensor, "step pair d_mlp"]:
    """Which gates of one layer's MLP (or pre-activations, where it has no gate) are positive, at
    the last position, along paths written at `layer`. Source: arXiv 2409.17113."""
    mlp = base.model.blocks[read_layer].mlp
    gate = mlp.gate if hasattr(mlp, "gate") else getattr(mlp, "in")
    seen: list[Tensor] = []
    with gate.register_forward_hook(lambda module, args, output: seen.append(output > 0)):
        walk_points(base, points, layer)
    steps, parts = len(points), _batches(points)
    for signs, part in zip(seen, parts, strict=False):
        _require_whole(signs, (steps, len(part)))
    return torch.cat([signs.view(steps, len(part), -1)
                      for signs, part in zip(seen, parts, strict=True)], dim=1)  # fmt: skip


def flips(signs: Bool[Tensor, "step pair unit"]) -> Int[Tensor, "gap pair"]:
    """Sign changes between neighbouring steps, over units."""
    return (signs[1:] != signs[:-1]).sum(-1)


def flip_density(
    flipped: Int[Tensor, "gap pair"], slope: Float[Tensor, "gap pair"], share: float = 0.2
) -> pd.DataFrame:
    """Where on a path gates flip, one line a pair.

    `all`: flips on the whole path. `plateau`: those on steps whose slope is under half that of a
    straight line. `flattest` and `steepest`: flips per step on the `share` of the path's own steps
    with the smallest and the largest slope, of which every path has as many.
    """
    few = max(1, round(share * len(slope)))
    order = slope.argsort(dim=0, stable=True)
    columns = {
        "all": flipped.sum(0),
        "plateau": (flipped * (slope < 0.5)).sum(0),
        "flattest": flipped.gather(0, order[:few]).float().mean(0),
        "steepest": flipped.gather(0, order[-few:]).float().mean(0),
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def held_sharpness(run: Run, steps: int = 50) -> pd.DataFrame:
    """Sharpness of the paths from each prompt of a run to the next, with all later attention
    `patterns` held at those of α = 0, and with the scales of all later blocks' `norms` held there.
    `run` must have recorded `pattern`."""
    start, end = chain(run)
    later = range(1, run.model.cfg.n_layers)
    rows = with_frozen_patterns(path_rows(start, end, steps=steps), start, later)
    found = {
        "patterns": walk(start, rows),
        "norms": walk_points(start, line(start, end, steps=steps), frozen_norms=later),
    }
    return pd.DataFrame({name: one.sharpness().numpy() for name, one in found.items()})


def jacobian_norm(
    base: Run,
    points: Float[Tensor, "step pair d"],
    layer: int = 0,
    probes: int = 4,
    size: float = 1e-2,
    seed: int = 0,
) -> Float[Tensor, "step pair"]:
    """The norm of the read-out's Jacobian along paths: how far the post-norm read-out moves for a
    step in a random direction, root mean square over directions, times the root of the width.

    A Monte-Carlo estimate of the Frobenius norm by central differences of `probes` directions, the
    same at every point; `size` is the step as a share of the point's own length.
    """
    steps, pairs, width = points.shape
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(probes, 1, width, generator=generator).to(points)
    directions /= directions.norm(dim=-1, keepdim=True)
    length = size * points.norm(dim=-1, keepdim=True)[:, None]
    moved = torch.stack([points[:, None] + sign * length * directions for sign in (1, -1)])
    read = walk_points(base, moved.reshape(-1, pairs, width), layer).post
    up, down = read.view(2, steps, probes, pairs, -1)
    slope = (up - down).norm(dim=-1) / (2 * length[..., 0])
    return slope.pow(2).mean(1).mul(width).sqrt()

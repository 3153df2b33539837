"""A first look at what turns a smooth path in the residual stream into a jump of the output.

One path at a time: all its points are copies of one prompt, so that a plain hook on a module sees
them as a batch, [step, 1, width], and can count gate signs or hold a norm's scale along the path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from .engine import Run
from .regions import Walk, activation, point_rows, take, walk

NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")  # of a block, as TransformerLens names them


def line(run: Run, layer: int = 0, steps: int = 50) -> Float[Tensor, "step d_model"]:
    """The straight line between the last-position activations of a run's two prompts."""
    if len(run.tokens) != 2:
        raise ValueError(f"a path joins two prompts, the run has {len(run.tokens)}")
    a, b = activation(run, layer)
    return torch.stack([torch.lerp(a, b, alpha) for alpha in torch.linspace(0, 1, steps).tolist()])


def walk_points(base: Run, points: Float[Tensor, "step d_model"], layer: int = 0) -> Walk:
    """As `regions.walk`, for the points of one path in the first prompt of `base`, in one batch."""
    copies = take(base, [0] * len(points))
    found = walk(copies, point_rows(points[None], layer))
    return Walk(found.model, found.pre.transpose(0, 1), found.post.transpose(0, 1))


# --- Gates --------------------------------------------------------------------------------------


def gate_signs(
    base: Run, points: Float[Tensor, "step d_model"], layer: int = 0, read_layer: int = -1
) -> Bool[Tensor, "step d_mlp"]:
    """Which gates of one layer's MLP (or pre-activations, where it has no gate) are positive, at
    the last position, along a path written at `layer`. Source: arXiv 2409.17113."""
    mlp = base.model.blocks[read_layer].mlp
    gate = mlp.gate if hasattr(mlp, "gate") else getattr(mlp, "in")
    seen: list[Tensor] = []
    with _hooked(gate, lambda module, args, output: seen.append(output)):
        walk_points(base, points, layer)
    if len(seen) != 1 or seen[0].shape[:2] != (len(points), 1):
        raise RuntimeError("the MLP's gate did not run once for the whole path: too little memory?")
    return seen[0][:, 0] > 0


def flips(signs: Bool[Tensor, "step unit"]) -> int:
    """Sign changes between neighbouring steps, summed over units."""
    return int((signs[1:] != signs[:-1]).sum())


# --- Norms --------------------------------------------------------------------------------------


@contextmanager
def frozen_norms(model: TransformerBridge, layers: Sequence[int]) -> Iterator[None]:
    """Hold the scale of these layers' norms at that of the first point of a path.

    The scale is the root mean square (LayerNorm: the standard deviation) that the norm divides by.
    Works for `walk_points`, whose batch is one path.
    """
    with ExitStack() as stack:
        for layer in layers:
            block = model.blocks[layer]
            for name in NORMS:
                if hasattr(block, name):
                    stack.enter_context(_hooked(getattr(block, name), _hold_scale))
        yield


def _hold_scale(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    stream = args[0]
    original = module.original_component
    if "RMS" not in type(original).__name__:
        stream = stream - stream.mean(-1, keepdim=True)
    scale = stream.float().pow(2).mean(-1, keepdim=True).sqrt().to(output)
    bias = getattr(original, "bias", None)
    bias = 0 if bias is None else bias
    return (output - bias) * scale / scale[:1] + bias


# --- How strongly a point is felt ---------------------------------------------------------------


def jacobian_norm(
    base: Run,
    points: Float[Tensor, "step d_model"],
    layer: int = 0,
    probes: int = 4,
    size: float = 1e-2,
    seed: int = 0,
) -> Float[Tensor, "step"]:
    """The norm of the read-out's Jacobian along a path: how far the post-norm read-out moves for a
    step in a random direction, root mean square over directions, times the root of the width.

    A Monte-Carlo estimate of the Frobenius norm by central differences of `probes` directions, the
    same at every point; `size` is the step as a share of the point's own length.
    """
    step, width = points.shape
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(probes, width, generator=generator).to(points)
    directions /= directions.norm(dim=-1, keepdim=True)
    length = size * points.norm(dim=-1, keepdim=True)[:, None]
    moved = torch.stack([points[:, None] + sign * length * directions for sign in (1, -1)])
    read = walk_points(base, moved.reshape(-1, width), layer).post[:, 0]
    up, down = read.view(2, step, probes, -1)
    slope = (up - down).norm(dim=-1) / (2 * length[..., 0])
    return slope.pow(2).mean(1).mul(width).sqrt()


@contextmanager
def _hooked(module: nn.Module, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

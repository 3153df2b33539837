"""Stable regions of the residual stream: how the output moves while one activation moves.

Take two prompts of equal length. Overwrite the residual stream after an early block, at prompt A's
last position, with a point between A's activation and B's, and read the stream that leaves the
last block. Every earlier position stays A's. Where the read-out hardly moves, then moves at once,
then hardly moves again, the path has crossed the boundary between two stable regions. One number
sums up a path: its sharpness, the steepest slope of d(α)/d(1), which is 1 for a straight line.

Source: Janiak et al. 2024, arXiv 2409.17113 (F_p, d, sharpness, slices).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine, metrics
from ..engine import Run
from ..engine.rows import Place, Write

FLOOR = 1e-3  # of the read-out's own length: pairs that end nearer than this are dropped


def activation(run: Run, layer: int = 0) -> Float[Tensor, "prompt d_model"]:
    """What a path interpolates: the stream that leaves block `layer`, at the last position."""
    return run.activation("resid_post", layer % run.model.cfg.n_layers)[:, -1]


def take(run: Run, prompts: Sequence[int] | Int[Tensor, "k"]) -> Run:
    """Some prompts of a recorded run, in the order given and as often as given, as a run."""
    return run.part(torch.as_tensor(prompts, device=run.tokens.device))


def chain(run: Run) -> tuple[Run, Run]:
    """Pairs of prompts that follow each other in a run: all but the last, and all but the first."""
    return take(run, range(len(run.tokens) - 1)), take(run, range(1, len(run.tokens)))


def path_rows(start: Run, end: Run, layer: int = 0, steps: int = 50) -> pd.DataFrame:
    """Rows for the engine: the straight line from A's activation to B's in `steps` points."""
    return _rows([engine.interpolate(start, end, alpha) for alpha in _alphas(steps)], layer)


def arc_rows(start: Run, end: Run, layer: int = 0, steps: int = 50) -> pd.DataFrame:
    """The same along an arc: the direction turns evenly, the norm grows evenly from A's to B's."""

    def at(alpha: float) -> Write:
        def new(current: Tensor, place: Place) -> Tensor:
            return arc(place.of(start), place.of(end), alpha)

        return Write(f"arc {alpha:g}", new, (start, end))

    return _rows([at(alpha) for alpha in _alphas(steps)], layer)


def arc(
    a: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch d"], alpha: float
) -> Float[Tensor, "*batch d"]:
    """The point `alpha` of the way along the arc: spherical for direction, linear for norm."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    cosine = ((a / norm_a) * (b / norm_b)).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    straight = angle < 1e-4  # too small to divide by its sine
    safe = torch.where(straight, torch.ones_like(angle), angle)
    of_a = torch.where(straight, 1 - alpha, ((1 - alpha) * safe).sin() / safe.sin())
    of_b = torch.where(straight, alpha, (alpha * safe).sin() / safe.sin())
    norm = torch.lerp(norm_a, norm_b, alpha)
    return (of_a * a / norm_a + of_b * b / norm_b) * norm


def toward_rows(
    start: Run,
    direction: Float[Tensor, "prompt d_model"],
    length: Float[Tensor, "prompt"],
    layer: int = 0,
    steps: int = 50,
) -> pd.DataFrame:
    """The control: from A along any direction, as far as `length` says."""
    a = activation(start, layer)
    step = direction.to(a) / direction.to(a).norm(dim=-1, keepdim=True) * length.to(a)[:, None]
    return point_rows(torch.stack([a + alpha * step for alpha in _alphas(steps)]), layer)


def random_rows(
    start: Run, end: Run, layer: int = 0, steps: int = 50, seed: int = 0
) -> pd.DataFrame:
    """The control: from A as far as B is, in a random direction."""
    a, b = activation(start, layer), activation(end, layer)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed))
    return toward_rows(start, direction, (b - a).norm(dim=-1), layer, steps)


def point_rows(points: Float[Tensor, "point prompt d_model"], layer: int = 0) -> pd.DataFrame:
    """Rows that write the given points, one after another."""
    return _rows([engine.replace(point) for point in points], layer)


def _rows(writes: list[Write], layer: int) -> pd.DataFrame:
    table = pd.DataFrame({"row": range(len(writes)), "write": writes})
    return table.assign(site="resid_post", layer=layer, pos=-1)


def _alphas(steps: int) -> list[float]:
    if steps < 2:
        raise ValueError(f"a path needs at least its two ends, got {steps} steps")
    return torch.linspace(0, 1, steps).tolist()


def with_frozen_patterns(rows: pd.DataFrame, run: Run, layers: Sequence[int]) -> pd.DataFrame:
    """The rows, each with the attention patterns of `layers` held at those of `run` (which must
    have recorded `pattern`)."""
    hold = [rows.assign(site="pattern", layer=layer, write=engine.patch(run)) for layer in layers]
    return pd.concat([rows, *hold], ignore_index=True)


UNEMBEDDED = 128  # read-outs at a time: few enough for the cache, enough to use all weights well


@dataclass(frozen=True, eq=False)
class Walk:
    """What was read along paths: `pre` leaves the last block, `post` has been through the final
    norm. The first step is A's own activation."""

    model: TransformerBridge
    pre: Float[Tensor, "step pair d_model"]
    post: Float[Tensor, "step pair d_model"]

    def first(self, n: int) -> "Walk":
        """The first `n` pairs alone."""
        return Walk(self.model, self.pre[:, :n], self.post[:, :n])

    def sharpness(self, read: str = "post") -> Float[Tensor, "pair"]:
        """`regions.sharpness` of each pair, NaN for those not `kept`."""
        return sharpness(self.distance(read)).where(self.kept(), torch.nan).cpu()

    def distance(self, read: str = "post") -> Float[Tensor, "step pair"]:
        """d(α): how far the read-out is from where it started."""
        values = self.read(read)
        return (values - values[:1]).double().norm(dim=-1)

    def read(self, read: str) -> Float[Tensor, "step pair d_model"]:
        if read not in ("pre", "post"):
            raise ValueError(f"read is 'pre' or 'post' (of the final norm), got {read!r}")
        return self.pre if read == "pre" else self.post

    def kept(self) -> Bool[Tensor, "pair"]:
        """True for the pairs whose two ends differ, in both read-outs, by more than `FLOOR` of the
        read-out's own length; the others' slopes would be noise divided by noise."""
        near = [self.distance(r)[-1] > FLOOR * self.read(r)[0].norm(dim=-1) for r in _READS]
        return near[0] & near[1]

    def kl(self) -> Float[Tensor, "step pair"]:
        """KL(output at the start ‖ output at α), in nats."""
        divergence = metrics.kl_from(engine.unembed(self.model, self.pre[0]))
        parts = self.pre.split(max(1, UNEMBEDDED // self.pre.shape[1]))
        return torch.cat([divergence(engine.unembed(self.model, part)) for part in parts])


_READS = ("pre", "post")


@torch.no_grad()
def walk(base: Run, rows: pd.DataFrame) -> Walk:
    """Carry out the rows on `base` (one prompt a pair), and keep what leaves the last block."""
    read = engine.Metric(lambda resid: resid.new_zeros(resid.shape[:2]), site="resid_post")
    _, seen = engine.run(base, rows, {"pre": read}, return_tensors=True)
    pre = seen["pre"].reshape(-1, len(base.tokens), base.model.cfg.d_model)
    pre = pre.to(base.resid[0].device)
    return Walk(base.model, pre, base.model.ln_final(pre))


def sharpness(distance: Float[Tensor, "step pair"]) -> Float[Tensor, "pair"]:
    """The steepest slope of d(α)/d(1): largest finite difference times (steps - 1).

    A straight line has 1 exactly. Compare only paths of the same number of steps: a jump between
    two points has slope steps - 1, however sudden it is. NaN where d(1) is 0.
    """
    return slopes(distance).amax(0)


def slopes(distance: Float[Tensor, "step pair"]) -> Float[Tensor, "gap pair"]:
    """The slope of d(α)/d(1) between neighbouring steps."""
    if len(distance) < 2:
        raise ValueError(f"a slope needs at least two steps, got {len(distance)}")
    return distance.diff(dim=0) * (len(distance) - 1) / distance[-1]


def summary(walk: Walk) -> pd.DataFrame:
    """One line a pair: sharpness and d(1) by both read-outs, and where d passes a tenth and nine
    tenths of d(1). Pairs that end too near are dropped, counted in `.attrs["dropped"]`."""
    columns: dict[str, Tensor] = {}
    for read in _READS:
        distance = walk.distance(read)
        share = distance / distance[-1]
        columns |= {f"sharpness_{read}": sharpness(distance), f"end_{read}": distance[-1]}
        for name, level in (("leaves", 0.1), ("arrives", 0.9)):
            first = (share >= level).int().argmax(0)
            columns[f"{name}_{read}"] = first / (len(share) - 1)
    table = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
    kept = walk.kept().cpu().numpy()
    found = table[kept].rename_axis("pair").reset_index()
    found.attrs["dropped"] = int((~kept).sum())
    return found


def jumps(slope: Float[Tensor, "gap pair"], at_least: float = 2.0) -> Int[Tensor, "pair"]:
    """The number of separate stretches whose slope is `at_least` times the straight line's."""
    steep = slope >= at_least
    return (steep[1:] & ~steep[:-1]).sum(0) + steep[0]


def curves(walks: Mapping[str, Walk], kl: bool = False) -> pd.DataFrame:
    """What is read along named paths, a line for each path, step, pair and read-out: columns
    `path`, `alpha`, `pair`, `read` (d/d(1) before and after the final norm; or, with `kl`, the KL
    from the output at the start, in nats) and `value`."""
    parts = []
    for name, walk in walks.items():
        if kl:
            values = {"KL (nats)": walk.kl()}
        else:
            shares = [walk.distance(read) / walk.distance(read)[-1] for read in _READS]
            values = dict(zip(("before the final norm", "after it"), shares, strict=True))
        steps, pairs = walk.pre.shape[:2]
        alpha = torch.linspace(0, 1, steps).repeat_interleave(pairs).numpy()
        for read, value in values.items():
            column = {"value": value.cpu().numpy().ravel(), "pair": list(range(pairs)) * steps}
            parts.append(pd.DataFrame({"path": name, "alpha": alpha, "read": read, **column}))
    return pd.concat(parts, ignore_index=True)

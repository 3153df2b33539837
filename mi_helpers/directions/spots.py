"""Pushes on a recorded run: where, along what, how far, and what came of it.

A `Spot` is a layer and some positions of a run. `rows`, `moves` and `rows_from` make tables of
shifts; `push` carries them out, each position alone or all at once, and returns one line for each
row, prompt and position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .. import engine
from ..engine.stream import ordinary_tokens
from .baselines import BASELINES, Activations, generator, pick, unit


@dataclass(frozen=True, eq=False)
class Spot:
    """Where the stream is pushed: before `layer`, at the positions `pos` of every prompt of `run`.

    Tensors over the spot are [prompt, k, d]: one vector for each prompt and position.
    """

    run: engine.Run
    layer: int
    pos: list[int]
    real: Float[Tensor, "n d"] | None = None

    @cached_property
    def x(self) -> Float[Tensor, "prompt k d"]:
        return self.run.resid[self.layer][:, self.pos]

    @cached_property
    def stream(self) -> Float[Tensor, "prompt pos d"]:
        """The stream before `layer`, position 0 left out."""
        return self.run.resid[self.layer][:, 1:]

    @cached_property
    def kept(self) -> Bool[Tensor, "prompt pos"]:
        """False for tokens of extreme norm, in `stream`."""
        return ordinary_tokens(self.stream)

    @cached_property
    def ordinary(self) -> Bool[Tensor, "prompt k"]:
        """False for tokens of extreme norm, in `x`: `push` leaves them out."""
        return self.kept[:, [p - 1 for p in self.pos]]

    @cached_property
    def activations(self) -> Activations:
        x = self.x.flatten(0, 1)
        if self.real is not None:
            return Activations(x, self.real, torch.full((len(x),), -1))
        number = (self.kept.flatten().cumsum(0) - 1).view_as(self.kept)
        own = torch.where(self.kept, number, -1)[:, [p - 1 for p in self.pos]]
        return Activations(x, self.stream[self.kept], own.flatten())

    @property
    def length(self) -> float:
        """The median length of the stream before `layer`."""
        return self.activations.length

    def baseline(self, name: str, seed: int = 0) -> Float[Tensor, "prompt k d"]:
        """Unit vectors along one of BASELINES, drawn anew for each token."""
        if name not in BASELINES:
            raise ValueError(f"unknown baseline {name!r}: choose one of {', '.join(BASELINES)}")
        return self.shape(unit(BASELINES[name](self.activations, generator(seed, name))))

    def unembedding(self, seed: int = 0) -> Float[Tensor, "prompt k d"]:
        """Unit vectors along the directions that the logits of random tokens read: rows of the
        unembedding, times the gain of the final norm, without what that norm takes away."""
        drawn = pick(_read_by_logits(self.run.model), self.n, generator(seed, "unembedding"))
        return self.shape(unit(drawn)).to(self.x)

    @property
    def n(self) -> int:
        return len(self.x) * len(self.pos)

    def shape(self, vectors: Float[Tensor, "token d"]) -> Float[Tensor, "prompt k d"]:
        return rearrange(vectors, "(prompt k) d -> prompt k d", k=len(self.pos))


@torch.no_grad()
def _read_by_logits(model: Any) -> Float[Tensor, "d_vocab d"]:
    head = model.original_model.get_output_embeddings().weight.detach()
    width = head.shape[1]
    one = torch.ones(1, 1, width).to(head)
    sign = one * (1 - 2 * (torch.arange(width).to(head) % 2))

    def odd(v: Tensor) -> Tensor:  # the norm's bias falls out
        return (model.ln_final(v) - model.ln_final(-v)) / 2

    found = head * (odd(sign) / sign)[0, 0]
    centres = odd(one).abs().max() < 1e-2 * odd(sign).abs().max()  # LayerNorm, but not RMSNorm
    return found - found.mean(1, keepdim=True) if centres else found


def spot(
    run: engine.Run,
    layer: int,
    pos: int | Sequence[int] | None = -1,
    real: Float[Tensor, "n d"] | None = None,
) -> Spot:
    """Push at one position, at several, or, None, at all but position 0.

    Baselines are made of the run's own activations, or of `real`, from other texts. Raises
    ValueError for position 0, and for a layer or a position that does not exist.
    """
    n_pos, n_layers = run.tokens.shape[1], run.model.cfg.n_layers
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} does not exist: there are {n_layers}")
    given = range(1, n_pos) if pos is None else [pos] if isinstance(pos, int) else pos
    found = sorted({p % n_pos for p in given if -n_pos <= p < n_pos})
    if not found or len(found) != len(given) or found[0] == 0:
        raise ValueError(f"positions are 1 to {n_pos - 1}, each once; got {pos}")
    return Spot(run, layer, found, real)


def rows(
    directions: Mapping[str, Float[Tensor, "prompt k d"]], lengths: Sequence[float]
) -> pd.DataFrame:
    """x + ℓ·v for each direction v and length ℓ: columns `direction`, `length`, `shift`."""
    return pd.DataFrame([
        {"direction": name, "length": length, "shift": length * direction}
        for name, direction in directions.items() for length in lengths
    ])  # fmt: skip


def moves(where: Spot, to: Mapping[str, Float[Tensor, "prompt k d"]]) -> pd.DataFrame:
    """Rows that write the points `to`: columns `direction`, `shift`."""
    return pd.DataFrame([{"direction": k, "shift": point - where.x} for k, point in to.items()])


def rows_from(
    where: Spot,
    starts: Mapping[str, Float[Tensor, "prompt k d"]],
    steps: Mapping[float, Float[Tensor, "prompt k d"]],
) -> pd.DataFrame:
    """Rows that step away from other points than x: columns `start`, `length`, `shift`, and
    `against`, the row of the same start and no step, with which `push` compares."""
    lines: list[dict[str, Any]] = []
    for name, start in starts.items():
        first = {"start": name, "against": len(lines)}
        lines.append(first | {"length": 0.0, "shift": start - where.x})
        lines += [
            first | {"length": length, "shift": start - where.x + step}
            for length, step in steps.items()
        ]
    return pd.DataFrame(lines)


def push(where: Spot, table: pd.DataFrame, together: bool = False) -> pd.DataFrame:
    """Carry out a table of shifts and measure what each does to the output.

    Each position of the spot is pushed alone and read where it was pushed; or all `together`, the
    paper's protocol, in which later positions also read pushed keys and values.

    Returns one line for each row, prompt and position (`at`): the table's columns but `shift`, and
    `kl`, `loss` and `l2` as in `engine.measure`. Tokens of extreme norm are left out, and counted
    in `.attrs["left_out"]`.
    """
    if any(shift.shape != where.x.shape for shift in table["shift"]):
        raise ValueError(f"a shift has the shape of the spot, {tuple(where.x.shape)}")
    labels = table.drop(columns=["shift"]).reset_index(drop=True)
    against = labels["against"].tolist() if "against" in labels else None
    groups = [list(range(len(where.pos)))] if together else [[k] for k in range(len(where.pos))]
    found = []
    for group in groups:
        at = [where.pos[k] for k in group]
        parts = [_edits(where, labels, table["shift"], k) for k in group]
        edits = pd.concat(parts, ignore_index=True)
        read = engine.measure(where.run, edits, at, against).table(labels, by_position=True)
        ordinary = where.ordinary[:, group].flatten().cpu().repeat(len(labels))
        found.append(read[ordinary.numpy()])
    result = pd.concat(found, ignore_index=True)
    result.attrs["left_out"] = int((~where.ordinary).sum())
    return result


def _edits(where: Spot, labels: pd.DataFrame, shifts: pd.Series, k: int) -> pd.DataFrame:
    """Rows for the engine: add the k-th position's part of every shift."""
    writes = [engine.add(shift[:, k]) for shift in shifts]
    edits = pd.DataFrame({"row": labels.index, "write": writes})
    return edits.assign(site="resid_pre", layer=where.layer, pos=where.pos[k])

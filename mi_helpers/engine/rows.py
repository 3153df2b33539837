"""The language of the table: where an edit happens, what it writes, what is read, and every check.

`engine` carries out what this module describes. Researchers meet it as `mi.engine.patch`,
`mi.engine.add` and so on.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.hooks import HEAD_SITES, RESIDUAL_SITES, n_heads
from .positions import Positions, at_each, each_position, index
from .recording import Run


@dataclass(frozen=True)
class Place:
    """Where one edit happens. `of(run)` is that run's activation there, [prompt, k, ...].

    `prompts` are those of a pass: a slice, or the numbers [prompt] of those that share this `pos`
    where a row's position differs from prompt to prompt; `value[place.prompts]` reads theirs (and
    is a copy for numbers, so assign through one index). `each` then holds every prompt's positions.
    """

    site: str
    layer: int
    pos: tuple[int, ...]
    head: int | None
    stop: int  # positions from here on are never read
    prompts: slice | Int[Tensor, "prompt"] = field(default_factory=lambda: slice(None))
    each: Int[Tensor, "all_prompts k"] | None = None

    def of(self, run: Run) -> Tensor:
        return self.every_pos(run)[self.prompts][:, list(self.pos)]

    def every_pos(self, run: Run) -> Tensor:
        activation = run.activation(self.site, self.layer)
        if self.site == "pattern":
            activation = activation[..., : self.stop]
        return activation if self.head is None else activation[:, :, self.head]

    def within(self, block: slice) -> "Place":
        """The place for the prompts of one pass alone."""
        if isinstance(self.prompts, slice):
            return replaced(self, prompts=block)
        inside = (self.prompts >= block.start) & (self.prompts < block.stop)
        return replaced(self, prompts=self.prompts[inside])


@dataclass(frozen=True, eq=False)
class Write:
    """What an edit writes: `new(current, place)` is the new value of the activation at the place.

    `runs` are the runs that it reads, prompt by prompt and position by position. `same_before` is
    the number of leading positions at which it writes what a given run already has.
    """

    label: str
    new: Callable[[Tensor, Place], Tensor]
    runs: tuple[Run, ...] = ()
    same_before: Callable[[Run], int] = field(default=lambda run: 0)

    def __repr__(self) -> str:
        return self.label


def patch(run: Run, label: str = "patch") -> Write:
    """Write the other run's activation of the same place, prompt by prompt."""
    return Write(label, lambda current, place: place.of(run), (run,), run.agrees_before)


def zero() -> Write:
    """Write zeros (zero ablation)."""
    return Write("zero", lambda current, place: torch.zeros_like(current))


def mean(run: Run) -> Write:
    """Write the mean over the prompts of `run` (mean ablation), per position, without padding.

    At a role, whose position differs from prompt to prompt, the mean is over the role's positions.
    """

    def new(current: Tensor, place: Place) -> Tensor:
        activation = place.every_pos(run)
        if place.each is not None:
            pos = torch.tensor(place.pos, device=activation.device)
            column = (place.each[place.prompts][:, None] == pos[:, None]).int().argmax(-1)
            return at_each(activation, place.each).mean(0)[column]
        return run.over_prompts(activation)[list(place.pos)].expand_as(current)

    return Write("mean", new)


def add(vector: Float[Tensor, "*prompt d"], label: str = "add") -> Write:
    """Add a vector: [d] for all prompts, or [prompt, d] for one each."""
    return Write(label, lambda current, place: current + _each(vector, current, place))


def replace(vector: Float[Tensor, "*prompt d"], label: str = "replace") -> Write:
    """Write a vector: [d] for all prompts, or [prompt, d] for one each."""
    return Write(
        label, lambda current, place: _each(vector, current, place).expand_as(current).clone()
    )


def interpolate(start: Run, end: Run, alpha: float) -> Write:
    """Write the point `alpha` of the way from one run's activation to the other's."""

    def new(current: Tensor, place: Place) -> Tensor:
        return torch.lerp(place.of(start), place.of(end), alpha)

    read = [start] * (alpha != 1) + [end] * (alpha != 0)  # at an end the other run has no say

    def same_before(base: Run) -> int:
        return min(run.agrees_before(base) for run in read)

    return Write(f"interpolate {alpha:g}", new, (start, end), same_before)


def _each(vector: Tensor, current: Tensor, place: Place) -> Tensor:
    if vector.shape[-1] != current.shape[-1]:
        raise ValueError(
            f"the vector has width {vector.shape[-1]}, the activation {current.shape[-1]}"
        )
    if vector.ndim == 1:
        return vector.to(current)
    per_prompt = vector[place.prompts].to(current)
    return per_prompt.reshape(len(per_prompt), *[1] * (current.ndim - 2), -1)


@dataclass(frozen=True, eq=False)
class Metric:
    """A number for each row and prompt, read from the logits or from the residual stream.

    `fn` gets [row, prompt, d_vocab] logits, or with `site="resid_post"` the [row, prompt, d_model]
    residual that leaves `layer`, and returns [row, prompt]. `pos` is one position, a list of them
    (`fn` then gets [row, prompt, k, ...]), a role of the run ("S2"), or a tensor [prompt] or
    [prompt, k] with each prompt's.
    With `tokens`, only their logits are computed, and `fn` gets these in place of all d_vocab.
    """

    fn: Callable[[Tensor], Float[Tensor, "row prompt"]]
    pos: Positions = -1
    site: str = "logits"
    layer: int = -1
    tokens: Int[Tensor, "token"] | None = None


@dataclass(eq=False)
class Edit:
    """One write at one place, and the row that it belongs to."""

    row: int
    place: Place
    write: Write
    idle: frozenset[int] = frozenset()  # positions where it writes what the base run has
    fired: int = 0  # the number of prompts it was made on
    due: int = 0  # the number of prompts it is to be made on

    @property
    def boundary(self) -> int:
        """The block that the row must enter for this edit to be made (n_layers: after the last)."""
        return self.place.layer + (self.place.site == "resid_post")

    def __str__(self) -> str:
        at = self.place
        head = "" if at.head is None else f", head {at.head}"
        return f"row {self.row} ({at.site}, layer {at.layer}, pos {list(at.pos)}{head})"


def parse(base: Run, rows: pd.DataFrame, stop: int) -> tuple[list[list[Edit]], pd.DataFrame]:
    """The edits that each row needs (none where causality says that nothing changes), and the table
    of coordinates with what is written as text.

    Raises ValueError, naming the row, for anything that cannot be carried out.
    """
    missing = {"site", "layer", "write"} - set(rows.columns)
    if missing or not len(rows):
        raise ValueError(
            f"the table lacks the columns {sorted(missing)}" if missing else "the table has no rows"
        )
    rows = rows.assign(pos=rows.get("pos"), head=rows.get("head"))
    together = rows["row"] if "row" in rows else pd.Series(range(len(rows)), rows.index)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(together))}
    edits: list[list[Edit]] = [[] for _ in numbers]
    alone = ~together.duplicated(keep=False)
    for line, key in zip(rows.to_dict("records"), together, strict=True):
        try:
            edits[numbers[key]] += _edits(base, numbers[key], line, stop)
        except ValueError as error:
            where = ", ".join(f"{name} {line[name]}" for name in ("layer", "pos", "head"))
            raise ValueError(f"row {numbers[key]} ({line['site']}, {where}): {error}") from error
    table = rows.assign(write=[repr(write) for write in rows["write"]])
    table = table[~together.duplicated().to_numpy()].reset_index(drop=True)
    single = dict(zip(together, alone, strict=True))
    return [_live(base, edits[n], single[key]) for key, n in numbers.items()], table


def _edits(base: Run, row: int, line: dict[Any, Any], stop: int) -> list[Edit]:
    """The edits of one line: one, or where positions differ between prompts, one for each set of
    prompts that share theirs. Every prompt then runs from the earliest position of any."""
    model, n_pos = base.model, base.tokens.shape[1]
    site, layer, head, write = line["site"], line["layer"], line["head"], line["write"]
    if not isinstance(write, Write):
        raise ValueError(f"write must come from patch, zero, mean, add …, got {write!r}")
    layer = index(layer, model.cfg.n_layers, "layer")
    base.hook(site, layer)
    head = None if _absent(head) else head
    if head is not None:
        if site not in HEAD_SITES:
            raise ValueError(f"{site} has no heads")
        head = index(head, n_heads(model, site), "head")
    pos = range(n_pos) if _absent(line["pos"]) else line["pos"]
    if isinstance(pos, range):  # of all prompts alike, padding and all
        each = torch.tensor([[index(p, n_pos, "position") for p in pos]])
    else:
        each = each_position(pos, base.roles, *base.tokens.shape)
    varies = bool((each != each[0]).any())
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for prompt, where in enumerate(each.tolist()):
        groups[tuple(sorted({p for p in where if p < stop}))].append(prompt)
    edits = []
    for where, prompts in groups.items():
        place = Place(site, layer, where, head, stop)
        if varies:
            numbers = torch.tensor(prompts, device=base.tokens.device)
            place = replaced(place, prompts=numbers, each=each.to(numbers))
        edits.append(Edit(row, place, write, due=len(base.tokens[place.prompts])))
    return [replaced(edit, idle=_try(base, edit)) for edit in edits if edit.place.pos]


def _absent(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _try(base: Run, edit: Edit) -> frozenset[int]:
    """Make the edit on the base run's activation, so that a wrong one fails before any work.

    Returns the positions at which it changes nothing.
    """
    for source in edit.write.runs:
        if source.tokens.shape != base.tokens.shape:
            raise ValueError(
                f"it reads a run of shape {tuple(source.tokens.shape)}, prompts by tokens, but "
                f"edits one of {tuple(base.tokens.shape)}; make the two equal"
            )
    place, known = edit.place, True
    try:
        current = place.of(base)
    except KeyError:
        current, known = base.resid[0].new_zeros(_shape(base, place)), False
    try:
        new = edit.write.new(current, place)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise ValueError(str(error.args[0])) from error
    if new.shape != current.shape:
        raise ValueError(
            f"it writes shape {tuple(new.shape)}, the activation is {tuple(current.shape)}"
        )
    if not new.isfinite().all():
        raise ValueError("it writes NaN or infinite values")
    same = (new == current).transpose(0, 1).flatten(1).all(1).tolist() if known else []
    return frozenset(p for p, idle in zip(place.pos, same, strict=False) if idle)


def _shape(base: Run, place: Place) -> tuple[int, ...]:
    cfg, n_prompts = base.model.cfg, len(base.tokens[place.prompts])
    if place.site in RESIDUAL_SITES:
        return n_prompts, len(place.pos), cfg.d_model
    heads = () if place.head is not None else (n_heads(base.model, place.site),)
    width = place.stop if place.site == "pattern" else cfg.d_head
    return (n_prompts, len(place.pos), *heads, width)


def _live(base: Run, row: list[Edit], alone: bool) -> list[Edit]:
    """Drop the positions at which a row's edits all write what is already there.

    Edits of one row act on each other, so what a single edit would leave alone counts only where
    there is no other (`alone`: the row is one line of the table, whose edits are of different
    prompts).
    """
    same = min((edit.write.same_before(base) for edit in row), default=0)
    live = []
    for edit in row:
        idle = edit.idle if alone else frozenset()
        pos = tuple(p for p in edit.place.pos if p >= same and p not in idle)
        if pos:
            live.append(replaced(edit, place=replaced(edit.place, pos=pos)))
    return live

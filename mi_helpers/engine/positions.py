"""Positions of prompts, by number or by role, and layers and heads by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Positions = int | str | Sequence[int | str] | Int[Tensor, "prompt *k"]


def index(value: Any, size: int, what: str) -> int:
    """A layer, head or position by its number; negative ones count from the end. Raises ValueError
    for one that does not exist."""
    if int(value) != value or not -size <= value < size:
        raise ValueError(f"{what} {value:g} does not exist: there are {size}")
    return int(value) % size


def each_position(
    pos: Positions, roles: Mapping[str, Int[Tensor, "prompt"]], n_prompts: int, n_pos: int
) -> Int[Tensor, "prompt k"]:
    """Positions of every prompt, from a number, a role, a list of either, or a tensor of them.

    Negative numbers count from each prompt's END where there is this role, else from the last
    position of all. Raises ValueError for a position or a role that does not exist.
    """
    end = roles["END"].cpu() if "END" in roles else torch.full((n_prompts,), n_pos - 1)
    if isinstance(pos, Tensor) and pos.ndim:
        if len(pos) != n_prompts:
            raise ValueError(f"positions for {len(pos)} prompts, but there are {n_prompts}")
        found = pos.reshape(n_prompts, -1)
    else:
        columns = []
        every: list[Any] = [pos]
        if isinstance(pos, Sequence) and not isinstance(pos, str):
            every = list(pos)
        for one in every:
            if isinstance(one, str) and one not in roles:
                raise ValueError(f"no role {one!r}: choose from {', '.join(roles) or 'none'}")
            column = roles[one].cpu() if isinstance(one, str) else _numbered(one, end, n_pos)
            columns.append(column.expand(n_prompts))
        found = torch.stack(columns, dim=1)
    beyond = found[(found >= n_pos) | (found < -n_pos)]
    if len(beyond):
        raise ValueError(f"position {int(beyond[0])} does not exist: there are {n_pos}")
    return found % n_pos


def _numbered(number: Any, end: Int[Tensor, "prompt"], n_pos: int) -> Int[Tensor, "prompt"]:
    """A position by its number; negative ones count from each prompt's end."""
    index(number, n_pos, "position")
    found = end + 1 + int(number) if number < 0 else torch.full_like(end, int(number))
    outside = ((found < 0) | (found > end)).nonzero().flatten()
    if len(outside):
        prompt = int(outside[0])
        raise ValueError(
            f"position {number:g} does not exist in prompt {prompt}, whose last is {end[prompt]}"
        )
    return found


def is_one(pos: Positions) -> bool:
    """Whether it is one position of each prompt, rather than several."""
    return pos.ndim < 2 if isinstance(pos, Tensor) else isinstance(pos, int | str)


def at_each(
    activation: Float[Tensor, "prompt pos ..."], where: Int[Tensor, "prompt k"]
) -> Float[Tensor, "prompt k ..."]:
    """Each prompt's own positions of an activation."""
    return activation[torch.arange(len(where), device=where.device)[:, None], where]

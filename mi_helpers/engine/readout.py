"""Reads what metrics ask for, and turns it into the columns of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .positions import at_each, each_position, is_one
from .recording import Run, unembed
from .rows import Metric

CPU_BYTES = 2**27  # larger tensors are mapped anew each time, which costs as much as their use


@dataclass(frozen=True, eq=False)
class Read:
    """What a metric reads: positions [prompt, k] of the stream at a block boundary."""

    fn: Callable[[Tensor], Tensor]
    boundary: int
    logits: bool
    pos: Int[Tensor, "prompt k"]
    single: bool
    tokens: Int[Tensor, "token"] | None

    @staticmethod
    def of(base: Run, name: str, metric: Metric | Callable[[Tensor], Tensor]) -> "Read":
        metric = metric if isinstance(metric, Metric) else Metric(metric)
        n_layers = base.model.cfg.n_layers
        if metric.site not in ("logits", "resid_post"):
            raise ValueError(f"metric {name!r} reads {metric.site!r}; use logits or resid_post")
        if not -n_layers <= metric.layer < n_layers:
            raise ValueError(f"metric {name!r} reads layer {metric.layer} of {n_layers}")
        try:
            pos = each_position(metric.pos, base.roles, *base.tokens.shape)
        except ValueError as error:
            raise ValueError(f"metric {name!r}: {error}") from None
        boundary = n_layers if metric.site == "logits" else metric.layer % n_layers + 1
        pos = pos.to(base.tokens.device)
        return Read(
            metric.fn, boundary, metric.site == "logits", pos, is_one(metric.pos), metric.tokens
        )

    @cached_property
    def key(self) -> tuple[int, bytes]:
        return self.boundary, self.pos.cpu().numpy().tobytes()

    def base_value(self, base: Run) -> Float[Tensor, "prompt k d_model"]:
        return at_each(base.resid[self.boundary], self.pos)


class Results:
    """Collects what is read, turns it into logits where a metric needs them, and measures."""

    def __init__(
        self, base: Run, n_rows: int, reads: dict[str, Read], budget: int, keep: bool
    ) -> None:
        self.base, self.reads, self.keep = base, reads, keep
        self.columns = {n: torch.full((n_rows, len(base.tokens)), torch.nan) for n in reads}
        self.kept: dict[str, list[Tensor | None]] = {n: [None] * n_rows for n in reads}
        k = max(read.pos.numel() for read in reads.values())
        if base.resid[0].device.type == "cpu":
            budget = min(budget, CPU_BYTES)
        size = base.resid[0].element_size() * 4  # the logits, and what a metric makes of them
        self.rows_at_once = max(1, budget // (size * k * base.model.cfg.d_vocab))

    def add(self, rows: list[int], found: dict[tuple, Float[Tensor, "row prompt k d"]]) -> None:
        """Measure `rows`; a row not in `found` is as in the base run."""
        for start in range(0, len(rows), self.rows_at_once):
            chunk = slice(start, start + self.rows_at_once)
            logits: dict[Any, Tensor] = {}
            for name, read in self.reads.items():
                seen = found[read.key][chunk] if found else read.base_value(self.base)[None]
                if read.logits:
                    key = (read.key, None if read.tokens is None else id(read.tokens))
                    if key not in logits:
                        logits[key] = unembed(self.base.model, seen, read.tokens)
                    seen = logits[key]
                self._measure(name, read, rows[chunk], seen)

    def _measure(self, name: str, read: Read, rows: list[int], seen: Tensor) -> None:
        values = read.fn(seen[:, :, 0] if read.single else seen)
        if values.shape != seen.shape[:2]:
            raise ValueError(
                f"metric {name!r} gave shape {tuple(values.shape)}, expected [row, prompt] = "
                f"{tuple(seen.shape[:2])}"
            )
        bad = (~values.isfinite()).any(1).nonzero()
        if len(bad):
            raise RuntimeError(f"row {rows[int(bad[0])]}: {name} is NaN or infinite")
        self.columns[name][rows] = values.float().cpu()
        for i, row in enumerate(rows if self.keep else []):
            self.kept[name][row] = seen[i if len(seen) > 1 else 0].cpu()

    def table(self, table: pd.DataFrame, per_prompt: bool) -> pd.DataFrame:
        if not per_prompt:
            return table.assign(**{n: v.double().mean(1).numpy() for n, v in self.columns.items()})
        n_prompts = len(self.base.tokens)
        long = table.loc[table.index.repeat(n_prompts)].reset_index(drop=True)
        columns = {n: v.flatten().numpy() for n, v in self.columns.items()}
        return long.assign(prompt=list(range(n_prompts)) * len(table), **columns)

    def tensors(self) -> dict[str, Tensor]:
        return {n: torch.stack([t for t in v if t is not None]) for n, v in self.kept.items()}

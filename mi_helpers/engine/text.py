"""What interventions do to a model's reading of a text: measured at many positions at once.

`engine.run` gives one number per row and prompt; on running text the same row is read at every
position. `measure` gives all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..metrics import kl_from
from .execution import run as run_rows
from .recording import Run, unembed
from .rows import Metric

LOGITS_AT_ONCE = 2**28  # bytes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What each row did, at each position read.

    `kl`: KL(original ‖ perturbed) of the next token, in nats. `loss`: cross-entropy of the token
    that follows in the text, in nats; NaN at the text's last position. `l2`: how far the stream
    that leaves the last block (before the final norm) moved. All are NaN at padding.
    """

    pos: list[int]
    kl: Float[Tensor, "row prompt k"]
    loss: Float[Tensor, "row prompt k"]
    l2: Float[Tensor, "row prompt k"]

    def table(self, rows: pd.DataFrame, by_position: bool = False) -> pd.DataFrame:
        """`rows` without their writes, one line per row and prompt (mean over the positions read)
        or per row, prompt and position read (column `at`)."""
        about = rows.drop(columns=["write"]).drop_duplicates("row") if "row" in rows else rows
        about = about.drop(columns=["write"], errors="ignore").reset_index(drop=True)
        n_rows, n_prompts, k = self.kl.shape
        if len(about) != n_rows:
            raise ValueError(f"{len(about)} rows, but outcomes of {n_rows}")
        each = k if by_position else 1
        long = about.loc[about.index.repeat(n_prompts * each)].reset_index(drop=True)
        long["prompt"] = torch.arange(n_prompts).repeat_interleave(each).repeat(n_rows).numpy()
        if by_position:
            long["at"] = self.pos * (n_rows * n_prompts)
        for name in ("kl", "loss", "l2"):
            value = getattr(self, name)
            long[name] = (value if by_position else value.nanmean(-1)).flatten().numpy()
        return long


@torch.no_grad()
def measure(
    run: Run,
    rows: pd.DataFrame,
    pos: int | Sequence[int] | None = None,
    against: Sequence[int] | None = None,
) -> Outcome:
    """Carry out `rows` on `run` and compare with the run as it was, at `pos`.

    `pos` None means every position but 0, whose residual is unlike all others. Rows are as for
    `engine.run`. `against` compares each row with another row instead, named by its number.
    """
    n_pos = run.tokens.shape[1]
    chosen = range(1, n_pos) if pos is None else [pos] if isinstance(pos, int) else pos
    at = [p % n_pos for p in chosen]
    if not at or at != sorted(set(at)):
        raise ValueError(f"positions to read must be given once each and in order, got {pos}")
    final = run.resid[-1][:, at]

    def moved(stream: Float[Tensor, "row prompt k d"]) -> Float[Tensor, "row prompt"]:
        return (stream - final).norm(dim=-1).mean(-1)

    metric = Metric(moved, pos=at, site="resid_post", layer=-1)
    _, read = run_rows(run, rows, {"l2": metric}, return_tensors=True)
    streams = read["l2"].to(final)
    origin = final.expand_as(streams) if against is None else streams[list(against)]
    following = run.tokens.roll(-1, 1)[:, at]
    size = max(1, LOGITS_AT_ONCE // (4 * run.model.cfg.d_vocab * len(at)))
    parts = [
        _compare(run.model, streams[:, part], origin[:, part], following[part], against is None)
        for part in torch.arange(len(final), device=final.device).split(size)
    ]
    divergence, loss = torch.cat(parts, 2)
    real = run.real_tokens().cpu()
    loss[:, ~real.roll(-1, 1)[:, at]] = torch.nan  # what follows is padding
    loss[..., [p == n_pos - 1 for p in at]] = torch.nan
    moved_by = (streams - origin).norm(dim=-1).cpu()
    for values in (divergence, loss, moved_by):
        values[:, ~real[:, at]] = torch.nan
    return Outcome(at, divergence, loss, moved_by)


def _compare(
    model: TransformerBridge,
    streams: Float[Tensor, "row prompt k d"],
    origin: Float[Tensor, "row prompt k d"],
    following: Int[Tensor, "prompt k"],
    one_origin: bool,
) -> Float[Tensor, "two row prompt k"]:
    """KL from the origin's prediction, and the loss on the token that follows, row by row: all
    logits at once would not fit into memory."""
    found, divergence = [], None
    for stream, start in zip(streams, origin, strict=True):
        if divergence is None or not one_origin:
            divergence = kl_from(unembed(model, start).flatten(0, 1))
        logits = unembed(model, stream).flatten(0, 1)
        log_p = logits.log_softmax(-1).gather(-1, following.reshape(-1, 1))[:, 0]
        found.append(torch.stack([divergence(logits[None])[0], -log_p]))
    return rearrange(torch.stack(found, 1), "two row (prompt k) -> two row prompt k",
                     k=following.shape[1]).cpu()  # fmt: skip

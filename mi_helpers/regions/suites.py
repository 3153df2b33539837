"""Sharpness over training and size: the suite of small decoders, and untrained copies."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from .. import engine
from ..models import load_model
from .paths import chain, path_rows, walk

SUITE = Path(__file__).parents[1] / "data" / "suite"


def suite() -> pd.DataFrame:
    """The checkpoints that come with the package (`data/suite/make.py` made them): run, width,
    step, held-out loss in nats, and the directory to give to `load_model`. Run 0 comes with steps
    in between, the others with the last alone."""
    losses = loss_curves()
    run, width, step = (losses[name].astype(str) for name in ("run", "width", "step"))
    again = ("-run" + run).where(losses["run"] > 0, "")
    names = "d" + width + again + "-step" + step
    losses["path"] = [SUITE / name for name in names]
    return losses[[path.is_dir() for path in losses["path"]]].reset_index(drop=True)


def loss_curves() -> pd.DataFrame:
    """Held-out loss of each model of the suite, every 32 steps: run, width, step,
    held_out_loss."""
    return pd.read_csv(SUITE / "losses.csv")


def chained_sharpness(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompt pos"],
    layer: int = 0,
    steps: int = 50,
    read: str = "post",
) -> Float[Tensor, "pair"]:
    """Sharpness of the paths from each prompt to the next one in the list; NaN for a pair whose
    ends are too near (see `Walk.kept`)."""
    start, end = chain(engine.record(model, tokens))
    return walk(start, path_rows(start, end, layer, steps)).sharpness(read)


def suite_sharpness(
    checkpoints: pd.DataFrame,
    tokens: Int[Tensor, "prompt pos"],
    layer: int = 0,
    steps: int = 50,
) -> Float[np.ndarray, "pair checkpoint"]:
    """`chained_sharpness` of the same prompts in every checkpoint; pairs dropped anywhere are
    dropped everywhere, so that rows stay paired.

    A checkpoint is a `path`, a directory or a name on the hub, with its `revision` there if the
    table has that column. All must share the tokenizer that made the prompts.
    """
    revisions = checkpoints.get("revision", [None] * len(checkpoints))
    columns = [
        chained_sharpness(load_model(path, revision=revision), tokens, layer, steps)
        for path, revision in zip(checkpoints["path"], revisions, strict=True)
    ]
    table = torch.stack(columns, dim=1)
    return table[table.isfinite().all(1)].numpy()


def untrained(model: TransformerBridge, seed: int = 0) -> TransformerBridge:
    """A model of the same architecture and size with fresh random weights: the null of claims
    about training."""
    config = model.original_model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        found = load_model(fresh.eval(), tokenizer=model.tokenizer, device=model.cfg.device)
    found.name = f"{getattr(model, 'name', 'model')}, untrained"
    return found


def shared_last_token(
    tokens: Int[Tensor, "prompt pos"], n: int, seed: int = 0
) -> Int[Tensor, "pair three"]:
    """Up to `n` triples (i, j, k) of prompts, in an order set by the seed: i and j end in the same
    token, k in another. No two of them begin at the same i."""
    last = tokens[:, -1].cpu()
    generator = torch.Generator().manual_seed(seed)
    same = (last[:, None] == last).fill_diagonal_(False)
    i = torch.randperm(len(last), generator=generator)
    i = i[same[i].any(1)]
    if not len(i) or (last == last[0]).all():
        raise ValueError("no pair of prompts ends in the same token beside one that does not")
    j, k = (
        torch.multinomial(among[i].double(), 1, generator=generator)[:, 0]
        for among in (same, last[:, None] != last)
    )
    return torch.stack([i, j, k], dim=1)[:n]

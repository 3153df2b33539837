"""Heads by name, "layer.head": their effects prompt by prompt, what they attend to, what they copy.

A head's role is a matter of measurement: whom it raises or lowers (`path_patch` to the logits with
the metrics "answer_logit" and "wrong_logit"), where it looks (`attention`), what it would write if
it looked at a token (`copying`), and how it attends on repeated random tokens (`repeat_scores`).
"""

from collections.abc import Sequence

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..models.hooks import n_heads
from ..tasks.tokens import bos_token


def by_prompt(table: pd.DataFrame, metric: str = "logit_diff") -> pd.DataFrame:
    """Effects of heads with a line per prompt and a column per head, from a table with
    `per_prompt=True` and one position. Means and intervals over prompts are then one call each.

    Raises ValueError for a table without prompts or heads, or with several rows for one head.
    """
    missing = {"layer", "head", "prompt", metric} - set(table.columns)
    if missing or table["head"].isna().any():
        raise ValueError(f"by_prompt needs heads, one line per prompt; lacking: {sorted(missing)}")
    names = [f"{row.layer}.{row.head}" for row in table[["layer", "head"]].itertuples()]
    named = table.assign(name=names)
    if named.duplicated(["prompt", "name"]).any():
        raise ValueError("several rows share one head and prompt; sweep one position at a time")
    wide = named.pivot(index="prompt", columns="name", values=metric)
    return wide[list(dict.fromkeys(names))].rename_axis(columns=None)


def split(name: str) -> tuple[int, int]:
    """ "9.6" as (9, 6)."""
    layer, head = name.split(".")
    return int(layer), int(head)


def attention(
    run: engine.Run, names: Sequence[str], to: Sequence[str], query: str = "END"
) -> pd.DataFrame:
    """How much each head attends from one role's position to others': head, prompt, and a column
    for each role in `to`. The run must have been recorded with the site `pattern`."""
    prompt, tables = torch.arange(len(run.tokens)), []
    for name in names:
        layer, head = split(name)
        weights = run.activation("pattern", layer)[prompt, run.roles[query], head].float().cpu()
        seen = {role: weights[prompt, run.roles[role]].numpy() for role in to}
        tables.append(pd.DataFrame({"head": name, "prompt": prompt.numpy(), **seen}))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def copying(
    model: TransformerBridge, names: Sequence[str], tokens: Int[Tensor, "token"], top: int = 5
) -> pd.DataFrame:
    """What each head would write if it looked at a token alone: head, token, copied, suppressed.

    Token t after the first block goes through the head's value and output weights to the logits:
    unembed(W_O W_V norm(resid_1(t))). `copied` tells whether t is then among the `top` tokens, and
    `suppressed` whether it is among the lowest `top`. A copy score is the mean over names.

    Source: Wang et al. 2022, arXiv 2211.00593, section 3.1 (copy scores, and negative ones).
    """
    pairs = torch.cat([_start(model, len(tokens)), tokens.to(model.cfg.device)[:, None]], dim=1)
    after_first_block, tables = engine.record(model, pairs).resid[1][:, -1:], []
    for name in names:
        layer, head = split(name)
        block, group = model.blocks[layer], model.cfg.n_heads // n_heads(model, "v")
        values = block.attn.v(block.ln1(after_first_block))[:, 0]
        value = rearrange(values, "token (head d) -> token head d", d=model.cfg.d_head)
        z = value.new_zeros(len(tokens), model.cfg.n_heads, model.cfg.d_head)
        z[:, head] = value[:, head // group]
        bias = block.attn.o(torch.zeros_like(z).flatten(1))
        logits = engine.unembed(model, block.attn.o(z.flatten(1)) - bias)
        of_itself = logits.gather(1, pairs[:, -1:])
        above, below = (logits > of_itself).sum(1) < top, (logits < of_itself).sum(1) < top
        found = {"token": tokens.cpu(), "copied": above.cpu(), "suppressed": below.cpu()}
        tables.append(pd.DataFrame({"head": name, **found}))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def repeat_scores(
    model: TransformerBridge, length: int = 30, n: int = 8, seed: int = 0
) -> pd.DataFrame:
    """How every head attends on random tokens that are said twice: layer, head, text, previous,
    duplicate, induction.

    From a token of the second round: attention to the token before (previous), to the same token in
    the first round (duplicate), and to the token after that one (induction).

    Source: Olsson et al. 2022, arXiv 2209.11895; Wang et al. 2022, arXiv 2211.00593, appendix H.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = len(model.tokenizer)
    once = torch.randint(vocabulary // 10, vocabulary, (n, length), generator=generator)
    once, start = once.to(model.cfg.device), _start(model, n)
    run = engine.record(model, torch.cat([start, once, once], dim=1), sites=["pattern"])
    query = torch.arange(length, 2 * length - 1) + start.shape[1]  # all of the second but the last
    back = {"previous": 1, "duplicate": length, "induction": length - 1}
    tables = []
    for layer in range(model.cfg.n_layers):
        pattern = run.activation("pattern", layer)
        scores = {
            name: reduce(pattern[:, query, :, query - step].float().cpu(),
                         "query text head -> text head", "mean")
            for name, step in back.items()
        }  # fmt: skip
        text, head = torch.meshgrid(torch.arange(n), torch.arange(model.cfg.n_heads), indexing="ij")
        columns = {name: score.flatten().numpy() for name, score in scores.items()}
        where = {"layer": layer, "head": head.flatten().numpy(), "text": text.flatten().numpy()}
        tables.append(pd.DataFrame({**where, **columns}))
    return pd.concat(tables, ignore_index=True)


def _start(model: TransformerBridge, n: int) -> Int[Tensor, "n start"]:
    """The BOS token where the tokenizer has one, `n` times."""
    bos = bos_token(model)
    start = torch.tensor([] if bos is None else [bos], dtype=torch.long, device=model.cfg.device)
    return start.expand(n, -1)

"""Finds the circuit of indirect object identification on any model: classes of heads at roles.

Wang et al. name the heads of GPT-2 small. Here each class is a measurement, made from the output
backwards, so that another model's heads get the same names for the same reasons:

- at END, *writers* (`writers`): a direct effect on the logit difference beyond two standard
  deviations over all heads; by what they look at and copy: name movers, negative heads, subject
  suppressors, other writers;
- at END, *S-inhibition*: they change the queries of the writers that look at a name;
- at S2, *induction* and *duplicate-token* heads: so by attention on repeated random tokens, and
  they change the values of S-inhibition heads;
- at S1+1, *previous-token* heads: likewise, and they change the keys of induction heads;
- at END, *backup*: heads that do more for the answer once the name movers are gone.

Source: Wang et al. 2022, arXiv 2211.00593, section 3 and appendices B, C, H, I.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch

from .. import engine
from ..models.hooks import n_heads
from .heads import attention, by_prompt, copying, repeat_scores, split
from .path import direct_effects, path_patch
from .runs import BaseRuns

SDS = 2.0  # standard deviations over heads, from which an effect is strong (Zhang & Nanda 2023)
ATTENTION = 0.2  # mean attention from which a head looks at something
SHARE = 0.01  # of the logit difference: least effect of a path that is kept (Wang et al., 4.3)
Sets = Sequence[BaseRuns]  # one for each template, with the sites z, attn_out, mlp_out, pattern


def classes(sets: Sets, write: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The circuit, a line for each node: class, head, role, effect (nats of the logit difference by
    which it was found). `sets` need the roles IO, S1, S1+1, S2 and END; `write` is what `writers`
    found on them; `seed` is of the repeated tokens. A class that the model lacks has no line."""
    found = [write[["class", "effect"]].assign(role="END")]

    def add(kind: str, role: str, effects: pd.Series) -> list[str]:
        found.append(pd.DataFrame({"class": kind, "effect": effects, "role": role}))
        return list(effects.index)

    # who steers where they look
    looking = list(write.index[write[["IO", "S1", "S2"]].max(axis=1) > ATTENTION])
    told = falls(sets, "heads", [f"{name}.q" for name in looking], "END")
    steer = strong(told.drop(columns=[name for name in told if name in write.index])).clip(lower=0)
    inhibition = add("S-inhibition", "END", steer[steer > 0])
    # who tells those that S was said before, and who tells them
    repeats = repeat_scores(sets[0].model, seed=seed).groupby(["layer", "head"]).mean()
    repeats.index = [f"{layer}.{head}" for layer, head in repeats.index]
    least = SHARE * base_score(sets)
    at_s2 = repeats[["induction", "duplicate"]]
    some = list(at_s2.index[at_s2.max(axis=1) > ATTENTION])
    fed = kept(falls(sets, some, shared(sets, inhibition, "v"), "S2"), least)
    kinds = at_s2.loc[fed.index].idxmax(axis=1)
    induction = add("induction", "S2", fed[kinds == "induction"])
    add("duplicate token", "S2", fed[kinds == "duplicate"])
    some = list(repeats.index[repeats["previous"] > ATTENTION])
    before = kept(falls(sets, some, shared(sets, induction, "k"), "S1+1"), least)
    add("previous token", "S1+1", before)
    # who stands in for the name movers
    movers = list(write.index[write["class"] == "name mover"])
    add("backup", "END", backups(sets, movers, [*write.index, *inhibition]))
    table = pd.concat(found).rename_axis("head").reset_index()
    return table[["class", "head", "role", "effect"]].sort_values(
        ["role", "class", "effect"], ascending=[True, True, False], ignore_index=True
    )


def writers(sets: Sets) -> pd.DataFrame:
    """Heads with a strong direct effect on the logit difference, strongest first: a line per head,
    with `effect`, what it adds to IO and to S (`answer_logit`, `wrong_logit`), attention from END
    to IO, S1, S2, copy and suppression scores, and its `class`."""
    columns = ["answer_logit", "wrong_logit", "logit_diff"]
    direct = pd.concat(direct_effects(runs) for runs in sets)
    means = direct.groupby("sender", sort=False)[columns].mean()
    table = means.loc[_beyond(means["logit_diff"])].rename(columns={"logit_diff": "effect"})
    heads, places = list(table.index), ["IO", "S1", "S2"]
    if not heads:
        return table.reindex(columns=[*table, *places, "copied", "suppressed", "class"])
    seen = pd.concat(attention(runs.clean, heads, places) for runs in sets)
    names = torch.cat([t for runs in sets for t in (runs.pairs.answers, runs.pairs.wrong)])
    copies = copying(sets[0].model, heads, names.unique())
    table = table.join(seen.groupby("head")[places].mean())
    table = table.join(copies.groupby("head")[["copied", "suppressed"]].mean())
    return table.assign(**{"class": table.apply(writer_class, axis=1)})


def writer_class(head: pd.Series) -> str:
    """A writer's class, from what it does to each name, where it looks and what it copies."""
    if head["effect"] < 0:
        return "negative"
    if -head["wrong_logit"] > abs(head["answer_logit"]):
        return "subject suppressor"
    looks = head["IO"] > max(head["S1"], head["S2"])
    return "name mover" if looks and head["copied"] > 0.5 else "other writer"


def falls(
    sets: Sets, senders: Sequence[str] | Literal["heads"], receivers: Sequence[str], role: str
) -> pd.DataFrame:
    """How much the logit difference falls, in nats, when each sender is noised along its paths to
    the receivers at a role: [prompt, sender]. Senders without such a path are left out; there are
    no columns where there is no receiver."""
    if not receivers:
        return pd.DataFrame()
    last = max(int(name.split(".")[0]) for name in receivers)
    if not isinstance(senders, str):
        senders = [name for name in senders if split(name)[0] < last]
        if not senders:
            return pd.DataFrame()
    tables = []
    for runs in sets:
        table = path_patch(runs, senders, receivers, pos=role, normalise=False, per_prompt=True)
        tables.append(-by_prompt(table).sub(_clean(runs), axis=0))
    return pd.concat(tables, ignore_index=True)


def backups(sets: Sets, movers: Sequence[str], known: Sequence[str]) -> pd.Series:
    """Heads that are not `known`, by how much more they do for the answer at END once the movers
    are noised (nats), those beyond two standard deviations alone."""
    return strong(gains_without(sets, movers).drop(columns=list(known), errors="ignore"), +1)


def gains_without(sets: Sets, movers: Sequence[str]) -> pd.DataFrame:
    """What each later head does for the answer at END with `movers` noised, less what it does in
    the whole model: nats, [prompt, head]."""
    if not movers:
        return pd.DataFrame()
    first = min(split(name)[0] for name in movers)
    tables = []
    for runs in sets:
        cfg, write = runs.model.cfg, engine.patch(runs.corrupted)
        heads = [f"{i}.{j}" for i in range(first, cfg.n_layers) for j in range(cfg.n_heads)]
        heads = [name for name in heads if name not in movers]
        together = {
            (gone, name): [*([name] if name else []), *(movers if gone else [])]
            for gone in (False, True)
            for name in [*heads, ""]  # the last: the movers alone
        }
        rows = [
            {"row": key, "site": "z", "layer": layer, "head": head, "pos": "END", "write": write}
            for key, members in together.items()
            for layer, head in map(split, members)
        ]
        metric = runs.functions(["logit_diff"])
        table = engine.run(runs.clean, pd.DataFrame(rows), metric, per_prompt=True)
        table["gone"], table["name"] = zip(*table["row"], strict=True)
        wide = table.pivot(index="prompt", columns=["gone", "name"], values="logit_diff")
        whole = -wide[False].sub(_clean(runs), axis=0)
        reduced = -wide[True].sub(wide[True][""], axis=0)
        tables.append(reduced[heads] - whole[heads])
    return pd.concat(tables, ignore_index=True)


def strong(effects: pd.DataFrame, sign: int = 0) -> pd.Series:
    """Mean effects of the heads whose mean lies more than two standard deviations from the mean
    over heads, largest first; `sign` +1: above it alone."""
    if effects.empty:
        return pd.Series(dtype=float)
    means = effects.mean()
    chosen = means[_beyond(means)]
    return chosen[chosen > means.mean()] if sign > 0 else chosen


def _beyond(means: pd.Series) -> list[str]:
    off = (means - means.mean()).abs()
    return list(means[off > SDS * means.std()].sort_values(key=abs, ascending=False).index)


def kept(effects: pd.DataFrame, least: float) -> pd.Series:
    """Mean effects of at least so many nats, largest first."""
    means = effects.mean() if len(effects) else pd.Series(dtype=float)
    return means[means >= least].sort_values(ascending=False)


def shared(sets: Sets, names: Sequence[str], part: str) -> list[str]:
    """The keys or values of heads as path patching names them, by key-value head."""
    model = sets[0].model
    group = model.cfg.n_heads // n_heads(model, part)
    return sorted({f"{layer}.{head // group}.{part}" for layer, head in map(split, names)})


def base_score(sets: Sets) -> float:
    """The mean logit difference of the clean prompts."""
    return float(np.concatenate([_clean(runs) for runs in sets]).mean())


def _clean(runs: BaseRuns) -> np.ndarray:
    scores = runs.scores(["logit_diff"]).query("run == 'clean'")
    return scores.sort_values("prompt")["logit_diff"].to_numpy(float)

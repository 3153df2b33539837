"""The two recorded runs that every patching method starts from, and what their scores are.

Denoising patches activations of the clean run into the corrupted run: it asks what is sufficient to
restore the behaviour. Noising patches the other way round: it asks what is necessary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine, metrics
from ..tasks.pairs import PromptPairs

Direction = Literal["denoise", "noise"]
Metrics = Sequence[str] | Mapping[str, Callable[[Tensor], Tensor] | engine.Metric]


@dataclass(frozen=True, eq=False)
class BaseRuns:
    """The clean and the corrupted run of one set of prompt pairs, recorded once."""

    pairs: PromptPairs
    clean: engine.Run
    corrupted: engine.Run

    @property
    def model(self) -> TransformerBridge:
        return self.clean.model

    def ordered(self, direction: Direction) -> tuple[engine.Run, engine.Run]:
        """The run that is edited and the run that is read."""
        if direction not in ("denoise", "noise"):
            raise ValueError(f"direction is 'denoise' or 'noise', got {direction!r}")
        both = (self.corrupted, self.clean)
        return both if direction == "denoise" else both[::-1]

    def functions(self, names: Metrics) -> dict[str, Any]:
        """Metrics by name, bound to the pairs' answers; `kl` compares with the clean run.

        Metrics of the two answers' logits alone are given these and no others.
        """
        if isinstance(names, Mapping):
            return dict(names)
        both = torch.stack([self.pairs.answers, self.pairs.wrong])
        tokens, (answers, wrong) = both.unique(return_inverse=True)
        few = {
            "answer_logit": partial(metrics.logit, tokens=answers),
            "wrong_logit": partial(metrics.logit, tokens=wrong),
            "logit_diff": partial(metrics.logit_diff, answers=answers, wrong=wrong),
        }
        if set(names) <= set(few):
            return {name: engine.Metric(few[name], tokens=tokens) for name in names}
        return dict(metrics.build(self.pairs, names, reference=self.clean.logits()))

    def scores(self, names: Metrics) -> pd.DataFrame:
        """Each metric on the untouched runs, one line per run and prompt: run, prompt, metrics."""
        tables = []
        for run, name in ((self.clean, "clean"), (self.corrupted, "corrupted")):
            same = pd.DataFrame([{"site": "resid_pre", "layer": 0, "write": engine.patch(run)}])
            table = engine.run(run, same, self.functions(names), per_prompt=True)
            tables.append(table.assign(run=name)[["run", "prompt", *self.functions(names)]])
        return pd.concat(tables, ignore_index=True)


def record(
    model: TransformerBridge, pairs: PromptPairs, sites: Sequence[str] | None = None
) -> BaseRuns:
    """Run the clean and the corrupted prompts once and keep the activations at `sites`, by default
    at every site that the architecture has."""
    kept = _sites(model) if sites is None else sites
    both = (pairs.clean_tokens, pairs.corrupted_tokens)
    runs = (engine.record(model, tokens, sites=kept, roles=pairs.roles) for tokens in both)
    return BaseRuns(pairs, *runs)


def gaussian(
    model: TransformerBridge,
    pairs: PromptPairs,
    positions: Sequence[int | str],
    sigmas: float = 3.0,
    seed: int = 0,
    sites: Sequence[str] | None = None,
) -> BaseRuns:
    """As `record`, but the corrupted run is the clean prompt with noise on its embeddings at some
    positions, given as numbers or roles (see `engine.record_noised`)."""
    kept = _sites(model) if sites is None else sites
    clean = engine.record(model, pairs.clean_tokens, sites=kept, roles=pairs.roles)
    noised = engine.record_noised(
        model,
        pairs.clean_tokens,
        list(positions),
        sigmas,
        seed,
        kept,
        pairs.roles,
    )
    return BaseRuns(pairs, clean, noised)


def _sites(model: TransformerBridge) -> list[str]:
    """Every site that works on the model."""
    return list(model.sites)


def measure(
    runs: BaseRuns,
    direction: Direction,
    rows: pd.DataFrame,
    names: Metrics,
    normalise: bool,
    per_prompt: bool,
) -> pd.DataFrame:
    """Carry out the rows and normalise what they give (see `normalised`)."""
    base, _ = runs.ordered(direction)
    table = engine.run(base, rows, runs.functions(names), per_prompt=per_prompt)
    table["direction"] = direction
    return normalised(runs, table, names, per_prompt) if normalise else table


def normalised(
    runs: BaseRuns, table: pd.DataFrame, names: Metrics, per_prompt: bool
) -> pd.DataFrame:
    """0 is the corrupted run and 1 the clean run, as a ratio of means over prompts.

    With one line per prompt, each prompt is compared with itself in the run that was edited, and
    the change is divided by the mean span (a prompt's own span may be near zero). The mean over
    prompts is then the table's value, and what prompts differ in by themselves does not enter.
    """
    scores = runs.scores(names)
    for name in runs.functions(names):
        clean, corrupted = (
            scores.loc[scores["run"] == run, name].to_numpy(float) for run in ("clean", "corrupted")
        )
        value, span = table[name].to_numpy(float), (clean - corrupted).mean()
        if span == 0:  # NaN, and the warning of metrics.normalise
            table[name] = np.asarray(metrics.normalise(value, clean.mean(), clean.mean()))
            continue
        prompt = table["prompt"].to_numpy(int) if per_prompt else slice(None)
        start = {"denoise": corrupted, "noise": clean}
        edited = table["direction"].iloc[0]
        before = start[edited][prompt] if per_prompt else start[edited].mean()
        table[name] = (value - before) / span + (edited == "noise")
    return table

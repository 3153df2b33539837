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
from ..tasks.pairs import Followed, PromptPairs

Direction = Literal["denoise", "noise"]
Metrics = Sequence[str] | Mapping[str, Callable[[Tensor], Tensor] | engine.Metric]


# Scores of answers of several tokens, from the log-probabilities of answer and wrong answer. A
# log-probability is a logit of its token, up to a number that all tokens share.
WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logit_diff": lambda answer, wrong: answer - wrong,
    "answer_logit": lambda answer, wrong: answer,
    "wrong_logit": lambda answer, wrong: wrong,
    "log_prob": lambda answer, wrong: answer,
    "prob": lambda answer, wrong: answer.exp(),
    "accuracy": lambda answer, wrong: (answer > wrong).to(answer),
}


@dataclass(frozen=True, eq=False)
class BaseRuns:
    """The clean and the corrupted run of one set of prompt pairs, recorded once.

    Where all tokens of the answers are scored, the prompts are followed by their answers
    (`followed`), and `others` are the runs of the same prompts followed by the wrong answers.
    """

    pairs: PromptPairs
    clean: engine.Run
    corrupted: engine.Run
    followed: Followed | None = None
    others: "BaseRuns | None" = None

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

        Metrics of the two answers' logits alone are given these and no others. Raises ValueError
        where all tokens of answers are scored: that takes two runs.
        """
        if isinstance(names, Mapping):
            return dict(names)
        if self.followed is not None:
            raise ValueError(
                "all tokens of the answers are scored, which takes two runs: call sweep, "
                "path_patch or attribution, or make the pairs with scored='first'"
            )
        both = torch.stack([self.pairs.answers, self.pairs.wrong])
        tokens, (answers, wrong) = both.unique(return_inverse=True)
        few = {
            "answer_logit": partial(metrics.logit, tokens=answers),
            "wrong_logit": partial(metrics.logit, tokens=wrong),
            "logit_diff": partial(metrics.logit_diff, answers=answers, wrong=wrong),
            "accuracy": partial(metrics.accuracy, answers=answers, wrong=wrong),
        }
        if set(names) <= set(few):
            return {name: engine.Metric(few[name], tokens=tokens) for name in names}
        return dict(metrics.build(self.pairs, names, reference=self.clean.logits()))

    def scores(self, names: Metrics) -> pd.DataFrame:
        """Each metric on the untouched runs, one line per run and prompt: run, prompt, metrics."""
        tables, chosen = [], [names] if isinstance(names, str) else list(names)
        for name in ("clean", "corrupted"):

            def untouched(runs: BaseRuns, name: str = name) -> Work:
                run = getattr(runs, name)
                row = {"site": "resid_pre", "layer": 0, "write": engine.patch(run)}
                return run, pd.DataFrame([row])

            table = carry_out(self, untouched, names, per_prompt=True)
            tables.append(table.assign(run=name)[["run", "prompt", *chosen, *self.pairs.said]])
        return pd.concat(tables, ignore_index=True)


Work = tuple[engine.Run, pd.DataFrame]  # a run and the rows to carry out on it


def carry_out(
    runs: BaseRuns, work: Callable[[BaseRuns], Work], names: Metrics, per_prompt: bool
) -> pd.DataFrame:
    """Carry out a table of interventions, and measure. Where all tokens of answers are scored, it
    is carried out twice: before the answers, and before the wrong answers."""
    scored = runs.pairs.said
    if runs.others is None or isinstance(names, Mapping):
        base, rows = work(runs)
        return engine.run(base, rows, runs.functions(names), per_prompt=per_prompt).assign(**scored)
    chosen, log_probs = whole(names), []
    for these in (runs, runs.others):
        assert these.followed is not None
        given = runs.pairs.answers if these is runs else runs.pairs.wrong
        if not torch.equal(these.followed.ids[:, 0], given):
            raise ValueError("these runs were recorded before other answers: record them anew")
        metric = engine.Metric(these.followed.log_prob, pos=these.followed.pos)
        table = engine.run(*work(these), {"log_prob": metric}, per_prompt=True)
        log_probs.append(torch.from_numpy(table.pop("log_prob").to_numpy(copy=True)).double())
    columns = {name: score(*log_probs).numpy() for name, score in chosen.items()}
    if not per_prompt:
        n = len(runs.pairs)
        table = table.iloc[::n].drop(columns="prompt").reset_index(drop=True)
        columns = {name: values.reshape(-1, n).mean(1) for name, values in columns.items()}
    return table.assign(**columns, **scored)


def whole(names: Sequence[str]) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The named scores of answers of several tokens."""
    listed = [names] if isinstance(names, str) else names
    if unknown := [name for name in listed if name not in WHOLE]:
        raise ValueError(
            f"metric {unknown[0]!r} is not one of whole answers; choose from {', '.join(WHOLE)}, "
            "or make the pairs with scored='first'"
        )
    return {name: WHOLE[name] for name in listed}


def record(
    model: TransformerBridge, pairs: PromptPairs, sites: Sequence[str] | None = None
) -> BaseRuns:
    """Run the clean and the corrupted prompts once and keep the activations at `sites`, by default
    at every site that the architecture has."""
    kept = _sites(model) if sites is None else sites

    def run(tokens: Tensor, mask: Tensor | None) -> engine.Run:
        return engine.record(model, tokens, mask, kept, pairs.roles)

    if pairs.scored != "all":
        clean, corrupted = (
            run(x, pairs.mask) for x in (pairs.clean_tokens, pairs.corrupted_tokens)
        )
        return BaseRuns(pairs, clean, corrupted)

    def followed(texts: Followed, others: BaseRuns | None) -> BaseRuns:
        clean, corrupted = (run(x, texts.mask) for x in (texts.clean, texts.corrupted))
        return BaseRuns(pairs, clean, corrupted, texts, others)

    return followed(pairs.followed_by("answer"), followed(pairs.followed_by("wrong"), None))


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
    if pairs.scored == "all":
        raise ValueError("noise on embeddings scores one token: make the pairs with scored='first'")
    kept = _sites(model) if sites is None else sites
    tokens, roles, mask = pairs.clean_tokens, pairs.roles, pairs.mask
    clean = engine.record(model, tokens, mask, kept, roles)
    noised = engine.record_noised(
        model, tokens, list(positions), sigmas, seed, kept, roles, attention_mask=mask
    )
    return BaseRuns(pairs, clean, noised)


def _sites(model: TransformerBridge) -> list[str]:
    """Every site that works on the model."""
    return list(model.sites)


def measure(
    runs: BaseRuns,
    direction: Direction,
    rows: Callable[[BaseRuns], pd.DataFrame],
    names: Metrics,
    normalise: bool,
    per_prompt: bool,
) -> pd.DataFrame:
    """Carry out the rows and normalise what they give (see `normalised`)."""
    table = carry_out(runs, lambda x: (x.ordered(direction)[0], rows(x)), names, per_prompt)
    table["direction"] = direction
    table.attrs["bos"] = runs.pairs.bos  # whether, and with which token, the prompts begin
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
    for name in [names] if isinstance(names, str) else names:
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

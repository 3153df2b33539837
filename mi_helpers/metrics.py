"""Metrics: what one number per prompt says about a model's answer.

Every metric is a plain function of logits, `[*row, prompt, vocab] -> [*row, prompt]`: the last axis
is the vocabulary, the one before it the prompts, and anything in front (the rows of a sweep) is
carried along. No metric averages over prompts; do that last, with an interval.

Which one to use (Heimersheim & Nanda 2024, arXiv 2404.15255, and Zhang & Nanda 2023, arXiv
2309.16042): start from `logit_diff`, which is linear in the final residual stream up to the last
norm; put `log_prob` or `kl` beside it, because they see what it cannot; keep `accuracy`, `prob` and
`rank` for reporting, because they hide partial effects. Each docstring says what its metric hides.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Values = Any  # a tensor, an array, a pandas column or a float


def logit(
    logits: Float[Tensor, "*row prompt vocab"], tokens: Int[Tensor, "prompt"]
) -> Float[Tensor, "*row prompt"]:
    """Each prompt's logit of its own token: one of the two parts of a logit difference.

    Hides: a shift of all logits alike changes it and no probability.
    """
    logits = _check(logits)
    if tokens.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"answers have shape {tuple(tokens.shape)}, but the logits hold "
            f"{logits.shape[-2]} prompts: one token per prompt is needed"
        )
    if tokens.min() < 0 or tokens.max() >= logits.shape[-1]:
        raise ValueError(
            f"answer tokens run from {int(tokens.min())} to {int(tokens.max())}, outside a "
            f"vocabulary of {logits.shape[-1]}: were they made with another model's tokenizer?"
        )
    index = tokens.to(logits.device).expand(logits.shape[:-1]).unsqueeze(-1)
    return logits.gather(-1, index).squeeze(-1)


def logit_diff(
    logits: Float[Tensor, "*row prompt vocab"],
    answers: Int[Tensor, "prompt"],
    wrong: Int[Tensor, "prompt"],
) -> Float[Tensor, "*row prompt"]:
    """Logit of the answer minus logit of the wrong answer: log-odds between the two, in nats.

    Hides: a component that lifts both names alike is invisible, and a rise can come from the wrong
    answer falling. It says nothing about the other 50 000 tokens.
    """
    return logit(logits, answers) - logit(logits, wrong)


def log_prob(
    logits: Float[Tensor, "*row prompt vocab"], answers: Int[Tensor, "prompt"]
) -> Float[Tensor, "*row prompt"]:
    """Log-probability of the answer, in nats.

    Hides: whether the model knows which name or only that a name comes next; both raise it.
    """
    return logit(logits, answers) - _check(logits).logsumexp(-1)


def prob(
    logits: Float[Tensor, "*row prompt vocab"], answers: Int[Tensor, "prompt"]
) -> Float[Tensor, "*row prompt"]:
    """Probability of the answer, 0 to 1.

    Hides: everything at its two flat ends. Components that push the answer down are missed where
    the corrupted run already gives it almost no probability (Zhang & Nanda 2023).
    """
    return log_prob(logits, answers).exp()


def accuracy(
    logits: Float[Tensor, "*row prompt vocab"],
    answers: Int[Tensor, "prompt"],
    wrong: Int[Tensor, "prompt"] | None = None,
) -> Float[Tensor, "*row prompt"]:
    """1.0 where the answer wins, else 0.0: over every token, or over `wrong` alone if it is given.

    A tie with another token is not a win. Hides: every effect that does not cross the threshold,
    and how large those are that do.
    """
    if wrong is not None:
        return (logit_diff(logits, answers, wrong) > 0).float()
    tied = (logits >= logit(logits, answers).unsqueeze(-1)).sum(-1)
    return (tied == 1).float()


def rank(
    logits: Float[Tensor, "*row prompt vocab"], answers: Int[Tensor, "prompt"]
) -> Float[Tensor, "*row prompt"]:
    """How many tokens have a larger logit than the answer; 0 means it is on top.

    Hides: distances. Rank 0 by a hair and rank 0 by ten nats are the same, and far down the list a
    tiny change of logit moves the rank by thousands.
    """
    return (logits > logit(logits, answers).unsqueeze(-1)).sum(-1).to(logits.dtype)


def kl(
    logits: Float[Tensor, "*row prompt vocab"], reference: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, "*row prompt"]:
    """KL(reference ‖ logits) in nats: how far the next-token distribution moved from the reference.

    The reference comes first: it is the average, over tokens drawn from the reference, of the
    log-probability lost. Hides: which tokens moved and in which direction. Its gradient is zero
    where `logits` equals `reference`, so attribution must not start from there.
    """
    return kl_from(reference)(logits)


def kl_from(
    reference: Float[Tensor, "prompt vocab"],
) -> Callable[[Float[Tensor, "*row prompt vocab"]], Float[Tensor, "*row prompt"]]:
    """`kl` from one reference as a function of the logits, for many calls."""
    reference = _check(reference, "reference logits")
    log_p = reference.log_softmax(-1)
    p, absent = log_p.exp(), log_p.isinf()
    some_absent = bool(absent.any())

    def one(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt"]:
        # With c = logits - reference, centred so that E_p[c] = 0, KL = log E_p[exp(c)].
        c = logits - reference
        if some_absent:
            c = torch.where(absent, 0.0, c)
        c -= _mean(c, p).unsqueeze(-1)
        # exp(c) - 1 - c is never negative, so its mean keeps the digits of a small KL; where a
        # token's log-odds rose by more than 10, exp(c) could overflow and the plain form is exact.
        near = c.detach().amax(-1) < 10
        careful = _mean((c if near.all() else c.clamp_max(10)).expm1() - c, p).log1p()
        return careful if near.all() else torch.where(near, careful, (log_p + c).logsumexp(-1))

    def divergence(logits: Float[Tensor, "*row prompt vocab"]) -> Float[Tensor, "*row prompt"]:
        logits = _check(logits)
        if reference.shape != logits.shape[-2:]:
            raise ValueError(
                f"reference has shape {tuple(reference.shape)}, but the logits end in "
                f"{tuple(logits.shape[-2:])}: one reference row per prompt is needed"
            )
        rows = [one(row) for row in logits.reshape(-1, *reference.shape)]  # each stays in the cache
        return torch.stack(rows).reshape(logits.shape[:-1]) if rows else logits[..., 0]

    return divergence


def prob_diff(
    logits: Float[Tensor, "*row prompt vocab"],
    right_set: Bool[Tensor, "prompt vocab"],
    wrong_set: Bool[Tensor, "prompt vocab"],
) -> Float[Tensor, "*row prompt"]:
    """Probability on the set of right answers minus that on the wrong ones, -1 to 1.

    The metric of greater-than (Hanna et al. 2023): P(years after YY) - P(years up to YY).
    Hides: what `prob` hides, and how the probability is spread within each set.
    """
    p = _check(logits).softmax(-1)
    return (p * right_set).sum(-1) - (p * wrong_set).sum(-1)


def normalise(value: Values, corrupted: Values, clean: Values) -> Values:
    """(value - corrupted) / (clean - corrupted): 0 is the corrupted run, 1 is the clean run.

    Works on tensors, arrays, pandas columns and floats. Values above 1 and below 0 are results, not
    errors. A ratio of means over prompts is steadier than a mean of ratios: average all three
    arguments first. Where clean equals corrupted the ratio is undefined: NaN, with a warning.
    Hides: the size of the effect that is being normalised.
    """
    span = clean - corrupted
    undefined = span == 0
    if np.any(np.asarray(undefined)):
        warnings.warn(
            f"clean and corrupted score the same on {np.asarray(undefined).sum()} of "
            f"{np.asarray(undefined).size} prompts: nothing to normalise there, giving NaN",
            RuntimeWarning,
            stacklevel=2,
        )
        where = torch.where if isinstance(span, Tensor) else np.where
        span = where(undefined, torch.nan, span)
    return (value - corrupted) / span


class Answered(Protocol):
    """What `build` reads of a set of prompt pairs."""

    @property
    def task(self) -> str: ...
    @property
    def answers(self) -> Int[Tensor, "prompt"]: ...
    @property
    def wrong(self) -> Int[Tensor, "prompt"]: ...
    @property
    def right_set(self) -> Bool[Tensor, "prompt vocab"] | None: ...
    @property
    def wrong_set(self) -> Bool[Tensor, "prompt vocab"] | None: ...


LOGITS = ("logit_diff", "answer_logit", "wrong_logit")
METRICS = (*LOGITS, "log_prob", "prob", "accuracy", "rank", "kl", "prob_diff")


def build(
    pairs: Answered,
    names: Sequence[str],
    reference: Float[Tensor, "prompt vocab"] | None = None,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The named metrics as functions of the logits alone, bound to the pairs' answers.

    Accuracy is that of the answer over the pair's wrong answer. `reference` are the logits that
    `kl` compares with (usually the clean run's); `prob_diff` needs pairs with answer sets.
    Raises ValueError for an unknown name, or for a metric whose inputs are missing.
    """
    answers, wrong = pairs.answers, pairs.wrong
    known: dict[str, Callable[[Tensor], Tensor] | str] = {
        "logit_diff": lambda logits: logit_diff(logits, answers, wrong),
        "answer_logit": lambda logits: logit(logits, answers),
        "wrong_logit": lambda logits: logit(logits, wrong),
        "log_prob": lambda logits: log_prob(logits, answers),
        "prob": lambda logits: prob(logits, answers),
        "accuracy": lambda logits: accuracy(logits, answers, wrong),
        "rank": lambda logits: rank(logits, answers),
        "kl": "needs reference logits: build(pairs, names, reference=clean_logits)",
        "prob_diff": f"needs sets of right and wrong answers, which {pairs.task!r} does not have",
    }
    if reference is not None:
        known["kl"] = kl_from(reference)
    right_set, wrong_set = pairs.right_set, pairs.wrong_set
    if right_set is not None and wrong_set is not None:
        known["prob_diff"] = lambda logits: prob_diff(logits, right_set, wrong_set)
    chosen = {}
    for name in [names] if isinstance(names, str) else names:
        metric = known.get(name, f"is unknown; the metrics are {', '.join(METRICS)}")
        if isinstance(metric, str):
            raise ValueError(f"metric {name!r} {metric}")
        chosen[name] = metric
    return chosen


def _mean(
    values: Float[Tensor, "prompt vocab"], p: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, "prompt"]:
    """The mean over the vocabulary under each prompt's distribution."""
    return torch.einsum("pv,pv->p", values, p)


def _check(logits: Tensor, name: str = "logits") -> Tensor:
    """The logits in float32 or wider; refused without prompt and vocabulary axes, or with NaN."""
    if logits.ndim < 2:
        raise ValueError(
            f"{name} must end in [prompt, vocab]; got shape {tuple(logits.shape)}. "
            "Take one position first, as in logits[:, -1]"
        )
    # max propagates NaN and allocates nothing of the logits' size
    if logits.numel() and logits.detach().amax().isnan():
        where = torch.nonzero(logits.isnan().any(-1))[0].tolist()
        raise ValueError(f"{name} hold NaN, first at index {where} of [*row, prompt]")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

"""Metrics against numbers worked out by hand and against slow loops in plain Python."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_helpers import metrics
from mi_helpers.tasks.pairs import PromptPairs

# Two prompts, four tokens. Prompt 0: odds 8 : 4 : 2 : 2; prompt 1: odds 1 : 1 : 1 : 5.
ODDS = torch.tensor([[8.0, 4.0, 2.0, 2.0], [1.0, 1.0, 1.0, 5.0]])
LOGITS = ODDS.log() + torch.tensor([[0.5], [-3.0]])  # a shift per prompt must not matter
ANSWERS = torch.tensor([0, 1])
WRONG = torch.tensor([1, 3])


def make_pairs(answers=ANSWERS, wrong=WRONG, right_set=None, wrong_set=None):
    """Prompt pairs of which only the answers matter."""
    texts, tokens = ["text"] * len(answers), torch.zeros(len(answers), 1, dtype=torch.long)
    fields = (texts, texts, tokens, tokens, answers, wrong, ["END"])
    return PromptPairs("made", *fields, right_set=right_set, wrong_set=wrong_set)


def slow_kl(logits, reference):
    """KL(reference ‖ logits), one token at a time in double precision."""
    p, q = ([math.exp(v) for v in row] for row in (reference, logits))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_hand_computed_values():
    close(metrics.logit_diff(LOGITS, ANSWERS, WRONG), [math.log(2), -math.log(5)])
    close(metrics.log_prob(LOGITS, ANSWERS), [math.log(1 / 2), math.log(1 / 8)])
    close(metrics.prob(LOGITS, ANSWERS), [0.5, 0.125])
    close(metrics.rank(LOGITS, ANSWERS), [0.0, 1.0])
    close(metrics.rank(LOGITS, torch.tensor([3, 3])), [2.0, 0.0])
    close(metrics.accuracy(LOGITS, ANSWERS), [1.0, 0.0])
    close(metrics.accuracy(LOGITS, ANSWERS, WRONG), [1.0, 0.0])
    close(metrics.accuracy(LOGITS, torch.tensor([1, 3]), torch.tensor([2, 0])), [1.0, 1.0])


def test_a_tie_is_not_a_win():
    close(metrics.accuracy(torch.zeros(1, 3), torch.tensor([1])), [0.0])
    close(metrics.accuracy(LOGITS, torch.tensor([2, 0]), torch.tensor([3, 1])), [0.0, 0.0])


def test_kl_puts_the_reference_first():
    logits, reference = ODDS[:1].log(), ODDS[1:].log()
    expected = 1 / 8 * (math.log(1 / 4) + math.log(1 / 2) + 0) + 5 / 8 * math.log(5)
    close(metrics.kl(logits, reference), [expected])
    close(metrics.kl(reference, reference), [0.0])
    assert abs(float(metrics.kl(reference, logits)) - expected) > 0.05  # it is not symmetric


def test_kl_keeps_small_values():
    generator = torch.Generator().manual_seed(0)
    reference = 5 * torch.randn(3, 50, generator=generator)
    logits = reference + 1e-3 * torch.randn(3, 50, generator=generator)
    slow = [slow_kl(*rows) for rows in zip(logits.tolist(), reference.tolist(), strict=True)]
    assert all(1e-9 < value < 1e-6 for value in slow)
    np.testing.assert_allclose(metrics.kl(logits, reference).numpy(), slow, rtol=2e-3)


def test_kl_of_large_shifts():
    """Far beyond where exp overflows: the reference's token lost 200 nats."""
    reference, logits = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    close(metrics.kl(logits, reference), [200.0])
    logits.requires_grad_()
    metrics.kl(logits, reference).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 1.0]]


def test_kl_with_tokens_ruled_out_on_both_sides():
    ruled_out = torch.tensor([[0.0, 1.0, -torch.inf]])
    close(metrics.kl(torch.tensor([[1.0, 0.0, -torch.inf]]), ruled_out), [math.tanh(0.5)])


def test_prob_diff():
    right = torch.tensor([[True, False, False, True], [True, True, False, False]])
    close(metrics.prob_diff(LOGITS, right, ~right), [10 / 16 - 6 / 16, 2 / 8 - 6 / 8])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 3), max_size=2), prompts=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_rows_are_carried_along(rows, prompts, seed):
    """A batch of rows scores as each row does alone, and as a slow loop does."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*rows, prompts, 7, generator=generator)
    answers = torch.randint(0, 3, (prompts,), generator=generator)
    sets = [torch.nn.functional.one_hot(tokens, 7).bool() for tokens in (answers, answers + 1)]
    pairs = make_pairs(answers, answers + 1, *sets)
    reference = torch.randn(prompts, 7, generator=generator)
    built = metrics.build(pairs, metrics.METRICS, reference)
    assert set(built) == set(metrics.METRICS)
    for name, metric in built.items():
        together = metric(logits)
        assert together.shape == logits.shape[:-1], name
        for index in np.ndindex(*rows):
            torch.testing.assert_close(together[index], metric(logits[index]), atol=1e-6, rtol=1e-6)
    for index in np.ndindex(*rows, prompts):
        row, answer = logits[index].tolist(), int(answers[index[-1]])
        p = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        order = sorted(range(7), key=lambda token: -row[token])
        expected = {
            "logit_diff": row[answer] - row[answer + 1],
            "log_prob": math.log(p[answer]),
            "prob": p[answer],
            "accuracy": float(row[answer] > row[answer + 1]),
            "rank": order.index(answer),
            "kl": slow_kl(row, reference[index[-1]].tolist()),
            "prob_diff": p[answer] - p[answer + 1],
        }
        for name, value in expected.items():
            assert float(built[name](logits)[index]) == pytest.approx(value, abs=1e-5), name


def test_normalise():
    assert metrics.normalise(3.0, corrupted=1.0, clean=5.0) == 0.5
    table = pd.Series([1.0, 5.0, 7.0])
    assert metrics.normalise(table, 1.0, 5.0).tolist() == [0.0, 1.0, 1.5]
    value = torch.tensor([[0.0, 2.0], [2.0, -2.0]])
    got = metrics.normalise(value, torch.tensor([0.0, 0.0]), torch.tensor([2.0, -2.0]))
    assert got.tolist() == [[0.0, -1.0], [1.0, 1.0]]


def test_normalise_says_where_there_is_nothing_to_normalise():
    clean, corrupted = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])
    with pytest.warns(RuntimeWarning, match="1 of 2"):
        got = metrics.normalise(torch.tensor([2.0, 2.0]), corrupted, clean)
    assert got[0].isnan()
    assert got[1] == 0.5
    with pytest.warns(RuntimeWarning, match="1 of 1"):
        assert metrics.normalise(pd.Series([1.0, 2.0]), 4.0, 4.0).isna().all()


@pytest.mark.parametrize("name", metrics.METRICS)
def test_nan_is_refused(name):
    everything = torch.ones(2, 4, dtype=torch.bool)
    pairs = make_pairs(right_set=everything, wrong_set=everything)
    broken = LOGITS.repeat(3, 1, 1)
    broken[2, 1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"NaN, first at index \[2, 1\]"):
        metrics.build(pairs, [name], LOGITS)[name](broken)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.prob(LOGITS[0], ANSWERS), r"\[prompt, vocab\]"),
        (lambda: metrics.prob(LOGITS, torch.tensor([0])), "one token per prompt"),
        (lambda: metrics.prob(LOGITS, torch.tensor([0, 4])), "another model's tokenizer"),
        (lambda: metrics.prob(LOGITS, torch.tensor([0, -1])), "another model's tokenizer"),
        (lambda: metrics.kl(LOGITS, LOGITS[:1]), "one reference row per prompt"),
    ],
)
def test_bad_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_half_precision_is_widened():
    """bfloat16 keeps three digits; sums over the vocabulary must not lose more."""
    logits = LOGITS.bfloat16()
    for metric in (metrics.log_prob, metrics.prob):
        assert metric(logits, ANSWERS).dtype == torch.float32
        torch.testing.assert_close(metric(logits, ANSWERS), metric(logits.float(), ANSWERS))
    assert float(metrics.kl(logits, logits).max()) == 0.0


def test_build_refuses_what_it_cannot_bind():
    pairs = make_pairs()
    for name, message in [
        ("logit_dif", "unknown; the metrics are logit_diff"),
        ("kl", "needs reference logits"),
        ("prob_diff", "which 'made' does not have"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.build(pairs, [name])
    assert list(metrics.build(pairs, "prob")) == ["prob"]

"""Proofs of how often a max-of-4 network is right, from the most work to the least.

1. `accuracy`: every one of the d_vocab^4 inputs is run.
2. `cubic`: a bound for each (largest token, last token, other token).
3. `quadratic`: no loop over the other token; only how far below the largest it must stay.

Both bounds give the cases that they prove right, and `share` counts the inputs in these. Both take
a `score_error[q]`: how far any two attention scores of the last token q may be wrong against each
other. Each token then takes its worse end.

Source: Gross et al. 2024, arXiv 2406.11779.
"""

from math import comb

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from .max_of_k import Parts

ScoreError = Float[Tensor, "q"] | float
Cases = Bool[Tensor, "c m q k"]  # whether c copies of k among copies of m before a last q are right
GAPS = (1, 2, 3, 5, 8, 13, 21)  # that `quadratic` tries; ours


def accuracy(parts: Parts) -> float:
    """Share of all inputs that the network gets right, by running every one."""
    n, right = len(parts.direct), 0
    tokens = torch.arange(n)
    for q in tqdm(range(n), "last token", leave=False):
        # For one last token, logits times the softmax's denominator are sums over positions.
        score = parts.scores[q] + parts.positions[q, :, None]  # [pos, t]
        weight = (score - score.max()).exp()  # float32 holds no large exponentials
        gain = parts.values + parts.position_values[:, None] + parts.direct[q]  # [pos, t, x]
        first, second, third, last = (weight[..., None] * gain).float()
        rest = second[:, None] + third + last[q]  # [t, t, x]
        largest = tokens[:, None].maximum(tokens).clamp_min(q)
        for token in range(n):
            right += int(((rest + first[token]).argmax(-1) == largest.clamp_min(token)).sum())
    return right / n**4


def cubic(parts: Parts, score_error: ScoreError = 0.0) -> Cases:
    """Which cases (largest m, last q, other token k) are proved right.

    An input is right if its positions' sum of exp(score) · (most that the token there can add to a
    wrong logit) is negative. That sum is linear in what stands at each position. So it is enough to
    look at c copies of one token k beside copies of m, with k on the positions that count least and
    on those that count most; and where each k of a set passes alone, every mixture of them does.

    Source: arXiv 2406.11779, the cubic proof, and its argument by convexity.
    """
    # The most that token and position together, and the last token, can add to a wrong logit.
    position = reduce(lead(parts.position_values), "m p x -> m 1 x", "max")
    of_token = reduce(lead(parts.values) + position, "m t x -> m t", "max")
    term = (of_token[:, None] + most(parts.direct)[..., None]) * parts.scores.exp()  # [m, q, t]
    largest, last = term.diagonal(dim1=0, dim2=2).T, term.diagonal(dim1=1, dim2=2)  # [m, q]
    return worst(parts, largest, last, term, score_error) < 0


def quadratic(parts: Parts, score_error: ScoreError = 0.0) -> Cases:
    """As `cubic` without its loop over k: all tokens that lie a gap or more below m pass together,
    by the worst score and the worst harm among them, for the smallest of the `GAPS` that works.

    Source: after the cheaper proofs of arXiv 2406.11779.
    """
    tokens, of_last = torch.arange(len(parts.direct)), most(parts.direct)
    of_token = most(parts.values) + most(parts.position_values).amax(1, keepdim=True)  # apart
    last = (of_token + of_last) * parts.scores.diagonal().exp()  # [m, q]
    largest = (of_token.diagonal()[:, None] + of_last) * parts.scores.T.exp()
    harm, high, low = of_token.cummax(1)[0], parts.scores.cummax(1)[0], parts.scores.cummin(1)[0]
    right = torch.zeros(4, *3 * last.shape[:1]).bool()
    for gap in GAPS:
        upto = tokens - gap  # the tokens 0 … upto[m] are judged together
        some = upto.clamp_min(0)
        add = harm[tokens, some][:, None] + of_last
        score = torch.where(add > 0, high[:, some].T, low[:, some].T)
        passes = worst(parts, largest, last, (add * score.exp())[..., None], score_error) < 0
        right |= passes & (tokens <= upto[:, None])[:, None]
    right[0] |= passes[0]  # no other token, whatever the gap
    return right


def lead(logits: Float[Tensor, "row x"]) -> Float[Tensor, "m row x"]:
    """Each wrong token's logit minus that of m; -inf for m itself."""
    right = torch.eye(logits.shape[1], dtype=torch.bool)[:, None]
    return (logits - rearrange(logits, "row m -> m row 1")).masked_fill(right, -torch.inf)


def most(logits: Float[Tensor, "row x"]) -> Float[Tensor, "m row"]:
    """The largest `lead`, from the two largest logits of each row alone."""
    (first, second), at = logits.topk(2, dim=1).values.T, logits.argmax(1)
    return torch.where(torch.arange(logits.shape[1])[:, None] == at, second, first) - logits.T


def worst(
    parts: Parts,
    largest: Float[Tensor, "m q"],
    last: Float[Tensor, "m q"],
    other: Float[Tensor, "m q k"],
    score_error: ScoreError,
) -> Float[Tensor, "c m q k"]:
    """For c = 0 … 3 copies of k, the largest sum over positions; negative: all such are right."""
    reach = torch.as_tensor(score_error, dtype=torch.double).expand(len(parts.direct)).exp()
    largest, last = largest.maximum(largest * reach), last.maximum(last * reach)
    other = other.maximum(other * reach[:, None])
    beta = parts.positions.exp()
    free, fixed = beta[:, :3].sort(dim=1).values, last * beta[:, 3]  # before the last; the last
    found = []
    for c in range(4):
        ends = [
            (largest * (free.sum(1) - weight) + fixed)[..., None] + other * weight[:, None]
            for weight in (free[:, :c].sum(1), free[:, 3 - c :].sum(1))  # of k's positions
        ]
        found.append(torch.maximum(*ends))
    return torch.stack(found)


def share(right: Cases) -> float:
    """The share of all inputs that the cases prove right.

    There are C(3, c) places for c other tokens, and each of these may be any that passes. The last
    token is at most m; if it is not m itself, one of the other three must be.
    """
    n = right.shape[-1]
    possible = torch.ones(n, n).tril().bool()  # q ≤ m
    below = possible.tril(-1)[:, None]  # k < m
    total = int(right[0, ..., 0][possible].sum())
    for c in (1, 2, 3):
        passing = (right[c] & below).sum(-1)[possible if c < 3 else torch.eye(n).bool()]
        total += comb(3, c) * int((passing**c).sum())
    return total / n**4

"""One attention head that names the largest of four input tokens, and proofs of how often it does.

The network is small enough to be multiplied out (`Parts`), and so to be *proved* right on a share
of all its inputs rather than tested on some. From the most work to the least:

1. `accuracy`: every one of the d_vocab^4 inputs is run.
2. `cubic`: a bound for each (largest token, last token, other token).
3. `quadratic`: no loop over the other token; only how far below the largest it must stay.

Both bounds take a `score_error[q]`: how far any two attention scores of the last token q may be
wrong against each other. Each token then takes its worse end.

Source: Gross et al. 2024, arXiv 2406.11779; all here written for several networks at once.
"""

from dataclasses import dataclass, replace
from math import comb
from pathlib import Path

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import embedding
from tqdm.auto import tqdm

from .side_by_side import descend

ScoreError = Float[Tensor, "q"] | float
GAPS = (1, 2, 3, 5, 8, 13, 21)  # that `quadratic` tries; ours


class MaxOfK(nn.Module):
    """`n_nets` one-head, attention-only networks, read at the last position.

    No norm and no biases; trained positions; weights start as N(0, .8²/d). Source: section 3.
    """

    def __init__(self, n_nets: int, d_vocab: int = 64, d: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int) -> nn.Parameter:
            drawn = torch.randn(n_nets, rows, columns, generator=generator)
            return nn.Parameter(drawn * 0.8 / d**0.5)

        self.d_vocab, self.d = d_vocab, d
        self.W_E, self.W_pos, self.W_U = weight(d_vocab, d), weight(4, d), weight(d, d_vocab)
        self.W_Q, self.W_K, self.W_V, self.W_O = (weight(d, d) for _ in range(4))

    def forward(self, tokens: Int[Tensor, "net batch pos"]) -> Float[Tensor, "net batch vocab"]:
        """Logits at the last position."""
        own = tokens + self.d_vocab * torch.arange(len(tokens))[:, None, None]  # rows of all nets
        resid = embedding(own, rearrange(self.W_E, "net t d -> (net t) d")) + self.W_pos[:, None]
        query = resid[:, :, -1] @ self.W_Q
        scores = einsum(query, resid @ self.W_K[:, None], "net b d, net b pos d -> net b pos")
        pattern = (scores / self.d**0.5).softmax(-1)
        seen = einsum(pattern, resid, "net b pos, net b pos d -> net b d")
        return (resid[:, :, -1] + seen @ self.W_V @ self.W_O) @ self.W_U


def train(n_nets: int, steps: int = 3000, batch: int = 128, seed: int = 0, **sizes: int) -> MaxOfK:
    """Networks trained side by side on uniform random inputs: AdamW, rate .001, as in the paper."""
    model = MaxOfK(n_nets, seed=seed, **sizes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in tqdm(range(steps), "training", leave=False):
        tokens = torch.randint(model.d_vocab, (n_nets, batch, 4), generator=generator)
        right = model(tokens).log_softmax(-1).gather(-1, tokens.amax(-1, keepdim=True))
        descend(optimiser, -reduce(right, "net b 1 -> net", "mean"))
    return model.requires_grad_(False)


def trained() -> MaxOfK:
    """Twenty networks that differ in their start and their data; made by data/max_of_k/make.py."""
    model, folder = MaxOfK(20), Path(__file__).parents[1] / "data" / "max_of_k"
    model.load_state_dict(load_file(folder / "nets.safetensors"))
    return model.requires_grad_(False)


@dataclass(frozen=True)
class Parts:
    """One network multiplied out; `scores` and `positions` are divided by √d.

    The last token q attends to token t at position p with score `scores[q, t] + positions[q, p]`,
    and each attended token adds `values[t] + position_values[p]` to the logits, which start from
    `direct[q]`. (EQKE, EQKP, EVOU, PVOU and EUPU of the paper.)
    """

    scores: Float[Tensor, "q t"]
    positions: Float[Tensor, "q pos"]
    values: Float[Tensor, "t x"]
    position_values: Float[Tensor, "pos x"]
    direct: Float[Tensor, "q x"]

    @classmethod
    def of(cls, model: MaxOfK, net: int) -> "Parts":
        own = (model.W_E, model.W_pos, model.W_Q, model.W_K, model.W_V, model.W_O, model.W_U)
        E, P, Q, K, V, out, U = (weight[net].double() for weight in own)
        read, write = Q @ K.T / model.d**0.5, V @ out @ U
        last, centre = E + P[-1], reduce(P, "pos d -> d", "mean")
        return cls(
            scores=last @ read @ (E + centre).T,
            positions=last @ read @ (P - centre).T,
            values=E @ write,
            position_values=P @ write,
            direct=last @ U,
        )

    def rank_one(self) -> tuple["Parts", Float[Tensor, "q"], Float[Tensor, ""]]:
        """The parts with the scores' first singular direction alone; for each q, how far apart the
        rest can push two tokens' scores; and a cheaper bound on that, √2 times the rest's norm."""
        u, s, v = torch.linalg.svd(self.scores)
        first = s[0] * u[:, :1] @ v[:1]
        rest = self.scores - first
        return replace(self, scores=first), rest.amax(1) - rest.amin(1), 2**0.5 * s[1]


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


def cubic(parts: Parts, score_error: ScoreError = 0.0) -> float:
    """A proved lower bound on `accuracy`, from every (largest m, last q, other token k).

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
    right = worst(parts, largest, last, term, score_error) < 0
    below = torch.ones_like(of_token).tril(-1).bool()[:, None]  # k < m, as [m, 1, k]
    return proved(right[0, ..., 0], reduce((right & below).long(), "c m q k -> c m q", "sum"))


def quadratic(parts: Parts, score_error: ScoreError = 0.0) -> float:
    """As `cubic` without its loop over k: all tokens that lie a gap or more below m pass together,
    by the worst score and the worst harm among them, for the smallest of the `GAPS` that works.

    Source: after the cheaper proofs of arXiv 2406.11779.
    """
    tokens, of_last = torch.arange(len(parts.direct)), most(parts.direct)
    of_token = most(parts.values) + most(parts.position_values).amax(1, keepdim=True)  # apart
    last = (of_token + of_last) * parts.scores.diagonal().exp()  # [m, q]
    largest = (of_token.diagonal()[:, None] + of_last) * parts.scores.T.exp()
    harm, high, low = of_token.cummax(1)[0], parts.scores.cummax(1)[0], parts.scores.cummin(1)[0]
    passing = torch.zeros(4, *last.shape, dtype=torch.long)
    for gap in GAPS:
        upto = tokens - gap  # the tokens 0 … upto[m] are judged together
        some = upto.clamp_min(0)
        add = harm[tokens, some][:, None] + of_last
        score = torch.where(add > 0, high[:, some].T, low[:, some].T)
        right = worst(parts, largest, last, (add * score.exp())[..., None], score_error)[..., 0] < 0
        passing = passing.maximum(right * (upto + 1).clamp_min(0)[:, None])
    return proved(right[0], passing)


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


def proved(alone: Bool[Tensor, "m q"], passing: Int[Tensor, "c m q"]) -> float:
    """Share of inputs that are right: C(3, c) places for c other tokens, each of `passing[c]`.

    The last token is at most m; if it is not m itself, one of the other three must be.
    """
    n, possible = len(alone), torch.ones(alone.shape).tril().bool()
    total = int((alone & possible).sum())
    for c in (1, 2, 3):
        allowed = possible if c < 3 else torch.eye(n).bool()
        total += comb(3, c) * int((passing[c] ** c)[allowed].sum())
    return total / n**4

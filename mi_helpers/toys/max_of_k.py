"""One attention head that names the largest of its input tokens, and proofs of how often it does.

The network is small enough to be multiplied out (`Parts`), and so to be *proved* right on a share
of all its inputs rather than tested on some. From the most work to the least:

1. `accuracy`: every one of the d_vocab^n_ctx inputs is run.
2. `cubic`: a bound for each (largest token, last token, other token).
3. `quadratic`: no loop over the other token; only how far below the largest it must stay.

Both bounds take a `score_error`, for attention scores that are known only up to an error.

Source: Gross et al. 2024, arXiv 2406.11779; all here written for several networks at once.
"""

from collections.abc import Sequence
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


class MaxOfK(nn.Module):
    """`n_nets` one-head, attention-only networks, read at the last position.

    No norm and no biases; trained positions; weights start as N(0, .8²/d). Source: section 3.
    """

    def __init__(
        self, n_nets: int, d_vocab: int = 64, n_ctx: int = 4, d: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int) -> nn.Parameter:
            drawn = torch.randn(n_nets, rows, columns, generator=generator)
            return nn.Parameter(drawn * 0.8 / d**0.5)

        self.d_vocab, self.n_ctx, self.d = d_vocab, n_ctx, d
        self.W_E, self.W_pos, self.W_U = weight(d_vocab, d), weight(n_ctx, d), weight(d, d_vocab)
        self.W_Q, self.W_K = weight(d, d), weight(d, d)
        self.W_V, self.W_O = weight(d, d), weight(d, d)

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
        tokens = torch.randint(model.d_vocab, (n_nets, batch, model.n_ctx), generator=generator)
        log_probs = model(tokens).log_softmax(-1)
        right = log_probs.gather(-1, tokens.amax(-1, keepdim=True))
        loss = -reduce(right, "net b 1 -> net", "mean").sum()  # nets do not touch each other
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False)


def trained() -> MaxOfK:
    """Twenty networks that differ in their start and their data; made by data/max_of_k/make.py."""
    weights = load_file(Path(__file__).parents[1] / "data" / "max_of_k" / "nets.safetensors")
    model = MaxOfK(len(weights["W_E"]))
    model.load_state_dict(weights)
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
        E, P, U = model.W_E[net].double(), model.W_pos[net].double(), model.W_U[net].double()
        read = model.W_Q[net].double() @ model.W_K[net].double().T / model.d**0.5
        write = model.W_V[net].double() @ model.W_O[net].double() @ U
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
    """Share of all d_vocab^4 inputs that the network gets right, by running every one."""
    n = len(parts.direct)
    tokens, right = torch.arange(n), 0
    for q in tqdm(range(n), "last token", leave=False):
        # For one last token, logits times the softmax's denominator are sums over positions.
        score = parts.scores[q] + parts.positions[q, :, None]  # [pos, t]
        weight = (score - score.max()).exp()  # float32 holds no large exponentials
        gain = parts.values + parts.position_values[:, None] + parts.direct[q]  # [pos, t, x]
        first, second, third, last = (weight[..., None] * gain).float()
        rest = second[:, None] + third + last[q]  # [t, t, x]
        largest = tokens[:, None].maximum(tokens).clamp_min(q)
        for token in range(n):
            named = (rest + first[token]).argmax(-1)
            right += int((named == largest.clamp_min(token)).sum())
    return right / n**4


def cubic(parts: Parts, score_error: Float[Tensor, "q"] | float = 0.0) -> float:
    """A proved lower bound on `accuracy`, from every (largest m, last q, other token k).

    An input is right if its positions' sum of exp(score) · (most that the token there can add to a
    wrong logit) is negative. That sum is linear in what stands at each position. So it is enough to
    look at c copies of one token k beside copies of m, with k on the positions that count least and
    on those that count most; and where each k of a set passes alone, every mixture of them does.

    `score_error[q]`: how far any two scores may be wrong against each other; each token then takes
    its worse end. Source: arXiv 2406.11779, the cubic proof, and its argument by convexity.
    """
    n = len(parts.direct)
    of_last, of_token = _harm(parts)
    term = (of_token[:, None] + of_last[..., None]) * parts.scores.exp()  # [m, q, t]
    largest, last = term.diagonal(dim1=0, dim2=2).T, term.diagonal(dim1=1, dim2=2)  # [m, q]
    below = torch.ones(n, n).tril(-1).bool()[:, None]  # k < m, as [m, 1, k]
    worst = _worst(parts, largest, last, term, score_error)
    passing = [reduce(((of_c < 0) & below).long(), "m q k -> m q", "sum") for of_c in worst]
    return _share(worst[0][..., 0] < 0, passing)


def quadratic(
    parts: Parts,
    score_error: Float[Tensor, "q"] | float = 0.0,
    gaps: Sequence[int] = (1, 2, 3, 5, 8, 13, 21),
) -> float:
    """As `cubic` without its loop over k: all tokens that lie a gap or more below m pass together,
    by the worst score and the worst harm among them, for the smallest gap that works.

    Source: after the cheaper proofs of arXiv 2406.11779; the list of gaps is ours.
    """
    n = len(parts.direct)
    of_last, of_token = _harm(parts, together=False)
    last = (of_token + of_last) * parts.scores.diagonal().exp()  # [m, q]
    largest = (of_token.diagonal()[:, None] + of_last) * parts.scores.T.exp()
    harm, high, low = of_token.cummax(1)[0], parts.scores.cummax(1)[0], parts.scores.cummin(1)[0]
    passing = [torch.zeros(n, n, dtype=torch.long) for _ in range(4)]
    for gap in gaps:
        upto = torch.arange(n) - gap  # the tokens 0 … upto[m] are judged together
        some = upto.clamp_min(0)
        most = harm[torch.arange(n), some][:, None] + of_last
        score = torch.where(most > 0, high[:, some].T, low[:, some].T)
        worst = _worst(parts, largest, last, (most * score.exp())[..., None], score_error)
        for found, of_c in zip(passing, worst, strict=True):
            number = (of_c[..., 0] < 0) * (upto + 1).clamp_min(0)[:, None]
            found.copy_(found.maximum(number))
    return _share(worst[0][..., 0] < 0, passing)


def _harm(parts: Parts, together: bool = True) -> tuple[Float[Tensor, "m q"], Float[Tensor, "m t"]]:
    """The most by which a wrong logit can gain on that of m: from the last token, from each token.

    Both are maxima over the wrong token taken apart, so that their sum bounds any one wrong token.
    With `together`, token and position share it; without, they are taken apart as well.
    """
    position = reduce(_lead(parts.position_values), "m p x -> m 1 x", "max")
    if together:
        of_token = reduce(_lead(parts.values) + position, "m t x -> m t", "max")
    else:
        of_token = _most(parts.values) + reduce(position, "m 1 x -> m 1", "max")
    return _most(parts.direct), of_token


def _lead(logits: Float[Tensor, "row x"]) -> Float[Tensor, "m row x"]:
    """Each wrong token's logit minus that of m."""
    right = torch.eye(logits.shape[1], dtype=torch.bool)[:, None]
    lead = logits - rearrange(logits, "row m -> m row 1")
    return lead.masked_fill(right, -torch.inf)


def _most(logits: Float[Tensor, "row x"]) -> Float[Tensor, "m row"]:
    """The largest lead, from the two largest logits of each row alone."""
    (first, second), at = logits.topk(2, dim=1).values.T, logits.argmax(1)
    best = torch.where(torch.arange(logits.shape[1])[:, None] == at, second, first)
    return best - logits.T


def _worst(
    parts: Parts,
    largest: Float[Tensor, "m q"],
    last: Float[Tensor, "m q"],
    other: Float[Tensor, "m q k"],
    score_error: Float[Tensor, "q"] | float,
) -> list[Float[Tensor, "m q k"]]:
    """For c = 0 … 3 copies of k, the largest sum over positions; negative: all such are right."""
    reach = torch.as_tensor(score_error, dtype=torch.double).expand(len(parts.direct)).exp()
    largest, last = largest.maximum(largest * reach), last.maximum(last * reach)
    other = other.maximum(other * reach[:, None])
    beta = parts.positions.exp()
    free = beta[:, :3].sort(dim=1).values  # the three positions before the last
    fixed = last * beta[:, 3]
    found = []
    for c in range(4):
        least, most = free[:, :c].sum(1), free[:, 3 - c :].sum(1)  # what k's positions can weigh
        both = [
            (largest * (free.sum(1) - weight) + fixed)[..., None] + other * weight[:, None]
            for weight in (least, most)
        ]
        found.append(both[0].maximum(both[1]))
    return found


def _share(alone: Bool[Tensor, "m q"], passing: list[Int[Tensor, "m q"]]) -> float:
    """Inputs that are proved right: C(3, c) places for c other tokens, each of `passing[c]`.

    The last token is at most m; if it is not m itself, one of the other three must be.
    """
    n = len(alone)
    q_is_m = torch.eye(n, dtype=torch.bool)
    possible = torch.ones(n, n).tril().bool()
    total = int((alone & possible).sum())
    for c in (1, 2, 3):
        allowed = possible if c < 3 else q_is_m
        total += comb(3, c) * int((passing[c] ** c)[allowed].sum())
    return total / n**4

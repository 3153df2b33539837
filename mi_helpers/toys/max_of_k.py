"""One attention head that names the largest of four input tokens, and its matrices multiplied out.

The network is small enough to be *proved* right on a share of all its inputs rather than tested on
some: `max_proofs` says how.

Source: Gross et al. 2024, arXiv 2406.11779; all here written for several networks at once.
"""

from dataclasses import dataclass, replace

import torch
from einops import einsum, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from .side_by_side import descend, look_up, shipped


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
        resid = look_up(self.W_E, tokens) + self.W_pos[:, None]
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
    model = MaxOfK(20)
    model.load_state_dict(shipped("max_of_k"))
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

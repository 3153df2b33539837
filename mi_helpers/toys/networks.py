"""Small networks whose inner structure is known, for methods that must find it.

- :func:`linear_network`: linear layers only, so an interaction basis must have diagonal edges.
- :func:`block_network`: blocks that do not interact, hidden behind random maps.
- :func:`degenerate_mlp`: an MLP with one of the three degeneracies of arXiv 2405.10927 planted.
- :class:`ModularAddition`: the one-layer transformer on (a + b) mod p; :func:`trained_addition`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from ..engine.stack import Section, Stack


class ModularAddition(nn.Module):
    """One-layer transformer that reads ``a b =`` and predicts (a + b) mod p at the last position.

    No layer norm; four heads of 32, ReLU, as in arXiv 2405.10928. Only the last
    position is computed, since nothing else is read. Biases sit in the MLP alone.
    """

    def __init__(
        self, p: int = 113, d_model: int = 128, n_heads: int = 4, d_mlp: int = 512, seed: int = 0
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        self.p, self.d_model, self.n_heads, self.d_mlp = p, d_model, n_heads, d_mlp
        d_head, vocab = d_model // n_heads, p + 1
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / d_model**0.5)

        self.W_E, self.W_pos = weight(vocab, d_model), weight(3, d_model)
        self.W_Q, self.W_K = weight(n_heads, d_model, d_head), weight(n_heads, d_model, d_head)
        self.W_V, self.W_O = weight(n_heads, d_model, d_head), weight(n_heads, d_head, d_model)
        self.W_in, self.b_in = weight(d_model, d_mlp), nn.Parameter(torch.zeros(d_mlp))
        self.W_out, self.b_out = weight(d_mlp, d_model), nn.Parameter(torch.zeros(d_model))
        self.W_U = weight(d_model, vocab)

    def embed(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch 3 d_model"]:
        """Token plus position embeddings of ``a b =``."""
        equals = torch.full_like(pairs[:, :1], self.p)
        return self.W_E[torch.cat([pairs, equals], dim=1)] + self.W_pos

    def attend(self, x: Float[Tensor, "batch 3 d_model"]) -> Float[Tensor, "batch 1 d_model"]:
        """Residual stream after attention at the last position."""
        last = x[:, -1]
        query = torch.einsum("bd,hde->bhe", last, self.W_Q)
        # Keys and values of every position are never written out: only one query reads them.
        probe = torch.einsum("bhe,hde->bhd", query, self.W_K) / query.shape[-1] ** 0.5
        pattern = (probe @ x.mT).softmax(dim=-1)
        value = torch.einsum("bhd,hde->bhe", pattern @ x, self.W_V)
        return (last + torch.einsum("bhe,hed->bd", value, self.W_O))[:, None]

    def feed_forward(self, x: Tensor, one: Tensor | float = 1.0) -> Tensor:
        """Residual stream after the MLP; every bias is multiplied by ``one``."""
        hidden = torch.relu(x @ self.W_in + one * self.b_in)
        return x + hidden @ self.W_out + one * self.b_out

    def forward(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch vocab"]:
        """Logits at the last position."""
        return (self.feed_forward(self.attend(self.embed(pairs))) @ self.W_U)[:, 0]

    def table_logits(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch vocab"]:
        """The same logits, several times faster: what attention needs is a table over tokens.

        The query is one vector for all inputs, and scores and values depend on one token each,
        so they are computed per token and looked up per pair. Used for training.
        """
        equals = self.W_E[self.p] + self.W_pos[2]
        query = torch.einsum("d,hde->he", equals, self.W_Q) / (self.d_model / self.n_heads) ** 0.5
        probe = torch.einsum("he,hde->hd", query, self.W_K)
        scores, values = [], []
        for position, tokens in enumerate((pairs[:, 0], pairs[:, 1], None)):
            table = self.W_E[: self.p] + self.W_pos[position] if position < 2 else equals[None]
            score, value = table @ probe.T, torch.einsum("td,hde->the", table, self.W_V)
            scores.append(score if tokens is None else score[tokens])
            values.append(value if tokens is None else value[tokens])
        pattern = torch.stack([s.expand(len(pairs), -1) for s in scores]).softmax(dim=0)
        mixed = sum(w.unsqueeze(-1) * v for w, v in zip(pattern, values, strict=True))
        attended = mixed.flatten(1) @ self.W_O.flatten(0, 1) + equals
        return self.feed_forward(attended) @ self.W_U

    def sections(self) -> Stack:
        """Embeddings -> after attention -> after the MLP -> logits, folded."""
        return Stack(
            (lambda x, one: self.attend(x), self.feed_forward, lambda x, one: x @ self.W_U),
            folded=True,
        )


def trained_addition(seed: int, p: int = 113) -> tuple[ModularAddition, dict[str, str]]:
    """A trained network that ships with the package, in eval mode, and how it was trained.

    Made by ``mi_helpers/data/addition/make.py``; the second value holds epochs, share of
    pairs trained on, and test accuracy.
    """
    path = Path(__file__).parents[1] / "data" / "addition" / f"p{p}_seed{seed}.safetensors"
    if not path.is_file():
        shipped = sorted(file.name for file in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(f"{path.name} does not ship with mi_helpers; available: {shipped}")
    model = ModularAddition(p, seed=seed)
    with safe_open(path, "pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        about = dict(file.metadata())
    return model.eval().requires_grad_(False), about


def addition_pairs(
    p: int, train_fraction: float = 0.3, seed: int = 0
) -> tuple[Int[Tensor, "train 2"], Int[Tensor, "test 2"]]:
    """All pairs (a, b) with 0 <= a, b < p, split at random into train and test."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    shuffled = pairs[torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))]
    cut = int(train_fraction * p * p)
    return shuffled[:cut], shuffled[cut:]


def addition_accuracy(
    logits: Float[Tensor, "batch vocab"], pairs: Int[Tensor, "batch 2"], p: int
) -> float:
    """Share of pairs whose largest logit is (a + b) mod p."""
    return (logits.argmax(-1) == pairs.sum(-1) % p).float().mean().item()


def frequencies(values: Float[Tensor, "p feature"]) -> pd.DataFrame:
    """How much of each feature's variance over tokens 0..p-1 is at its strongest frequency.

    One row per feature: feature, frequency (turns per p tokens), share.
    """
    centred = (values - values.mean(0)).double()
    power = torch.fft.rfft(centred, dim=0).abs().square()[1:]
    share, best = (power / power.sum(0)).max(dim=0)
    return pd.DataFrame(
        {
            "feature": range(values.shape[1]),
            "frequency": (best + 1).tolist(),
            "share": share.tolist(),
        }
    )


def linear_network(
    widths: Sequence[int] = (10, 10, 10, 6), n: int = 1000, seed: int = 0
) -> tuple[Stack, Float[Tensor, "n width"]]:
    """Random linear layers with biases (float64), and correlated Gaussian inputs."""
    random = _normal(seed)
    sections = [_affine(random(a, b) / a**0.5, random(b)) for a, b in pairwise(widths)]
    return Stack(tuple(sections), folded=True), random(n, widths[0]) @ random(widths[0], widths[0])


def _normal(seed: int) -> Callable[..., Tensor]:
    """Draws of a given shape, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return partial(torch.randn, generator=generator, dtype=torch.float64)


def _affine(W: Float[Tensor, "n m"], b: Float[Tensor, " m"]) -> Section:
    return lambda x, one: x @ W + one * b


BLOCK = 4  # width of each block of a `BlockNetwork`


@dataclass(frozen=True)
class BlockNetwork:
    """``stack`` computes in hidden coordinates h, in which blocks of ``BLOCK`` do not interact; the
    activations at boundary l are ``h @ mixers[l]``."""

    stack: Stack
    inputs: Float[Tensor, "n width"]
    mixers: list[Float[Tensor, "width width"]]

    def purity(self, Cs: Sequence[Float[Tensor, "width feature"]]) -> pd.DataFrame:
        """How much of each feature's variance comes from the one block it has most from.

        ``Cs``: a basis at every boundary, features in columns. One row per boundary and feature
        that varies, with the block; a purity of 1 / blocks is an even mixture.
        """
        tables = []
        found = zip(self.stack.activations(self.inputs), self.mixers, Cs, strict=True)
        for boundary, (x, S, C) in enumerate(found):
            hidden = rearrange((x - x.mean(0)) @ S.inverse(), "n (b i) -> b n i", i=BLOCK)
            parts = hidden @ rearrange(S @ C, "(b i) feature -> b i feature", i=BLOCK)
            variance = parts.pow(2).mean(1)  # [block, feature]
            total = variance.sum(0)
            table = {"boundary": boundary, "feature": range(len(total))}
            table |= {"block": variance.argmax(0), "purity": variance.amax(0) / total}
            tables.append(pd.DataFrame(table)[(total > 1e-20 * total.max()).numpy()])
        return pd.concat(tables, ignore_index=True)


def block_network(
    mix: Literal["none", "rotation", "invertible"] = "rotation",
    n: int = 100,
    seed: int = 0,
    correlation: float = 0.0,
) -> BlockNetwork:
    """Four ReLU layers of two independent blocks, hidden behind random maps but at the output.

    The inputs are every combination of ``n`` states of each block, so that activations of the two
    are exactly uncorrelated at every boundary. ``mix``: no map, a rotation, or an invertible map of
    condition number 10. ``correlation``: of each input of the second block with the first block's
    in the same place, about that in a sample. All in float64.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation is at least 0 and below 1, got {correlation}")
    random, width = _normal(seed), 2 * BLOCK
    unmixed = torch.eye(width, dtype=torch.float64)
    stretch = torch.logspace(-0.5, 0.5, width, dtype=torch.float64)

    def mixer() -> Tensor:
        Q, P = (torch.linalg.qr(random(width, width)).Q for _ in range(2))
        return {"none": unmixed, "rotation": Q, "invertible": Q * stretch @ P}[mix]

    states = random(2, n, BLOCK)
    first, second = states[0].repeat_interleave(n, 0), states[1].repeat(n, 1)
    second = correlation * first + (1 - correlation**2) ** 0.5 * second
    mixers = [mixer() for _ in range(4)] + [unmixed]
    sections = []
    for before, after in pairwise(mixers):
        W = torch.block_diag(*random(2, BLOCK, BLOCK))
        sections.append(_mixed_relu(before.inverse(), W, 0.5 * random(width), after))
    inputs = torch.cat([first, second], 1) @ mixers[0]
    return BlockNetwork(Stack(tuple(sections), folded=True), inputs, mixers)


def _mixed_relu(unmix: Tensor, W: Tensor, b: Tensor, mix: Tensor) -> Section:
    return lambda x, one: torch.relu(x @ unmix @ W + one * b) @ mix


Degeneracy = Literal["none", "activations", "gradients", "synchronised"]


def degenerate_mlp(
    plant: Degeneracy = "none", n: int = 512, seed: int = 10
) -> tuple[nn.Sequential, Float[Tensor, "n 6"]]:
    """A random 6-8-8-4 ReLU network (float64), its inputs, and one planted degeneracy.

    - "activations": the first six hidden units are the two halves of w x, v x and (w + v) x, and
      relu(y) - relu(-y) = y, so one combination of them is always zero.
    - "gradients": nothing reads the last unit of the second hidden layer.
    - "synchronised": three units of the first hidden layer fire on the same inputs.

    The inputs stay clear of zero along their first coordinate, for every plant. With the default
    seed nothing else is degenerate: no unit fires always, or too rarely to be pinned down.
    """
    random = _normal(seed)
    first, last = nn.Linear(6, 8), nn.Linear(8, 4)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), last).double()
    network.requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(random(*parameter.shape) / parameter.shape[-1] ** 0.5)
    x = random(n, 6)
    x[:, 0] += x[:, 0].sign()
    if plant == "activations":
        rows: list[Tensor] = [first.weight, first.bias]
        for row in rows:
            row[4] = row[0] + row[2]
            row[[1, 3, 5]] = -row[[0, 2, 4]]
    elif plant == "gradients":
        last.weight[:, -1] = 0
    elif plant == "synchronised":
        # The first coordinate decides the sign: the others together cannot outweigh it.
        others = x[:, 1:].norm(dim=1).max()
        first.weight[:3, 1:] *= 0.9 / (others * first.weight[:3, 1:].norm(dim=1, keepdim=True))
        first.weight[:3, 0] = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64)
        first.bias[:3] = 0
    elif plant != "none":
        raise ValueError(
            f"plant must be one of none, activations, gradients, synchronised, got {plant!r}"
        )
    return network, x

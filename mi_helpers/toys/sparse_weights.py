"""Twins of a tiny transformer on code-like text: dense, weight-sparse and self-ablating.

Twins start from the same weights and see the same text; sparse ones keep the `largest` weights
alone. `self_ablation` trains them all; what part of them does a task is for `node_masks` to find.

Source: Gao et al. 2025, arXiv 2511.13653 (weight sparsity, tasks), without its activation sparsity
and attention sinks. Sizes and text are ours.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .side_by_side import Draws

LETTERS = "abcdefgh"
VOCABULARY = "\n=,'\"()[]" + LETTERS
LENGTH = 16  # characters that a network sees
PAIRS = {  # a task: close what was opened
    "quote": (("'", "'"), ('"', '"')),
    "bracket": (("(", ")"), ("[", "]")),
}
KINDS = ("dense", "sparse", "self-ablating", "soft")
Hook = Callable[[str, Tensor], Tensor]


def unchanged(name: str, x: Tensor) -> Tensor:
    """The hook that does nothing."""
    return x


# Text and tasks


def opened(rng: random.Random, task: str, opener: str) -> str:
    """A line of code up to where it has to be closed, such as `a='bcd` or `a[b,c`."""
    name, letters = rng.choice(LETTERS), rng.choices(LETTERS, k=rng.randint(1, 4))
    rest = "=" + opener + "".join(letters) if task == "quote" else opener + ",".join(letters[:3])
    return name + rest


def line(rng: random.Random) -> str:
    """A whole line of either task."""
    task = rng.choice(list(PAIRS))
    opener, closer = rng.choice(PAIRS[task])
    return opened(rng, task, opener) + closer + "\n"


def encode(text: str) -> list[int]:
    """Characters as places in `VOCABULARY`. ValueError for a character that is not in it."""
    return [VOCABULARY.index(character) for character in text]


def texts(n: int, seed: int) -> Int[Tensor, "text pos"]:
    """n times the first `LENGTH` + 1 characters of random lines."""
    rng = random.Random(seed)
    long = ("".join(line(rng) for _ in range(5)) for _ in range(n))
    return torch.tensor([encode(text[: LENGTH + 1]) for text in long])


class Prompts(NamedTuple):
    """Texts whose character at `last` is to be followed by a closing one; padded behind it."""

    tokens: Int[Tensor, "prompt pos"]
    other: Int[Tensor, "prompt pos"]  # the same texts, opened the other way
    last: Int[Tensor, "prompt"]
    right: Int[Tensor, "prompt"]  # the closing character
    wrong: Int[Tensor, "prompt"]  # that of the other way


def prompts(n: int, seed: int, task: str = "quote") -> Prompts:
    """n prompts of a task: up to two whole lines, then one that is to be closed."""
    rng, rows = random.Random(seed), list[tuple[object, ...]]()
    while len(rows) < n:
        before = "".join(line(rng) for _ in range(rng.randint(0, 2)))
        (opener, right), (other, wrong) = rng.sample(PAIRS[task], 2)
        asked = opened(rng, task, opener)
        pad = LENGTH - len(before + asked)
        if pad >= 0:
            both = (before + x + "\n" * pad for x in (asked, asked.replace(opener, other)))
            rows.append((*map(encode, both), LENGTH - pad - 1, *encode(right + wrong)))
    return Prompts(*map(torch.tensor, zip(*rows, strict=True)))


# The networks


def rms(x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """x over its root mean square."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def product(
    x: Float[Tensor, "net batch pos i"], weight: Float[Tensor, "net i o"]
) -> Float[Tensor, "net batch pos o"]:
    """What each net's own matrix makes of its values."""
    return einsum(x, weight, "net batch pos i, net i o -> net batch pos o")


class Twins(nn.Module):
    """`n_nets` transformers side by side: RMS norm, no biases, ReLU; equal seeds, equal starts.

    A hook gets the name and the value [net, batch, pos, unit] of each place, and its answer takes
    the value's place: "embed"; in each layer "read" (what attention reads), "q", "k", "v", "z"
    (what the heads gathered), "attn" (what they write), "mlp_read", "neuron", "mlp"; "final".
    """

    def __init__(
        self,
        n_nets: int,
        d: int = 32,
        layers: int = 2,
        seed: int = 0,
        characters: int = len(VOCABULARY),
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.d, self.layers, self.heads = d, layers, 2
        draw = Draws(range(seed, seed + n_nets))

        def weight(rows: int, columns: int, scale: float | None = None) -> nn.Parameter:
            return nn.Parameter(draw.normal(rows, columns) * (scale or rows**-0.5))

        self.W_E, self.W_pos = weight(characters, d, 0.5), weight(length, d, 0.5)
        shapes = dict.fromkeys("QKVO", (d, d)) | {"in": (d, 4 * d), "out": (4 * d, d)}
        self.W = nn.ParameterDict(
            {f"{name}{at}": weight(*shapes[name]) for at in range(layers) for name in shapes}
        )
        self.W_U = weight(d, characters)
        self.W_gate = weight(d, layers * 5 * d)  # a relevance for each unit, for self-ablation

    def forward(
        self, tokens: Int[Tensor, "*net batch pos"], hook: Hook = unchanged
    ) -> Float[Tensor, "net batch pos vocabulary"]:
        """Logits; tokens without the first dimension go to all nets."""
        n, (batch, length) = len(self.W_E), tokens.shape[-2:]
        embedded = self.W_E[torch.arange(n)[:, None, None], tokens.expand(n, batch, length)]
        x = hook("embed", embedded + self.W_pos[:, None, :length])
        future = torch.ones(length, length).triu(1).bool()
        for at in range(self.layers):
            read = hook(f"read{at}", rms(x))
            q, k, v = (
                rearrange(
                    hook(f"{name.lower()}{at}", product(read, self.W[f"{name}{at}"])),
                    "net b pos (h c) -> net b h pos c",
                    h=self.heads,
                )
                for name in "QKV"
            )
            scores = (q @ k.mT / k.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
            z = rearrange(scores.softmax(-1) @ v, "net b h pos c -> net b pos (h c)")
            x = x + hook(f"attn{at}", product(hook(f"z{at}", z), self.W[f"O{at}"]))
            read = hook(f"mlp_read{at}", rms(x))
            neurons = hook(f"neuron{at}", product(read, self.W[f"in{at}"]).relu())
            x = x + hook(f"mlp{at}", product(neurons, self.W[f"out{at}"]))
        return product(hook("final", rms(x)), self.W_U)

    def record(self, tokens: Int[Tensor, "*net batch pos"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the value of every place."""
        found: dict[str, Tensor] = {}
        logits = self(tokens, lambda name, x: found.setdefault(name, x))
        return logits, found


def text_loss(
    logits: Float[Tensor, "net batch pos vocabulary"],
    tokens: Int[Tensor, "*net batch pos_and_next"],
) -> Float[Tensor, "net"]:
    """Mean cross-entropy of the next character, in nats."""
    after = tokens.expand(len(logits), *tokens.shape[-2:])[..., 1:]
    losses = cross_entropy(logits.flatten(0, 2), after.flatten(), reduction="none")
    return reduce(losses.view(after.shape), "net b pos -> net", "mean")


def largest(weight: Float[Tensor, "net i o"], share: float) -> Float[Tensor, "net i o"]:
    """Each matrix with zeros for all but `share` of its weights, the largest by size."""
    flat = weight.flatten(1)
    kept = flat.abs().topk(max(1, round(share * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(weight)


def trained(kind: str, n_nets: int = 5) -> Twins:
    """The first of five twins of one of the `KINDS`; made by data/sparse_weights/make.py.

    "other dense": dense ones from other starts and other text, to tell what differs by chance.
    """
    stored = load_file(Path(__file__).parents[1] / "data" / "sparse_weights" / "nets.safetensors")
    own = {name: x[:n_nets] for name, x in stored.items() if name.startswith(f"{kind}/")}
    own = {name.removeprefix(f"{kind}/"): x for name, x in own.items()}
    model = Twins(len(own["W_E"]))
    model.load_state_dict(own, strict=False)  # W_gate is stored for the kinds that use it
    return model.requires_grad_(False)

"""Networks most of whose weights are zero, on code-like text with two tasks: close what was opened.

Twins of one seed start from the same weights and see the same text, however `train` makes them:
dense, weight-sparse, or with the losses of `self_ablation`. `node_masks` finds what does a task.

Source: Gao et al. 2025, arXiv 2511.13653 (weight sparsity, tasks), without its activation sparsity
and attention sinks. Sizes and text are ours.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from .side_by_side import Draws, next_losses, shipped
from .twins import Twins

LETTERS = "abcdefgh"
VOCABULARY = "\n=,'\"()[]" + LETTERS
LENGTH = 16  # characters that a network sees
PAIRS = {  # a task: close what was opened
    "quote": (("'", "'"), ('"', '"')),
    "bracket": (("(", ")"), ("[", "]")),
}
KINDS = ("dense", "sparse", "self-ablating", "soft")


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


def untrained(n_nets: int, d: int = 32, seed: int = 0) -> Twins:
    """Networks before training, each from a seed of its own."""
    return Twins(n_nets, len(VOCABULARY), LENGTH, d, seed)


def text_loss(
    logits: Float[Tensor, "net text pos character"], tokens: Int[Tensor, "*net text pos_and_next"]
) -> Float[Tensor, "net"]:
    """Mean cross-entropy of the next character, in nats."""
    return next_losses(logits, tokens).mean((1, 2))


def largest(weight: Float[Tensor, "net i o"], share: float) -> Float[Tensor, "net i o"]:
    """Each matrix with zeros for all but `share` of its weights, the largest by size."""
    flat = weight.flatten(1)
    kept = flat.abs().topk(max(1, round(share * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(weight)


def plain_losses(model: Twins, tokens: Int[Tensor, "net text pos_and_next"]) -> Tensor:
    """`text_loss` of each net on its own texts."""
    return text_loss(model(tokens[..., :-1]), tokens)


def train(
    n_nets: int,
    steps: int = 800,
    seed: int = 0,
    share: float = 1.0,
    losses: Callable[[Twins, Tensor], Float[Tensor, "net"]] = plain_losses,
) -> Twins:
    """Networks trained by AdamW with a rate that falls as a cosine.

    After each step only a share of every matrix stays, its largest weights; the share falls from 1
    to `share` through the first half.
    """
    model, seeds = untrained(n_nets, seed=seed), range(seed, seed + n_nets)
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    text, draw = torch.stack([texts(4000, own) for own in seeds]), Draws(seeds)
    for step in tqdm(range(steps), "training", leave=False):
        rows = draw.below(text.shape[1], 48)
        optimiser.zero_grad()
        losses(model, text[torch.arange(n_nets)[:, None], rows]).sum().backward()
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        length = torch.stack([reduce(g.square(), "net i o -> net", "sum") for g in grads]).sum(0)
        for grad in grads:  # of each net no longer than 1
            grad /= length.sqrt().clamp_min(1)[:, None, None]
        optimiser.step()
        schedule.step()
        left = 1 - (1 - share) * min(1, 2 * (step + 1) / steps)
        for weight in model.parameters() if left < 1 else ():
            weight.data = largest(weight.data, left)
    return model.requires_grad_(False)


def trained(kind: str, n_nets: int = 5) -> Twins:
    """The first of five twins of one of the `KINDS`; made by data/sparse_weights/make.py.

    "other dense": dense ones from other starts and other text, to tell what differs by chance.
    Raises ValueError for another kind.
    """
    stored = shipped("sparse_weights")
    own = {
        key.partition("/")[2]: x[:n_nets] for key, x in stored.items() if key.startswith(f"{kind}/")
    }
    if not own:
        kinds = ", ".join(sorted({key.partition("/")[0] for key in stored}))
        raise ValueError(f"there are no twins of kind {kind!r}; there are {kinds}")
    model = untrained(len(own["W_E"]))
    model.load_state_dict(own, strict=False)  # W_gate is stored for the kinds that use it
    return model.requires_grad_(False)

"""Small transformers that do six operations on strings, and the part of them that does each one.

A text is an operation, a string, "=", what the operation makes of the string, and ends, such as
`reverse a b c d = d c b a .` The networks are `Twins`, with the nodes of `node_masks`. An
operation's circuit are those *hidden* nodes (what heads gather, and neurons) that do it while all
other hidden nodes stand at their means; `learn` finds it.

Source: Mondorf, Wold & Plank 2024, arXiv 2410.01434, whose encoder-decoder has six layers of 512;
sizes, strings and numbers of steps are ours.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from . import node_masks
from .side_by_side import descend, shipped
from .twins import Twins

OPERATIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "swap": lambda x: x[-1:] + x[1:-1] + x[:1],  # first and last change places
    "echo": lambda x: x + x[-1:],
    "repeat": lambda x: x + x,
}
LETTERS, SIZES = "abcdefgh", (4, 5, 6)  # of strings
IS, END = len(LETTERS) + len(OPERATIONS), len(LETTERS) + len(OPERATIONS) + 1
LENGTH = 1 + max(SIZES) + 1 + 2 * max(SIZES)  # tokens that a network sees
D = 32  # width of the shipped networks


class Texts(NamedTuple):
    """Texts of one length; `asked` marks the places whose next token is of the answer."""

    tokens: Int[Tensor, "text pos_and_next"]
    asked: Bool[Tensor, "text pos"]


def texts(operation: str, n: int, seed: int) -> Texts:
    """n texts of one operation, with random strings."""
    rng, rows, asked = random.Random(f"{operation} {seed}"), [], []
    for _ in range(n):
        string = rng.choices(range(len(LETTERS)), k=rng.choice(SIZES))
        question = [len(LETTERS) + list(OPERATIONS).index(operation), *string, IS]
        whole = [*question, *OPERATIONS[operation](string), END]
        rows.append(whole + [END] * (LENGTH + 1 - len(whole)))
        asked.append([len(question) <= i + 1 < len(whole) for i in range(LENGTH)])
    return Texts(torch.tensor(rows), torch.tensor(asked))


def untrained(n_nets: int, d: int = D, seed: int = 0) -> Twins:
    """Networks before training, each from a seed of its own."""
    return Twins(n_nets, END + 1, LENGTH, d, seed)


def train(n_nets: int, d: int = D, steps: int = 800, batch: int = 96, seed: int = 0) -> Twins:
    """Networks that do all operations, by AdamW with a rate that rises and then falls.

    The loss is the cross-entropy of the answer's tokens; batches hold each operation equally often.
    """
    model, each = untrained(n_nets, d, seed), batch // len(OPERATIONS)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps + 1, pct_start=0.1)
    for step in tqdm(range(steps), "training", leave=False):
        now = [texts(name, each * n_nets, seed * steps + step) for name in OPERATIONS]
        tokens, asked = (
            rearrange(torch.stack(x), "op (net text) pos -> net (op text) pos", net=n_nets)
            for x in zip(*now, strict=True)
        )
        logits, after = model(tokens[..., :-1]), tokens[..., 1:]
        loss = n_nets * cross_entropy(logits[asked], after[asked])  # a sum: nets do not meet
        descend(optimiser, loss)
        schedule.step()
    return model.requires_grad_(False)


def hidden(model: Twins) -> Bool[Tensor, "node"]:
    """The nodes that circuits choose among: what heads gather, and neurons."""
    parts = [
        torch.full((n,), name.startswith(("z", "neuron")))
        for name, n in node_masks.sizes(model).items()
    ]
    return torch.cat(parts)


def averages(model: Twins, n: int = 64) -> Float[Tensor, "net operation node"]:
    """Each node's mean over the positions of n texts of an operation."""
    found = [node_masks.averages(model, texts(name, n, 0).tokens[:, :-1]) for name in OPERATIONS]
    return torch.stack(found, 1)


def learn(
    model: Twins, means: Float[Tensor, "net operation node"], steps: int = 300
) -> Bool[Tensor, "net operation node"]:
    """The circuit of every operation in every network; nodes that are not hidden are all in it.

    A mask sigmoid(sharpness * score) of each hidden node is learned by Adam on the divergence of
    the masked network from the whole one (KL, nats, mean over answers' tokens) plus 0.003 times the
    masks' sum. The sharpness rises from 1 to 50, so that masks end at 0 or 1; a node whose
    score ends above 0 is kept. Source: Mondorf et al. 2024, section 3 (there up to 200).
    """
    n_nets, n_operations, _ = means.shape
    rows, flat, free = repeated(model, n_operations), means.flatten(0, 1), hidden(model)
    score = torch.ones_like(flat).requires_grad_()
    optimiser = torch.optim.Adam([score], lr=0.05)
    for step in tqdm(range(steps), "masks", leave=False, disable=steps < 50):
        now = [texts(name, 12, step) for name in list(OPERATIONS)[:n_operations]]
        tokens, asked = (
            repeat(torch.stack(x), "op text pos -> (net op) text pos", net=n_nets)
            for x in zip(*now, strict=True)
        )
        mask = torch.where(free, (50 ** (step / steps) * score).sigmoid(), 1.0)
        full = rows(tokens[..., :-1]).log_softmax(-1)
        found = rows(tokens[..., :-1], node_masks.ablated(rows, mask, flat)).log_softmax(-1)
        kl = reduce(full.exp() * (full - found), "row text pos token -> row text pos", "sum")
        loss = (kl * asked).sum((1, 2)) / asked.sum((1, 2)) + 3e-3 * (mask * free).sum(1)
        descend(optimiser, loss)
    return ((score.detach() > 0) | ~free).view(means.shape)


def repeated(model: Twins, n: int) -> Twins:
    """Every network n times, one beside the other."""
    more = untrained(n * len(model.W_E), model.d)
    more.load_state_dict(
        {name: repeat(w, "net ... -> (net n) ...", n=n) for name, w in model.state_dict().items()}
    )
    return more.requires_grad_(False)


def tried(
    model: Twins,
    keep: Bool[Tensor, "net node"],
    means: Float[Tensor, "net node"],
    some: Texts,
) -> tuple[Float[Tensor, "net"], Float[Tensor, "net"]]:
    """A circuit on some texts: its faithfulness, and the share of texts answered without a mistake.

    Faithfulness is 1 minus the Jensen-Shannon divergence of its next token from the whole network's
    over ln 2, mean over answers' tokens: 1 where they are the same, 0 where they share nothing.
    Source: Mondorf et al. 2024, section 3.
    """
    logits = model(some.tokens[:, :-1], node_masks.ablated(model, keep, means))
    p, q = (x[:, some.asked].log_softmax(-1) for x in (logits, model(some.tokens[:, :-1])))
    both = torch.logaddexp(p, q) - math.log(2)
    divergence = (p.exp() * (p - both) + q.exp() * (q - both)).sum(-1).mean(1) / 2
    wrong = (logits.argmax(-1) != some.tokens[:, 1:]) & some.asked
    return 1 - divergence / math.log(2), 1 - wrong.any(-1).float().mean(1)


def random_nodes(
    model: Twins,
    like: Bool[Tensor, "*shape node"],
    outside: Bool[Tensor, "*shape node"],
    seed: int = 0,
) -> Bool[Tensor, "*shape node"]:
    """As many nodes at each place as `like` has there, drawn from those that `outside` leaves."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(like.shape, generator=generator).masked_fill(outside, torch.inf)
    split = list(node_masks.sizes(model).values())
    parts = zip(drawn.split(split, -1), like.split(split, -1), strict=True)
    found = [x.argsort(-1).argsort(-1) < n.sum(-1, keepdim=True) for x, n in parts]
    return torch.cat(found, -1) & ~outside


def trained() -> tuple[Twins, Bool[Tensor, "net operation node"]]:
    """Six networks and the circuits of their operations; made by data/reuse/make.py."""
    stored = shipped("reuse")
    keep = stored.pop("circuits").bool()
    model = untrained(len(keep))
    model.load_state_dict(stored, strict=False)  # W_gate is not used here
    return model.requires_grad_(False), keep

"""Which data makes a network learn what: susceptibilities to a mixture of sources, by sampling.

Two-layer attention-only networks read four kinds of sequences (`SOURCES`), each with a weight in
the loss. Which weights make a part of a network answer is for `susceptibility` to find.

Parameters are flat, [net, parameter], and all is written for several networks at once.

Source: Wang & Murfet 2026, arXiv 2601.13548; the networks and their data are ours.
"""

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from .side_by_side import Draws, descend, look_up, next_losses, shipped

SOURCES = ("bigrams", "repeats", "echoes", "skip trigrams")
MIXTURE = torch.tensor([0.2, 0.4, 0.2, 0.2])
VOCAB, LENGTH, WIDTH, HEADS, SIZE = 16, 24, 16, 2, 8  # SIZE: of a head; there are two layers
EVERY = 10  # steps between two scores
SHAPES = {
    "E": (VOCAB, WIDTH),
    "QKV": (2, HEADS, WIDTH, 3 * SIZE),
    "O": (2, HEADS, SIZE, WIDTH),
    "bias": (2, HEADS, LENGTH),  # on the attention score of a token so many positions back
    "U": (WIDTH, VOCAB),
}


def sequences(n: int, generator: torch.Generator) -> Int[Tensor, "source n pos"]:
    """`n` sequences of each source.

    - bigrams: a Markov chain, always the same one;
    - repeats: a random segment of 5 to 10 different tokens, over and over: needs induction;
    - echoes: seven of the tokens 0 to 3, over and over: looking seven back is enough;
    - skip trigrams: a key stands first, and after each token 15 follows the key's partner.
    """
    pos = torch.arange(LENGTH)
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    chain = [torch.randint(VOCAB, (n,), generator=generator)]
    for _ in pos[1:]:
        following = (3 * table).softmax(-1)[chain[-1]]
        chain.append(torch.multinomial(following, 1, generator=generator)[:, 0])
    period = torch.randint(5, 11, (n, 1), generator=generator)
    repeats = torch.rand(n, VOCAB, generator=generator).argsort(-1).gather(1, pos % period)
    echoes = torch.randint(4, (n, 7), generator=generator)[:, pos % 7]
    skip = torch.randint(8, 15, (n, LENGTH), generator=generator)
    key = torch.randint(4, (n, 1), generator=generator)
    turn = (pos - torch.randint(1, 4, (n, 1), generator=generator)) % 3
    skip = torch.where((turn == 1) & (pos > 1), key + 4, skip)
    skip = torch.where(pos == 0, key, torch.where(turn == 0, 15, skip))
    return torch.stack([torch.stack(chain, 1), repeats, echoes, skip])


# The networks


def start(seeds: Sequence[int]) -> Float[Tensor, "net parameter"]:
    """Untrained networks: weights N(0, 1 / rows), biases zero."""
    draw = Draws(seeds)
    drawn = {name: draw.normal(*shape) / shape[-2] ** 0.5 for name, shape in SHAPES.items()}
    drawn["bias"].zero_()
    return torch.cat([x.flatten(1) for x in drawn.values()], 1)


def unpack(w: Float[Tensor, "net parameter"]) -> dict[str, Tensor]:
    """Views of the matrices in `SHAPES`, each with a leading net."""
    parts = w.split([prod(shape) for shape in SHAPES.values()], 1)
    return {k: part.unflatten(1, s) for (k, s), part in zip(SHAPES.items(), parts, strict=True)}


def forward(
    w: Float[Tensor, "net parameter"], tokens: Int[Tensor, "net seq pos"]
) -> tuple[Float[Tensor, "net seq pos vocab"], Float[Tensor, "net layer seq head query key"]]:
    """Logits, and where each head looks. Attention adds to the stream; no norm, no MLP."""
    p, (_, seqs, length) = unpack(w), tokens.shape
    x = rearrange(look_up(p["E"], tokens), "n s t d -> n (s t) d")
    back = torch.arange(length)[:, None] - torch.arange(length)
    patterns = []
    for layer in range(2):
        qkv = x @ rearrange(p["QKV"][:, layer], "n h d e -> n d (h e)")
        q, k, v = rearrange(qkv, "n (s t) (h c e) -> c n s h t e", t=length, c=3, h=HEADS)
        bias = p["bias"][:, layer][..., back.clamp_min(0)].masked_fill(back < 0, -torch.inf)
        patterns.append((q @ k.mT / SIZE**0.5 + bias[:, None]).softmax(-1))
        read = rearrange(patterns[-1] @ v, "n s h t e -> n (s t) (h e)")
        x = x + read @ rearrange(p["O"][:, layer], "n h e d -> n (h e) d")
    return (x @ p["U"]).unflatten(1, (seqs, length)), torch.stack(patterns, 1)


def token_losses(
    w: Float[Tensor, "net parameter"], tokens: Int[Tensor, "net seq pos"]
) -> Float[Tensor, "net seq next"]:
    """Cross-entropy of each next token, in nats."""
    return next_losses(forward(w, tokens[..., :-1])[0], tokens)


def losses(
    w: Float[Tensor, "net parameter"], tokens: Int[Tensor, "net source seq pos"]
) -> Float[Tensor, "net source"]:
    """Mean cross-entropy of the next token, in nats."""
    each = token_losses(w, tokens.flatten(1, 2))
    return reduce(each, "n (k s) t -> n k", "mean", k=tokens.shape[1])


def known(repeats: Int[Tensor, "seq pos"]) -> Bool[Tensor, "seq query key"]:
    """For each query, the keys that follow an earlier copy of its token: where induction looks."""
    same = repeats[:, :, None] == repeats[:, None]
    return pad(same, (1, -1)).tril()


def in_context(
    w: Float[Tensor, "net parameter"], repeats: Int[Tensor, "seq pos"]
) -> Float[Tensor, "net"]:
    """Loss where induction cannot know the next token minus loss where it can, / log VOCAB."""
    loss = token_losses(w, repeat(repeats, "s t -> n s t", n=len(w))).flatten(1)
    can = known(repeats).any(-1)[:, :-1].flatten()
    return (loss[:, ~can].mean(1) - loss[:, can].mean(1)) / torch.tensor(VOCAB).log()


def train(
    mixtures: Float[Tensor, "net source"],
    seeds: Sequence[int],
    steps: int,
    settle: int = 0,
    level: float = torch.inf,
) -> tuple[Float[Tensor, "net parameter"], Float[Tensor, "check net"]]:
    """Networks trained on the sources' losses, each with its weight; their scores on the way.

    Nets of one seed start alike and read the same sequences: only the weights differ. Adam at .02,
    8 fresh sequences of each source a step; the rate falls to 0 over `settle` steps more, without
    scores. A score is `in_context` on held-out sequences, every `EVERY` steps from 0 on. A net
    stops once its score is above `level`, and keeps that score.
    """
    w = [net.clone().requires_grad_() for net in start(seeds)]
    optimiser = torch.optim.Adam(w, lr=0.02, betas=(0.9, 0.98))
    data = {seed: torch.Generator().manual_seed(1000 + seed) for seed in seeds}
    probe, scores = sequences(32, torch.Generator().manual_seed(7))[1], []
    going, last = list(range(len(seeds))), torch.zeros(len(seeds))
    for step in tqdm(range(steps + settle), "training", leave=False):
        if step % EVERY == 0 and step < steps:
            if going:
                last[going] = in_context(torch.stack([w[net].detach() for net in going]), probe)
            scores.append(last.clone())
            going = [net for net in going if last[net] <= level]
        if not going:
            continue
        if step % 50 == 0:  # sequences for 50 steps at once
            blocks = {k: sequences(400, g).unflatten(1, (50, 8)) for k, g in data.items()}
        if step >= steps:
            optimiser.param_groups[0]["lr"] = 0.02 * (1 - (step - steps) / settle)
        tokens = torch.stack([blocks[seeds[net]][:, step % 50] for net in going])
        found = losses(torch.stack([w[net] for net in going]), tokens)
        descend(optimiser, (mixtures[going] * found).sum(1))  # nets that stopped have no gradient
    return torch.stack(w).detach(), torch.stack(scores)


def crossing(scores: Float[Tensor, "check *net"]) -> Float[Tensor, "*net"]:
    """Steps until a score is above one half, linear between checks; where never, all the steps."""
    over = torch.cat([scores, torch.full_like(scores[:1], torch.inf)]) > 0.5
    after = over.int().argmax(0).clamp_min(1)
    low, high = (torch.cat([scores, scores[-1:]]).gather(0, i[None])[0] for i in (after - 1, after))
    part = ((0.5 - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    return EVERY * (after - 1 + part)


def trained() -> dict[str, Tensor]:
    """Eight networks and what other mixtures do to them; made by data/patterning/make.py.

    `w` [net parameter], their `seeds` [net], the `scores` [check net], and scores with the mixture
    moved by .15, each net until it passes one half: `shifted` towards (0) or away from (1) one
    source, [check net source direction], and `drawn`, along (0) or against (1) the random
    `directions` [net draw source], [check net draw direction].
    """
    return shipped("patterning")


def roles(w: Float[Tensor, "net parameter"]) -> Int[Tensor, "net layer"]:
    """The first layer's previous-token head and the second's induction head, by attention."""
    repeats = sequences(64, torch.Generator().manual_seed(8))[1]
    patterns = forward(w, repeat(repeats, "s t -> n s t", n=len(w)))[1]
    previous = reduce(patterns[:, 0].diagonal(-1, -2, -1), "n s h q -> n h", "mean")
    induction = reduce(patterns[:, 1] * known(repeats)[:, None], "n s h q k -> n h", "sum")
    return torch.stack([previous.argmax(1), induction.argmax(1)], 1)


def parameters_of(heads: Int[Tensor, "net layer"]) -> Float[Tensor, "net parameter"]:
    """1 for the parameters of one head in each layer, 0 for all others."""
    found = torch.zeros(len(heads), sum(map(prod, SHAPES.values())))
    net = torch.arange(len(heads))
    for name in ("QKV", "O", "bias"):
        for layer in range(2):
            unpack(found)[name][net, layer, heads[:, layer]] = 1
    return found

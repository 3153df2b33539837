"""Gradient routing: which data may train which part of a network, and what then ends up where.

Two small experiments, each trained for many settings and seeds side by side:

- `SplitAutoencoders` on 8×8 digits, whose code has two halves. A digit's images train only the
  halves that its `Setting` names; "certificates", decoders that see one half and train nothing
  else, tell what that half holds.
- `TopicModels`, which predict the next word from the three before it, with extra hidden units into
  which text marked as the topic to forget is routed.

Source: Cloud et al. 2024, arXiv 2410.04332, sections 4.1 and 4.2; sizes and the text are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm.auto import tqdm

HALF = 8  # numbers in each half of the code
READERS = ("decoder", "top half", "bottom half")  # of a code; the halves by their certificates
WORDS = 16  # words of either topic, and as many that both use
CONTEXT = 3  # words that the topic model sees


def route(part: Float[Tensor, "*shape"], trains: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`part` as it is; where `trains` is False, no gradient flows back through it."""
    return torch.where(trains, part, part.detach())


class MLPs(nn.Module):
    """Multilayer perceptrons of equal sizes, one a net; ReLU between layers, PyTorch's start."""

    def __init__(self, starts: Sequence[int], sizes: Sequence[int], last_bias: bool = True) -> None:
        super().__init__()
        layers: list[list[nn.Linear]] = []
        for start in starts:  # equal starts, equal weights
            torch.manual_seed(start)
            layers.append([nn.Linear(a, b) for a, b in pairwise(sizes)])
        per_layer = list(zip(*layers, strict=True))
        self.weights = nn.ParameterList(
            torch.stack([layer.weight.T for layer in nets]) for nets in per_layer
        )
        self.biases = nn.ParameterList(
            torch.stack([layer.bias[None] for layer in nets]) for nets in per_layer
        )
        if not last_bias:
            self.biases[-1] = nn.Parameter(torch.zeros(1, 1, 1), requires_grad=False)

    def forward(self, x: Float[Tensor, "net batch d_in"]) -> Float[Tensor, "net batch d_out"]:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x.relu() if i else x) @ weight + bias
        return x


# A code with two halves


@dataclass(frozen=True)
class Setting:
    """Which digits train which half of the code, and how strongly the penalties push.

    A digit in neither set trains the certificates alone. `sparsity` multiplies the sum of mean
    absolute code numbers, `correlation` the mean |correlation| between the halves.
    """

    name: str
    top: str = "01234"
    bottom: str = "56789"
    sparsity: float = 3e-3
    correlation: float = 0.1

    def trains(self, half: str) -> Bool[Tensor, "digit"]:
        digits = self.top if half == "top" else self.bottom
        return torch.tensor([str(digit) in digits for digit in range(10)])


def digits(test: int = 397) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images [image, pixel] from -1 to 1 with their digits: to train on, and held out."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 8 - 1, dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    return (x[test:], y[test:]), (x[:test], y[:test])


class SplitAutoencoders(nn.Module):
    """For each setting and seed an encoder, a decoder of the whole code, a certificate a half."""

    def __init__(self, settings: Sequence[Setting], n_seeds: int, seed: int = 0) -> None:
        super().__init__()
        self.settings = [setting for setting in settings for _ in range(n_seeds)]
        self.seeds = [seed + i for _ in settings for i in range(n_seeds)]
        self.encoder = MLPs(self.seeds, (64, 128, 2 * HALF), last_bias=False)
        self.decoder = MLPs(self.seeds, (2 * HALF, 128, 64))
        self.certificates = nn.ModuleList(MLPs(self.seeds, (HALF, 128, 64)) for _ in range(2))

    def losses(
        self, images: Float[Tensor, "net image 64"], labels: Int[Tensor, "net image"]
    ) -> tuple[Float[Tensor, "net"], Float[Tensor, "net which=3 image"]]:
        """The loss to train on, and each image's mean absolute error by decoder, top and bottom."""
        codes = self.encoder(images)
        halves = rearrange(codes, "net image (half d) -> half net image d", half=2)
        net = torch.arange(len(labels))[:, None]
        may = [torch.stack([s.trains(h) for s in self.settings]) for h in ("top", "bottom")]
        trains = torch.stack([allowed[net, labels] for allowed in may])  # half net image
        routed = [route(*pair) for pair in zip(halves, trains[..., None], strict=True)]
        read = [self.decoder(torch.cat(routed, -1))]
        read += [c(half.detach()) for c, half in zip(self.certificates, halves, strict=True)]
        errors = reduce((torch.stack(read, 1) - images[:, None]).abs(), "n w i p -> n w i", "mean")
        seen = trains.any(0).float()
        per_seen = seen / reduce(seen, "net image -> net 1", "sum")
        small = reduce(codes.abs() * per_seen[..., None], "net image d -> net", "sum")
        unit = (halves - halves.mean(2, keepdim=True)) / (halves.std(2, keepdim=True) + 1e-6)
        corr = (rearrange(unit[0], "net i d -> net d i") @ unit[1] / codes.shape[1]).abs()
        sparsity = torch.tensor([s.sparsity for s in self.settings])
        correlation = torch.tensor([s.correlation for s in self.settings])
        loss = (errors[:, 0] * per_seen).sum(1) + errors[:, 1:].mean(2).sum(1)
        return loss + sparsity * small + correlation * corr.mean((1, 2)), errors

    def redrawn(
        self, images: Float[Tensor, "image 64"], net: int = 0
    ) -> Float[Tensor, "which=3 image 64"]:
        """The images as the decoder and the two certificates of one net draw them again."""
        with torch.no_grad():
            codes = self.encoder(images.expand(len(self.seeds), -1, -1))
            halves = zip(self.certificates, codes.split(HALF, dim=-1), strict=True)
            read = [self.decoder(codes)] + [certificate(half) for certificate, half in halves]
        return torch.stack(read)[:, net]

    def held_out_errors(self) -> pd.DataFrame:
        """Mean absolute error on held-out images: columns setting, seed, reader, digits, error.

        One row for each net, reader (see `READERS`) and group of digits ("0–4", "5–9").
        """
        _, (x, y) = digits()
        n = len(self.seeds)
        with torch.no_grad():
            errors = self.losses(x.expand(n, -1, -1), y.expand(n, -1))[1]
        rows = [
            (setting.name, seed, reader, group, float(errors[net, which, inside].mean()))
            for net, (setting, seed) in enumerate(zip(self.settings, self.seeds, strict=True))
            for which, reader in enumerate(READERS)
            for group, inside in (("0–4", y < 5), ("5–9", y >= 5))
        ]
        return pd.DataFrame(rows, columns=["setting", "seed", "reader", "digits", "error"])


def train_split(
    settings: Sequence[Setting], n_seeds: int, steps: int = 800, batch: int = 200, seed: int = 0
) -> SplitAutoencoders:
    """Adam, rate .001; networks of one seed see the same images in the same order."""
    model, ((images, labels), _) = SplitAutoencoders(settings, n_seeds, seed), digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-5)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n_seeds)]
    for _ in tqdm(range(steps), "autoencoders", leave=False):
        drawn = torch.stack([torch.randint(len(images), (batch,), generator=g) for g in generators])
        rows = drawn.repeat(len(settings), 1)
        loss, _ = model.losses(images[rows], labels[rows])
        optimiser.zero_grad()
        loss.sum().backward()  # nets do not touch each other
        optimiser.step()
    return model.requires_grad_(False)


# A topic to forget


@dataclass(frozen=True)
class Treatment:
    """What is done with the documents of the topic that are marked, `marked` of all of them.

    "route": they train the extra hidden units alone. "drop": they are left
    out. "keep": they are text like any other.
    """

    name: str
    how: str
    marked: float = 1.0


def topic_text(
    n: int, seed: int, length: int = 12
) -> tuple[Int[Tensor, "word context"], Int[Tensor, "word"], Bool[Tensor, "word"], Tensor]:
    """The words of n documents: the three before each, the word, whether its topic is the one to
    forget (every other document's is), and its document's mark, uniform in [0, 1].

    A topic has 16 words of its own, and 16 are shared. Four words can follow a word, two of them
    shared, by odds of 5 : 1.5 : 2.5 : 1; which four depends on the word and the topic.
    """
    fixed, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    follows = torch.randint(WORDS, (2, 3 * WORDS, 4), generator=fixed)
    follows += WORDS * torch.tensor([[0, 0, 2, 2], [1, 1, 2, 2]])[:, None]
    topic, odds = torch.arange(n) % 2, torch.tensor([0.5, 0.15, 0.25, 0.1])
    words = [topic * WORDS + torch.randint(WORDS, (n,), generator=drawn)]
    for _ in range(length + CONTEXT - 1):
        pick = torch.multinomial(odds, n, replacement=True, generator=drawn)
        words.append(follows[topic, words[-1], pick])
    windows = rearrange(torch.stack(words, 1).unfold(1, CONTEXT + 1, 1), "n word w -> (n word) w")
    mark = torch.rand(n, generator=drawn)
    forget, mark = (x.repeat_interleave(length) for x in (topic.bool(), mark))
    return windows[:, :CONTEXT], windows[:, CONTEXT], forget, mark


class TopicModels(nn.Module):
    """Word vectors of the context, one hidden layer with extra units, logits; one a net."""

    def __init__(self, seeds: Sequence[int], units: int = 64, extra: int = 32, d: int = 16) -> None:
        super().__init__()
        self.vectors = nn.Parameter(MLPs(seeds, (d, 3 * WORDS)).weights[0].transpose(1, 2))
        self.units = MLPs(seeds, (CONTEXT * d, units, 3 * WORDS))
        self.extra = MLPs([s + 1000 for s in seeds], (CONTEXT * d, extra, 3 * WORDS), False)

    def forward(
        self,
        context: Int[Tensor, "net word context"],
        trains: Bool[Tensor, "net word"] | None = None,
        ablate: bool = False,
    ) -> Float[Tensor, "net word vocabulary"]:
        """Logits; where `trains` is False, only the extra units learn. `ablate`: without them."""
        net = torch.arange(len(context))[:, None, None]
        x = rearrange(self.vectors[net, context], "net word c d -> net word (c d)")
        first = self.units(x)
        if ablate:
            return first
        if trains is not None:
            first, x = route(first, trains[..., None]), route(x, trains[..., None])
        return first + self.extra(x)

    def losses(self, text: tuple[Tensor, ...], ablate: bool) -> Float[Tensor, "net topic=2"]:
        """Mean cross-entropy in nats on the topic to keep and on the one to forget."""
        context, word, forget, _ = text
        logits = self(context.expand(len(self.vectors), -1, -1), ablate=ablate)
        at_word = -logits.log_softmax(-1)[:, torch.arange(len(word)), word]
        return torch.stack([at_word[:, ~forget].mean(1), at_word[:, forget].mean(1)], 1)


def train_topics(
    treatments: Sequence[Treatment],
    n_seeds: int,
    steps: int = 1000,
    again: int = 100,
    batch: int = 128,
    seed: int = 0,
    extra: int = 32,
) -> tuple[TopicModels, Tensor]:
    """Train with `extra` more units, take them away, train `again` on the topic to keep alone.

    Returns the nets, treatment by treatment, and their losses on held-out text,
    [stage, net, keep or forget], at the stages "trained", "ablated" and "trained again".
    """
    seeds = [seed + i for _ in treatments for i in range(n_seeds)]
    model, held_out = TopicModels(seeds, extra=extra), topic_text(400, seed + 10**6)
    texts = [topic_text(2000, seed + i) for i in range(n_seeds)]
    columns = [
        torch.stack(column).repeat(len(treatments), 1, *[1] * (column[0].ndim - 1))
        for column in zip(*texts, strict=True)
    ]
    marked = torch.tensor([t.marked for t in treatments for _ in range(n_seeds)])[:, None]
    how = [t.how for t in treatments for _ in range(n_seeds)]
    routed, dropped = (
        torch.tensor([h == kind for h in how])[:, None] for kind in ("route", "drop")
    )
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n_seeds)]
    stages = []
    net = torch.arange(len(seeds))[:, None]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in tqdm(range(steps + again), "topic models", leave=False):
        if step == steps:
            stages = [model.losses(held_out, False).detach(), model.losses(held_out, True).detach()]
            optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        rows = torch.stack(
            [torch.randint(columns[1].shape[1], (batch,), generator=g) for g in generators]
        )
        context, word, forget, mark = (
            column[net, rows.repeat(len(treatments), 1)] for column in columns
        )
        known = forget & (mark < marked)
        used = ~(known & dropped) if step < steps else ~forget
        logits = model(context, trains=~(known & routed), ablate=step >= steps)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), word.flatten(), reduction="none")
        loss = (loss.view_as(word) * used).sum() / batch
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False), torch.stack(
        [*stages, model.losses(held_out, True).detach()]
    )

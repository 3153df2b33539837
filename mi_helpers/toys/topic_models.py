"""A small language model from which a topic is cut out: expand, route, ablate.

`TopicModels` predict the next word from the three before it, with extra hidden units into which
text marked as the topic to forget is routed.

Source: Cloud et al. 2024, arXiv 2410.04332, section 4.2; sizes and the text are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from .gradient_routing import perceptrons, route
from .side_by_side import Draws, descend, look_up, mlp

WORDS = 16  # words of either topic, and as many that both use
CONTEXT = 3  # words that the model sees
LENGTH = 12  # of a document: words that are to be predicted
STAGES = ("trained", "cut", "trained again", "learned back")


@dataclass(frozen=True)
class Treatment:
    """What is done with the documents of the topic that are marked, `marked` of all of them.

    "route": they train the extra hidden units alone. "drop": they are left out. "keep": they are
    text like any other.
    """

    name: str
    how: str
    marked: float = 1.0


def topic_text(
    n: int, seed: int
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
    for _ in range(LENGTH + CONTEXT - 1):
        pick = torch.multinomial(odds, n, replacement=True, generator=drawn)
        words.append(follows[topic, words[-1], pick])
    windows = rearrange(torch.stack(words, 1).unfold(1, CONTEXT + 1, 1), "n word w -> (n word) w")
    mark = torch.rand(n, generator=drawn)
    forget, mark = (x.repeat_interleave(LENGTH) for x in (topic.bool(), mark))
    return windows[:, :CONTEXT], windows[:, CONTEXT], forget, mark


class TopicModels(nn.Module):
    """Word vectors of the context, one hidden layer with extra units, logits; one a net."""

    def __init__(self, seeds: Sequence[int], extra: int) -> None:
        super().__init__()
        d = 16
        self.vectors = nn.Parameter(perceptrons(seeds, d, 3 * WORDS)[0].mT)
        self.units = perceptrons(seeds, CONTEXT * d, 64, 3 * WORDS)
        others = [seed + 1000 for seed in seeds]
        self.extra = perceptrons(others, CONTEXT * d, extra, 3 * WORDS, last_bias=False)

    def forward(
        self,
        context: Int[Tensor, "net word context"],
        trains: Bool[Tensor, "net word"] | None = None,
        ablate: bool = False,
    ) -> Float[Tensor, "net word vocabulary"]:
        """Logits; where `trains` is False, only the extra units learn. `ablate`: without them."""
        x = rearrange(look_up(self.vectors, context), "net word c d -> net word (c d)")
        first = mlp(self.units, x)
        if ablate:
            return first
        if trains is not None:
            first, x = route(first, trains[..., None]), route(x, trains[..., None])
        return first + mlp(self.extra, x)

    @torch.no_grad()
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
    seed: int = 0,
    extra: int = 32,
) -> tuple[TopicModels, Tensor]:
    """Train with `extra` more units, take them away, train `again` steps on the topic to keep
    alone, then as many on the topic to forget alone, to see how fast it comes back.

    Returns the nets, treatment by treatment, and their losses on held-out text,
    [stage, net, keep or forget], at the `STAGES`.
    """
    seeds, held_out = range(seed, seed + n_seeds), topic_text(400, seed + 10**6)
    model = TopicModels([*seeds] * len(treatments), extra)
    columns = [
        torch.stack(column) for column in zip(*(topic_text(2000, s) for s in seeds), strict=True)
    ]
    each = [treatment for treatment in treatments for _ in seeds]
    marked = torch.tensor([[treatment.marked] for treatment in each])
    routed, dropped = (torch.tensor([[t.how == how] for t in each]) for how in ("route", "drop"))
    batch, draw, text = 128, Draws(seeds), torch.arange(len(each))[:, None] % n_seeds
    stages = []
    for phase, (n, rate) in enumerate(((steps, 3e-3), (again, 1e-3), (again, 1e-3))):
        optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in tqdm(range(n), "topic models", leave=False):
            rows = draw.below(columns[1].shape[1], batch).repeat(len(treatments), 1)
            context, word, forget, mark = (column[text, rows] for column in columns)
            known = forget & (mark < marked)
            used = (~(known & dropped), ~forget, forget)[phase]
            logits = model(context, trains=~(known & routed), ablate=phase > 0)
            loss = cross_entropy(logits.flatten(0, 1), word.flatten(), reduction="none")
            descend(optimiser, (loss.view_as(word) * used).sum() / batch)
        if phase == 0:
            stages.append(model.losses(held_out, ablate=False))
        stages.append(model.losses(held_out, ablate=True))
    return model.requires_grad_(False), torch.stack(stages)

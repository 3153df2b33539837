"""What a reader wants to see of one feature: where it fires, and what it makes the model say."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..tasks.tokens import token_labels
from .firing import Firing


@dataclass(frozen=True)
class Context:
    """A stretch of text and how strongly the feature fires on each of its tokens, as a share of
    its maximum over the whole stream."""

    tokens: tuple[str, ...]
    activation: tuple[float, ...]

    def __str__(self) -> str:
        """The text, with the words in brackets on which the feature fires at half or more of its
        strongest activation here."""
        least = max(self.activation) / 2
        pairs = zip(self.tokens, self.activation, strict=True)
        return "".join(f"[{word}]" if 0 < least <= a else word for word, a in pairs)


@dataclass(frozen=True)
class Card:
    """One feature: its share of tokens, its strongest contexts, and next tokens by logit."""

    fires: float
    contexts: tuple[Context, ...] = ()
    promoted: tuple[str, ...] = ()
    suppressed: tuple[str, ...] = field(default=())

    @property
    def word(self) -> str:
        """The token on which it fires most, as a short name; empty for a silent feature."""
        if not self.contexts:
            return ""
        return self.contexts[0].tokens[int(np.argmax(self.contexts[0].activation))]


def cards(
    model: TransformerBridge,
    firing: Firing,
    decoder: Float[Tensor, "feature d_model"],
    features: Sequence[int],
    n_contexts: int = 3,
    before: int = 10,
    after: int = 4,
    n_words: int = 6,
) -> dict[int, Card]:
    """A card for each of some features of a layer.

    Contexts are from different documents, the strongest first. Promoted and suppressed tokens are
    those that the decoder row alone, read by the final norm and unembedding, makes likelier or less
    likely (the logit lens of a direction): a first guess at its effect, not a measurement.
    """
    found, columns = {}, firing.values.tocsc()
    said = _extremes(model, decoder[list(features)], n_words)
    read = _Reader(model, firing, before, after)
    for feature, (most, least) in zip(features, said, strict=True):
        where, value = _firings(columns, feature)
        peaks = _peaks(where, value, firing.documents, n_contexts)
        found[int(feature)] = Card(
            fires=len(where) / firing.n_tokens,
            contexts=tuple(read.context(where, value, peak) for peak in peaks),
            promoted=tuple(read.words[t] for t in most),
            suppressed=tuple(read.words[t] for t in least),
        )
    return found


def levels(
    model: TransformerBridge,
    firing: Firing,
    feature: int,
    n: int = 2,
    before: int = 10,
    after: int = 4,
) -> dict[str, tuple[Context, ...]]:
    """`n` contexts each where a feature fires most ("top"), about its median firing ("middle"), and
    least ("weak"), from different documents: its strongest contexts are its best face."""
    where, value = _firings(firing.values.tocsc(), feature)
    read = _Reader(model, firing, before, after)
    order = np.argsort(value)
    third = np.array_split(order, 3)
    parts = {"top": order, "middle": third[1], "weak": third[0][: max(n, len(order) // 10)]}
    return {
        name: tuple(
            read.context(where, value, peak)
            for peak in _peaks(where[part], value[part], firing.documents, n)
        )
        for name, part in parts.items()
    }


def _firings(columns: sparse.csc_array, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens on which a feature fires, and how strongly."""
    span = slice(*columns.indptr[feature : feature + 2])
    return columns.indices[span], columns.data[span]


class _Reader:
    """Stretches of a stream's text about one token, within its document."""

    def __init__(self, model: TransformerBridge, firing: Firing, before: int, after: int) -> None:
        if firing.tokens is None:
            raise ValueError("the stream has no token ids: use features.collect")
        self.words, self.tokens = _Words(model), firing.tokens.tolist()
        self.documents, self.before, self.after = firing.documents, before, after

    def context(self, where: np.ndarray, value: np.ndarray, peak: int) -> Context:
        """About `peak`, with how strongly a feature fires there, as a share of its maximum."""
        low, high = np.searchsorted(self.documents, self.documents[peak] + np.array([0, 1]))
        span = range(max(peak - self.before, low), min(peak + self.after + 1, high))
        activation = dict(zip(where.tolist(), (value / value.max()).tolist(), strict=True))
        words = tuple(self.words[self.tokens[t]] for t in span)
        return Context(words, tuple(activation.get(t, 0.0) for t in span))


def _peaks(where: np.ndarray, value: np.ndarray, document: np.ndarray, n: int) -> list[int]:
    """The strongest token of each document, of the `n` documents where that is strongest."""
    order = np.argsort(-value, kind="stable")
    first = np.unique(document[where[order]], return_index=True)[1]
    return where[order][np.sort(first)[:n]].tolist()


@torch.no_grad()
def _extremes(
    model: TransformerBridge, rows: Float[Tensor, "feature d_model"], n: int
) -> list[tuple[list[int], list[int]]]:
    """The next tokens that each direction makes most and least likely."""
    found = []
    for part in rows.detach().split(128):
        part = part.to(model.cfg.device, model.cfg.dtype)
        # Without a bias of the final norm or of the unembedding, nothing is subtracted.
        logits = engine.unembed(model, part) - engine.unembed(model, torch.zeros_like(part[:1]))
        ends = [logits.topk(n, largest=side).indices.tolist() for side in (True, False)]
        found += list(zip(*ends, strict=True))
    return found


class _Words(dict[int, str]):
    """Readable tokens, each made once."""

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__()
        self.model = model

    def __missing__(self, token: int) -> str:
        self[token] = token_labels(self.model, [token])[0]
        return self[token]

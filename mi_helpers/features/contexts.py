"""What a reader wants to see of one feature: where it fires, and what it makes the model say."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..tasks.pairs import token_labels
from .firing import Firing


@dataclass(frozen=True)
class Context:
    """A stretch of text and how strongly the feature fires on each of its tokens, as a share of
    its maximum over the whole stream."""

    tokens: tuple[str, ...]
    activation: tuple[float, ...]


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
    tokens: Int[Tensor, "document pos"],
    features: Sequence[int],
    n_contexts: int = 3,
    before: int = 10,
    after: int = 4,
    n_words: int = 6,
) -> dict[int, Card]:
    """A card for each of some features of a layer.

    `tokens` are the texts of the stream, with the first token of each, which the stream leaves
    out. Contexts are from different documents, the strongest first. Promoted and suppressed tokens
    are those that the decoder row alone, read by the final norm and unembedding, makes likelier or
    less likely (the logit lens of a direction): a first guess at its effect, not a measurement.
    """
    texts = tokens[:, 1:].flatten().tolist()
    if len(texts) != firing.n_tokens:
        raise ValueError(f"the texts have {len(texts)} tokens, the stream {firing.n_tokens}")
    words = _Words(model)
    by_feature, starts = firing.values.tocsc(), [*firing.starts(), firing.n_tokens]
    number = np.searchsorted(starts, np.arange(firing.n_tokens), side="right") - 1
    said = _extremes(model, decoder[list(features)], n_words)
    found = {}
    for feature, (most, least) in zip(features, said, strict=True):
        span = slice(*by_feature.indptr[feature : feature + 2])
        where, value = by_feature.indices[span], by_feature.data[span]
        activation = dict(
            zip(where.tolist(), (value / max(value, default=1)).tolist(), strict=True)
        )
        contexts = []
        for peak in _peaks(where, value, number, n_contexts):
            low = max(peak - before, starts[number[peak]])
            high = min(peak + after + 1, starts[number[peak] + 1])
            span_words = tuple(words[texts[t]] for t in range(low, high))
            contexts.append(
                Context(span_words, tuple(activation.get(t, 0.0) for t in range(low, high)))
            )
        found[int(feature)] = Card(
            fires=len(where) / firing.n_tokens,
            contexts=tuple(contexts),
            promoted=tuple(words[t] for t in most),
            suppressed=tuple(words[t] for t in least),
        )
    return found


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

"""Whether a dictionary's latents stand for concepts: three tests of SAEBench, small and offline.

Karvonen et al. 2025, SAEBench (arXiv 2503.09532). *k-sparse probing* asks whether a few latents say
what a passage is about, *targeted probe perturbation* whether taking them out hurts that concept
and no other, *absorption* whether a latent falls silent where a more special one takes its place.
The passages' labels are known without a judge: the package that a docstring comes from, the first
letter of a word.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.stream import Autoencoder, ordinary_tokens

ALIGNED = 0.025  # cosine with the probe from which a latent may absorb (Chanin et al. 2024)
CARRIES = 0.4  # of the probe's reading, from which it does (Chanin et al. 2024)
ENOUGH = 30  # words of a letter, in either split, for the letter to count


@torch.no_grad()
def pooled(
    sae: Autoencoder, x: Float[Tensor, "text pos d"]
) -> tuple[Float[np.ndarray, "text d"], Float[np.ndarray, "text feature"]]:
    """Means over a text's tokens of ordinary norm, of activations and of latents. `x` is without
    position 0."""
    texts = [rows[keep] for rows, keep in zip(x, ordinary_tokens(x), strict=True)]
    streams = torch.stack([rows.mean(0) for rows in texts])
    latents = torch.stack([sae.encode(rows).mean(0) for rows in texts])
    return streams.cpu().numpy(), latents.cpu().numpy()


def first_letters(
    model: TransformerBridge, tokens: Int[Tensor, "text pos"]
) -> Int[np.ndarray, "text pos"]:
    """The code of the first letter, in lower case, of each token that is a space and three letters
    or more; 0 at all others."""
    kinds, places = tokens.unique(return_inverse=True)
    said = [model.tokenizer.decode([int(kind)]) for kind in kinds]
    found = [re.fullmatch(r" ([A-Za-z])[A-Za-z]{2,}", word) for word in said]
    codes = [ord(word[1].lower()) if word else 0 for word in found]
    return np.array(codes)[places.cpu().numpy()]


def _probe(x: Float[np.ndarray, "n d"], y: Any) -> LogisticRegression:
    """A linear probe for one class, classes weighted alike."""
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000).fit(x, y)


def _apart(x: Float[np.ndarray, "n d"], y: Any) -> Float[np.ndarray, "d"]:
    """Mean within a class less mean outside it."""
    return x[y].mean(0) - x[~y].mean(0)


def sparse_probing(
    train: Float[np.ndarray, "text feature"], labels: Sequence[Any],
    test: Float[np.ndarray, "text feature"], test_labels: Sequence[Any], k: int,
) -> dict[Any, float]:  # fmt: skip
    """Balanced accuracy by class (chance .5) of a linear probe on the `k` latents whose means
    differ most between the class and the rest (Gurnee et al. 2023, arXiv 2305.01610; SAEBench)."""
    names, tested, found = np.asarray(labels), np.asarray(test_labels), {}
    scale = train.std(0).clip(1e-6)
    for name in sorted(set(labels)):
        chosen = np.argsort(-np.abs(_apart(train, names == name)), kind="stable")[:k]
        probe = _probe(train[:, chosen] / scale[chosen], names == name)
        said = probe.predict(test[:, chosen] / scale[chosen])
        found[name] = float(balanced_accuracy_score(tested == name, said))
    return found


@dataclass(frozen=True, eq=False)
class Probes:
    """A linear probe for each class, on activations less their mean and over their scale."""

    classes: list[Any]
    mean: Float[np.ndarray, "d"]
    scale: float
    W: Float[np.ndarray, "class d"]
    b: Float[np.ndarray, "class"]

    def said(self, x: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, "n class"]:
        """Which classes the probes take each activation for."""
        return (x - self.mean) / self.scale @ self.W.T + self.b > 0


def probes(
    x: Float[np.ndarray, "n d"] | Float[Tensor, "n d"], labels: ArrayLike, least: int = 1
) -> Probes:
    """A logistic probe against the rest for each class with `least` or more rows in `x`."""
    x, names = torch.as_tensor(x).cpu(), np.asarray(labels)
    mean = x.mean(0)
    scale = float((x - mean).norm(dim=1).mean()) / math.sqrt(x.shape[1])
    scaled = ((x - mean) / scale).numpy()
    counts = Counter(names.tolist())
    classes = sorted(name for name, rows in counts.items() if rows >= least)
    fitted = [_probe(scaled, names == name) for name in classes]
    W = np.array([probe.coef_[0] for probe in fitted]).reshape(-1, x.shape[1])
    return Probes(
        classes, mean.numpy(), scale, W, np.array([probe.intercept_[0] for probe in fitted])
    )


def _balanced(said: Bool[np.ndarray, "n class"], is_in: Bool[np.ndarray, "n class"]) -> Any:
    """Balanced accuracy by class; where no row is of the class, the share of right rows."""
    right = said == is_in
    with np.errstate(invalid="ignore"):
        rates = (right & is_in).sum(0) / is_in.sum(0), (right & ~is_in).sum(0) / (~is_in).sum(0)
    return np.nanmean(rates, 0)


def probe_perturbation(
    sae: Autoencoder,
    probes: Probes,
    train: tuple[Float[np.ndarray, "text d"], Float[np.ndarray, "text feature"]],
    labels: Sequence[Any],
    test: tuple[Float[np.ndarray, "text d"], Float[np.ndarray, "text feature"]],
    test_labels: Sequence[Any],
    n: int = 10,
) -> pd.DataFrame:
    """Targeted probe perturbation (TPP; Karvonen et al. 2024, arXiv 2411.18895), on what `pooled`
    gives. A row for each (`ablated`, `probed`) pair of classes: `drop`, how much the balanced
    accuracy of the probe for one class falls when the `n` latents of the other are taken out. The
    score is the mean drop where both are the same class less the mean where they are not.

    A latent belongs to a class by (difference of its means) · (its decoder row along the probe).
    `probes` are those of the training texts.
    """
    (_, f), (x_test, f_test) = train, test
    names, is_in = np.asarray(labels), np.asarray(test_labels)[:, None] == np.array(probes.classes)
    W_dec = sae.W_dec.detach().float().cpu().numpy()
    before = _balanced(probes.said(x_test), is_in)
    rows = []
    for ablated, w in zip(probes.classes, probes.W, strict=True):
        out = np.argsort(-_apart(f, names == ablated) * (W_dec @ w), kind="stable")[:n]
        # Pooling is linear, so latents can be taken out of the means.
        after = _balanced(probes.said(x_test - f_test[:, out] @ W_dec[out]), is_in)
        drops = zip(probes.classes, before - after, strict=True)
        rows += [(ablated, probed, drop) for probed, drop in drops]
    return pd.DataFrame(rows, columns=["ablated", "probed", "drop"])


@torch.no_grad()
def absorption(
    sae: Autoencoder,
    probes: Probes,
    train: Float[Tensor, "word d"], letters: Int[np.ndarray, "word"],
    test: Float[Tensor, "word d"], test_letters: Int[np.ndarray, "word"],
) -> pd.DataFrame:  # fmt: skip
    """Feature absorption for first letters (Chanin et al. 2024, arXiv 2409.14507), on activations
    at words; a row for each letter that has a probe and `ENOUGH` words in either split: `probe`,
    the balanced accuracy of the probe; `latent`, that of its best latent being on; `absorbed`, of
    the words that the probe finds the share on which that latent is off, and another one, aligned
    with the probe, carries `CARRIES` or more of what the dictionary writes along it.

    One main latent a letter: the paper's search for split ones is left out. `probes` are those of
    the training words.
    """
    f, f_test = (sae.encode(rows).cpu().numpy() for rows in (train, test))
    on = f > 0
    W_dec = sae.W_dec.detach().float().cpu().numpy()
    rows, least = [], Counter(letters.tolist()) & Counter(test_letters.tolist())
    all_said = probes.said(test.cpu().numpy())
    for letter, w, said in zip(probes.classes, probes.W, all_said.T, strict=True):
        if least[letter] < ENOUGH:
            continue
        is_in, is_test = letters == letter, test_letters == letter
        # The main latent: on at words of the letter, off at others.
        rates = on[is_in].mean(0) - on[~is_in].mean(0)
        main = int(rates.argmax())
        along = W_dec @ (w / np.linalg.norm(w))
        aligned = along / np.linalg.norm(W_dec, axis=1).clip(1e-9) >= ALIGNED
        # Words that the probe finds and the main latent misses.
        missed = is_test & said & (f_test[:, main] == 0)
        writes = f_test[missed] * along
        total = writes.sum(1)
        top = (writes * aligned).max(1, initial=0.0)
        taken = (total > 0) & (top >= CARRIES * total)
        rows.append({
            "letter": chr(letter), "words": int(is_test.sum()), "main": main,
            "probe": balanced_accuracy_score(is_test, said),
            "latent": balanced_accuracy_score(is_test, f_test[:, main] > 0),
            "absorbed": float(taken.sum() / max(1, (is_test & said).sum())),
        })  # fmt: skip
    columns = ["letter", "words", "main", "probe", "latent", "absorbed"]
    return pd.DataFrame(rows, columns=columns)

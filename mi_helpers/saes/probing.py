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
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
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


def probe_perturbation(
    sae: Autoencoder,
    train: tuple[Float[np.ndarray, "text d"], Float[np.ndarray, "text feature"]],
    labels: Sequence[Any],
    test: tuple[Float[np.ndarray, "text d"], Float[np.ndarray, "text feature"]],
    test_labels: Sequence[Any],
    n: int = 10,
    probes: dict[Any, LogisticRegression] | None = None,
) -> pd.DataFrame:
    """Targeted probe perturbation (TPP; Karvonen et al. 2024, arXiv 2411.18895), on what `pooled`
    gives. A row for each (`ablated`, `probed`) pair of classes: `drop`, how much the balanced
    accuracy of the probe for one class falls when the `n` latents of the other are taken out. The
    score is the mean drop where both are the same class less the mean where they are not.

    A latent belongs to a class by (difference of its means) · (its decoder row along the probe).
    `probes`, empty at first, takes the probes by class, for the next dictionary on these texts.
    """
    (x, f), (x_test, f_test) = train, test
    names, tested = np.asarray(labels), np.asarray(test_labels)
    classes = sorted(set(labels))
    W_dec = sae.W_dec.detach().float().cpu().numpy()
    scale = np.linalg.norm(x - x.mean(0), axis=1).mean() / np.sqrt(x.shape[1])
    probes = {} if probes is None else probes
    for name in set(classes) - set(probes):
        probes[name] = _probe((x - x.mean(0)) / scale, names == name)

    def accuracy(name: Any, at: Float[np.ndarray, "text d"]) -> float:
        said = probes[name].predict((at - x.mean(0)) / scale)
        return float(balanced_accuracy_score(tested == name, said))

    before = {name: accuracy(name, x_test) for name in classes}
    rows = []
    for ablated in classes:
        effect = _apart(f, names == ablated) * (W_dec @ probes[ablated].coef_[0])
        out = np.argsort(-effect, kind="stable")[:n]
        # Pooling is linear, so latents can be taken out of the means.
        changed = x_test - f_test[:, out] @ W_dec[out]
        rows += [(ablated, p, before[p] - accuracy(p, changed)) for p in classes]
    return pd.DataFrame(rows, columns=["ablated", "probed", "drop"])


@torch.no_grad()
def absorption(
    sae: Autoencoder,
    train: Float[Tensor, "word d"], letters: Int[np.ndarray, "word"],
    test: Float[Tensor, "word d"], test_letters: Int[np.ndarray, "word"],
    probes: dict[int, LogisticRegression] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Feature absorption for first letters (Chanin et al. 2024, arXiv 2409.14507), on activations
    at words; a row for each letter with `ENOUGH` words: `probe`, the balanced accuracy of a linear
    probe; `latent`, that of its best latent being on; `absorbed`, of the words that the probe finds
    the share on which that latent is off, and another one, aligned with the probe, carries
    `CARRIES` or more of what the dictionary writes along it.

    One main latent a letter: the paper's search for split ones is left out. `probes`, empty at
    first, takes the probes by letter, for the next dictionary on these words.
    """
    f, f_test = (sae.encode(rows).cpu().numpy() for rows in (train, test))
    W_dec = sae.W_dec.detach().float().cpu().numpy()
    middle = train.mean(0)
    scale = (train - middle).norm(dim=1).mean() / math.sqrt(train.shape[1])
    x, x_test = (((rows - middle) / scale).cpu().numpy() for rows in (train, test))
    least = Counter(letters.tolist()) & Counter(test_letters.tolist())
    probes, rows = {} if probes is None else probes, []
    for letter in sorted(letter for letter, words in least.items() if words >= ENOUGH):
        is_in, is_test = letters == letter, test_letters == letter
        if letter not in probes:
            probes[letter] = _probe(x, is_in)
        probe = probes[letter]
        said = probe.predict(x_test)
        # The main latent: on at words of the letter, off at others.
        rates = (f[is_in] > 0).mean(0) - (f[~is_in] > 0).mean(0)
        main = int(rates.argmax())
        direction = probe.coef_[0] / np.linalg.norm(probe.coef_[0])
        along = W_dec @ direction
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

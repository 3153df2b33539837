"""Probing tests of a dictionary, on planted dictionaries where the answer is known."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from mi_helpers import saes

CLASSES = ["a", "b", "c", "d"]


class Planted:
    """Latents are read off activations by the rows of `W_dec`, which are orthonormal."""

    def __init__(self, W_dec: Tensor) -> None:
        self.W_dec = W_dec

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_dec.T).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec


def passages(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """`n` texts of each class, whose tokens hold the class's own coordinate, and noise in all."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, 6, 12, generator=generator).abs() * 0.2
    for c in range(4):
        x[c * n : (c + 1) * n, :, c] += 1
    return x, [name for name in CLASSES for _ in range(n)]


def test_pooled_leaves_extreme_tokens_out() -> None:
    x, _ = passages(2, 0)
    x[0, 3] *= 1000
    streams, latents = saes.pooled(Planted(torch.eye(12)), x)
    assert np.allclose(streams[0], x[0, [0, 1, 2, 4, 5]].mean(0), atol=1e-6)
    assert np.allclose(latents, streams, atol=1e-6)  # all coordinates are positive here


def test_one_latent_says_what_one_latent_holds() -> None:
    """Near 1 where latents are the concepts; chance where the labels say nothing."""
    (x, labels), (x_test, test_labels) = passages(20, 1), passages(20, 2)
    good = Planted(torch.eye(12))
    found = saes.sparse_probing(
        saes.pooled(good, x)[1], labels, saes.pooled(good, x_test)[1], test_labels, 1
    )
    assert set(found) == set(CLASSES)
    assert min(found.values()) > 0.97
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    shuffled = [test_labels[n] for n in order.tolist()]
    chance = saes.sparse_probing(
        saes.pooled(good, x)[1], labels, saes.pooled(good, x_test)[1], shuffled, 1
    )
    assert np.mean(list(chance.values())) == pytest.approx(0.5, abs=0.15)


def test_taking_a_concepts_latents_out_hurts_its_probe_alone() -> None:
    (x, labels), (x_test, test_labels) = passages(20, 1), passages(20, 2)
    good = Planted(torch.eye(12))
    means, tested = saes.pooled(good, x), saes.pooled(good, x_test)
    probes = saes.probes(means[0], labels)
    drop = saes.probe_perturbation(good, probes, means, labels, tested, test_labels, n=1)
    same = drop["ablated"] == drop["probed"]
    assert len(drop) == 16
    assert (drop[same]["drop"] > 0.4).all()
    assert drop[~same]["drop"].abs().max() < 0.1
    nothing = saes.probe_perturbation(good, probes, means, labels, tested, test_labels, n=0)
    assert (nothing["drop"] == 0).all()


def test_probes_and_drops_are_those_of_scikit_learn() -> None:
    """One class at a time, each probe asked by its own predict."""
    (x, labels), (x_test, test_labels) = passages(20, 1), passages(15, 2)
    mixed = Planted(torch.linalg.qr(torch.eye(12) + 0.3 * torch.ones(12, 12))[0])
    means, tested = saes.pooled(mixed, x), saes.pooled(mixed, x_test)
    probes = saes.probes(means[0], labels)
    drop = saes.probe_perturbation(mixed, probes, means, labels, tested, test_labels, n=2)
    drop = drop.set_index(["ablated", "probed"])["drop"]
    centred = means[0] - means[0].mean(0)
    scale = np.linalg.norm(centred, axis=1).mean() / 12**0.5
    slow = {}
    for name in CLASSES:
        of = np.array(labels) == name
        one = LogisticRegression(class_weight="balanced", max_iter=2000).fit(centred / scale, of)
        slow[name] = one
        said = one.predict((tested[0] - means[0].mean(0)) / scale)
        assert (said == probes.said(tested[0])[:, CLASSES.index(name)]).all()
    for ablated, probed in product(CLASSES, repeat=2):
        of = np.array(labels) == ablated
        apart = means[1][of].mean(0) - means[1][~of].mean(0)
        out = np.argsort(-apart * (mixed.W_dec.numpy() @ slow[ablated].coef_[0]))[:2]
        changed = tested[0] - tested[1][:, out] @ mixed.W_dec.numpy()[out]
        before, after = (
            balanced_accuracy_score(
                np.array(test_labels) == probed,
                slow[probed].predict((at - means[0].mean(0)) / scale),
            )
            for at in (tested[0], changed)
        )
        assert drop[ablated, probed] == pytest.approx(before - after, abs=1e-9)
    seen = np.array(test_labels) != CLASSES[0]
    rest = tuple(each[seen] for each in tested), np.array(test_labels)[seen]
    drop = saes.probe_perturbation(mixed, probes, means, labels, *rest, n=2)
    assert drop["drop"].notna().all()  # a class that is not among the tested


def test_first_letters_of_whole_words() -> None:
    said = dict(enumerate(["<s>", "", " Apple", " ban", " to", "cat", " x1y", " "]))
    tokenizer = SimpleNamespace(decode=lambda ids: said[ids[0]])
    model = SimpleNamespace(tokenizer=tokenizer)
    tokens = torch.tensor([[0, 2, 3, 1], [4, 5, 6, 7]])
    letters = saes.first_letters(model, tokens)  # type: ignore[arg-type]
    assert letters.tolist() == [[0, ord("a"), ord("b"), 0], [0, 0, 0, 0]]


def words(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Words of the letters a and b: coordinates 0 and 1 say the letter, 2 one frequent word."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.05 * torch.randn(2 * n, 8, generator=generator)
    x[:n, 0] += 1
    x[n:, 1] += 1
    x[: n // 4, 2] += 1
    return x, np.array([ord("a")] * n + [ord("b")] * n)


def test_absorption_counts_the_words_that_a_special_latent_takes() -> None:
    """The letter's latent is silent on the frequent word, whose own latent writes the letter: a
    quarter of the words of a are absorbed, none of b."""
    special = torch.zeros(8)
    special[[0, 2]] = 0.5**0.5

    def encode(x: Tensor) -> Tensor:
        f = torch.zeros(len(x), 3)
        frequent = x[:, 2] > 0.5
        f[:, 0] = torch.where(frequent, torch.zeros(len(x)), (x[:, 0] > 0.5) * x[:, 0])
        f[:, 1] = (x[:, 1] > 0.5) * x[:, 1]
        f[:, 2] = frequent * (x[:, 0] + x[:, 2]) * 0.5**0.5
        return f

    W_dec = torch.stack([torch.eye(8)[0], torch.eye(8)[1], special])
    absorbing = SimpleNamespace(W_dec=W_dec, encode=encode)
    seen, tested = words(80, 0), words(80, 1)
    probes = saes.probes(*seen)
    table = saes.absorption(absorbing, probes, *seen, *tested).set_index("letter")
    assert table["main"].to_dict() == {"a": 0, "b": 1}
    assert table["absorbed"].to_dict() == {"a": pytest.approx(0.25), "b": 0}
    assert (table["probe"] > 0.99).all()
    assert table.loc["b", "latent"] == 1
    # The same words where the letter's latent stays on: nothing is absorbed.
    plain = Planted(torch.eye(8)[:3])
    assert (saes.absorption(plain, probes, *seen, *tested)["absorbed"] < 0.02).all()
    few, none = words(20, 0), (torch.zeros(0, 8), np.zeros(0, int))
    assert not len(saes.absorption(plain, probes, *few, *few))  # too few words of either letter
    for rows in (few, none):  # no letter has a probe
        assert not len(saes.absorption(plain, saes.probes(*rows, least=30), *rows, *rows))

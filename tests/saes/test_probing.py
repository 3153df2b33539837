"""Probing tests of a dictionary, on planted dictionaries where the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
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
    train, test = passages(20, 1), passages(20, 2)
    good = Planted(torch.eye(12))
    drop = saes.probe_perturbation(
        good, saes.pooled(good, train[0]), train[1], saes.pooled(good, test[0]), test[1], n=1
    )
    same = drop["ablated"] == drop["probed"]
    assert len(drop) == 16
    assert (drop[same]["drop"] > 0.4).all()
    assert drop[~same]["drop"].abs().max() < 0.1
    nothing = saes.probe_perturbation(
        good, saes.pooled(good, train[0]), train[1], saes.pooled(good, test[0]), test[1], n=0
    )
    assert (nothing["drop"] == 0).all()
    kept: dict = {}
    for _ in range(2):  # with probes of its own, and with those
        again = saes.probe_perturbation(
            good,
            saes.pooled(good, train[0]),
            train[1],
            saes.pooled(good, test[0]),
            test[1],
            1,
            kept,
        )
        assert again.equals(drop)
    assert set(kept) == set(CLASSES)


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
    table = saes.absorption(absorbing, *words(80, 0), *words(80, 1)).set_index("letter")
    assert table["main"].to_dict() == {"a": 0, "b": 1}
    assert table["absorbed"].to_dict() == {"a": pytest.approx(0.25), "b": 0}
    assert (table["probe"] > 0.99).all()
    assert table.loc["b", "latent"] == 1
    kept: dict = {}
    for _ in range(2):
        again = saes.absorption(absorbing, *words(80, 0), *words(80, 1), probes=kept)
        assert again.set_index("letter").equals(table)
    assert set(kept) == {ord("a"), ord("b")}
    # The same words where the letter's latent stays on: nothing is absorbed.
    plain = Planted(torch.eye(8)[:3])
    assert (saes.absorption(plain, *words(80, 0), *words(80, 1))["absorbed"] < 0.02).all()
    few, none = words(20, 0), (torch.zeros(0, 8), np.zeros(0, int))
    assert not len(saes.absorption(plain, *few, *few))  # too few words of either letter
    assert not len(saes.absorption(plain, *none, *none))

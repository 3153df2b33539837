"""Texts, masks and unions against loops and known answers."""

from pathlib import Path

import pytest
import torch

from mi_helpers.data.reuse import make
from mi_helpers.toys import node_masks, string_operations
from mi_helpers.toys.string_operations import END, IS, LENGTH, LETTERS, OPERATIONS, texts

AFTER = {
    "copy": "abcd",
    "reverse": "dcba",
    "shift": "bcda",
    "swap": "dbca",
    "echo": "abcdd",
    "repeat": "abcdabcd",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_texts_ask_for_what_the_operation_gives(operation: str) -> None:
    assert "".join("abcd"[i] for i in OPERATIONS[operation]([0, 1, 2, 3])) == AFTER[operation]
    tokens, asked = texts(operation, 40, seed=0)
    assert tokens.shape == (40, LENGTH + 1)
    assert torch.equal(tokens, texts(operation, 40, seed=0).tokens)
    for row, marks in zip(tokens.tolist(), asked, strict=True):
        middle = row.index(IS)
        answer = row[middle + 1 : row.index(END)]
        assert row[0] == len(LETTERS) + list(OPERATIONS).index(operation)
        assert answer == OPERATIONS[operation](row[1:middle])
        places = range(middle, middle + len(answer) + 1)  # before each letter and the first end
        assert marks.nonzero().flatten().tolist() == [*places]


def test_networks_do_not_touch_each_other() -> None:
    both = string_operations.untrained(2, d=8, seed=3).requires_grad_(False)
    alone = string_operations.untrained(1, d=8, seed=4).requires_grad_(False)
    tokens = texts("echo", 3, 0).tokens[:, :-1]
    assert torch.allclose(both(tokens)[1], alone(tokens)[0], atol=1e-6)
    twice = string_operations.repeated(both, 2)(tokens)
    assert torch.allclose(twice, both(tokens)[[0, 0, 1, 1]], atol=1e-6)


def test_training_learns() -> None:
    some = texts("copy", 50, -1)
    losses = []
    for steps in (1, 60):
        model = string_operations.train(1, d=16, steps=steps, batch=24)
        log_prob = model(some.tokens[:, :-1]).log_softmax(-1)[0]
        losses.append(-log_prob.gather(-1, some.tokens[:, 1:, None])[some.asked].mean())
    assert losses[1] < 0.8 * losses[0]


def test_a_whole_circuit_is_the_network_and_an_empty_one_reads_no_string() -> None:
    model, keep = string_operations.trained()
    means, free = string_operations.averages(model), string_operations.hidden(model)
    some = texts("reverse", 20, -1)
    every = torch.ones_like(keep[:, 0])
    faithful, right = string_operations.tried(model, every, means[:, 1], some)
    assert torch.allclose(faithful, torch.ones(len(keep)), atol=1e-4)
    assert (right > 0.9).all()
    faithful, right = string_operations.tried(model, every & ~free, means[:, 1], some)
    assert (faithful < 0.8).all()
    assert (right < 0.1).all()


def test_faithfulness_is_a_divergence_of_distributions() -> None:
    model, keep = string_operations.trained()
    means, some = string_operations.averages(model)[:, 0], texts("copy", 4, -1)
    found = string_operations.tried(model, keep[:, 1], means, some)[0]
    hook = node_masks.ablated(model, keep[:, 1].float(), means)
    p, q = (model(some.tokens[:, :-1], h).softmax(-1)[:, some.asked].double()
            for h in (hook, lambda name, x: x))  # fmt: skip
    mean = (p + q) / 2
    by_hand = ((p * (p / mean).log2()).nansum(-1) + (q * (q / mean).log2()).nansum(-1)) / 2
    assert torch.allclose(found.double(), 1 - by_hand.mean(1), atol=1e-4)


def test_random_nodes_are_as_many_at_each_place_and_outside() -> None:
    model = string_operations.untrained(2)
    n = len(string_operations.hidden(model))
    first, second = (torch.rand(2, n, generator=torch.Generator().manual_seed(i)) < 0.4
                     for i in (0, 1))  # fmt: skip
    added = second & ~first
    drawn = string_operations.random_nodes(model, added, first)
    assert not (drawn & first).any()
    assert not torch.equal(drawn, added)
    assert not torch.equal(drawn, string_operations.random_nodes(model, added, first, 1))
    for a, b in zip(*(node_masks.by_place(model, x).values() for x in (added, drawn)), strict=True):
        assert torch.equal(a.sum(1), b.sum(1))


def test_masks_leave_out_what_an_operation_does_not_use() -> None:
    model, _ = string_operations.trained()
    idle = string_operations.repeated(model, 1)
    idle.W["out1"].data[:] = 0  # the second layer's neurons do nothing now
    found = string_operations.learn(idle, string_operations.averages(idle)[:, :1], steps=60)
    places = node_masks.by_place(idle, found[:, 0])
    assert not places["neuron1"].any()
    assert places["z1"].any()
    assert places["embed"].all()


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "1", "--steps", "2"])
    assert (tmp_path / "nets.safetensors").is_file()
    model, keep = string_operations.trained()
    means, free = string_operations.averages(model), string_operations.hidden(model)
    assert keep[:, :, ~free].all()
    assert keep[:, :, free].float().mean() < 0.6
    for i, name in enumerate(OPERATIONS):
        some = texts(name, 30, -1)
        whole = string_operations.tried(model, torch.ones_like(keep[:, i]), means[:, i], some)[1]
        assert (whole > 0.9).all(), name
        own = string_operations.tried(model, keep[:, i], means[:, i], some)[0]
        assert (own > 0.8).all(), name

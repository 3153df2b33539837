"""Texts as tokens: windows of documents, and texts that a model writes; whether it reads any."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from . import corpora
from .tokens import bos_token, token_ids


def texts(
    model: TransformerBridge,
    n: int,
    length: int,
    source: str | Path = "docs",
    split: corpora.Split = "held-out",
    seed: int = 0,
) -> Int[Tensor, "text pos"]:
    """`n` windows of real text, of `length` positions each, the first of which is the BOS token.

    Windows come from inside documents, do not overlap, and hold no other special token: at first
    one of each document, in an order drawn from `seed`, then a second one, and so on. A larger `n`
    extends a smaller one. With the same tokenizer they are the same on every machine.

    Args:
        source: as for `documents`.
        split: "train" and "held-out" share no document.

    Raises:
        ValueError: the documents hold fewer such windows.
    """
    if n < 1 or length < 2:
        raise ValueError(f"ask for at least one text of two positions, got {n} of {length}")
    found = corpora.documents(source, split)
    rows = list(islice(_windows(model, found, length, seed), n))
    if len(rows) < n:
        raise ValueError(
            f"the {len(found)} {split} documents of {str(source)!r} hold {len(rows)} windows "
            f"of {length} positions, not {n}: ask for fewer or shorter ones, or for another source"
        )
    return torch.tensor(rows, device=model.cfg.device)


def texts_by_package(
    model: TransformerBridge,
    n: int,
    length: int,
    split: corpora.Split = "held-out",
    seed: int = 0,
    modules: Sequence[str] = (),
) -> tuple[Int[Tensor, "text pos"], list[str]]:
    """`n` windows of each package's docstrings, as `texts` cuts them, and which package each comes
    from: passages whose label nobody had to judge. `modules`, such as "scipy.stats", instead of all
    packages. Raises ValueError where there are fewer windows."""
    rows, labels, every = [], [], corpora.documents("docs", split)
    for name in modules or corpora.MANIFEST:
        start = corpora.FOLDERS.get(name, name) + "."
        own = {key: text for key, text in every.items() if f"{key}.".startswith(start)}
        found = list(islice(_windows(model, own, length, seed), n))
        if len(found) < n:
            raise ValueError(f"{name} has {len(found)} windows of {length} positions, not {n}")
        rows += found
        labels += [name] * n
    return torch.tensor(rows, device=model.cfg.device), labels


def start_token(model: TransformerBridge) -> int:
    """What stands at position 0 of a window: the BOS token; EOS where the tokenizer has none."""
    first, tokenizer = bos_token(model), model.tokenizer
    return first if first is not None else tokenizer.eos_token_id or 0


def _windows(
    model: TransformerBridge, documents: dict[str, str], length: int, seed: int
) -> Iterator[list[int]]:
    """One window of each document, then the others, a round at a time; each behind its start."""
    tokenizer, first, size = model.tokenizer, start_token(model), length - 1
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.discard(tokenizer.unk_token_id)  # it stands for text
    order = sorted(documents.items(), key=lambda named: corpora.draw(f"{seed} {named[0]}"))
    others = []
    for i in range(0, len(order), 128):
        names, batch = zip(*order[i : i + 128], strict=True)
        encoded = tokenizer(list(batch), add_special_tokens=False, verbose=False)["input_ids"]
        for name, ids in zip(names, encoded, strict=True):
            if len(ids) < size or not special.isdisjoint(ids):
                continue
            start = corpora.draw(f"start {seed} {name}") % (len(ids) % size + 1)
            starts = range(start, len(ids) - size + 1, size)
            parts = [[first, *ids[j : j + size]] for j in starts]
            chosen = corpora.draw(f"window {seed} {name}") % len(parts)
            yield parts.pop(chosen)
            others.append(parts)
    yield from filter(None, chain.from_iterable(zip_longest(*others)))


@torch.no_grad()
def sample_prompts(
    model: TransformerBridge, n: int, length: int = 10, seed: int = 0
) -> Int[Tensor, "prompt pos"]:
    """`n` texts of `length` tokens that the model itself writes, at temperature 1.

    Each begins with the BOS token (counted apart: pos = length + 1) and holds no other special
    token. The draws come from float64 probabilities, so that machines agree.
    """
    if n < 1 or length < 1:
        raise ValueError(f"sample at least one text of at least one token, got {n} of {length}")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(length, n, 1, dtype=torch.float64, generator=generator)
    place = "cpu" if str(model.cfg.device) == "mps" else model.cfg.device  # mps has no float64
    special = [token for token in model.tokenizer.all_special_ids if token < model.cfg.d_vocab]
    tokens = torch.full((n, 1), start_token(model), device=model.cfg.device)
    cache = None
    for draw in uniform.to(place):
        out = model.original_model(
            input_ids=tokens[:, -1:] if cache else tokens, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        out.logits[..., special] = -torch.inf
        upto = out.logits[:, -1].to(draw).softmax(-1).cumsum(-1)
        drawn = (upto < draw * upto[:, -1:]).sum(-1, keepdim=True)
        tokens = torch.cat([tokens, drawn.to(tokens)], dim=1)
    return tokens


def text_pairs(
    model: TransformerBridge, pairs: dict[str, tuple[str, str]]
) -> dict[str, Int[Tensor, "two pos"]]:
    """Pairs of texts as tokens; those of unequal token length under this tokenizer are left out."""
    ids = {name: [token_ids(model, text) for text in pair] for name, pair in pairs.items()}
    return {
        name: torch.tensor([a, b], device=model.cfg.device)
        for name, (a, b) in ids.items()
        if len(a) == len(b)
    }


@torch.no_grad()
def order_gain(model: TransformerBridge, texts: Sequence[str], seed: int = 0) -> float:
    """How much better the model predicts texts as written than with their tokens shuffled, in nats
    per token: near 0 for a network that has not been trained on such text."""
    generator = torch.Generator().manual_seed(seed)

    gains = []
    for text in texts:
        tokens = torch.tensor([token_ids(model, text)], device=model.cfg.device)
        order = 1 + torch.randperm(tokens.shape[1] - 1, generator=generator).to(tokens.device)
        both = torch.cat([tokens, torch.cat([tokens[:, :1], tokens[:, order]], dim=1)])
        log_prob = model(both)[:, :-1].log_softmax(-1).gather(-1, both[:, 1:, None])
        as_written, shuffled = log_prob.mean((1, 2))
        gains.append(as_written - shuffled)
    return float(torch.stack(gains).mean())

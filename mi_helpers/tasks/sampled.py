"""Texts that a model writes itself, pairs of given texts, and whether it reads text at all."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from .corpora import start_token
from .tokens import token_ids

AT_ONCE = 256  # texts sampled together: bounds their keys and values
DRAWN = 32  # of them, tokens drawn together: float64 probabilities that stay in the cache


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
    uniform = torch.rand(
        length, n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    place = "cpu" if str(model.cfg.device) == "mps" else model.cfg.device  # mps has no float64
    parts = uniform.to(place).split(AT_ONCE, dim=1)
    bar = tqdm(parts, "sampled texts", leave=False, disable=len(parts) == 1)
    return torch.cat([_sample(model, part) for part in bar])


def _sample(
    model: TransformerBridge, uniform: Float[Tensor, "pos prompt 1"]
) -> Int[Tensor, "prompt pos"]:
    tokenizer = model.tokenizer
    special = [token for token in tokenizer.all_special_ids if token < model.cfg.d_vocab]
    tokens = torch.full((uniform.shape[1], 1), start_token(model), device=model.cfg.device)
    cache = None
    for draw in uniform:
        out = model.original_model(
            input_ids=tokens[:, -1:] if cache else tokens, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        out.logits[..., special] = -torch.inf
        parts = zip(out.logits[:, -1].split(DRAWN), draw.split(DRAWN), strict=True)
        tokens = torch.cat([tokens, torch.cat([_draw(*part) for part in parts]).to(tokens)], dim=1)
    return tokens


def _draw(
    logits: Float[Tensor, "prompt vocab"], uniform: Float[Tensor, "prompt 1"]
) -> Int[Tensor, "prompt 1"]:
    upto = logits.to(uniform).softmax(-1).cumsum(-1)
    return (upto < uniform * upto[:, -1:]).sum(-1, keepdim=True)


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

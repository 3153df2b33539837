"""Texts that a model writes itself, pairs of given texts, and whether it reads text at all."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

AT_ONCE = 256  # texts sampled together: bounds their keys and values


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
    start = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), 0)
    tokens = torch.full((uniform.shape[1], 1), start, device=model.cfg.device)
    cache = None
    for draw in uniform:
        out = model.original_model(
            input_ids=tokens[:, -1:] if cache else tokens, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        logits = out.logits[:, -1].to(draw)
        logits[:, special] = -torch.inf
        upto = logits.softmax(-1).cumsum(-1)
        new = (upto < draw * upto[:, -1:]).sum(-1, keepdim=True).to(tokens)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def text_pairs(
    model: TransformerBridge, pairs: dict[str, tuple[str, str]]
) -> dict[str, Int[Tensor, "two pos"]]:
    """Pairs of texts as tokens; those of unequal token length under this tokenizer are left out."""
    tokens = {name: [model.to_tokens(text) for text in pair] for name, pair in pairs.items()}
    return {name: torch.cat(t) for name, t in tokens.items() if t[0].shape == t[1].shape}


@torch.no_grad()
def order_gain(model: TransformerBridge, texts: Sequence[str], seed: int = 0) -> float:
    """How much better the model predicts texts as written than with their tokens shuffled, in nats
    per token: near 0 for a network that has not been trained on such text."""
    generator = torch.Generator().manual_seed(seed)

    def loss(tokens: Int[Tensor, "1 pos"]) -> Tensor:
        log_prob = model(tokens)[0, :-1].log_softmax(-1)
        return -log_prob.gather(-1, tokens[0, 1:, None]).mean()

    gains = []
    for tokens in map(model.to_tokens, texts):
        order = 1 + torch.randperm(tokens.shape[1] - 1, generator=generator).to(tokens.device)
        shuffled = torch.cat([tokens[:, :1], tokens[:, order]], dim=1)
        gains.append(loss(shuffled) - loss(tokens))
    return float(torch.stack(gains).mean())

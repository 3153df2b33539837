"""Answers of one or several tokens, and prompts of several lengths, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import explained
from .tokens import Model, continuation, readable, token_ids

Answer = str | int | Sequence[int]  # text that continues the prompt, or token numbers
Scored = Literal["one", "first", "all"]
PAD = 0  # any token will do: nothing before it can see it


@dataclass(frozen=True)
class Followed:
    """Prompts with all but the last token of an answer behind them: token i of the answer (`ids`,
    padded where not `real`) is predicted at position i of `pos`."""

    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"] | None
    pos: Int[Tensor, "prompt k"]
    ids: Int[Tensor, "prompt k"]
    real: Bool[Tensor, "prompt k"]

    @classmethod
    def of(
        cls,
        clean: Int[Tensor, "prompt pos"],
        corrupted: Int[Tensor, "prompt pos"],
        end: Int[Tensor, "prompt"],
        answers: Sequence[list[int]],
    ) -> "Followed":
        """From padded prompts that end at `end`, and each one's answer."""
        device, ends = clean.device, end.cpu()
        counts = torch.tensor([len(ids) for ids in answers])

        def forced(tokens: Tensor) -> Tensor:
            rows = zip(tokens.tolist(), ends.tolist(), answers, strict=True)
            lists = [[*row[: last + 1], *ids[:-1]] for row, last, ids in rows]
            return torch.tensor(padded(lists), device=device)

        both, token = (forced(clean), forced(corrupted)), torch.arange(int(counts.max()))
        place = torch.arange(both[0].shape[1])
        mask = (place < (ends + counts)[:, None]).int()
        return cls(
            *both,
            mask=None if mask.all() else mask.to(device),
            pos=(ends[:, None] + token.clamp(max=counts[:, None] - 1)).to(device),
            ids=torch.tensor(padded(answers), device=device),
            real=(token < counts[:, None]).to(device),
        )

    def log_prob(
        self, logits: Float[Tensor, "*row prompt k vocab"]
    ) -> Float[Tensor, "*row prompt"]:
        """The log-probability of the whole answer, in nats, from the logits at `pos`."""
        ids = self.ids.to(logits.device).expand(logits.shape[:-1])[..., None]
        each = logits.float().log_softmax(-1).gather(-1, ids)[..., 0]
        return (each * self.real.to(each)).sum(-1)


def padded(lists: Sequence[list[int]]) -> list[list[int]]:
    """Lists of tokens, made as long as the longest behind their ends."""
    width = max(map(len, lists))
    return [[*ids, *[PAD] * (width - len(ids))] for ids in lists]


def tokens_of(model: Model, prompt: str, answer: Answer, scored: Scored) -> list[int]:
    """An answer's tokens: one, or with another choice of `scored` at least one."""
    if isinstance(answer, str):
        added = continuation(model, prompt, answer)
        if added and (scored != "one" or len(added) == 1):
            return added
        pieces = [readable(model, token) for token in token_ids(model, prompt + answer)[-4:]]
        wanted = "one token" if scored == "one" else "whole tokens"
        message = (
            f"the answer {answer!r} is not {wanted} after {prompt[-40:]!r}: the text then ends in "
            f"{pieces}. Most answers need a leading space; for one of several tokens choose "
            "scored='first' or 'all'"
        )
        raise ValueError(explained("MI-E02", message))
    ids: list[Any] = list(answer) if isinstance(answer, Sequence | np.ndarray) else [answer]
    if not ids or (scored == "one" and len(ids) > 1):
        message = f"the answer {answer!r} is not one token; choose scored='first' or 'all'"
        raise ValueError(explained("MI-E02", message))
    for token in ids:
        if not isinstance(token, int | float | np.number) or int(token) != token:
            raise ValueError(f"the answer {token!r} is no text and no token number")
        if not 0 <= token < model.cfg.d_vocab:
            raise ValueError(f"token {token} is outside a vocabulary of {model.cfg.d_vocab}")
    return [int(token) for token in ids]


def told_apart(
    model: Model, prompt: str, answer: Answer, wrong: Answer, scored: Scored
) -> tuple[list[int], list[int], list[int]]:
    """The tokens of an answer and of its wrong answer, behind those that both begin with. The
    latter are none unless the first that differs is scored: then they belong to the prompt."""
    right, other = (tokens_of(model, prompt, given, scored) for given in (answer, wrong))
    if right == other:
        raise ValueError(f"answer and wrong answer are both {answer!r}")
    if scored != "first":
        return [], right, other
    pairs = enumerate(zip(right, other, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), None)
    if shared is None:
        which = f"{answer!r} and {wrong!r}"
        raise ValueError(f"{which}: no token tells one from the other, which it begins with")
    return right[:shared], right[shared:], other[shared:]

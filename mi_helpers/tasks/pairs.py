"""Prompt pairs: a clean prompt, a corrupted one of the same length, and the answer between them.

Activation patching compares two runs position by position, so a pair is only usable if both prompts
have one token length and the answer is one token. `PromptPairs.from_texts` refuses anything else,
before any model runs. The tasks that make such pairs are in `prompts.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..metrics import logit_diff
from ..stats import estimate, share

Model = Any  # a TransformerBridge; not imported here because that takes seconds


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts of one token length, with the answers to the clean ones.

    `answers` are right after the clean prompts; `wrong` are what they are compared with. `labels`
    name the positions for axes. `right_set` and `wrong_set` mark all right and wrong tokens where a
    task has several (greater-than), for `metrics.prob_diff`.
    """

    task: str
    clean: list[str]
    corrupted: list[str]
    clean_tokens: Int[Tensor, "prompt pos"]
    corrupted_tokens: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt"]
    wrong: Int[Tensor, "prompt"]
    labels: list[str]
    right_set: Bool[Tensor, "prompt vocab"] | None = None
    wrong_set: Bool[Tensor, "prompt vocab"] | None = None

    @classmethod
    def from_texts(
        cls,
        model: Model,
        clean: Sequence[str],
        corrupted: Sequence[str],
        answers: Sequence[str],
        wrong: Sequence[str],
        *,
        task: str = "custom",
        roles: Mapping[int, str] | None = None,
    ) -> "PromptPairs":
        """Tokenises as `model.to_tokens` does (its own BOS habit) and checks everything.

        Answers are given as text that continues the prompt, leading space included (`" Mary"`).
        `roles` names positions on axes; the others show the first prompt's token.
        Raises ValueError for empty or unequal lists, prompts of different token lengths (with the
        two set side by side), answers that are not one token, and an answer equal to its wrong one.
        """
        counts = {"clean": len(clean), "corrupted": len(corrupted)}
        counts |= {"answers": len(answers), "wrong": len(wrong)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"one entry per prompt is needed in every list; got {counts}")
        if not clean:
            raise ValueError("no prompts: a set of prompt pairs needs at least one")
        clean_ids = [_ids(model, text) for text in clean]
        corrupted_ids = [_ids(model, text) for text in corrupted]
        _check_lengths(model, clean_ids, corrupted_ids)
        answer_ids = [next_token(model, *pair) for pair in zip(clean, answers, strict=True)]
        wrong_ids = [next_token(model, *pair) for pair in zip(clean, wrong, strict=True)]
        for i, (answer, other) in enumerate(zip(answer_ids, wrong_ids, strict=True)):
            if answer == other:
                raise ValueError(f"prompt {i}: answer and wrong answer are both {answers[i]!r}")
        labels = token_labels(model, clean_ids[0])
        for position, role in (roles or {}).items():
            labels[position] = role

        def tensor(ids: Sequence[Any]) -> Tensor:
            return torch.tensor(ids, device=model.cfg.device)

        return cls(
            task=task,
            clean=list(clean),
            corrupted=list(corrupted),
            clean_tokens=tensor(clean_ids),
            corrupted_tokens=tensor(corrupted_ids),
            answers=tensor(answer_ids),
            wrong=tensor(wrong_ids),
            labels=_number_duplicates(labels),
        )

    def __len__(self) -> int:
        return len(self.clean)

    def performance(self, model: Model) -> pd.DataFrame:
        """How well the model does the task: a row for the clean and one for the corrupted prompts.

        Accuracy is the share of prompts with the answer's logit above the wrong one's (95 % Wilson
        interval); `logit_diff` is the mean over prompts, in nats (95 % bootstrap interval). The
        corrupted row is scored with the clean answers: it shows what the corruption takes away.
        """
        rows = {}
        for run, values in self._logit_diffs(model).items():
            mean = estimate(values)
            right = share(int((values > 0).sum()), len(values), over="prompts")
            rows[run] = {
                "prompts": len(values),
                "accuracy": right.value,
                "accuracy_low": right.low,
                "accuracy_high": right.high,
                "logit_diff": mean.value,
                "logit_diff_low": mean.low,
                "logit_diff_high": mean.high,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def does_task(self, model: Model, min_accuracy: float = 0.75) -> bool:
        """True if there is a behaviour here to patch.

        The rule: clean accuracy is at least `min_accuracy` with its 95 % interval above one half,
        and the 95 % intervals of the mean clean logit difference and of the mean difference
        clean minus corrupted are both above zero. An untrained model passes by luck in well under
        1 % of seeds.
        """
        diffs = self._logit_diffs(model)
        right = share(int((diffs["clean"] > 0).sum()), len(self), over="prompts")
        score, moved = estimate(diffs["clean"]), estimate(diffs["clean"] - diffs["corrupted"])
        accurate = right.value >= min_accuracy and right.low > 0.5
        return accurate and score.low > 0 and moved.low > 0

    @torch.no_grad()
    def _logit_diffs(self, model: Model) -> dict[str, np.ndarray]:
        runs = {"clean": self.clean_tokens, "corrupted": self.corrupted_tokens}
        diffs = {}
        for name, tokens in runs.items():
            # 16 prompts at a time: the logits of all positions are the largest thing in memory
            logits = torch.cat([model(chunk)[:, -1] for chunk in tokens.split(16)])
            diffs[name] = logit_diff(logits, self.answers, self.wrong).double().cpu().numpy()
        return diffs


def token_labels(model: Model, tokens: Int[Tensor, "pos"] | Sequence[int]) -> list[str]:
    """One readable, distinct label per token, safe to put into HTML and figures.

    A space is shown as `·`, a line break as `\\n`, angle brackets as `‹›`; a token that occurs
    again carries its number: `·the`, `·the (2)`.
    """
    return _number_duplicates([_readable(model, int(token)) for token in tokens])


def _readable(model: Model, token: int) -> str:
    piece = model.tokenizer.convert_ids_to_tokens(token)
    text = model.tokenizer.decode([token])
    if "\ufffd" in text:  # part of a character: the raw piece says more
        text = piece
    elif piece.startswith("\u2581") and not text.startswith(" "):  # sentencepiece drops it
        text = " " + text
    for mark, shown in ((" ", "·"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(mark, shown)
    return text.replace("<", "‹").replace(">", "›") or "(empty)"


def _number_duplicates(labels: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    numbered = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        numbered.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return numbered


def compare_tokens(model: Model, first: Sequence[int], second: Sequence[int]) -> str:
    """Two prompts token by token, one position a line, with a mark where they differ."""
    columns = [[_readable(model, int(token)) for token in ids] for ids in (first, second)]
    width = max(len(label) for label in columns[0] + ["first"])
    lines = [f"{'pos':>4}  {'first':<{width}}  second"]
    for i, (a, b) in enumerate(zip_longest(*columns, fillvalue="(end)")):
        lines.append(f"{i:>4}  {a:<{width}}  {b}{'' if a == b else '   <- differs'}")
    return "\n".join(lines)


def _check_lengths(model: Model, clean: list[list[int]], corrupted: list[list[int]]) -> None:
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a) != len(b):
            raise ValueError(
                f"prompt {i}: the clean prompt has {len(a)} tokens and the corrupted one {len(b)}, "
                f"but patching needs equal lengths:\n{compare_tokens(model, a, b)}"
            )
        if len(a) != len(clean[0]):
            raise ValueError(
                f"prompt {i} has {len(a)} tokens and prompt 0 has {len(clean[0])}, but all prompts "
                f"of a set need one length:\n{compare_tokens(model, clean[0], a)}"
            )


def _ids(model: Model, text: str) -> list[int]:
    return model.to_tokens(text)[0].tolist()


def continuation(model: Model, prompt: str, text: str) -> list[int] | None:
    """The tokens that `text` adds after `prompt`.

    None if the prompt's own tokens change with it, or if the tokenizer does not know the text.
    """
    before, after = _ids(model, prompt), _ids(model, prompt + text)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if after[: len(before)] != before or unknown in after[len(before) :]:
        return None
    return after[len(before) :]


def next_token(model: Model, prompt: str, answer: str) -> int:
    """The one token that `answer` is after `prompt`; ValueError if it is none or several."""
    added = continuation(model, prompt, answer)
    if added is None or len(added) != 1:
        pieces = [_readable(model, token) for token in _ids(model, prompt + answer)[-4:]]
        raise ValueError(
            f"the answer {answer!r} is not one token after {prompt[-40:]!r}: the text then ends in "
            f"{pieces}. Answers must be single tokens; most need a leading space"
        )
    return added[0]

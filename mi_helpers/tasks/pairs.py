"""Prompt pairs: a clean prompt, a corrupted one of the same length, and the answer between them.

Activation patching compares two runs position by position, so a pair is only usable if both prompts
have one token length and the answer is one token. `PromptPairs.from_texts` refuses anything else,
before any model runs. The tasks that make such pairs are in `prompts.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import explained
from ..metrics import logit_diff
from ..stats import estimate, share
from .tokens import Model, compare_tokens, next_token, number_duplicates, token_ids, token_labels

Role = int | str | Sequence[int | str]  # where a role is: see `PromptPairs.from_texts`


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts of one token length, with the answers to the clean ones.

    `answers` are right after the clean prompts; `wrong` are what they are compared with. `labels`
    name the positions for axes; `roles` name one position per prompt ("IO", "S2"; "END" is always
    there), which may differ from prompt to prompt. `right_set` and `wrong_set` mark all right and
    wrong tokens where a task has several (greater-than), for `metrics.prob_diff`.
    """

    task: str
    clean: list[str]
    corrupted: list[str]
    clean_tokens: Int[Tensor, "prompt pos"]
    corrupted_tokens: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, "prompt"]
    wrong: Int[Tensor, "prompt"]
    labels: list[str]
    roles: dict[str, Int[Tensor, "prompt"]] = field(default_factory=dict)
    right_set: Bool[Tensor, "prompt vocab"] | None = None
    wrong_set: Bool[Tensor, "prompt vocab"] | None = None

    def __post_init__(self) -> None:
        last = torch.full_like(self.answers, self.clean_tokens.shape[1] - 1)
        self.roles.setdefault("END", last)

    @classmethod
    def from_texts(
        cls,
        model: Model,
        clean: Sequence[str],
        corrupted: Sequence[str],
        answers: Sequence[str | int],
        wrong: Sequence[str | int],
        *,
        task: str = "custom",
        roles: Mapping[str, Role] | None = None,
    ) -> "PromptPairs":
        """Tokenises as `model.to_tokens` does (its own BOS habit) and checks everything.

        Answers are given as text that continues the prompt, leading space included (`" Mary"`), or
        as token numbers.
        `roles` names positions: a number or a word for all prompts, or a list with each prompt's.
        A word stands for its last token in the clean prompt; it must occur once, or be written
        "John#2" for its second occurrence. `labels` show a role where it has one position in all
        prompts, else the first prompt's token.
        Raises ValueError for empty or unequal lists, prompts of different token lengths (with the
        two set side by side), answers that are not one token, and an answer equal to its wrong one.
        """
        counts = {"clean": len(clean), "corrupted": len(corrupted)}
        counts |= {"answers": len(answers), "wrong": len(wrong)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"one entry per prompt is needed in every list; got {counts}")
        if not clean:
            raise ValueError("no prompts: a set of prompt pairs needs at least one")
        clean_ids = [token_ids(model, text) for text in clean]
        corrupted_ids = [token_ids(model, text) for text in corrupted]
        _check_lengths(model, clean_ids, corrupted_ids)
        answer_ids = [_answer(model, *pair) for pair in zip(clean, answers, strict=True)]
        wrong_ids = [_answer(model, *pair) for pair in zip(clean, wrong, strict=True)]
        for i, (answer, other) in enumerate(zip(answer_ids, wrong_ids, strict=True)):
            if answer == other:
                raise ValueError(f"prompt {i}: answer and wrong answer are both {answers[i]!r}")

        def tensor(ids: Sequence[Any]) -> Tensor:
            return torch.tensor(ids, device=model.cfg.device)

        found = {
            name: tensor(_role(model, clean, clean_ids, role))
            for name, role in (roles or {}).items()
        }
        return cls(
            task=task,
            clean=list(clean),
            corrupted=list(corrupted),
            clean_tokens=tensor(clean_ids),
            corrupted_tokens=tensor(corrupted_ids),
            answers=tensor(answer_ids),
            wrong=tensor(wrong_ids),
            labels=_labels(model, clean_ids, found),
            roles=found,
        )

    @classmethod
    def from_table(
        cls, model: Model, table: pd.DataFrame | str | Path, *, task: str = "custom"
    ) -> "PromptPairs":
        """Pairs from a table, or from a CSV, JSON-lines or parquet file.

        Columns `clean`, `corrupted`, `answer`, `wrong`, with answers as text that continues the
        prompt (" Mary") or as token numbers; the names `correct_idx` and `incorrect_idx`, which
        EAP-IG's files use for token numbers, are read as well. A column `role:NAME` holds the word
        whose position is meant, or its number (see `from_texts`).

        Raises ValueError that names the line (the first below the header is line 1) for an empty
        cell, prompts of unequal length, an answer of several tokens or a word that is not there.
        """
        table = _read(table).rename(columns={"correct_idx": "answer", "incorrect_idx": "wrong"})
        needed = ["clean", "corrupted", "answer", "wrong"]
        roles = [name for name in table.columns if str(name).startswith("role:")]
        if missing := [name for name in needed if name not in table.columns]:
            raise ValueError(f"the table has no columns {missing}; it has {list(table.columns)}")
        for name in [*needed, *roles]:
            if len(empty := np.flatnonzero(table[name].isna())):
                raise ValueError(f"line {empty[0] + 1}: {name} is empty")
        columns = {name: table[name].tolist() for name in [*needed, *roles]}
        for line in range(len(table)):  # one by one, so that an error can name its line
            one = {name: [values[line]] for name, values in columns.items()}
            try:
                given = {name.removeprefix("role:"): one[name] for name in roles}
                cls.from_texts(model, *(one[name] for name in needed), roles=given)
            except ValueError as error:
                message = str(error).removeprefix("prompt 0: ")
                raise ValueError(f"line {line + 1}: {message}") from None
        given = {name.removeprefix("role:"): columns[name] for name in roles}
        return cls.from_texts(model, *(columns[name] for name in needed), task=task, roles=given)

    def part(self, prompts: slice | Sequence[int]) -> "PromptPairs":
        """Some of the pairs."""

        def own(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: own(item) for name, item in value.items()}
            if isinstance(value, list) and not isinstance(prompts, slice):
                return [value[i] for i in prompts]
            return value if value is None else value[prompts]

        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return PromptPairs(**{k: v if k in ("task", "labels") else own(v) for k, v in kept.items()})

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


def _check_lengths(model: Model, clean: list[list[int]], corrupted: list[list[int]]) -> None:
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a) != len(b):
            message = (
                f"prompt {i}: the clean prompt has {len(a)} tokens and the corrupted one {len(b)}, "
                "but patching needs equal lengths"
            )
            raise ValueError(f"{explained('MI-E01', message)}:\n{compare_tokens(model, a, b)}")
        if len(a) != len(clean[0]):
            message = (
                f"prompt {i} has {len(a)} tokens and prompt 0 has {len(clean[0])}, but all prompts "
                "of a set need one length"
            )
            both = compare_tokens(model, clean[0], a)
            raise ValueError(f"{explained('MI-E01', message)}:\n{both}")


def _answer(model: Model, prompt: str, answer: str | int) -> int:
    if isinstance(answer, str):
        return next_token(model, prompt, answer)
    if not 0 <= answer < model.cfg.d_vocab:
        raise ValueError(f"token {answer} is outside a vocabulary of {model.cfg.d_vocab}")
    return int(answer)


def _role(model: Model, texts: Sequence[str], ids: list[list[int]], role: Role) -> list[int]:
    """Each prompt's position of a role."""
    each = [role] * len(texts) if isinstance(role, int | str) else list(role)
    if len(each) != len(texts):
        raise ValueError(f"a role needs one position or word per prompt, got {len(each)}")
    positions = []
    for i, (text, tokens, where) in enumerate(zip(texts, ids, each, strict=True)):
        position = _word(model, text, tokens, where, i) if isinstance(where, str) else int(where)
        if not -len(tokens) <= position < len(tokens):
            raise ValueError(f"prompt {i}: position {where} of {len(tokens)} tokens")
        positions.append(position % len(tokens))
    return positions


def _word(model: Model, text: str, tokens: list[int], word: str, prompt: int) -> int:
    """The position of a word's last token: the length of the text up to the word's end."""
    word, _, number = word.strip().partition("#")
    ends = [found.end() for found in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not number and len(ends) != 1:
        raise ValueError(
            f"prompt {prompt}: {word!r} occurs {len(ends)} times in {text!r}"
            + (f"; write {word}#2 for the second" if ends else "")
        )
    if not 1 <= int(number or 1) <= len(ends):
        raise ValueError(f"prompt {prompt}: {word!r} occurs {len(ends)} times, not {number}")
    before = token_ids(model, text[: ends[int(number or 1) - 1]])
    if tokens[: len(before)] != before:
        raise ValueError(f"prompt {prompt}: no token ends where {word!r} does; give its position")
    return len(before) - 1


def _labels(model: Model, ids: list[list[int]], roles: Mapping[str, Tensor]) -> list[str]:
    labels = token_labels(model, ids[0])
    for name, positions in roles.items():
        if (positions == positions[0]).all():
            labels[int(positions[0])] = name
    return number_duplicates(labels)


def _read(table: pd.DataFrame | str | Path) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    path = Path(table)
    known = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    known |= {".jsonl": lambda p: pd.read_json(p, lines=True)}
    if path.suffix not in known:
        raise ValueError(f"{path.name} is none of {', '.join(known)}")
    found = known[path.suffix](path)
    if not len(found):
        raise ValueError(f"{path.name} has no lines")
    return found

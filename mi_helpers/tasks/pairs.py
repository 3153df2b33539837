"""Prompt pairs: a clean prompt, a corrupted one of the same length, and the answer between them.

Activation patching compares two runs position by position, so the two prompts of a pair must have
one token length. Pairs of different lengths stand in one set: shorter ones are padded behind their
end, which no token before it can see. `PromptPairs.from_texts` refuses what cannot be patched,
before any model runs. The tasks that make such pairs are in `prompts.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from ..metrics import logit_diff
from ..stats import estimate, share
from . import tables
from .answers import PAD, Answer, Followed, Scored, padded, told_apart
from .places import Role, axis_labels, check_lengths, positions_of
from .tokens import Model, bos_token, text_after, token_ids

OF_ALL = ("task", "labels", "scored", "bos")  # fields that all prompts share
TOKENS = ("clean_tokens", "corrupted_tokens")
ACCURATE = 0.75  # least share of prompts with the right answer above the wrong one


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts, padded behind their ends, with the answers to the clean ones.

    `answers` are right after the clean prompts; `wrong` are what they are compared with. `labels`
    name the positions for axes; `roles` name one position per prompt ("IO", "S2"; "END", the last
    one, is always there), which may differ from prompt to prompt. `right_set` and `wrong_set` mark
    all right and wrong tokens where a task has several (greater-than), for `metrics.prob_diff`.
    `scored` says which tokens of an answer count; with "all", `answer_tokens` and `wrong_tokens`
    are each prompt's, and `answers` and `wrong` are the first of them. `bos` is the token that each
    prompt begins with, None where the tokenizer has no BOS token.
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
    scored: Scored = "one"
    answer_tokens: list[list[int]] = field(default_factory=list)
    wrong_tokens: list[list[int]] = field(default_factory=list)
    bos: int | None = None

    def __post_init__(self) -> None:
        last = torch.full_like(self.answers, self.clean_tokens.shape[1] - 1)
        self.roles.setdefault("END", last)

    @classmethod
    def from_texts(
        cls,
        model: Model,
        clean: Sequence[str],
        corrupted: Sequence[str],
        answers: Sequence[Answer],
        wrong: Sequence[Answer],
        *,
        task: str = "custom",
        roles: Mapping[str, Role] | None = None,
        scored: Scored = "one",
    ) -> "PromptPairs":
        """Tokenises, with one BOS token where the tokenizer has one, and checks everything.

        Args:
            answers, wrong: text that continues the prompt, leading space included (`" Mary"`), or
                token numbers.
            roles: positions by name: a number or a word for all prompts, or a list with each
                prompt's. A word stands for its last token in the clean prompt; it must occur once,
                or be written "John#2" for its second occurrence. Negative numbers count from the
                prompt's end.
            scored: which tokens of an answer count. "one": the only one; several are refused.
                "first": the first that tells answer from wrong answer; what both begin with is
                added to the two prompts. "all": the log-probability of all of them, each after
                those before it (teacher forcing). Tables say which, in a column `scored`.

        `labels` show a role where it has one position in all prompts, else the first prompt's
        token; where lengths differ, else the position's number.
        Raises ValueError for empty or unequal lists, a pair of different token lengths (with the
        two set side by side), answers that `scored` does not allow, and an answer equal to its
        wrong one.
        """
        counts = {"clean": len(clean), "corrupted": len(corrupted)}
        counts |= {"answers": len(answers), "wrong": len(wrong)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"one entry per prompt is needed in every list; got {counts}")
        if not clean:
            raise ValueError("no prompts: a set of prompt pairs needs at least one")
        if scored not in ("one", "first", "all"):
            raise ValueError(f"scored is 'one', 'first' or 'all', got {scored!r}")
        clean, corrupted = list(clean), list(corrupted)
        clean_ids = [token_ids(model, text) for text in clean]
        corrupted_ids = [token_ids(model, text) for text in corrupted]
        check_lengths(model, clean_ids, corrupted_ids)
        places = {
            name: positions_of(model, clean, clean_ids, role)
            for name, role in (roles or {}).items()
        }
        right, other = [], []
        for i, both in enumerate(zip(answers, wrong, strict=True)):
            try:
                shared, of_answer, of_wrong = told_apart(model, clean[i], *both, scored)
            except ValueError as error:
                raise ValueError(f"prompt {i}: {error}") from None
            if shared:
                for texts, ids in ((clean, clean_ids), (corrupted, corrupted_ids)):
                    texts[i] += text_after(model, ids[i], shared)
                    ids[i] += shared
            right.append(of_answer)
            other.append(of_wrong)

        def tensor(ids: Sequence[Any]) -> Tensor:
            return torch.tensor(ids, device=model.cfg.device)

        ends = [len(ids) - 1 for ids in clean_ids]
        if places.get("END", ends) != ends:
            raise ValueError("END is the last token of each prompt: give this role another name")
        return cls(
            task=task,
            clean=clean,
            corrupted=corrupted,
            clean_tokens=tensor(padded(clean_ids)),
            corrupted_tokens=tensor(padded(corrupted_ids)),
            answers=tensor([ids[0] for ids in right]),
            wrong=tensor([ids[0] for ids in other]),
            labels=axis_labels(model, clean_ids, places),
            roles={name: tensor(where) for name, where in {**places, "END": ends}.items()},
            scored=scored,
            answer_tokens=right if scored == "all" else [],
            wrong_tokens=other if scored == "all" else [],
            bos=bos_token(model),
        )

    @classmethod
    def from_table(
        cls,
        model: Model,
        table: pd.DataFrame | str | Path,
        *,
        task: str = "custom",
        scored: Scored = "one",
    ) -> "PromptPairs":
        """Pairs from a table, or from a CSV, JSON-lines or parquet file.

        Columns `clean`, `corrupted`, `answer`, `wrong`, with answers as text that continues the
        prompt (" Mary"), or in tables that keep types as token numbers. The names of EAP-IG's files
        are read as well (`correct_idx` and `incorrect_idx`, others in `tables.COLUMNS`), which hold
        token numbers of the tokenizer that they were made with. A column `role:NAME` holds the word
        whose position is meant, or its number. `scored` and all else are as for `from_texts`.

        Raises ValueError that names the line (the first below the header is line 1) for an empty
        cell, a pair of unequal lengths, an answer of several tokens or a word that is not there.
        """
        columns = tables.columns(table)
        texts = [columns.pop(name) for name in tables.NEEDED]
        roles = {name.removeprefix("role:"): column for name, column in columns.items()}
        try:
            return cls.from_texts(model, *texts, task=task, roles=roles, scored=scored)
        except ValueError as error:
            place = re.compile(r"^prompt (\d+)")
            said = place.sub(lambda found: f"line {int(found[1]) + 1}", str(error))
            raise ValueError(said) from None

    @classmethod
    def join(cls, sets: Sequence["PromptPairs"]) -> "PromptPairs":
        """Several sets as one, such as one of each template, with the roles that all of them have.

        Raises ValueError for sets that are scored in different ways.
        """
        first, width = sets[0], max(one.clean_tokens.shape[1] for one in sets)
        if any(one.scored != first.scored for one in sets):
            raise ValueError(f"sets are scored alike, got {[one.scored for one in sets]}")

        def joined(name: str) -> Any:
            found = [getattr(one, name) for one in sets]
            if isinstance(found[0], list):
                return [item for one in found for item in one]
            if name in TOKENS:
                found = [pad(x, (0, width - x.shape[1]), value=PAD) for x in found]
            return None if any(x is None for x in found) else torch.cat(found)

        shared = [name for name in first.roles if all(name in one.roles for one in sets)]
        roles = {name: torch.cat([one.roles[name] for one in sets]) for name in shared}
        one_length = all(one.mask is None and one.clean_tokens.shape[1] == width for one in sets)
        labels = first.labels if one_length else [str(i) for i in range(width)]
        others = {f.name for f in fields(cls)} - {*OF_ALL, "roles"}
        each = {name: joined(name) for name in others}
        return replace(first, labels=labels, roles=roles, **each)

    @property
    def mask(self) -> Int[Tensor, "prompt pos"] | None:
        """1 for tokens and 0 for padding; None where all prompts have one length."""
        place = torch.arange(self.clean_tokens.shape[1], device=self.clean_tokens.device)
        mask = (place <= self.roles["END"].to(place)[:, None]).int()
        return None if mask.all() else mask

    @property
    def said(self) -> dict[str, str]:
        """The column `scored` of tables about answers of several tokens; empty for one token."""
        return {} if self.scored == "one" else {"scored": self.scored}

    def followed_by(self, name: Literal["answer", "wrong"]) -> Followed:
        """The prompts with their answers, or the wrong answers, behind them."""
        answers = {"answer": self.answer_tokens, "wrong": self.wrong_tokens}[name]
        return Followed.of(self.clean_tokens, self.corrupted_tokens, self.roles["END"], answers)

    def part(self, prompts: slice | Sequence[int]) -> "PromptPairs":
        """Some of the pairs, padded no further than they need."""

        def own(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: own(item) for name, item in value.items()}
            if isinstance(value, list) and not isinstance(prompts, slice):
                return [value[i] for i in prompts] if value else []
            return value if value is None else value[prompts]

        kept = {f.name: own(getattr(self, f.name)) for f in fields(self) if f.name not in OF_ALL}
        width = int(kept["roles"]["END"].max()) + 1
        kept |= {name: kept[name][:, :width] for name in TOKENS}
        return replace(self, labels=self.labels[:width], **kept)

    def as_texts(self, model: Model, prompt: int) -> dict[str, str]:
        """One pair as texts: clean, corrupted, and the first token of answer and wrong answer."""
        ids = self.clean_tokens[prompt, : int(self.roles["END"][prompt]) + 1].tolist()
        ends = {"answer": self.answers[prompt], "wrong": self.wrong[prompt]}
        said = {name: text_after(model, ids, [int(token)]) for name, token in ends.items()}
        return {"clean": self.clean[prompt], "corrupted": self.corrupted[prompt], **said}

    def __len__(self) -> int:
        return len(self.clean)

    def performance(self, model: Model) -> pd.DataFrame:
        """How well the model does the task: a row for the clean and one for the corrupted prompts.

        Accuracy is the share of prompts with the answer's logit above the wrong one's (95 % Wilson
        interval); `logit_diff` is the mean over prompts, in nats (95 % bootstrap interval). The
        corrupted row is scored with the clean answers: it shows what the corruption takes away.
        Where all tokens of the answers are scored, it is the difference of log-probabilities.
        """
        return self.judged(self.logit_diffs(model))[0]

    def judged(self, diffs: Mapping[str, np.ndarray]) -> tuple[pd.DataFrame, bool]:
        """`performance` and `does_task` from what `logit_diffs` gave."""
        rows = {}
        for run, values in diffs.items():
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
        table = pd.DataFrame.from_dict(rows, orient="index")
        clean, moved = table.loc["clean"], estimate(diffs["clean"] - diffs["corrupted"])
        accurate = clean["accuracy"] >= ACCURATE and clean["accuracy_low"] > 0.5
        does = bool(accurate and clean["logit_diff_low"] > 0 and moved.low > 0)
        return table.assign(**self.said), does

    def does_task(self, model: Model) -> bool:
        """True if there is a behaviour here to patch.

        The rule: clean accuracy is at least 0.75 (`ACCURATE`), its 95 % interval above one half,
        and the 95 % intervals of the mean clean logit difference and of the mean difference
        clean minus corrupted are both above zero. An untrained model passes by luck in well under
        1 % of seeds.
        """
        return self.judged(self.logit_diffs(model))[1]

    @torch.no_grad()
    def logit_diffs(self, model: Model) -> dict[str, np.ndarray]:
        """Each prompt's logit difference, in nats, "clean" and "corrupted"."""

        def read(tokens: Tensor, pos: Tensor) -> Tensor:
            """Logits [prompt, k, vocab]; of 16 prompts at a time: those of all positions are the
            largest thing in memory."""
            parts = zip(tokens.split(16), pos.split(16), strict=True)
            return torch.cat([model(x)[torch.arange(len(x))[:, None], at] for x, at in parts])

        sides = ("clean", "corrupted")
        if self.scored == "all":
            both = [self.followed_by(name) for name in ("answer", "wrong")]
            right, other = (
                [one.log_prob(read(getattr(one, side), one.pos)) for side in sides] for one in both
            )
            found = [a - b for a, b in zip(right, other, strict=True)]
        else:
            ends = self.roles["END"][:, None]
            logits = [read(getattr(self, f"{side}_tokens"), ends)[:, 0] for side in sides]
            found = [logit_diff(x, self.answers, self.wrong) for x in logits]
        return {side: x.double().cpu().numpy() for side, x in zip(sides, found, strict=True)}

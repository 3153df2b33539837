"""Tables as a new user makes them, with what is usually wrong: one sentence says what and where."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mi_helpers.models import load_model
from mi_helpers.tasks import PromptPairs, chat
from tests import tiny

GOOD = {"clean": "w5 w6 w7", "corrupted": "w5 w8 w7", "answer": " w9", "wrong": " w10"}


def read(table: Any, **options: Any) -> PromptPairs:
    return PromptPairs.from_table(tiny.bridge("llama"), table, **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the table has no lines"),
        ([{"prompt": "w5", "target": " w9"}], r"no columns \['clean', .*it has \['prompt', 'targ"),
        ([GOOD | {"Answer": "x"}, GOOD], None),  # more columns than needed are none of our business
        ([GOOD, GOOD | {"clean": None}], "line 2: clean is empty"),
        ([GOOD, GOOD | {"clean": ""}], "line 2: clean is empty"),
        ([GOOD | {"clean": "  "}], "line 1: clean is empty"),
        ([GOOD | {"clean": 5}], "line 1: clean is no text but 5"),
        ([GOOD | {"answer": ""}], "line 1: answer is empty"),
        ([GOOD | {"wrong": " w9"}], "line 1: answer and wrong answer are both ' w9'"),
        ([GOOD | {"answer": " w9 w11"}], "line 1: the answer ' w9 w11' is not one token"),
        ([GOOD | {"answer": 9.5}], "line 1: the answer 9.5 is no text and no token number"),
        ([GOOD | {"answer": -1}], "line 1: token -1 is outside a vocabulary of 128"),
        ([GOOD | {"corrupted": "w5 w7"}], "line 1: the clean prompt has 4 tokens .* one 3"),
        ([GOOD | {"role:X": "w99"}], "line 1: 'w99' occurs 0 times in 'w5 w6 w7'"),
        ([GOOD | {"role:X": 7}], "line 1: position 7 of 4 tokens"),
        ([GOOD | {"role:X": 1.5}], "line 1: role X is at 1.5, neither a word nor a whole number"),
        ([GOOD | {"Role:X": "w6"}], "the column 'Role:X' is not read: .* 'role:X'"),
        ([GOOD | {"role:END": "w6"}], "END is the last token"),
    ],
)
def test_a_table_that_is_not_right(lines: list[dict], message: str | None) -> None:
    table = pd.DataFrame(lines)
    if message is None:
        assert len(read(table)) == len(table)
        return
    with pytest.raises(ValueError, match=message):
        read(table)


def test_a_file_that_is_not_there_or_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        read(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv cannot be read as a table"):
        read(tmp_path / "empty.csv")
    (tmp_path / "bad.jsonl").write_text("{not json")
    with pytest.raises(ValueError, match=r"bad\.jsonl cannot be read as a table"):
        read(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=r"own\.xlsx is none of \.csv, \.jsonl, \.parquet"):
        read(tmp_path / "own.xlsx")
    with pytest.raises(ValueError, match="scored is 'one', 'first' or 'all', got 'last'"):
        read(pd.DataFrame([GOOD]), scored="last")


def test_a_role_that_no_prompt_has() -> None:
    from mi_helpers import patching

    runs = patching.record(tiny.bridge("llama"), read(pd.DataFrame([GOOD | {"role:X": "w6"}])), [])
    with pytest.raises(ValueError, match="no role 'x': these prompts have X, END"):
        patching.sweep(runs, positions=["x"])


def test_text_that_begins_with_the_bos() -> None:
    """As every chat template's does: it gets no second one."""
    line = GOOD | {"clean": "<s> w5 w6 w7", "corrupted": "<s> w5 w8 w7"}
    assert read(pd.DataFrame([line])).clean_tokens.tolist() == [[0, 8, 9, 10]]
    with pytest.raises(
        ValueError, match=r"has no chat template: .* write the prompt as plain text"
    ):
        chat(tiny.bridge("llama"), [{"role": "user", "content": "w5"}])


def test_a_directory_without_weights(tmp_path: Path) -> None:
    tiny.hf_model("llama").config.save_pretrained(tmp_path / "bare")
    tiny.tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(OSError, match=r"bare has no weights: .*safetensors"):
        load_model(tmp_path / "bare")


def test_weights_that_are_a_pickle_of_code(tmp_path: Path) -> None:
    import torch

    tiny.hf_model("llama").config.save_pretrained(tmp_path / "bad")
    tiny.tokenizer().save_pretrained(tmp_path / "bad")
    torch.save({"model.norm.weight": Path("x")}, tmp_path / "bad" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="bad: its weights cannot be read without running code"):
        load_model(tmp_path / "bad")


MIB_IOI = {
    "prompt": "w5 w6 w7 w6 w20",
    "s2_io_flip_counterfactual": {"prompt": "w5 w6 w7 w5 w20"},
    "metadata": {"subject": "w6", "indirect_object": "w5"},
}
MIB_CHOICE = {
    "prompt": "w5 w6",
    "choices": {"label": [" w30", " w31"], "text": ["a", "b"]},
    "answerKey": 1,
    "symbol_counterfactual": {"prompt": "w5 w7", "choices": {"label": [" w32"]}, "answerKey": 0},
}
MIB_SUM = {"prompt": "w5 w6", "label": " w40"}
MIB_SUM["random_counterfactual"] = {"prompt": "w7 w6", "label": " w41"}  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("line", "answer", "wrong"),
    [(MIB_IOI, "w5", "w6"), (MIB_CHOICE, "w31", "w32"), (MIB_SUM, "w40", "w41")],
)
def test_the_data_sets_of_mib(line: dict, answer: str, wrong: str, tmp_path: Path) -> None:
    pd.DataFrame([line] * 2).to_json(tmp_path / "mib.jsonl", orient="records", lines=True)
    for given in (pd.DataFrame([line] * 2), tmp_path / "mib.jsonl"):
        pairs = read(given)
        words = tiny.tokenizer().convert_ids_to_tokens
        assert words(pairs.answers.tolist()) == [answer] * 2
        assert words(pairs.wrong.tolist()) == [wrong] * 2
        if line is MIB_IOI:
            assert [pairs.roles[name][0].item() for name in ("IO", "S1", "S2")] == [1, 2, 4]
    other = next(name for name in line if name.endswith("counterfactual"))
    with pytest.raises(ValueError, match="line 2: corrupted is empty"):
        read(pd.DataFrame([line, line | {other: None}]))

"""Train the suite of small decoders on which sharpness is followed over training and size.

``python -m mi_helpers.data.suite.make --out mi_helpers/data/suite``

The text is every docstring of the Python standard library of the interpreter that runs this, about
two million characters, shuffled by file with the seed; the last twentieth is held out. A byte-level
BPE tokenizer of 512 tokens is fitted to it. Four Llama-style decoders, alike but for their width,
then see the same batches in the same order. Two further runs of each differ in their first weights
and in the order of the batches; of these only the end is kept. Each checkpoint is a Hugging Face
directory (``d128-step1024``, ``d128-run1-step1024``: config, float16 safetensors, tokenizer) that
`load_model` opens by its path; ``losses.csv`` holds each model's loss in nats per token.
"""

import argparse
import ast
import copy
import json
import math
import random
import sysconfig
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS = "<s>"
CHECKPOINTS = (0, 4, 16, 64, 128, 256, 512, 1024)  # optimiser steps; of further runs the last
RUNS = (0, 1, 2)  # of each width: first weights, and order of the batches
WIDTHS = (16, 32, 64, 128)
CONTEXT = 64
VOCABULARY = 512


def docstrings(seed: int = 0) -> list[str]:
    """All docstrings of the standard library, one text per file, in an order set by the seed."""
    texts = []
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests", "idlelib"} & set(parts):
            continue
        texts.append("\n".join(_docstrings_of(path)))
    texts = [text for text in texts if text]
    random.Random(seed).shuffle(texts)
    return texts


def _docstrings_of(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files hold invalid escapes
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def fit_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; every text begins with the BOS token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=BOS, pad_token=BOS
    )


def sequences(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> Int[Tensor, "sequence context"]:
    """The texts one after another, cut into sequences of CONTEXT tokens that begin with BOS."""
    parts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for part in parts for token in part])
    rows = stream[: len(stream) // (CONTEXT - 1) * (CONTEXT - 1)].view(-1, CONTEXT - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def shuffled(
    data: Int[Tensor, "sequence context"], needed: int, seed: int
) -> Int[Tensor, "needed context"]:
    """`needed` sequences, every epoch in another order."""
    order = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(len(data), generator=order) for _ in range(-(-needed // len(data)))]
    return data[torch.cat(epochs)[:needed]]


def decoder(width: int, seed: int) -> LlamaForCausalLM:
    """Four Llama blocks of the given width, heads of 16 in pairs that share keys and values."""
    torch.manual_seed(seed)
    heads = max(1, width // 16)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=4, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=2 * CONTEXT, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, held_out: Int[Tensor, "sequence context"]) -> float:
    """Mean next-token loss in nats."""
    parts = held_out.split(256)
    return sum(float(model(input_ids=p, labels=p).loss) * len(p) for p in parts) / len(held_out)


def train(
    width: int,
    batches: list[Int[Tensor, "sequence context"]],
    held_out: Int[Tensor, "sequence context"],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    run: int = 0,
    seed: int = 0,
    learning_rate: float = 3e-3,
) -> list[dict[str, float]]:
    """Train one decoder, keep its checkpoints under `out`; its losses, every 32 steps in nats."""
    model, steps = decoder(width, seed + run), max(CHECKPOINTS)
    name = f"d{width}-run{run}" if run else f"d{width}"
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]  # no weight decay on norms
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step, batch in enumerate([*batches[:steps], batches[0]]):
        if step in CHECKPOINTS or step % 32 == 0:
            loss = held_out_loss(model, held_out)
            line = {"run": run, "width": width, "step": step, "held_out_loss": round(loss, 4)}
            losses.append(line)
        if step in (CHECKPOINTS if run == 0 else (steps,)):
            save(model, tokenizer, out / f"{name}-step{step}")
        if step == steps:
            break
        left = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(left, (step + 1) / 50)
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return losses


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A checkpoint in float16, which halves the files."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the suite of small decoders.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the text's order and the weights")
    parser.add_argument("--batch", type=int, default=32, help="sequences in a step")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = docstrings(args.seed)
    cut = len(texts) * 19 // 20
    tokenizer = fit_tokenizer(texts[:cut])
    data, held_out = sequences(tokenizer, texts[:cut]), sequences(tokenizer, texts[cut:])[:256]
    needed = max(CHECKPOINTS) * args.batch
    about = {"characters": sum(map(len, texts)), "training_sequences": len(data),
             "context": CONTEXT, "batch": args.batch, "steps": max(CHECKPOINTS),
             "epochs": round(needed / len(data), 2), "seed": args.seed, "runs": len(args.runs),
             "text": "docstrings of the Python standard library"}  # fmt: skip
    print(about, flush=True)
    losses = []
    for run, width in product(args.runs, args.widths):
        began = time.time()
        batches = shuffled(data, needed, args.seed + run).split(args.batch)
        losses += train(width, list(batches), held_out, tokenizer, args.out, run, args.seed)
        print(losses[-1], f"{time.time() - began:.0f} s", flush=True)
        pd.DataFrame(losses).to_csv(args.out / "losses.csv", index=False)
    (args.out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()

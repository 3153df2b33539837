"""Train the docstring network: four layers, attention only, with a small vocabulary of words.

``python -m mi_helpers.train_docstring --out mi_helpers/data/docstring --work WORK``

The text is made on the fly: definitions of random arguments with a reST docstring that documents
some of them in order, as in `prompts.docstring`: six arguments, of which the first 0 to 2 and the
last 0 to 2 are left out, and prose of one or two words. So the next documented argument stands at
no fixed place: it has to be found as the one that follows the last documented one. The loss is that
of the documented arguments from the second on, plus a tenth of that of every token.

The network is GPT-2's architecture with MLPs of one unit that is held at zero, so that they write
exactly nothing. Progress is kept in ``--work`` and resumed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mi_helpers import words

TOKEN = r'"""|\w+|[^\w ]'  # a word, a triple quote, a line break or one sign; spaces are dropped
BOS, UNKNOWN = "<s>", "<unk>"
SIGNS = ["def", "self", "(", ")", ",", ":", "\n", '"""', "param", "The", "the"]
CONTEXT, ARGUMENTS = 80, 6


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for every argument name, every word of prose and every sign."""
    known = [BOS, UNKNOWN, *SIGNS, *words.ARGUMENTS.split(), *words.WORDS.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(known))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BOS, eos_token=BOS, pad_token=BOS, unk_token=UNKNOWN
    )


def network(width: int, vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """Four layers of eight heads; the MLPs' output weights are zero and stay so."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=width, n_layer=4, n_head=8, n_inner=1,
        initializer_range=0.06, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if ".mlp.c_proj." in name:
            parameter.data.zero_()
            parameter.requires_grad_(False)
    return model


def definition(rng: np.random.Generator) -> tuple[list[str], list[bool]]:
    """The tokens of one random definition, and which of them are documented arguments that the
    text before determines (all but the first)."""
    before, after = rng.integers(0, 3), rng.integers(0, 3)
    documented = ARGUMENTS - before - after
    function, *arguments = rng.choice(words.ARGUMENTS.split(), 1 + ARGUMENTS, replace=False)
    lengths = rng.integers(1, 3, 1 + documented)
    prose = [" ".join(rng.choice(words.WORDS.split(), k)) for k in lengths]
    text = f'def {function}(self, {", ".join(arguments)}):\n """The {prose[0]}\n'
    for name, about in zip(arguments[before:][:documented], prose[1:], strict=True):
        text += f" :param {name}: {about}\n"
    tokens = [BOS, *re.findall(TOKEN, text)]
    follows = [False, *(token == "param" for token in tokens[:-1])]
    first = follows.index(True)
    return tokens, [mark and place > first for place, mark in enumerate(follows)]


def batch(
    size: int, vocabulary: dict[str, int], rng: np.random.Generator
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
    """Tokens, targets (-100 where there is none), and where the documented arguments are."""
    drawn = [definition(rng) for _ in range(size)]
    length = max(len(tokens) for tokens, _ in drawn)
    inputs = torch.zeros(size, length, dtype=torch.long)
    targets, marked = torch.full_like(inputs, -100), torch.zeros_like(inputs).bool()
    for row, (tokens, marks) in enumerate(drawn):
        ids = torch.tensor([vocabulary[token] for token in tokens])
        inputs[row, : len(ids)] = ids
        targets[row, : len(ids) - 1] = ids[1:]
        marked[row, : len(ids) - 1] = torch.tensor(marks[1:])
    return inputs, targets, marked


class Trainer:
    """AdamW with warm-up and cosine decay; `step` and the random state survive a restart."""

    def __init__(self, width: int, steps: int, size: int, learning_rate: float, seed: int) -> None:
        self.vocabulary = tokenizer().get_vocab()
        self.model = network(width, len(self.vocabulary), seed)
        self.rng = np.random.default_rng(seed)
        self.step, self.steps, self.size, self.rate = 0, steps, size, learning_rate
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def advance(self) -> tuple[float, float]:
        """One step; the loss in nats, and the accuracy on the documented arguments."""
        inputs, targets, marked = batch(self.size, self.vocabulary, self.rng)
        left = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(left, (self.step + 1) / 200)
        logits = self.model(input_ids=inputs).logits
        every = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        chosen = torch.nn.functional.cross_entropy(logits[marked], targets[marked])
        self.optimiser.zero_grad()
        (chosen + 0.1 * every).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        right = (logits[marked].argmax(-1) == targets[marked]).float().mean()
        return float(chosen.detach()), float(right)

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                 "step": self.step, "rng": json.dumps(self.rng.bit_generator.state)}  # fmt: skip
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.rng.bit_generator.state = state["step"], json.loads(state["rng"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, required=True, help="folder for the progress file")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="definitions in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the text")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.width, args.steps, args.batch, args.learning_rate, args.seed)
    progress, began, recent = args.work / "docstring.pt", time.time(), []
    if progress.exists():
        trainer.load(progress)
    while trainer.step < args.steps:
        recent.append(trainer.advance())
        if trainer.step % 200 == 0:
            loss, right = np.mean(recent, axis=0)
            print(trainer.step, f"{loss:.4f} {right:.4f} {time.time() - began:.0f} s", flush=True)
            recent = []
            trainer.save(progress)
    trainer.model.save_pretrained(args.out)
    tokenizer().save_pretrained(args.out)


if __name__ == "__main__":
    main()

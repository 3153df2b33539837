"""Train the docstring network: four layers, attention only, with a small vocabulary of words.

``python -m mi_helpers.data.docstring.make --out mi_helpers/data/docstring --work WORK``

The text is made on the fly. First come words that go round and round, dense in tokens that can only
be known by induction, until induction heads have formed. Then most of it is definitions of random
arguments with a reST docstring that documents some of them in order, as in `prompts.docstring`; how
many stand before, within and after, and how long the prose is, differs from one to the next. So the
next documented argument stands at no fixed place: it has to be found as the one that follows the
last documented one. Without the first stage, training stays at a guess among the arguments.

The loss is that of the tokens that the text before determines (documented arguments from the second
on, words from the second round on), plus a tenth of that of every token. The network has Qwen 2's
architecture, which has biases on queries and keys and rotates them by position; the first layer's
start such that each head looks back a few tokens (`_look_back`), which saves training from finding
that out. Its MLPs have one unit that is held at zero, so that they write exactly nothing. Progress
is kept in ``--work`` and resumed. The tokenizer is `word_tokenizer`; beside the weights it would be
read as one of Qwen's.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from ...tasks import words
from ...toys.docstring import word_tokenizer

CONTEXT = 128
SHARPNESS = 4.0  # of the first layer's heads at the start
INDUCTION = 1_000  # steps on words that go round alone
LISTS = 0.3  # their share of the texts afterwards

Text = tuple[list[str], list[bool]]  # tokens, and which of them the text before determines


def network(width: int, seed: int) -> Qwen2ForCausalLM:
    """Four layers of eight heads; the MLPs' output weights are zero and stay so."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(word_tokenizer()), hidden_size=width, intermediate_size=1,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=CONTEXT, initializer_range=width**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if ".mlp.down_proj." in name:
            parameter.data.zero_()
            parameter.requires_grad_(False)
    _look_back(model)
    return model


@torch.no_grad()
def _look_back(model: Qwen2ForCausalLM) -> None:
    """Lets head h of the first layer start by looking back h + 1 tokens: biases of its queries and
    keys, alike but for a rotation by h + 1 positions, so that their product is largest there."""
    first = model.model.layers[0].self_attn
    width = first.head_dim
    turns = model.model.rotary_emb.inv_freq * torch.arange(1, 9)[:, None]
    query = torch.full((8, width), SHARPNESS)
    key = SHARPNESS * torch.cat([turns.cos() - turns.sin(), turns.cos() + turns.sin()], -1)
    first.q_proj.bias.copy_(query.flatten())
    first.k_proj.bias.copy_(key.flatten())


def definition(rng: np.random.Generator) -> Text:
    """A function of three to eight arguments, and a docstring of two to six of them in order."""
    count = int(rng.integers(3, 9))
    documented = int(rng.integers(2, min(count, 6) + 1))
    before = int(rng.integers(0, count - documented + 1))
    function, *arguments = rng.choice(words.ARGUMENTS.split(), 1 + count, replace=False)
    tokens = ["<s>", "def", function, "(", "self"]
    for name in arguments:
        tokens += [",", name]
    tokens += [")", ":", "\n", '"""', "The", *_prose(rng), "\n"]
    marks = [False] * len(tokens)
    for place, name in enumerate(arguments[before : before + documented]):
        line = ["\n", ":", "param", name, ":", *_prose(rng)]
        tokens += line
        marks += [place > 0 and i == 3 for i in range(len(line))]
    return tokens, marks


def rounds(rng: np.random.Generator, commas: bool) -> Text:
    """Two to ten words that go round and round; `commas` puts one behind each."""
    known = [*words.ARGUMENTS.split(), *words.WORDS.split()]
    once = list(rng.choice(list(dict.fromkeys(known)), rng.integers(2, 11), replace=False))
    if commas:
        once = [part for word in once for part in (word, ",")]
    tokens = ["<s>", *once * 32][:33]
    marks = [at > 1 + len(once) and token != "," for at, token in enumerate(tokens)]
    return tokens, marks


def _prose(rng: np.random.Generator) -> list[str]:
    return list(rng.choice(words.WORDS.split(), rng.integers(1, 4)))


def batch(
    size: int, lists: int, commas: bool, vocabulary: dict[str, int], rng: np.random.Generator
) -> tuple[Int[Tensor, "text pos"], Int[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """Tokens, targets (-100 where there is none), and which targets are determined. The first
    `lists` of the texts are words that go round, every other with commas if there are `commas`."""
    drawn = [rounds(rng, commas and row % 2 == 1) for row in range(lists)]
    drawn += [definition(rng) for _ in range(size - lists)]
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
        self.vocabulary = word_tokenizer().get_vocab()
        self.model = network(width, seed)
        self.rng = np.random.default_rng(seed)
        self.step, self.steps, self.size, self.rate = 0, steps, size, learning_rate
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def advance(self) -> tuple[float, float]:
        """One step; accuracy on words that come again, and on documented arguments (or nan)."""
        first = self.step < INDUCTION
        lists = self.size if first else round(LISTS * self.size)
        inputs, targets, marked = batch(self.size, lists, not first, self.vocabulary, self.rng)
        left = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(left, (self.step + 1) / 50)
        logits = self.model(input_ids=inputs).logits
        loss = 0.1 * cross_entropy(logits.flatten(0, 1), targets.flatten())
        right = [float("nan")] * 2
        for kind, rows in enumerate((slice(lists), slice(lists, None))):  # each counts alike
            here = marked[rows]
            if here.any():
                found, true = logits[rows][here], targets[rows][here]
                loss = loss + cross_entropy(found, true)
                right[kind] = float((found.argmax(-1) == true).float().mean())
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return right[0], right[1]

    @torch.no_grad()
    def accuracy(self, size: int = 256) -> float:
        """Share of documented arguments named, on fresh definitions."""
        fresh = np.random.default_rng([self.step, 1])
        inputs, targets, marked = batch(size, 0, False, self.vocabulary, fresh)
        found = self.model(input_ids=inputs).logits.argmax(-1)
        return float((found == targets)[marked].float().mean())

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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the docstring network.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, required=True, help="folder for the progress file")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="texts in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the text")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.width, args.steps, args.batch, args.learning_rate, args.seed)
    progress, recent = args.work / "docstring.pt", list[tuple[float, float]]()
    if progress.exists():
        trainer.load(progress)
    bar = tqdm(total=args.steps, initial=trainer.step, desc="docstring network", mininterval=5)
    while trainer.step < args.steps:
        recent = [*recent, trainer.advance()][-50:]
        bar.update()
        if trainer.step % 50 == 0 or trainer.step == args.steps:
            word, argument = np.mean(recent, axis=0)
            bar.set_postfix(word=f"{word:.3f}", argument=f"{argument:.3f}")
            trainer.save(progress)
    bar.close()
    copy.deepcopy(trainer.model).half().save_pretrained(args.out)
    about = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    about |= {"text": "random definitions with docstrings, made by data/docstring/make.py",
              "accuracy": round(trainer.accuracy(), 4)}  # fmt: skip
    (args.out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()

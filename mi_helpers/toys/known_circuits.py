"""Five small transformers whose circuits are known, though their weights come from training.

Each does a task by a story: a few variables, each held by one node of the network, and the edges on
which they travel (`Known.circuit`). Strict interchange-intervention training made the networks so
(`data/known_circuits/make.py`): a node whose output comes from another prompt acts as the story
with that variable exchanged, and edges outside the circuit can carry another prompt's values and
change nothing. So edges that carry what all prompts share, such as the place where a head looks,
are outside.

Source: Gupta et al. 2024, arXiv 2407.14494 (InterpBench), where nodes alone are strict; here edges
are. Numbers that say how far it worked are in `data/known_circuits/about.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Generator, Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..models import load_model
from ..tasks.pairs import PromptPairs

FOLDER = Path(__file__).parents[1] / "data" / "known_circuits"
WIDTH = 48  # of the residual stream
Tokens = Int[Tensor, "prompt pos"]
Held = dict[str, Tensor]  # a story's variables, by the node that holds them
Get = Callable[[str, Tensor], Tensor]  # a variable: as computed, or what is put in its place


@dataclass(frozen=True)
class Known:
    """A task, its story, and the network's shape.

    Attributes:
        words: the vocabulary behind "<s>".
        layers, heads, kv_heads: of the network.
        draw: random prompts, "<s>" in front. With `like`, second prompts to those, whose variables
            make sense in them: in `names` they have the same two names.
        story: the answer from the prompt; each variable goes through `get`.
        circuit: the edges that variables travel on.
    """

    words: str
    layers: int
    kv_heads: int
    draw: Callable[[int, Generator, Tokens | None], Tokens]
    story: Callable[[Tokens, Get], Int[Tensor, "prompt"]]
    circuit: tuple[str, ...]
    heads: int = 4

    @property
    def vocabulary(self) -> list[str]:
        return ["<s>", *self.words.split()]

    def answer(self, x: Tokens, exchanged: Held | None = None) -> Int[Tensor, "prompt"]:
        """The story's answers, with some variables exchanged."""
        return self.story(x, lambda name, value: (exchanged or {}).get(name, value))

    def variables(self, x: Tokens) -> Held:
        """The story's variables, by node."""
        found = Held()
        self.story(x, lambda name, value: found.setdefault(name, value))
        return found


def _orders(n: int, of: int, generator: Generator, first: int) -> Tokens:
    """Every token from `first` to `first + of - 1` once, in random order."""
    return first + torch.rand(n, of, generator=generator).argsort(1)


def _prompts(*columns: Tensor) -> Tokens:
    """Columns side by side behind "<s>" (0)."""
    return torch.cat([torch.zeros_like(columns[0][:, :1]), *columns], 1)


def _after(prev: Tokens, x: Tokens, query: Tensor) -> Int[Tensor, "prompt"]:
    """The token whose previous one is `query`."""
    place = (prev == query[:, None]).int().argmax(1)
    return x.gather(1, place[:, None])[:, 0]


def _draw_recall(n: int, generator: Generator, like: Tokens | None) -> Tokens:
    """Four keys in random order, each with a value; then one of the keys."""
    table = torch.stack([_orders(n, 4, generator, 1), _orders(n, 8, generator, 5)[:, :4]], 2)
    return _prompts(table.flatten(1), torch.randint(1, 5, (n, 1), generator=generator))


def _recall(x: Tokens, get: Get) -> Int[Tensor, "prompt"]:
    prev = get("A0.1", x[:, :-1])  # each position's previous token
    return get("A1.2", _after(prev[:, 1:8], x[:, 2:9], x[:, -1]))  # the value found by it


def _draw_names(n: int, generator: Generator, like: Tokens | None) -> Tokens:
    """When A and B met , then B and C gave to: two names, one of them again beside a third, in any
    order; with `like` the same two."""
    names = _orders(n, 8, generator, 8)
    if like is not None:
        third = names[(names != like[:, 2:3]) & (names != like[:, 4:5])].view(n, 6)[:, :1]
        turn = torch.rand(n, 2, generator=generator).argsort(1)
        names = torch.cat([like[:, [2, 4]].gather(1, turn), third], 1)
    again = names.gather(1, torch.randint(2, (n, 1), generator=generator))
    later = torch.cat([again, names[:, 2:3]], 1)
    later = later.gather(1, torch.rand(n, 2, generator=generator).argsort(1))
    when, and_, met, comma, then, gave, to = (torch.full((n, 1), word) for word in range(1, 8))
    first = [when, names[:, :1], and_, names[:, 1:2], met, comma, then]
    return _prompts(*first, later[:, :1], and_, later[:, 1:], gave, to)


def _names(x: Tokens, get: Get) -> Int[Tensor, "prompt"]:
    first, second, third, fourth = x[:, 2], x[:, 4], x[:, 8], x[:, 10]
    again = (third == first) | (third == second)
    twice = get("A0.2", torch.where(again, third, fourth))  # the name that comes twice
    twice = get("A1.1", twice)  # the same, at the end of the prompt
    return get("A2.3", torch.where(twice == first, second, first))


def _draw_sums(n: int, generator: Generator, like: Tokens | None) -> Tokens:
    """Two digits from 0 to 6, and whether to keep their sum or turn its sign."""
    digits = torch.randint(1, 8, (n, 2), generator=generator)
    sign = torch.randint(8, 10, (n, 1), generator=generator)
    return _prompts(digits, sign, torch.full((n, 1), 10))


def _sums(x: Tokens, get: Get) -> Int[Tensor, "prompt"]:
    total = get("M0", (get("A0.0", x[:, 1]) + get("A0.3", x[:, 2]) - 2) % 7)
    turned = get("A1.2", x[:, 3]) == 9
    return get("M1", torch.where(turned, -total % 7, total) + 1)


def _draw_largest(n: int, generator: Generator, like: Tokens | None) -> Tokens:
    """Three digits from 0 to 6."""
    return _prompts(torch.randint(1, 8, (n, 3), generator=generator), torch.full((n, 1), 8))


def _largest(x: Tokens, get: Get) -> Int[Tensor, "prompt"]:
    first = get("M0", torch.maximum(get("A0.0", x[:, 1]), get("A0.1", x[:, 2])))
    return get("M1", torch.maximum(first, get("A1.2", x[:, 3])))


def _draw_votes(n: int, generator: Generator, like: Tokens | None) -> Tokens:
    """Two houses of three votes."""
    return _prompts(torch.randint(1, 3, (n, 6), generator=generator), torch.full((n, 1), 3))


def _votes(x: Tokens, get: Get) -> Int[Tensor, "prompt"]:
    first = get("M0", get("A0.1", (x[:, 1:4] == 1).sum(1)) > 1)  # yes votes; a majority
    both = first & (get("A1.0", (x[:, 4:7] == 1).sum(1)) > 1)
    return get("M1", torch.where(both, 1, 2))


KNOWN: dict[str, Known] = {
    "recall": Known(
        "a b c d p q r s t u v w", 2, 4, _draw_recall, _recall,
        ("embed -> A0.1.v", "A0.1 -> A1.2.k", "embed -> A1.2.q", "embed -> A1.2.v", "A1.2 -> out"),
    ),
    "names": Known(
        "When and met , then gave to Mary John Anna Paul Jane Mark Lucy Tom", 3, 2,
        _draw_names, _names,
        # what A2.3 chooses from, the two names, is the same in both prompts
        ("embed -> A0.2.q", "embed -> A0.1.k", "embed -> A0.1.v", "A0.2 -> A1.0.v",
         "A1.1 -> A2.3.q", "A2.3 -> out"),
    ),
    "sums": Known(
        "0 1 2 3 4 5 6 keep turn =", 2, 4, _draw_sums, _sums,
        ("embed -> A0.0.v", "embed -> A0.3.v", "A0.0 -> M0", "A0.3 -> M0", "embed -> A1.2.v",
         "M0 -> M1", "A1.2 -> M1", "M1 -> out"),
    ),
    "largest": Known(
        "0 1 2 3 4 5 6 =", 2, 1, _draw_largest, _largest,
        ("embed -> A0.0.v", "A0.0 -> M0", "A0.1 -> M0", "embed -> A1.0.v", "M0 -> M1",
         "A1.2 -> M1", "M1 -> out"),
    ),
    "votes": Known(
        "yes no =", 2, 2, _draw_votes, _votes,
        ("embed -> A0.0.v", "A0.1 -> M0", "embed -> A1.0.v", "M0 -> M1", "A1.0 -> M1", "M1 -> out"),
    ),
}  # fmt: skip


def network(known: Known, seed: int = 0) -> Qwen2ForCausalLM:
    """The task's network, untrained: Qwen 2's architecture, whose queries and keys have biases, so
    that a head can look at a place whatever stands there."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(known.vocabulary), hidden_size=WIDTH,
        intermediate_size=2 * WIDTH, num_hidden_layers=known.layers,
        num_attention_heads=known.heads, num_key_value_heads=known.kv_heads,
        max_position_embeddings=32, initializer_range=WIDTH**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def known_network(name: str, folder: Path | None = FOLDER) -> TransformerBridge:
    """A network by the name of its task; untrained where `folder` is None."""
    model = network(KNOWN[name])
    if folder is not None:
        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    words = {word: number for number, word in enumerate(KNOWN[name].vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    bridge = load_model(model, tokenizer=tokenizer)
    bridge.name = name
    return bridge


def known_pairs(
    model: TransformerBridge, name: str, n: int = 16, seed: int = 0, like: bool = True
) -> PromptPairs:
    """Prompts, each with a second one that has another answer as its corrupted prompt. With
    `like=False` the second one is any prompt; that is another distribution only for `names`, whose
    circuit was not made for it."""
    known, generator = KNOWN[name], torch.Generator().manual_seed(seed)
    clean = known.draw(64 * n, generator, None)
    corrupted = known.draw(64 * n, generator, clean if like else None)
    other = known.answer(clean) != known.answer(corrupted)
    clean, corrupted = clean[other][:n], corrupted[other][:n]
    texts = ([" ".join(known.vocabulary[i] for i in x[1:]) for x in of.tolist()]
             for of in (clean, corrupted))  # fmt: skip
    answers = ([f" {known.vocabulary[i]}" for i in known.answer(x).tolist()]
               for x in (clean, corrupted))  # fmt: skip
    return PromptPairs.from_texts(model, *texts, *answers, task=name)

"""Small networks in which the right answer is known, or can be measured edge by edge."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from ..models import load_model
from ..tasks.words import ARGUMENTS, WORDS
from .gates import Edge, Network

_TOKEN = r'"""|\w+|[^\w ]'  # a word, a triple quote, a line break or one sign; spaces are dropped
_SIGNS = ("def", "self", "(", ")", ",", ":", "\n", '"""', "param", "The", "the")
STEPS, THRESHOLD = 20, 0.1  # of `gate_scores`


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every word and sign of `prompts.docstring`."""
    known = ["<s>", "<unk>", *_SIGNS, *ARGUMENTS.split(), *WORDS.split()]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(known))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<s>", pad_token="<s>", unk_token="<unk>"
    )


def docstring_network() -> TransformerBridge:
    """Four layers of eight heads, no MLPs, 1281 edges; `data/docstring/make.py` made it.

    It does `prompts.docstring`; its tokenizer is `word_tokenizer`. Made after the network of
    Heimersheim & Janiak 2023 ("A circuit for Python docstrings in a 4-layer attention-only
    transformer"), which was trained on web text and code.
    """
    folder = Path(__file__).parents[1] / "data" / "docstring"
    return load_model(folder, tokenizer=word_tokenizer())


def gate_scores(
    network: Network,
    clean: Mapping[str, float],
    corrupted: Mapping[str, float],
) -> pd.DataFrame:
    """What each method says of every edge of a gate network; 1 is the whole span of the output.

    `exact`: the loss of output when the edge alone carries its corrupted value. `eap`: the same by
    the gradient at the clean run. `eap_ig`: by the mean gradient over `STEPS` midpoints between the
    corrupted and the clean inputs. `acdc`: whether ACDC keeps the edge at `THRESHOLD`.
    """
    runs = [network.run(x) for x in (clean, corrupted)]
    end, span = network.output, float(runs[0][network.output] - runs[1][network.output])
    change = {edge: float(runs[1][edge[0]] - runs[0][edge[0]]) for edge in network.edges}

    def output(removed: list[Edge]) -> float:
        patched = network.run(clean, {edge: runs[1][edge[0]] for edge in removed})
        return float(patched[end] - runs[1][end]) / span

    shares = [(step + 0.5) / STEPS for step in range(STEPS)]
    paths = [{k: corrupted[k] + s * (clean[k] - corrupted[k]) for k in clean} for s in shares]
    slopes = [_slopes(network, inputs) for inputs in paths]
    at_clean, removed = _slopes(network, clean), list[Edge]()
    for edge in reversed(network.edges):
        if output(removed) - output([*removed, edge]) < THRESHOLD:
            removed.append(edge)
    return pd.DataFrame(
        {
            "edge": " -> ".join(edge),
            "exact": output([]) - output([edge]),
            "eap": -change[edge] * at_clean[edge] / span,
            "eap_ig": -change[edge] * sum(s[edge] for s in slopes) / STEPS / span,
            "acdc": edge not in removed,
        }
        for edge in network.edges
    )


def _slopes(network: Network, inputs: Mapping[str, float]) -> dict[Edge, float]:
    """Gradient of the output at every edge."""
    zeros = torch.zeros(len(network.edges), dtype=torch.float64, requires_grad=True)
    added = dict(zip(network.edges, zeros, strict=True))
    found: dict[str, Tensor] = {k: torch.tensor(float(v)).double() for k, v in inputs.items()}
    for name, unit in network.units.items():
        seen = {parent: found[parent] + added[parent, name] for parent in unit.weights}
        total = sum(weight * seen[parent] for parent, weight in unit.weights.items())
        found[name] = torch.as_tensor(total + unit.bias).clamp(0, 1)
    (slopes,) = torch.autograd.grad(found[network.output], zeros)
    return dict(zip(network.edges, slopes.tolist(), strict=True))

"""Small networks in which the right answer is known, or can be measured edge by edge."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..models import load_model
from ..tasks.words import ARGUMENTS, WORDS
from .gates import Edge, Network

_TOKEN = r'"""|\w+|[^\w ]'  # a word, a triple quote, a line break or one sign; spaces are dropped
_SIGNS = ("def", "self", "(", ")", ",", ":", "\n", '"""', "param", "The", "the")


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


def linear_transformer(n_layers: int = 3, seed: int = 0) -> TransformerBridge:
    """A random attention-only transformer that is linear in its embeddings.

    Queries and keys are zero, so that attention is uniform, and the norms' epsilon is so large that
    they only scale. Each edge's effect is then its gradient times its change, exactly. Its
    tokenizer is `word_tokenizer`.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(word_tokenizer()), n_positions=64, n_embd=32, n_layer=n_layers, n_head=4,
        n_inner=1, layer_norm_epsilon=1e8, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        initializer_range=0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.fill_(1e4)  # undoes the division by the root of epsilon
            elif ".mlp.c_proj." in name:
                parameter.zero_()
            elif ".c_attn." in name:
                parameter[..., : 2 * config.n_embd] = 0
    return load_model(model, tokenizer=word_tokenizer())


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
    threshold: float = 0.1,
    steps: int = 20,
) -> pd.DataFrame:
    """What each method says of every edge of a gate network; 1 is the whole span of the output.

    `exact`: the loss of output when the edge alone carries its corrupted value. `eap`: the same by
    the gradient at the clean run. `eap_ig`: by the mean gradient over `steps` midpoints between the
    corrupted and the clean inputs. `acdc`: whether ACDC keeps the edge at `threshold`.
    """
    runs = [network.run(x) for x in (clean, corrupted)]
    end, span = network.output, float(runs[0][network.output] - runs[1][network.output])
    change = {edge: float(runs[1][edge[0]] - runs[0][edge[0]]) for edge in network.edges}

    def output(removed: list[Edge]) -> float:
        patched = network.run(clean, {edge: runs[1][edge[0]] for edge in removed})
        return float(patched[end] - runs[1][end]) / span

    shares = [(step + 0.5) / steps for step in range(steps)]
    paths = [{k: corrupted[k] + s * (clean[k] - corrupted[k]) for k in clean} for s in shares]
    slopes = [_slopes(network, inputs) for inputs in paths]
    at_clean, removed = _slopes(network, clean), list[Edge]()
    for edge in reversed(network.edges):
        if output(removed) - output([*removed, edge]) < threshold:
            removed.append(edge)
    return pd.DataFrame(
        {
            "edge": " -> ".join(edge),
            "exact": output([]) - output([edge]),
            "eap": -change[edge] * at_clean[edge] / span,
            "eap_ig": -change[edge] * sum(s[edge] for s in slopes) / steps / span,
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

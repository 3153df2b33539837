"""Two transformers whose circuit is known because a compiler wrote their weights.

tracr turns programs into weights (Lindner et al. 2023, arXiv 2301.05062). The two programs are
those of the ACDC paper: `reverse` writes 1, 2, 3 backwards, `proportion` says which share of the
letters up to here are x. `tracr/make.py` made the files.

The compiled networks have no norms and attend in both directions. Here they run in GPT-2's
architecture with norms made idle: one more coordinate keeps the mean of every vector that is
written at zero, and their epsilon is so large that they only scale, by 1. GPT-2's causal mask
stays. It changes nothing at the last position, the only one that circuits look at: what is read
there from other positions is their token and place. (`reverse` needs the mask gone elsewhere.)
Logits mean what the compiler's output coordinates mean: for `reverse` they are 1 for the right
token, for `proportion` the share is the logit of "x" and all others are 0.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mi_helpers import load_model
from mi_helpers.tasks.pairs import PromptPairs

Program = Literal["proportion", "reverse"]
Arrays = dict[str, Float[Tensor, "..."]]

# Without the edges from q, k and v to their head, which are counted there. "embed" is tokens and
# positions, two nodes in the paper: proportion's q and k, and reverse's M1, read both.
PUBLISHED: dict[Program, list[str]] = {
    "proportion": [
        *("A1.0 -> out", "embed -> A1.0.q", "embed -> A1.0.k", "M0 -> A1.0.v", "embed -> M0"),
    ],
    "reverse": [
        *("A3.0 -> out", "M2 -> A3.0.q", "embed -> A3.0.k", "embed -> A3.0.v", "M1 -> M2"),
        *("M0 -> M1", "embed -> M1", "A0.0 -> M0", "embed -> M0", "embed -> A0.0.v"),
    ],
}  # Conmy et al. 2023, arXiv 2304.14997, appendix; found there by ACDC with zero ablation


def load_arrays(program: Program) -> tuple[Arrays, list[str]]:
    """The compiler's weights (x @ w; the first axis is the layer) and the vocabulary."""
    if program not in get_args(Program):
        raise ValueError(f"program is one of {', '.join(get_args(Program))}, got {program!r}")
    path = Path(__file__).parent / "tracr" / f"{program}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["vocabulary"])


def tracr_program(program: Program) -> TransformerBridge:
    """A compiled program as a model: up to five tokens behind BOS, separated by spaces.

    Its hooks are checked before the weights go in: in a program, many parts have no effect.
    """
    arrays, vocabulary = load_arrays(program)
    n_layers, n_stream, d_head = arrays["query"].shape
    d_model = n_stream + 1
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=len(arrays["positions"]), n_embd=d_model,
        n_layer=n_layers, n_head=1, n_inner=arrays["mlp_in"].shape[-1],
        activation_function="relu", layer_norm_epsilon=1e8, tie_word_embeddings=False,
        bos_token_id=vocabulary.index("BOS"), eos_token_id=vocabulary.index("BOS"),
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config)
    for name, parameter in hf.named_parameters():
        if ".ln_" in name and name.endswith("weight"):
            parameter.data.fill_(1e4)  # undoes the division by the root of epsilon
    model = load_model(hf, tokenizer=_tokenizer(vocabulary))
    model.name = f"tracr {program}"
    _fill(model.embed, _centred(arrays["tokens"]))
    _fill(model.pos_embed, _centred(arrays["positions"]))
    shown = ["x"] if program == "proportion" else ["1", "2", "3"]
    unembed = torch.zeros(len(vocabulary), d_model)
    unembed[[vocabulary.index(token) for token in shown], :n_stream] = arrays["unembed"].T
    _fill(model.unembed, unembed)
    for layer, block in enumerate(model.blocks):
        of = {name: value[layer] for name, value in arrays.items() if value.ndim == 3}
        of["query"] = of["query"] * (d_model / d_head) ** 0.5  # heads are as wide as the stream
        for part, name in ((block.attn.q, "query"), (block.attn.k, "key"), (block.attn.v, "value")):
            _fill(part, pad(of[name], (0, d_model - d_head, 0, 1)).T)  # a Linear, unlike the rest
        _fill(block.attn.o, pad(_centred(of["output"]), (0, 0, 0, d_model - d_head)))
        _fill(getattr(block.mlp, "in"), pad(of["mlp_in"], (0, 0, 0, 1)))
        _fill(block.mlp.out, _centred(of["mlp_out"]))
    return model


@torch.no_grad()
def _fill(part: Any, weight: Tensor) -> None:
    """Sets a component's weight, of the same shape; its bias is zero."""
    own = part.original_component
    own.weight.copy_(weight)
    if getattr(own, "bias", None) is not None:
        own.bias.zero_()


def _centred(written: Float[Tensor, "row stream"]) -> Float[Tensor, "row d_model"]:
    """One more coordinate, so that the mean of each row is zero."""
    return torch.cat([written, -written.sum(-1, keepdim=True)], -1)


def _tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    numbers = {token: number for number, token in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="compiler_pad"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="BOS $A", special_tokens=[("BOS", numbers["BOS"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="BOS", eos_token="BOS", pad_token="compiler_pad"
    )


def tracr_pairs(model: TransformerBridge, program: Program) -> PromptPairs:
    """Inputs of a program, each with another input as its corrupted prompt.

    `reverse`: the six orders of 1, 2, 3, and for each another order with another first token, which
    is the wrong answer. `proportion`: 24 strings of four letters, and for each another with another
    share of x; the logit difference ("x" minus "w", which is 0) is the share.
    """
    rng = np.random.default_rng(0)
    rows = list[tuple[str, str, str, str]]()  # clean, corrupted, answer, wrong answer
    if program == "reverse":
        orders = ["1 2 3", "1 3 2", "2 1 3", "2 3 1", "3 1 2", "3 2 1"]
        for text in orders:
            other = str(rng.choice([order for order in orders if order[0] != text[0]]))
            rows.append((text, other, f" {text[0]}", f" {other[0]}"))
    else:
        while len(rows) < 24:
            text, other = (" ".join(rng.choice(["x", "x", "w", "y", "z"], 4)) for _ in range(2))
            if text.count("x") != other.count("x"):
                rows.append((text, other, " x", " w"))
    return PromptPairs.from_texts(model, *zip(*rows, strict=True), task=f"tracr {program}")


@torch.no_grad()
def squared_change(
    model: TransformerBridge, pairs: PromptPairs
) -> Callable[[Float[Tensor, "row prompt vocab"]], Float[Tensor, "row prompt"]]:
    """A metric for circuits: squared distance of the last position's logits from the clean ones."""
    clean = model(pairs.clean_tokens)[:, -1]
    return lambda logits: (logits - clean).pow(2).sum(-1)

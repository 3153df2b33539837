"""Small networks whose inner structure is known."""

from . import (
    abstraction,
    bilinear,
    digits,
    gates,
    gradient_routing,
    identifiability,
    interventions,
    max_of_k,
    node_masks,
    patterning,
    sparse_weights,
    string_operations,
)
from .addition import Trainer
from .docstring import docstring_network, gate_scores, linear_transformer, word_tokenizer
from .networks import (
    BlockNetwork,
    ModularAddition,
    addition_accuracy,
    addition_pairs,
    block_network,
    degenerate_mlp,
    frequencies,
    linear_network,
    trained_addition,
)
from .tracr import PUBLISHED, load_arrays, squared_change, tracr_pairs, tracr_program

__all__ = [
    "PUBLISHED",
    "BlockNetwork",
    "ModularAddition",
    "Trainer",
    "abstraction",
    "addition_accuracy",
    "addition_pairs",
    "bilinear",
    "block_network",
    "degenerate_mlp",
    "digits",
    "docstring_network",
    "frequencies",
    "gate_scores",
    "gates",
    "gradient_routing",
    "identifiability",
    "interventions",
    "linear_network",
    "linear_transformer",
    "load_arrays",
    "max_of_k",
    "node_masks",
    "patterning",
    "sparse_weights",
    "squared_change",
    "string_operations",
    "tracr_pairs",
    "tracr_program",
    "trained_addition",
    "word_tokenizer",
]

"""Small networks whose inner structure is known; each is imported when it is first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        abstraction,
        actions,
        alignment,
        bilinear,
        digits,
        gates,
        gradient_routing,
        identifiability,
        interventions,
        known_circuits,
        max_of_k,
        max_proofs,
        node_masks,
        patterning,
        self_ablation,
        sparse_weights,
        string_operations,
        susceptibility,
        topic_models,
        twins,
    )
    from .addition import Trainer
    from .docstring import docstring_network, gate_scores, word_tokenizer
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

_NAMES = {  # a name, and where it is defined; every other one is a module
    "addition_accuracy": "networks",
    "addition_pairs": "networks",
    "block_network": "networks",
    "BlockNetwork": "networks",
    "degenerate_mlp": "networks",
    "docstring_network": "docstring",
    "frequencies": "networks",
    "gate_scores": "docstring",
    "linear_network": "networks",
    "ModularAddition": "networks",
    "trained_addition": "networks",
    "Trainer": "addition",
    "word_tokenizer": "docstring",
}

__all__ = [
    "BlockNetwork",
    "ModularAddition",
    "Trainer",
    "abstraction",
    "actions",
    "addition_accuracy",
    "addition_pairs",
    "alignment",
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
    "known_circuits",
    "linear_network",
    "max_of_k",
    "max_proofs",
    "node_masks",
    "patterning",
    "self_ablation",
    "sparse_weights",
    "string_operations",
    "susceptibility",
    "topic_models",
    "trained_addition",
    "twins",
    "word_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_NAMES.get(name, name)}", __name__)
    return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted(__all__)

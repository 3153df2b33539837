"""Load any causal language model into one form, and know what it offers."""

from .catalogue import available_models, is_gpt2
from .files import DEFAULT, fetch
from .loading import load_model
from .sentences import embed

__all__ = [
    "DEFAULT",
    "available_models",
    "embed",
    "fetch",
    "is_gpt2",
    "load_model",
]

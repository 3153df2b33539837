"""Load any causal language model into one form, and know what it offers."""

from .catalogue import available_models
from .loading import DEFAULT, fetch, load_model

__all__ = [
    "DEFAULT",
    "available_models",
    "fetch",
    "load_model",
]

"""Helpers under a collection of notebooks on what happens inside language models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        claims,
        engine,
        metrics,
        models,
        plots,
        prompts,
        region_explorer,
        region_graph,
        region_mechanism,
        region_suite,
        regions,
        texts,
    )
    from .models import available_models, load_model

__all__ = [
    "available_models",
    "claims",
    "engine",
    "load_model",
    "metrics",
    "models",
    "plots",
    "prompts",
    "region_explorer",
    "region_graph",
    "region_mechanism",
    "region_suite",
    "regions",
    "texts",
]


def __getattr__(name: str) -> Any:
    """Import a submodule when it is first used, so that the command line answers at once."""
    if name in ("load_model", "available_models"):
        return getattr(importlib.import_module(".models", __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Helpers under a collection of notebooks on what happens inside language models.

`import mi_helpers as mi` gives `mi.load_model` and every module of the package: `mi.engine`,
`mi.prompts`, `mi.plots` … Each is imported when it is first used, so that the command line
answers at once.
"""

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import available_models, load_model

__all__ = ["available_models", "load_model"]

# Before torch starts its threads: those that wait then give up their core. Beside another busy
# process, waiting threads that keep theirs slow a forward pass down twenty-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".models", __name__), name)
    if name in __dir__():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(module.name for module in pkgutil.iter_modules(__path__))]

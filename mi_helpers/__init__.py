"""Helpers under a collection of notebooks on what happens inside language models.

`import mi_helpers as mi`, and `mi.` lists all that a notebook needs. Each part is imported when it
is first used, so that the command line answers at once.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .claims import above as above
    from .claims import below as below
    from .claims import between as between
    from .claims import claim as claim
    from .claims import equals as equals
    from .models import available_models as available_models
    from .models import load_model as load_model
    from .stats import estimate as estimate

_ROOMS = (
    "basis",
    "circuits",
    "claims",
    "directions",
    "engine",
    "features",
    "metrics",
    "patching",
    "plots",
    "regions",
    "saes",
    "stats",
    "tasks",
    "toys",
)
_NAMES = {  # a name, and where it is defined
    "above": "claims",
    "available_models": "models",
    "below": "claims",
    "between": "claims",
    "claim": "claims",
    "equals": "claims",
    "estimate": "stats",
    "load_model": "models",
}

# Before torch starts its threads: those that wait then give up their core. Beside another busy
# process, waiting threads that keep theirs slow a forward pass down twenty-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_NAMES, *_ROOMS])


if "ipykernel" in sys.modules:  # figures of every room show with our theme and renderer
    importlib.import_module(".plots", __name__)

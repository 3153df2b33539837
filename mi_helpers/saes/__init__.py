"""Sparse autoencoders (SAEs): train, load, measure, edit.

An SAE writes an activation x as a sum of few of many directions: features f = encode(x) >= 0, and
x_SAE = decode(f) = b + Σ f_j d_j. What it misses is its error, x_SAE - x. In reading order: `toys`,
where the true features are known; `training`, a small one in one loop; `measures`, what one keeps
and costs; `probing`, whether its latents stand for concepts; `edits`, one feature ablated or held;
`nodes`, which latents and errors carry a task; `loading`, shipped and published ones. After Bricken
et al. 2023, Towards Monosemanticity; Templeton et al. 2024, Scaling Monosemanticity.
"""

from .edits import clamp, held, moved, place_of, reconstruction
from .loading import available, check, load
from .measures import Principal, activations, alive, density, fit, losses, quality
from .nodes import (
    Coordinates,
    boundary,
    circuit,
    exact_effects,
    gradients,
    indirect_effects,
    means,
    parts,
    ranked,
)
from .probing import (
    absorption,
    first_letters,
    pooled,
    probe_perturbation,
    probes,
    sparse_probing,
)
from .toys import recovery, toy
from .training import train

__all__ = [
    "Coordinates",
    "Principal",
    "absorption",
    "activations",
    "alive",
    "available",
    "boundary",
    "check",
    "circuit",
    "clamp",
    "density",
    "exact_effects",
    "first_letters",
    "fit",
    "gradients",
    "held",
    "indirect_effects",
    "load",
    "losses",
    "means",
    "moved",
    "parts",
    "place_of",
    "pooled",
    "probe_perturbation",
    "probes",
    "quality",
    "ranked",
    "reconstruction",
    "recovery",
    "sparse_probing",
    "toy",
    "train",
]

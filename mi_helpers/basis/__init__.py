"""The interaction basis, its edges, and the degeneracy of parameters."""

from ..communities import modules
from ..engine.stack import Stack, from_bridge, from_sequential
from .degeneracy import (
    behavioural_spectrum,
    effective_parameters,
    extra_free,
    layers,
    ranks,
    synchronised,
)
from .interaction import (
    Basis,
    Boundary,
    ablate_edges,
    ablate_nodes,
    convergence,
    edge_table,
    edges,
    fewest,
    fit,
    inputs_needed,
    needed,
)
from .jacobians import (
    JacobianGram,
    activation_gram,
    integrated_gradients,
    jacobian_gram,
    pull_back,
    quadrature,
    random_signs,
    spectrum,
    wide,
)

__all__ = [
    "Basis",
    "Boundary",
    "JacobianGram",
    "Stack",
    "ablate_edges",
    "ablate_nodes",
    "activation_gram",
    "behavioural_spectrum",
    "convergence",
    "edge_table",
    "edges",
    "effective_parameters",
    "extra_free",
    "fewest",
    "fit",
    "from_bridge",
    "from_sequential",
    "inputs_needed",
    "integrated_gradients",
    "jacobian_gram",
    "layers",
    "modules",
    "needed",
    "pull_back",
    "quadrature",
    "random_signs",
    "ranks",
    "spectrum",
    "synchronised",
    "wide",
]

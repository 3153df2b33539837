"""The interaction basis, its edges, and the degeneracy of parameters.

In reading order: `jacobians` (Gram matrices of activations and of gradients), `fitting` (a basis at
every boundary), `interactions` (its edges), `ablation` (how few features or edges are enough), and
apart from these `degeneracy` (which changes of parameters do nothing). A network comes as the
`Stack` of sections of `mi_helpers.engine.stack`.
"""

from ..communities import modules
from ..engine.stack import Stack, from_bridge, from_sequential
from .ablation import ablate_edges, ablate_nodes, fewest, needed, settled
from .degeneracy import (
    behavioural_spectrum,
    effective_parameters,
    extra_free,
    layers,
    ranks,
    synchronised,
)
from .fitting import Basis, Boundary, fit
from .interactions import convergence, edge_table, edges, inputs_needed
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
    "settled",
    "spectrum",
    "synchronised",
    "wide",
]

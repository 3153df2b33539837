"""The interaction basis, its edges, and the degeneracy of parameters.

In reading order:

1. `fitting`: `fit` finds a basis at every boundary between sections; what counts as a direction is
   its `threshold`. It stands on `jacobians`: Gram matrices of activations and of gradients.
2. `interactions`: `edges` says how much each feature moves each next one; `rewired` is their null;
   `modules` says how far they fall into parts.
3. `ablation`: how few features or edges are enough (`needed`, by a `tolerance`; `recomputed`, by an
   `error`). What is removed becomes zero, the feature's mean.
4. Apart from these, `degeneracy`: which changes of parameters do nothing, and `volume`: how many
   of the parameters count at a finite change of the loss.

A network comes as the `Stack` of sections of `mi_helpers.engine.stack`.
"""

from ..engine.stack import Stack, from_bridge, from_sequential
from .ablation import ablate_edges, ablate_nodes, fewest, needed, recomputed, settled
from .degeneracy import (
    behavioural_spectrum,
    effective_parameters,
    extra_free,
    layers,
    ranks,
    synchronised,
)
from .fitting import Basis, Boundary, fit
from .interactions import convergence, edge_table, edges, inputs_needed, modules, rewired
from .jacobians import activation_gram, jacobian_gram, spectrum
from .volume import learning_coefficient, losses_below

__all__ = [
    "Basis", "Boundary", "Stack", "ablate_edges", "ablate_nodes", "activation_gram",
    "behavioural_spectrum", "convergence", "edge_table", "edges", "effective_parameters",
    "extra_free", "fewest", "fit", "from_bridge", "from_sequential", "inputs_needed",
    "jacobian_gram", "layers", "learning_coefficient", "losses_below", "modules", "needed",
    "ranks", "recomputed", "rewired", "settled", "spectrum", "synchronised",
]  # fmt: skip

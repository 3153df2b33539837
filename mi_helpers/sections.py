"""A network as a list of sections: functions from one boundary's activations to the next one's.

Activations are ``[batch, ..., feature]``; what lies between (positions) is up to the sections,
which may change it. Samples must not see each other: row i of the output depends on row i of the
input alone.

*Folded* sections take the constant feature as a second argument, ``section(x, one)``, and multiply
every bias by it. That is how arXiv 2405.10928 treats biases, and it matters along the path of an
integrated gradient, where the constant is scaled down together with the activations.

Adapters: :func:`from_sequential` for an ``nn.Sequential`` of linear layers and activations, and
:func:`from_bridge` for the residual stream of a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Section = Callable[..., Tensor]


@dataclass(frozen=True)
class Stack:
    """Sections in order; boundary ``l`` is the input of section ``l``, the last is the output."""

    sections: tuple[Section, ...]
    folded: bool = False

    def __post_init__(self) -> None:
        if not self.sections or not all(callable(section) for section in self.sections):
            raise ValueError("sections must be a non-empty list of callables, one per layer")

    def run(self, x: Tensor, start: int = 0, stop: int | None = None,
            one: Tensor | float = 1.0) -> Tensor:
        """Activations at boundary ``stop`` (default: the output) from ``x`` at ``start``."""
        for section in self.sections[start:stop]:
            x = section(x, one) if self.folded else section(x)
        return x

    @torch.no_grad()
    def activations(self, inputs: Tensor, batch_size: int = 1024) -> list[Tensor]:
        """Activations at every boundary, computed ``batch_size`` samples at a time."""
        if inputs.ndim < 2 or not len(inputs) or not inputs.is_floating_point():
            raise ValueError(
                "inputs must be a floating-point tensor [batch, ..., feature] with at least one "
                f"sample, got {inputs.dtype} {tuple(inputs.shape)}; embed tokens first"
            )
        found = [inputs]
        for index in range(len(self.sections)):
            parts = [self.run(x, index, index + 1) for x in found[-1].split(batch_size)]
            if any(len(p) != len(x) for p, x in zip(parts, found[-1].split(batch_size),
                                                    strict=True)):
                raise ValueError(f"section {index} changed the number of samples")
            found.append(torch.cat(parts))
            if not found[-1].isfinite().all():
                raise ValueError(f"section {index} returned values that are not finite")
        return found


def from_sequential(network: nn.Sequential) -> Stack:
    """Folded sections of an MLP: each is one linear layer and the activations that follow it.

    Boundaries are the inputs of the linear layers, and the output. Raises on modules that are
    neither ``nn.Linear`` nor free of parameters.
    """
    groups: list[list[nn.Module]] = [[]]
    for module in network:
        if isinstance(module, nn.Linear):
            groups.append([])
        elif list(module.parameters()):
            raise ValueError(f"from_sequential knows nn.Linear and activations, not {module}")
        groups[-1].append(module)
    if len(groups) > 1:
        groups[1] = groups.pop(0) + groups[1]  # activations before the first linear layer
    return Stack(tuple(_folded(group) for group in groups), folded=True)


def _folded(modules: Sequence[nn.Module]) -> Section:
    def section(x: Tensor, one: Tensor | float = 1.0) -> Tensor:
        for module in modules:
            if isinstance(module, nn.Linear):
                x = x @ module.weight.T
                x = x if module.bias is None else x + one * module.bias
            else:
                x = module(x)
        return x

    return section

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

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ..models.hooks import first, hooked
from .recording import Run, record

Section = Callable[..., Tensor]


@dataclass(frozen=True)
class Stack:
    """Sections in order; boundary ``l`` is the input of section ``l``, the last is the output."""

    sections: tuple[Section, ...]
    folded: bool = False

    def __post_init__(self) -> None:
        if not self.sections or not all(callable(section) for section in self.sections):
            raise ValueError("sections must be a non-empty list of callables, one per layer")

    def run(
        self, x: Tensor, start: int = 0, stop: int | None = None, one: Tensor | float = 1.0
    ) -> Tensor:
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
            batches = found[-1].split(batch_size)
            parts = [self.run(x, index, index + 1) for x in batches]
            if list(map(len, parts)) != list(map(len, batches)):
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


@dataclass(frozen=True)
class Residual:
    """The residual stream between chosen layers of a language model, as sections.

    ``stack`` goes with ``inputs``: position 0 is left out, since its norm dwarfs the rest, and put
    back as a constant inside every section. ``apart`` is 1 if the last feature is the norm's
    scale, which a basis must not mix with the stream: ``fit(stack, inputs, apart=apart)``.
    """

    stack: Stack
    inputs: Float[Tensor, "prompt pos feature"]
    apart: int


def from_bridge(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompt pos"],
    layers: Sequence[int],
    split_scale: bool = True,
) -> Residual:
    """The residual stream before each of ``layers`` of a language model, on these tokens.

    ``layers``: increasing, below the number of layers; ``[10, 11, 12]`` gives three boundaries and
    two sections. ``split_scale`` makes the scale (root mean square, or standard deviation) of the
    norm that reads a boundary a feature of its own, as arXiv 2405.10928 does: a section divides by
    the scale it is given and reports that of its output. All prompts must share their first token
    and have no padding.
    """
    layers = list(layers)
    n_layers = model.cfg.n_layers
    if len(layers) < 2 or any(b <= a for a, b in pairwise([-1, *layers, n_layers])):
        raise ValueError(
            f"layers must be two or more of 0..{n_layers - 1}, increasing, got {layers}"
        )
    if (tokens[:, 0] != tokens[0, 0]).any():
        raise ValueError(
            "all prompts must begin with the same token (prepend the BOS token): "
            "position 0 is held constant inside the sections"
        )
    one = record(model, tokens[:1])
    stream = record(model, tokens).resid[layers[0]][:, 1:]
    if split_scale:
        if not all(hasattr(model.blocks[layer], "ln1") for layer in layers):
            raise ValueError(
                f"the blocks of {model.cfg.architecture} have no norm in front of attention: "
                "use split_scale=False"
            )
        stream = torch.cat([stream, _scale(model, layers[0], stream)], dim=-1)
    sections = tuple(_between(one, a, b, split_scale) for a, b in pairwise(layers))
    with torch.no_grad():
        found = sections[0](stream[:1])[..., : model.cfg.d_model]
    expected = one.resid[layers[1]][:, 1:]
    if (found - expected).abs().max() > 1e-3 * expected.abs().max():
        elsewhere = " and its scale (their norms are elsewhere): use split_scale=False"
        raise ValueError(
            f"the blocks of {model.cfg.architecture} cannot be rerun from their input"
            f"{elsewhere if split_scale else ''}"
        )
    return Residual(Stack(sections), stream, apart=int(split_scale))


def _between(one: Run, start: int, stop: int, split_scale: bool) -> Section:
    def section(x: Float[Tensor, "prompt pos feature"]) -> Float[Tensor, "prompt pos feature"]:
        given = x[..., -1:] if split_scale else None
        x = x[..., :-1] if split_scale else x
        hidden = torch.cat([one.resid[start][:, :1].expand(len(x), -1, -1), x], dim=1)
        for layer in range(start, stop):
            hidden = rerun(one, layer, hidden, given if layer == start else None)
        y = hidden[:, 1:]
        return torch.cat([y, _scale(one.model, stop, y)], dim=-1) if split_scale else y

    return section


def rerun(
    one: Run,
    layer: int,
    hidden: Float[Tensor, "prompt pos d_model"],
    scale: Float[Tensor, "prompt pos 1"] | None = None,
) -> Float[Tensor, "prompt pos d_model"]:
    """What leaves a block when `hidden` enters it, with gradients where it has them; the block is
    called as it was for a recorded run, of one prompt or of as many as `hidden`. `scale` stands in
    for what its first norm divides by, but at position 0."""
    args, kwargs = one.arguments(layer, hidden, cache=None, fit=lambda value: value)
    with ExitStack() as hooks, warnings.catch_warnings():
        if scale is not None:
            warnings.simplefilter("ignore")  # of rounding, where the bridge recomputes the norm
            point = one.model.hook_dict[f"blocks.{layer}.ln1.hook_scale"]
            hooks.enter_context(hooked((point, lambda v: torch.cat([v[:, :1], scale], dim=1))))
        return first(one.model.blocks[layer](*args, **kwargs))


def _scale(model: TransformerBridge, layer: int, x: Tensor) -> Float[Tensor, "prompt pos 1"]:
    """What the norm in front of a block divides by."""
    norm = model.blocks[layer].ln1
    centred = x if norm.uses_rms_norm else x - x.mean(-1, keepdim=True)
    return (centred.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()

"""Ways in which a network's parameters can change while what it computes does not.

Three are counted (arXiv 2405.10927): activations that are linearly dependent, gradients passed
back that are linearly dependent, and ReLUs that fire on the same inputs. All are properties of a
network *on a set of inputs*. The exact count, for networks small enough, comes from the Jacobian
of the outputs with respect to the parameters.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..engine.stack import Stack
from .jacobians import activation_gram, jacobian_gram, spectrum


def ranks(
    stack: Stack,
    inputs: Float[Tensor, "batch ... feature"],
    thresholds: float | Sequence[float] = 1e-10,
    sources: int | None = None,
    **options: int,
) -> pd.DataFrame:
    """Rank of the activations, and of the gradients of the output, at every boundary.

    One row per boundary and threshold: boundary, threshold, width, activations, gradients.
    Eigenvalues of the covariance (of the uncentred Gram matrix, for gradients) at or below the
    threshold times the largest count as zero. ``sources``, options: see
    :func:`mi_helpers.basis.jacobians.jacobian_gram`.
    """
    rows = []
    for index, x in enumerate(stack.activations(inputs)):
        forth = activation_gram(x)[1]
        back = torch.eye(x.shape[-1], dtype=torch.float64)
        if index < len(stack.sections):
            rest = partial(stack.run, start=index)
            back = jacobian_gram(rest, x, sources=sources, **options).matrix
        for threshold in np.atleast_1d(thresholds).tolist():
            kept = (spectrum(gram, threshold)[0].numel() for gram in (forth, back))
            rows.append((index, threshold, x.shape[-1], *kept))
    columns = ["boundary", "threshold", "width", "activations", "gradients"]
    return pd.DataFrame(rows, columns=columns)


def layers(
    network: nn.Sequential, inputs: Float[Tensor, "batch feature"], threshold: float = 1e-10
) -> pd.DataFrame:
    """For every linear layer of an MLP, how many of its weights the two ranks leave free.

    ``inputs`` is the rank of what the layer reads, the constant included if it has a bias;
    ``gradients`` that of what is passed back to its output. A change of the weights does nothing,
    to first order, unless it pairs a direction of one with a direction of the other, so at least
    ``weights - inputs * gradients`` directions are free. ``groups`` lists the sets of two or more
    synchronised ReLUs that follow the layer.
    """
    rows, x, modules = [], inputs, list(network)
    for index, module in enumerate(modules):
        y, after = module(x), modules[index + 1 :]
        if isinstance(module, nn.Linear):
            read = x if module.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            n_read = spectrum(read.T.double() @ read.double(), threshold)[0].numel()
            n_passed = spectrum(jacobian_gram(nn.Sequential(*after), y).matrix, threshold)[
                0
            ].numel()
            weights = read.shape[1] * y.shape[1]
            groups = synchronised(y) if after and isinstance(after[0], nn.ReLU) else []
            rows.append((index, weights, n_read, n_passed, weights - n_read * n_passed, groups))
        x = y
    columns = ["layer", "weights", "inputs", "gradients", "free", "groups"]
    return pd.DataFrame(rows, columns=columns)


def synchronised(
    preactivations: Float[Tensor, "sample unit"], tolerance: float = 0.0
) -> list[list[int]]:
    """Groups of two or more ReLUs that fire on the same samples; units that never fire left out.

    ``tolerance``: share of samples on which a unit may differ from the group's first. Within a
    group of k the ReLUs act as one gated linear map, whose k x k change of coordinates is free: k
    of these directions (scales) every set of ReLUs has, the other k (k - 1) are extra.
    """
    fires: Bool[Tensor, "unit sample"] = (preactivations.flatten(0, -2) > 0).T
    groups: list[list[int]] = []
    for unit in torch.nonzero(fires.any(dim=1))[:, 0].tolist():
        leaders = fires[[group[0] for group in groups]]
        differ = (leaders != fires[unit]).double().mean(dim=1)
        alike = torch.nonzero(differ <= tolerance)[:, 0].tolist()
        if alike:
            groups[alike[0]].append(unit)
        else:
            groups.append([unit])
    return [group for group in groups if len(group) > 1]


def extra_free(groups: Sequence[Sequence[int]]) -> int:
    """Free directions that synchronised groups add: k (k - 1) each."""
    return sum(len(group) * (len(group) - 1) for group in groups)


def behavioural_spectrum(
    network: nn.Module, inputs: Float[Tensor, "batch ..."]
) -> Float[Tensor, " parameter"]:
    """Eigenvalues, descending, of the behavioural loss around the network's own parameters.

    The behavioural loss is the mean over inputs of the squared distance between the outputs before
    and after a change of parameters; to second order it is that quadratic form. One value per
    parameter; held in memory whole, so for thousands of parameters, not millions.
    """
    parameters = {name: p.detach().double() for name, p in network.named_parameters()}
    sizes = sum(p.numel() for p in parameters.values())

    def outputs(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(network, values, (x[None],))[0].flatten()

    per_sample = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))
    gram = torch.zeros(sizes, sizes, dtype=torch.float64)
    for batch in inputs.double().split(256):
        J = torch.cat([j.flatten(2) for j in per_sample(parameters, batch).values()], dim=2)
        gram += J.flatten(0, 1).T @ J.flatten(0, 1)
    return torch.linalg.eigvalsh(gram / len(inputs)).flip(0).clamp_min(0)


def effective_parameters(values: Float[Tensor, " parameter"], cutoff: float = 1e-10) -> int:
    """How many directions raise the behavioural loss by more than ``cutoff`` per squared step.

    ``cutoff`` is relative to the largest eigenvalue. At a cutoff near zero this is the rank; at a
    larger one it also leaves out directions that hardly matter.
    """
    return int((values > cutoff * values[0]).sum())

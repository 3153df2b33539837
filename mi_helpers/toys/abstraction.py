"""Causal abstraction on small networks: tasks, causal models and interchange interventions.

A *causal model* names variables, such as "the first two inputs are equal". A network implements it
if its variables can be *interchanged*: put what holds a variable in a source input's activations
into the run of a base input, and the network answers as the causal model does after the same
exchange. The share of (base, source) pairs for which it does so is the interchange accuracy. The
search for what holds a variable is in `alignment`.

Source: Geiger et al. 2021, arXiv 2106.02997.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from .side_by_side import Draws, mlp, shipped

Hidden = Float[Tensor, "net n d"]
Subspaces = Sequence[Float[Tensor, "net k d"]]  # of each variable: orthonormal rows
Pairs = tuple[Float[Tensor, "pair d_in"], Float[Tensor, "pair d_in"], Int[Tensor, "variable pair"]]
Draw = Callable[[int, Generator], Pairs]  # base, source, and the answers after each exchange


@dataclass(frozen=True)
class Networks:
    """MLPs side by side, ReLU between layers: weights [net, in, out] and biases [net, 1, out]."""

    weights: Sequence[Float[Tensor, "net d_in d_out"]]
    biases: Sequence[Float[Tensor, "net 1 d_out"]]

    def layers(self, first: int, last: int | None = None) -> list[Tensor]:
        """Weights and biases in turn, of the layers from `first` to before `last`."""
        chosen = zip(self.weights[first:last], self.biases[first:last], strict=True)
        return [part for layer in chosen for part in layer]

    def until(self, x: Float[Tensor, "*net n d_in"], layer: int) -> Hidden:
        """The activations of a hidden layer, after its ReLU; layer 0 is the first."""
        return mlp(self.layers(0, layer + 1), x).relu()

    def after(self, h: Hidden, layer: int) -> Float[Tensor, "net n out"]:
        """The logits that follow from a hidden layer's activations; edited ones may be negative."""
        return mlp(self.layers(layer + 1), h)

    def __call__(self, x: Float[Tensor, "*net n d_in"]) -> Float[Tensor, "net n out"]:
        return mlp(self.layers(0), x)


def untrained(seeds: Sequence[int], sizes: Sequence[int]) -> Networks:
    """Networks with layers of these sizes, each from its own seed, as PyTorch's layers start."""
    layers = [part.detach() for part in Draws(seeds).layers(*sizes)]
    return Networks(layers[::2], layers[1::2])


def trained(kind: str) -> Networks:
    """The shipped networks: twelve of "equality", five of "sums" and five of "two-state sums"."""
    stored = shipped("abstraction")
    names = [[n for n in sorted(stored) if n.startswith(f"{kind}.{x}")] for x in ("weight", "bias")]
    return Networks(*([stored[name] for name in part] for part in names))


# Tasks


def equality(n: int, generator: Generator) -> tuple[Float[Tensor, "n 16"], Bool[Tensor, "n 2"]]:
    """Inputs (w, x, y, z) of four numbers each, and whether w = x and whether y = z.

    Each of the two holds for half of the inputs. The task is to say whether both or neither do.
    """
    x = 2 * torch.rand(n, 4, 4, generator=generator) - 1
    equal = torch.rand(n, 2, generator=generator) < 0.5
    x[:, 1::2] = torch.where(equal[..., None], x[:, ::2], x[:, 1::2])
    return x.flatten(1), equal


def equality_answers(base: Bool[Tensor, "n 2"], source: Bool[Tensor, "n 2"]) -> Int[Tensor, "3 n"]:
    """Whether both or neither hold: with w = x from the source, with y = z from it, unchanged."""
    (wx, yz), (new_wx, new_yz) = base.T, source.T
    return torch.stack([new_wx == yz, wx == new_yz, wx == yz]).long()


def equality_pairs(n: int, generator: Generator) -> Pairs:
    """Variables: w = x; y = z; none."""
    (base, of_base), (source, of_source) = equality(n, generator), equality(n, generator)
    return base, source, equality_answers(of_base, of_source)


def rival_pairs(n: int, generator: Generator) -> Pairs:
    """A rival story of the same task, in which w itself is copied and compared with x later.

    Variables: w; y; none. With w from the source the answer is whether that w equals the base's x,
    and whether this agrees with y = z. The source's w is the base's x in half of the pairs (its y
    the base's z likewise); its own x and z are drawn as in `equality`. Source: the control
    "identity of the first argument", after arXiv 2303.02536.
    """
    (base, of_base), (source, of_source) = equality(n, generator), equality(n, generator)
    matches = torch.rand(n, 2, generator=generator) < 0.5
    b, s = base.unflatten(1, (4, -1)), source.unflatten(1, (4, -1))
    s[:, ::2] = torch.where(matches[..., None], b[:, 1::2], s[:, ::2])
    s[:, 1::2] = torch.where(of_source[..., None], s[:, ::2], s[:, 1::2])
    return base, s.flatten(1), equality_answers(of_base, matches)


# Causal models of x + y + z, each with the digits of its inner sum.
SUMS = {"(x + y) + z": (1, 1, 0), "x + (y + z)": (0, 1, 1), "(x + z) + y": (1, 0, 1)}


def hot(digits: Int[Tensor, "n 3"]) -> Float[Tensor, "n 30"]:
    return one_hot(digits, 10).flatten(1).float()


def sum_pairs(
    inner: Sequence[int] | Bool[Tensor, "n 3"],
    base: Int[Tensor, "n 3"],
    source: Int[Tensor, "n 3"],
) -> Pairs:
    """Pairs of digits, for a network that adds. Variables: the sum of the `inner` digits; none."""
    changed = torch.where(torch.as_tensor(inner).bool(), source, base)
    return hot(base), hot(source), torch.stack([changed.sum(1), base.sum(1)])


# Interchange interventions


def interchange(base: Hidden, source: Hidden, D: Float[Tensor, "net k d"]) -> Hidden:
    """The base's activations with those of the source in the span of D's orthonormal rows."""
    return base + (source - base) @ D.mT @ D


def exchanged(
    nets: Networks, layer: int, subspaces: Subspaces, pairs: Pairs
) -> Float[Tensor, "variable net pair out"]:
    """The logits after each variable's exchange in its subspace."""
    base, source = (nets.until(x, layer) for x in pairs[:2])
    return torch.stack([nets.after(interchange(base, source, D), layer) for D in subspaces])


def hits(
    nets: Networks, layer: int, subspaces: Subspaces, pairs: Pairs
) -> Bool[Tensor, "variable net pair"]:
    """Whether the answer is the causal model's, after each variable's exchange in its subspace."""
    answers = exchanged(nets, layer, subspaces, pairs).argmax(-1)
    return answers == pairs[2][: len(subspaces), None]

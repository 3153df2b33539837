"""Networks of one size side by side, [net, ...], each on random numbers of its own seed."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, relu

Layers = list[Tensor] | nn.ParameterList  # weights [net, in, out] and biases [net, 1, out] in turn


class Draws:
    """A stream of random numbers for each seed, so that a network ignores those beside it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Float[Tensor, "net ..."]:
        return torch.stack([torch.randn(shape, generator=stream) for stream in self.streams])

    def uniform(self, *shape: int) -> Float[Tensor, "net ..."]:
        """Between -1 and 1."""
        drawn = [torch.rand(shape, generator=stream) for stream in self.streams]
        return 2 * torch.stack(drawn) - 1

    def below(self, n: int, *shape: int) -> Int[Tensor, "net ..."]:
        """Whole numbers from 0 to n - 1: rows of a batch."""
        return torch.stack([torch.randint(n, shape, generator=stream) for stream in self.streams])

    def order(self, n: int) -> Int[Tensor, "net n"]:
        return torch.stack([torch.randperm(n, generator=stream) for stream in self.streams])

    def rotation(self, *shape: int) -> Float[Tensor, "net ... row column"]:
        """Orthonormal columns."""
        return torch.linalg.qr(self.normal(*shape)).Q

    def layers(self, *sizes: int) -> list[Tensor]:
        """Weights and biases of an `mlp`, as `nn.Linear` starts them."""
        made = []
        for n_in, n_out in pairwise(sizes):
            made += [self.uniform(*shape) / n_in**0.5 for shape in ((n_in, n_out), (1, n_out))]
        return [weight.requires_grad_() for weight in made]


def mlp(layers: Layers, x: Float[Tensor, "net n in"]) -> Float[Tensor, "net n out"]:
    """ReLU between the layers, none after the last."""
    for number in range(0, len(layers), 2):
        x = (relu(x) if number else x) @ layers[number] + layers[number + 1]
    return x


def look_up(
    table: Float[Tensor, "net row d"], rows: Int[Tensor, "net *shape"]
) -> Float[Tensor, "net *shape d"]:
    """Rows of each net's own table."""
    first = len(table[0]) * torch.arange(len(table)).view(-1, *[1] * (rows.ndim - 1))
    return embedding(rows + first, table.flatten(0, 1))


def next_losses(
    logits: Float[Tensor, "net text pos vocabulary"], tokens: Int[Tensor, "*net text pos_and_next"]
) -> Float[Tensor, "net text pos"]:
    """Cross-entropy of each next token, in nats; tokens [text pos] are those of every net."""
    after = tokens.expand(len(logits), *tokens.shape[-2:])[..., 1:]
    each = cross_entropy(logits.flatten(0, 2), after.flatten(), reduction="none")
    return each.view(after.shape)


def descend(optimiser: torch.optim.Optimizer, loss: Float[Tensor, "*net"]) -> None:
    """One step of all networks, each down its own loss: they do not touch each other."""
    optimiser.zero_grad()
    loss.sum().backward()
    optimiser.step()


def shipped(name: str) -> dict[str, Tensor]:
    """The weights in data/`name`, where make.py made them."""
    return load_file(Path(__file__).parents[1] / "data" / name / "nets.safetensors")

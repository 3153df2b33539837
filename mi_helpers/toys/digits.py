"""Multilayer perceptrons that read handwritten digits: 8 × 8 images of scikit-learn's UCI copy."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .side_by_side import descend, shipped

SIZES = (64, 32, 32, 10)
N_TRAIN = 1200  # of 1797 images, in the order of the data; the others test


def images() -> tuple[Float[Tensor, "image 64"], Int[Tensor, " image"]]:
    """All images, grey from 0 to 1, and the digits that they show."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def network(seed: int) -> nn.Sequential:
    """An untrained network: linear maps with ReLU between them, PyTorch's start."""
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(SIZES) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(mlp: nn.Sequential, steps: int = 300) -> nn.Sequential:
    """Train on the whole batch of training images, by Adam."""
    x, labels = images()
    optimiser = torch.optim.Adam(mlp.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(steps):
        descend(optimiser, nn.functional.cross_entropy(mlp(x[:N_TRAIN]), labels[:N_TRAIN]))
    return mlp.eval()


def trained(n: int) -> list[nn.Sequential]:
    """The first `n` networks that ship with the package; made by data/digits/make.py.

    Raises ValueError when fewer ship.
    """
    weights = shipped("digits")
    if n > (most := len(weights["0.bias"])):
        raise ValueError(f"{most} networks ship, not {n}; train more: toys.digits.train")
    nets = [network(seed) for seed in range(n)]
    for seed, net in enumerate(nets):
        net.load_state_dict({name: stacked[seed] for name, stacked in weights.items()})
    return [net.eval().requires_grad_(False) for net in nets]

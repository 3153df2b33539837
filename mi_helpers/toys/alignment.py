"""Where a network holds a causal model's variables: DAS, and several causal models for one network.

The variables, tasks and exchanges are those of `abstraction`.

Source: Geiger et al. 2024, arXiv 2303.02536 (DAS); Wu et al. 2023, arXiv 2305.08809 (boundless
DAS); after Pîslar et al. 2025, arXiv 2503.11429 (combined models).
"""

from collections.abc import Callable, Sequence
from math import cos, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from tqdm.auto import tqdm

from .abstraction import Draw, Networks, Pairs, Subspaces, exchanged
from .side_by_side import descend

Loss = Callable[[Pairs, float], Tensor]  # of the pairs and the share of steps that are done
PENALTY = 0.1  # of a boundary at the layer's end, in nats


def surprise(
    logits: Float[Tensor, "variable net pair out"], pairs: Pairs, smooth: bool = False
) -> Float[Tensor, ""]:
    """Cross-entropy of the causal model's answers, or with `smooth` minus their probability: the
    mean over pairs, summed over variables and networks, which do not touch each other."""
    right = logits.softmax(-1) if smooth else logits.log_softmax(-1)
    return -right.take_along_dim(pairs[2][: len(logits), None, :, None], -1).mean(2).sum()


def fit(
    parameters: Sequence[Tensor], loss: Loss, draw: Draw, steps: int, seed: int, lr: float = 0.05
) -> None:
    """Adam on 256 new pairs a step; the rate falls to zero as a cosine."""
    optimiser, generator = torch.optim.Adam(parameters, lr=lr), Generator().manual_seed(seed)
    for step in tqdm(range(steps), "fitting", leave=False):
        optimiser.param_groups[0]["lr"] = lr * (1 + cos(pi * step / steps)) / 2
        descend(optimiser, loss(draw(256, generator), step / steps))


def align(
    nets: Networks,
    layer: int,
    draw: Draw,
    sizes: Sequence[int],
    steps: int = 800,
    seed: int = 0,
    units: Sequence[int] | None = None,
    smooth: bool = False,
) -> list[Float[Tensor, "net k d"]]:
    """DAS: a rotation whose first sizes[0] rows hold variable 0, the next sizes[1] variable 1.

    Adam on the cross-entropy of the answers after the exchange; the networks stay as they are.
    `units` restricts it to some of the layer's units. `smooth` maximises the probability of the
    right answer instead, a smooth interchange accuracy: a pair that cannot be right then costs no
    more than 1. Source: arXiv 2303.02536, section 3; `smooth` is ours.
    """
    d = nets.weights[layer].shape[-1]
    basis = torch.eye(d)[list(units or range(d))]
    free = started(nets, len(basis), seed)

    def subspaces() -> Subspaces:
        return (rotation(free) @ basis)[:, : sum(sizes)].split(list(sizes), dim=1)

    def loss(pairs: Pairs, done: float) -> Tensor:
        return surprise(exchanged(nets, layer, subspaces(), pairs), pairs, smooth)

    fit([free], loss, draw, steps, seed)
    return [D.detach() for D in subspaces()]


def align_boundless(
    nets: Networks, layer: int, draw: Draw, steps: int = 800, seed: int = 0, start: float = 0.5
) -> Float[Tensor, "net d d"]:
    """Boundless DAS of the first variable: a rotation, its rows beyond the learned boundary zero.

    Row i takes part by sigmoid((boundary - i - 1/2) / T) while T falls from 2 to 0.1. The boundary
    starts at the share `start` of the layer and costs `PENALTY` times its share.
    Source: arXiv 2305.08809, section 3.
    """
    d = nets.weights[layer].shape[-1]
    free = started(nets, d, seed)
    boundary = torch.full((len(free), 1), d * start).requires_grad_()

    def part(done: float) -> Float[Tensor, "net d"]:
        return ((boundary - torch.arange(d) - 0.5) / (2 * 0.05**done)).sigmoid()

    def loss(pairs: Pairs, done: float) -> Tensor:
        rows = rotation(free) * part(done).clamp_min(1e-12).sqrt()[..., None]
        missed = surprise(exchanged(nets, layer, [rows], pairs), pairs)
        return missed + PENALTY * boundary.sum() / d

    fit([free, boundary], loss, draw, steps, seed)
    return (rotation(free) * (part(1.0) > 0.5)[..., None]).detach()


def started(nets: Networks, d: int, seed: int) -> Float[Tensor, "net d d"]:
    """Random numbers that `rotation` makes a rotation of."""
    drawn = torch.randn(len(nets.weights[0]), d, d, generator=Generator().manual_seed(seed))
    return (drawn / d**0.5).requires_grad_()


def rotation(free: Float[Tensor, "net d d"]) -> Float[Tensor, "net d d"]:
    """Orthogonal, by Cayley's transform of a skew-symmetric matrix."""
    skew, one = free - free.mT, torch.eye(free.shape[-1])
    return torch.linalg.solve(one + skew, one - skew)


# Several causal models for one network


def explained(success: Bool[Tensor, "model input input"], faithful: float) -> Int[Tensor, "input"]:
    """Which causal model explains each input, -1 where none does.

    For each model, inputs are dropped, the one with the fewest successful exchanges first, until
    the share of successes among the rest is `faithful`. The model that explains most takes its
    inputs, and the others share what is left. Source: after arXiv 2503.11429.
    """
    chosen = torch.full((success.shape[1],), -1)
    for _ in success:
        sets = [kept(one, (chosen < 0).nonzero()[:, 0], faithful) for one in success]
        largest = max(range(len(sets)), key=lambda i: len(sets[i]) * (i not in chosen))
        if largest not in chosen:
            chosen[sets[largest]] = largest
    return chosen


def kept(
    success: Bool[Tensor, "input input"], left: Int[Tensor, "some"], faithful: float
) -> Tensor:
    """Which of the inputs that are `left` stay, as base and as source."""
    while (part := success[left][:, left].long()).sum() < faithful * len(left) ** 2:
        worst = (part.sum(0) + part.sum(1)).argmin()
        left = left[torch.arange(len(left)) != worst]
    return left

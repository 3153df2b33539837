"""Causal abstraction on small networks: interchange interventions, DAS, and combined models.

A *causal model* names variables, such as "the first two inputs are equal". A network implements it
if its variables can be *interchanged*: put what holds a variable in a source input's activations
into the run of a base input, and the network answers as the causal model does after the same
exchange. The share of (base, source) pairs for which it does so is the interchange accuracy.

Source: Geiger et al. 2021, arXiv 2106.02997; Geiger et al. 2024, arXiv 2303.02536 (DAS); Wu et al.
2023, arXiv 2305.08809 (boundless DAS); after Pîslar et al. 2025, arXiv 2503.11429 (combined).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from .side_by_side import Draws, descend

Hidden = Float[Tensor, "net n d"]
Subspaces = Sequence[Float[Tensor, "net k d"]]  # of each variable: orthonormal rows
Pairs = tuple[Float[Tensor, "pair d_in"], Float[Tensor, "pair d_in"], Int[Tensor, "variable pair"]]
Draw = Callable[[int, Generator], Pairs]  # base, source, and the answers after each exchange
Loss = Callable[[Pairs, float], Tensor]  # of the pairs and the share of steps that are done
PENALTY = 0.1  # of a boundary at the layer's end, in nats


@dataclass(frozen=True)
class Networks:
    """MLPs side by side, ReLU between layers: weights [net, in, out] and biases [net, 1, out]."""

    weights: Sequence[Float[Tensor, "net d_in d_out"]]
    biases: Sequence[Float[Tensor, "net 1 d_out"]]

    def until(self, x: Float[Tensor, "*net n d_in"], layer: int) -> Hidden:
        """The activations of a hidden layer, after its ReLU; layer 0 is the first."""
        for i in range(layer + 1):
            x = (x @ self.weights[i] + self.biases[i]).relu()
        return x

    def after(self, h: Hidden, layer: int) -> Float[Tensor, "net n out"]:
        """The logits that follow from a hidden layer's activations."""
        h = h @ self.weights[layer + 1] + self.biases[layer + 1]  # edited ones may be negative
        for i in range(layer + 2, len(self.weights)):
            h = h.relu() @ self.weights[i] + self.biases[i]
        return h

    def __call__(self, x: Float[Tensor, "*net n d_in"]) -> Float[Tensor, "net n out"]:
        return self.after(self.until(x, 0), 0)


def untrained(seeds: Sequence[int], sizes: Sequence[int]) -> Networks:
    """Networks with layers of these sizes, each from its own seed, as PyTorch's layers start."""
    layers = [part.detach() for part in Draws(seeds).layers(*sizes)]
    return Networks(layers[::2], layers[1::2])


def trained(kind: str) -> Networks:
    """The shipped networks: twelve of "equality", five of "sums" and five of "two-state sums"."""
    stored = load_file(Path(__file__).parents[1] / "data" / "abstraction" / "nets.safetensors")
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


# Interchange interventions and the search for alignments


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

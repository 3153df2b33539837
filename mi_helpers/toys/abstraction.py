"""Causal abstraction on small networks: interchange interventions, DAS, and combined models.

A *causal model* names variables, such as "the first two inputs are equal". A network implements it
if its variables can be *interchanged*: put what holds a variable in a source input's activations
into the run of a base input, and the network answers as the causal model does after the same
exchange. The share of (base, source) pairs for which it does so is the interchange accuracy.

- `equality_pairs`, `rival_pairs` and `sum_pairs` draw pairs with a causal model's answers after the
  exchange;
- `interchange` makes the exchange in a subspace, `hits` says which answers are right after it;
- `align` learns the subspaces (DAS), `align_boundless` how large one has to be as well;
- `explained` chooses for each input which of several causal models explains it.

Source: Geiger et al. 2021, arXiv 2106.02997; Geiger et al. 2024, arXiv 2303.02536 (DAS); Wu et al.
2023, arXiv 2305.08809 (boundless DAS); after Pîslar et al. 2025, arXiv 2503.11429 (combined).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, one_hot
from tqdm.auto import tqdm

Pairs = tuple[Float[Tensor, "pair d_in"], Float[Tensor, "pair d_in"], Int[Tensor, "variable pair"]]
Draw = Callable[[int, Generator], Pairs]  # base, source, and the answers after each exchange


@dataclass(frozen=True)
class Networks:
    """MLPs side by side, ReLU between layers: weights [net, in, out] and biases [net, 1, out]."""

    weights: Sequence[Float[Tensor, "net d_in d_out"]]
    biases: Sequence[Float[Tensor, "net 1 d_out"]]

    def until(self, x: Float[Tensor, "*net n d_in"], layer: int) -> Float[Tensor, "net n d"]:
        """The activations of a hidden layer, after its ReLU; layer 0 is the first."""
        for i in range(layer + 1):
            x = (x @ self.weights[i] + self.biases[i]).relu()
        return x

    def after(self, h: Float[Tensor, "net n d"], layer: int) -> Float[Tensor, "net n out"]:
        """The logits that follow from a hidden layer's activations."""
        h = h @ self.weights[layer + 1] + self.biases[layer + 1]  # edited ones may be negative
        for i in range(layer + 2, len(self.weights)):
            h = h.relu() @ self.weights[i] + self.biases[i]
        return h

    def __call__(self, x: Float[Tensor, "*net n d_in"]) -> Float[Tensor, "net n out"]:
        return self.after(self.until(x, 0), 0)

    @classmethod
    def random(cls, seeds: Sequence[int], sizes: Sequence[int]) -> "Networks":
        """Untrained, each from its own seed, uniform within ±1/√d_in as PyTorch's layers start."""
        starts, drawn = [Generator().manual_seed(seed) for seed in seeds], []
        for d_in, d_out in pairwise(sizes):
            both = torch.stack([torch.rand(d_in + 1, d_out, generator=g) for g in starts])
            drawn.append((2 * both - 1) / d_in**0.5)
        return cls([w[:, :-1].clone() for w in drawn], [w[:, -1:].clone() for w in drawn])

    def trained(
        self,
        draw: Draw,
        steps: int,
        batch: int = 512,
        lr: float = 5e-3,
        seed: int = 0,
        held: tuple[int, int] | None = None,
    ) -> "Networks":
        """Trained side by side on the base inputs, whose answers `draw` gives last.

        `held`: a layer and a number of its first units, in which the first variable is trained to
        be exchangeable (interchange intervention training, Geiger et al. 2022, arXiv 2112.00826).
        """
        parts = [[w.clone().requires_grad_() for w in part] for part in (self.weights, self.biases)]
        nets, generator = Networks(*parts), Generator().manual_seed(seed)
        if held:
            d = self.weights[held[0]].shape[-1]
            units = torch.eye(d)[: held[1]].expand(len(self.weights[0]), -1, -1)

        def loss(done: float) -> Tensor:
            pairs = draw(batch, generator)
            task = _loss(nets(pairs[0]), pairs[2][-1])
            return task + (_exchange_loss(nets, held[0], [units], pairs) if held else 0)

        _descend([*nets.weights, *nets.biases], loss, steps, lr, "networks")
        return Networks(*([w.detach() for w in part] for part in parts))


def trained(kind: str) -> Networks:
    """The shipped networks: twelve of "equality", five of "sums" and five of "two-state sums".

    Made by data/abstraction/make.py.
    """
    stored = load_file(Path(__file__).parents[1] / "data" / "abstraction" / "nets.safetensors")
    part = {name.removeprefix(f"{kind}."): w for name, w in stored.items() if name.startswith(kind)}
    layers = range(len(part) // 2)
    return Networks([part[f"weight.{i}"] for i in layers], [part[f"bias.{i}"] for i in layers])


# Tasks


def equality(n: int, generator: Generator, d: int = 4) -> tuple[Tensor, Bool[Tensor, "n 2"]]:
    """Inputs (w, x, y, z) of d numbers each, as [n, 4d], and whether w = x and whether y = z.

    Each of the two holds for half of the inputs. The task is to say whether both or neither do.
    """
    x = 2 * torch.rand(n, 4, d, generator=generator) - 1
    equal = torch.rand(n, 2, generator=generator) < 0.5
    x[:, 1::2] = torch.where(equal[..., None], x[:, ::2], x[:, 1::2])
    return x.flatten(1), equal


def equality_answers(base: Bool[Tensor, "n 2"], source: Bool[Tensor, "n 2"]) -> Int[Tensor, "3 n"]:
    """Whether both or neither hold: with w = x from the source, with y = z from it, unchanged."""
    changed = [(source[:, 0], base[:, 1]), (base[:, 0], source[:, 1]), (base[:, 0], base[:, 1])]
    return torch.stack([a == b for a, b in changed]).long()


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
SUMS = {"(x + y) + z": (0, 1), "x + (y + z)": (1, 2), "(x + z) + y": (0, 2)}


def digits() -> Int[Tensor, "1000 3"]:
    """All x, y, z from 0 to 9."""
    return torch.cartesian_prod(*[torch.arange(10)] * 3)


def hot(numbers: Int[Tensor, "n 3"]) -> Float[Tensor, "n 30"]:
    return one_hot(numbers, 10).flatten(1).float()


def sum_pairs(inner: Sequence[int], among: Int[Tensor, "input 3"] | None = None) -> Draw:
    """Pairs whose variable is the sum of the digits `inner`; the task is x + y + z.

    `among`: the inputs that bases and sources are drawn from; default: all of them.
    """

    def draw(n: int, generator: Generator) -> Pairs:
        if among is None:
            base, source = torch.randint(10, (2, n, 3), generator=generator)
        else:
            base, source = among[torch.randint(len(among), (2, n), generator=generator)]
        changed = base.clone()
        changed[:, list(inner)] = source[:, list(inner)]
        return hot(base), hot(source), torch.stack([changed.sum(1), base.sum(1)])

    return draw


def two_state_pairs(n: int, generator: Generator) -> Pairs:
    """As `sum_pairs`, the inner sum x + y where x < 5 and y + z elsewhere; sources in the base's
    state. Networks that are trained to hold this variable compute in two ways."""
    base, source = torch.randint(10, (2, n, 3), generator=generator)
    first = base[:, :1] < 5
    source[:, 0] = source[:, 0] % 5 + 5 * (~first[:, 0])
    inner = torch.cat([first, torch.ones_like(first), ~first], 1)
    changed = torch.where(inner, source, base)
    return hot(base), hot(source), torch.stack([changed.sum(1), base.sum(1)])


# Interchange interventions and the search for alignments


def interchange(
    base: Float[Tensor, "net n d"], source: Float[Tensor, "net n d"], D: Float[Tensor, "net k d"]
) -> Float[Tensor, "net n d"]:
    """The base's activations with those of the source in the span of D's orthonormal rows."""
    return base + (source - base) @ D.mT @ D


def hits(
    nets: Networks, layer: int, subspaces: Sequence[Float[Tensor, "net k d"]], pairs: Pairs
) -> Bool[Tensor, "variable net pair"]:
    """Whether the answer is the causal model's, after each variable's exchange in its subspace."""
    base, source = (nets.until(x, layer) for x in pairs[:2])
    found = [nets.after(interchange(base, source, D), layer).argmax(-1) for D in subspaces]
    return torch.stack([f == a for f, a in zip(found, pairs[2], strict=False)])


def align(
    nets: Networks,
    layer: int,
    draw: Draw,
    sizes: Sequence[int],
    steps: int = 800,
    batch: int = 256,
    lr: float = 0.02,
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
    basis = torch.eye(d)[list(range(d)) if units is None else list(units)]
    free, generator = _start(nets, len(basis), seed), Generator().manual_seed(seed)

    def subspaces() -> list[Tensor]:
        rows = _rotation(free) @ basis
        return list(rows[:, : sum(sizes)].split(list(sizes), dim=1))

    def loss(done: float) -> Tensor:
        return _exchange_loss(nets, layer, subspaces(), draw(batch, generator), smooth)

    _descend([free], loss, steps, lr, "rotations")
    return [D.detach() for D in subspaces()]


def align_boundless(
    nets: Networks,
    layer: int,
    draw: Draw,
    penalty: float = 0.1,
    steps: int = 800,
    batch: int = 256,
    lr: float = 0.02,
    seed: int = 0,
    start: float = 0.5,
) -> Float[Tensor, "net d d"]:
    """Boundless DAS of the first variable: a rotation, its rows beyond the learned boundary zero.

    Row i takes part by sigmoid((boundary - i - 1/2) / T) while T falls from 2 to 0.1; a boundary at
    the layer's end would cost `penalty`. It starts at the share `start` of the layer.
    Source: arXiv 2305.08809, section 3.
    """
    d = nets.weights[layer].shape[-1]
    free, generator = _start(nets, d, seed), Generator().manual_seed(seed)
    boundary = torch.full((len(free), 1), d * start).requires_grad_()

    def part(done: float) -> Tensor:
        return ((boundary - torch.arange(d) - 0.5) / (2 * 0.05**done)).sigmoid()

    def loss(done: float) -> Tensor:
        rows = _rotation(free) * part(done).clamp_min(1e-12).sqrt()[..., None]
        wrong = _exchange_loss(nets, layer, [rows], draw(batch, generator))
        return wrong + penalty * boundary.sum() / d

    _descend([free, boundary], loss, steps, lr, "rotations and boundaries")
    return (_rotation(free) * (part(1.0) > 0.5)[..., None]).detach()


def _start(nets: Networks, d: int, seed: int) -> Float[Tensor, "net d d"]:
    drawn = torch.randn(len(nets.weights[0]), d, d, generator=Generator().manual_seed(seed))
    return (drawn / d**0.5).requires_grad_()


def _rotation(free: Float[Tensor, "net d d"]) -> Float[Tensor, "net d d"]:
    """Orthogonal, by Cayley's transform of a skew-symmetric matrix."""
    skew, one = free - free.mT, torch.eye(free.shape[-1])
    return torch.linalg.solve(one + skew, one - skew)


def _loss(
    logits: Float[Tensor, "net n out"], answers: Int[Tensor, "n"], smooth: bool = False
) -> Tensor:
    """Summed over networks, which do not touch each other."""
    each = answers.expand(logits.shape[:2])
    if smooth:
        return -logits.softmax(-1).gather(-1, each[..., None]).mean() * len(logits)
    return cross_entropy(logits.flatten(0, 1), each.flatten()) * len(logits)


def _exchange_loss(
    nets: Networks,
    layer: int,
    subspaces: Sequence[Float[Tensor, "net k d"]],
    pairs: Pairs,
    smooth: bool = False,
) -> Tensor:
    base, source = (nets.until(x, layer) for x in pairs[:2])
    logits = [nets.after(interchange(base, source, D), layer) for D in subspaces]
    return torch.stack([_loss(x, a, smooth) for x, a in zip(logits, pairs[2], strict=False)]).sum()


def _descend(
    parameters: Sequence[Tensor], loss: Callable[[float], Tensor], steps: int, lr: float, name: str
) -> None:
    """Adam; the rate falls to zero as a cosine. `loss` is told the share of steps that are done."""
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for step in tqdm(range(steps), name, leave=False):
        optimiser.param_groups[0]["lr"] = lr * (1 + cos(pi * step / steps)) / 2
        optimiser.zero_grad()
        loss(step / steps).backward()
        optimiser.step()


# Several causal models for one network


def explained(success: Bool[Tensor, "model input input"], faithful: float) -> Int[Tensor, "input"]:
    """Which causal model explains each input, -1 where none does.

    For each model, inputs are dropped, the one with the fewest successful exchanges first, until
    the share of successes among the rest is `faithful`. The model that explains most takes its
    inputs, and the others share what is left. Source: after arXiv 2503.11429.
    """
    chosen = torch.full((success.shape[1],), -1)
    for _ in success:
        sets = [_peeled(one, chosen < 0, faithful) for one in success]
        largest = max(range(len(sets)), key=lambda i: int(sets[i].sum()) * (i not in chosen))
        if largest not in chosen:
            chosen[sets[largest]] = largest
    return chosen


def _peeled(success: Tensor, among: Bool[Tensor, "input"], faithful: float) -> Tensor:
    inside, success = among.clone(), (success & among & among[:, None]).double()
    degree, total = success.sum(0) + success.sum(1), float(success.sum())
    while inside.any() and total < faithful * int(inside.sum()) ** 2:
        worst = int(degree.masked_fill(~inside, torch.inf).argmin())
        total -= float(degree[worst] - success[worst, worst])
        inside[worst] = False
        degree -= success[worst] + success[:, worst]
        success[worst], success[:, worst] = 0, 0
    return inside

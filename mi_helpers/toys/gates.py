"""Toy networks whose truth tables are known, to be patched unit by unit or edge by edge.

A unit is one neuron with a hard sigmoid, clamp(weights · parents + bias, 0, 1). On inputs of 0 and
1 it is exactly a gate: AND is clamp(a + b - 1), OR is clamp(a + b), a copy is clamp(a). What
patching must find is therefore known beforehand (Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

Value = Float[Tensor, "*batch"]
Node = str
Edge = tuple[str, str]


@dataclass(frozen=True)
class Unit:
    """clamp(weights · parents + bias, 0, 1)."""

    weights: Mapping[str, float]
    bias: float = 0.0


def both(*parents: str) -> Unit:
    """AND: 1 if every parent is 1."""
    return Unit(dict.fromkeys(parents, 1.0), 1.0 - len(parents))


def either(*parents: str) -> Unit:
    """OR: 1 if any parent is 1."""
    return Unit(dict.fromkeys(parents, 1.0))


def copy(parent: str) -> Unit:
    """The parent's own value."""
    return Unit({parent: 1.0})


@dataclass(frozen=True)
class Network:
    """Units by name, each after its parents; names without a unit are inputs; the last is the
    output. Raises ValueError for a parent that comes later than its child."""

    units: Mapping[str, Unit]

    def __post_init__(self) -> None:
        seen = set(self.inputs)
        for name, unit in self.units.items():
            late = set(unit.weights) - seen
            if late:
                raise ValueError(f"unit {name!r} comes before its parents {sorted(late)}")
            seen.add(name)

    @property
    def inputs(self) -> list[str]:
        parents = [parent for unit in self.units.values() for parent in unit.weights]
        return [name for name in dict.fromkeys(parents) if name not in self.units]

    @property
    def nodes(self) -> list[str]:
        """What can be patched: inputs and units, without the output."""
        return [*self.inputs, *self.units][:-1]

    @property
    def output(self) -> str:
        return list(self.units)[-1]

    @property
    def edges(self) -> list[Edge]:
        return [(parent, name) for name, unit in self.units.items() for parent in unit.weights]

    def run(
        self, inputs: Mapping[str, Value | float], patches: Mapping[Node | Edge, Value] = {}
    ) -> dict[str, Value]:
        """The value of every node. `patches` gives values to nodes (all children see them) or to
        edges, as (parent, child) (that child alone sees them).

        Raises ValueError for missing inputs and for a patch of what is not there.
        """
        unknown = set(patches) - {*self.inputs, *self.units, *self.edges}
        if unknown or set(inputs) != set(self.inputs):
            raise ValueError(
                f"this network has no {sorted(map(str, unknown))}" if unknown
                else f"inputs are {self.inputs}, got {sorted(inputs)}"
            )  # fmt: skip
        found: dict[str, Value] = {}
        for name in (*self.inputs, *self.units):
            unit = self.units.get(name)
            if name in patches:
                found[name] = torch.as_tensor(patches[name])
            elif unit is None:
                found[name] = torch.as_tensor(inputs[name], dtype=torch.float64)
            else:
                seen = {p: patches.get((p, name), found[p]) for p in unit.weights}
                total = sum(weight * seen[p] for p, weight in unit.weights.items())
                found[name] = torch.as_tensor(total + unit.bias).clamp(0, 1)
        return found


def patch_table(
    network: Network,
    clean: Mapping[str, float],
    corrupted: Mapping[str, float],
    targets: Iterable[Sequence[Node | Edge]] | None = None,
) -> pd.DataFrame:
    """Noise and denoise sets of nodes or edges: 0 is the corrupted output, 1 the clean one.

    `targets` are the sets, by default every node alone and every pair of nodes. One line per set:
    `patched`, `size`, `denoise` (clean values into the corrupted run), `noise` (corrupted values
    into the clean run). Raises ValueError where both inputs give one output.
    """
    if targets is None:
        targets = [s for size in (1, 2) for s in combinations(network.nodes, size)]
    on_clean, on_corrupted, end = network.run(clean), network.run(corrupted), network.output
    if on_clean[end] == on_corrupted[end]:
        raise ValueError(f"clean and corrupted inputs both give {float(on_clean[end]):g}")
    rows = []
    for target in targets:
        names = [node if isinstance(node, str) else "→".join(node) for node in target]
        row: dict[str, object] = {"patched": " + ".join(names), "size": len(target)}
        ways = {"denoise": (corrupted, on_clean), "noise": (clean, on_corrupted)}
        for way, (base, source) in ways.items():
            values = {t: source[t if isinstance(t, str) else t[0]] for t in target}
            moved = network.run(base, values)[end] - on_corrupted[end]
            row[way] = float(moved / (on_clean[end] - on_corrupted[end]))
        rows.append(row)
    return pd.DataFrame(rows)


AND = Network({"y": both("a", "b")})
OR = Network({"y": either("a", "b")})
CHAIN = Network({"A": copy("x"), "B": copy("A"), "C": copy("B"), "y": copy("C")})
TWO_CHAINS = Network(
    {
        "A": copy("x1"), "B": copy("A"), "C": copy("B"),
        "D": copy("x2"), "E": copy("D"), "F": copy("E"),
        "y": both("C", "F"),
    }
)  # fmt: skip

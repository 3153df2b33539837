"""Train the shipped networks: ``python -m mi_helpers.data.abstraction.make --out OUT``.

About two minutes on one core. Writes OUT/nets.safetensors, 0.3 MB in size.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from ...toys import abstraction, alignment
from ...toys.abstraction import Draw, Networks, Pairs, equality_pairs, untrained

EQUALITY, SUMS = (16, 16, 16, 16, 2), (30, 48, 32, 48, 28)


def sum_pairs(n: int, generator: Generator) -> Pairs:
    """Pairs of digits whose variable is x + y; the task is x + y + z."""
    base, source = torch.randint(10, (2, n, 3), generator=generator)
    return abstraction.sum_pairs((1, 1, 0), base, source)


def two_state_pairs(n: int, generator: Generator) -> Pairs:
    """The variable is x + y where x < 5 and y + z elsewhere; sources are in the base's state."""
    base, source = torch.randint(10, (2, n, 3), generator=generator)
    first = base[:, :1] < 5
    source[:, 0] = source[:, 0] % 5 + 5 * (~first[:, 0])
    inner = torch.cat([first, torch.ones_like(first), ~first], 1)
    return abstraction.sum_pairs(inner, base, source)


def train(
    nets: Networks, draw: Draw, steps: int, batch: int = 512, held: tuple[int, int] | None = None
) -> Networks:
    """Networks trained side by side on the base inputs, whose answers `draw` gives last.

    `held`: a layer and a number of its first units, in which the first variable is trained to
    be exchangeable (interchange intervention training, Geiger et al. 2022, arXiv 2112.00826).
    """
    parts = [[w.clone().requires_grad_() for w in part] for part in (nets.weights, nets.biases)]
    free = Networks(*parts)

    def loss(pairs: Pairs, done: float) -> Tensor:
        task = alignment.surprise(free(pairs[0])[None], (*pairs[:2], pairs[2][-1:]))
        if held is None:
            return task
        layer, k = held
        units = torch.eye(nets.weights[layer].shape[-1])[:k].expand(len(nets.weights[0]), -1, -1)
        return task + alignment.surprise(abstraction.exchanged(free, layer, [units], pairs), pairs)

    def more(n: int, generator: Generator) -> Pairs:
        return draw(batch, generator)

    alignment.fit([*free.weights, *free.biases], loss, more, steps, seed=0, lr=5e-3)
    return Networks(*([w.detach() for w in part] for part in parts))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, help="of each kind; default: all")
    parser.add_argument("--steps", type=int, help="default: as shipped")
    args = parser.parse_args(argv)

    def start(number: int, sizes: tuple[int, ...]) -> Networks:
        return untrained(range(100, 100 + (args.nets or number)), sizes)

    steps = args.steps
    made = {
        "equality": train(start(12, EQUALITY), equality_pairs, steps or 6000),
        "sums": train(start(5, SUMS), sum_pairs, steps or 2000),
        "two-state sums": train(start(5, SUMS), two_state_pairs, steps or 2500, held=(1, 8)),
    }
    weights = {
        f"{kind}.{name}.{i}": w.contiguous()
        for kind, nets in made.items()
        for name, part in (("weight", nets.weights), ("bias", nets.biases))
        for i, w in enumerate(part)
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

"""Train the shipped networks: ``python -m mi_helpers.data.abstraction.make --out OUT``.

About two minutes on one core. Writes OUT/nets.safetensors, 0.3 MB in size.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from ...toys.abstraction import Networks, equality_pairs, sum_pairs, two_state_pairs

EQUALITY, SUMS = (16, 16, 16, 16, 2), (30, 48, 32, 48, 28)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, help="of each kind; default: all")
    parser.add_argument("--steps", type=int, help="default: as shipped")
    args = parser.parse_args(argv)

    def untrained(number: int, sizes: tuple[int, ...]) -> Networks:
        return Networks.random(range(100, 100 + (args.nets or number)), sizes)

    made = {
        "equality": untrained(12, EQUALITY).trained(equality_pairs, args.steps or 6000),
        "sums": untrained(5, SUMS).trained(sum_pairs((0, 1)), args.steps or 2000),
        "two-state sums": untrained(5, SUMS).trained(
            two_state_pairs, args.steps or 2500, held=(1, 8)
        ),
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

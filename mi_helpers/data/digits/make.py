"""Train the shipped digit networks: ``python -m mi_helpers.data.digits.make --out OUT``.

Half a minute on one core. Writes OUT/nets.safetensors, 0.4 MB in size: parameters stacked by seed.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ...toys.digits import network, train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)
    nets = [train(network(seed), args.steps).state_dict() for seed in tqdm(range(args.nets))]
    args.out.mkdir(parents=True, exist_ok=True)
    stacked = {name: torch.stack([net[name] for net in nets]) for name in nets[0]}
    save_file(stacked, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

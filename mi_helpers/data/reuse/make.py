"""Train the shipped networks: ``python -m mi_helpers.data.reuse.make --out OUT``.

About a minute on one core. Writes OUT/nets.safetensors, 0.5 MB in size: the weights, float16,
and the circuits that `learn` finds in the networks with these weights.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...toys.string_operations import averages, learn, train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=6)
    parser.add_argument("--steps", type=int, help="of training and of masks; default: as shipped")
    args = parser.parse_args(argv)
    model = train(args.nets, steps=args.steps or 800, seed=100)
    stored = {k: w.half() for k, w in model.state_dict().items() if k != "W_gate"}
    model.load_state_dict({k: w.float() for k, w in stored.items()}, strict=False)
    circuits = learn(model, averages(model), steps=args.steps or 300)
    args.out.mkdir(parents=True, exist_ok=True)
    whole = {k: w.contiguous() for k, w in stored.items()}
    save_file(whole | {"circuits": circuits.to(torch.uint8)}, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

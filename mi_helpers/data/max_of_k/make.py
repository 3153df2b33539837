"""Train the shipped max-of-4 networks: ``python -m mi_helpers.data.max_of_k.make --out OUT``.

About two minutes on 2 cores. Writes OUT/nets.safetensors, 0.7 MB in size.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from ...toys.max_of_k import train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model = train(args.nets, args.steps, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.state_dict()), args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

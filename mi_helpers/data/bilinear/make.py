"""Train the shipped bilinear networks: ``python -m mi_helpers.data.bilinear.make --out OUT``.

About a minute on 2 cores. Writes OUT/nets.safetensors, float16, 1.4 MB in size.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from ...toys.bilinear import CHECKPOINTS, train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=CHECKPOINTS[-1], help="leave out later ones")
    args = parser.parse_args(argv)
    kept = train(range(args.nets), [step for step in CHECKPOINTS if step <= args.steps])
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: getattr(kept, name).half().contiguous() for name in ("D", "L", "R")}
    save_file(weights, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

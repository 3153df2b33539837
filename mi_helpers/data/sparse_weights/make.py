"""Train the shipped twins: ``python -m mi_helpers.data.sparse_weights.make --out OUT``.

About six minutes on one core. Writes OUT/nets.safetensors, float16, 1.6 MB in size. The "other
dense" twins share neither start nor text with the rest: what two dense networks differ by.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ...toys.self_ablation import losses
from ...toys.sparse_weights import train

SETS: dict[str, dict[str, Any]] = {  # what `train` is told of each kind
    "dense": {},
    "sparse": {"share": 0.1},
    "self-ablating": {"losses": losses},
    "soft": {"losses": partial(losses, soft=True)},
    "other dense": {"seed": 100},
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args(argv)
    weights = {}
    for kind, options in SETS.items():
        for part, weight in train(args.nets, args.steps, **options).state_dict().items():
            if part != "W_gate" or kind in ("self-ablating", "soft"):
                weights[f"{kind}/{part}"] = weight.half().contiguous()
        args.out.mkdir(parents=True, exist_ok=True)
        save_file(weights, args.out / "nets.safetensors")  # after each set, so that none is lost


if __name__ == "__main__":
    main()

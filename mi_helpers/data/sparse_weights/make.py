"""Train the shipped twins: ``python -m mi_helpers.data.sparse_weights.make --out OUT``.

About five minutes on one core. Writes OUT/nets.safetensors, float16, 1.2 MB in size.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from ...toys.sparse_weights import KINDS, train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args(argv)
    weights = {}
    for kind in KINDS:
        for name, weight in train(kind, args.nets, args.steps).state_dict().items():
            if name != "W_gate" or kind in ("self-ablating", "soft"):
                weights[f"{kind}/{name}"] = weight.half().contiguous()
        args.out.mkdir(parents=True, exist_ok=True)
        save_file(weights, args.out / "nets.safetensors")  # after each kind, so that none is lost


if __name__ == "__main__":
    main()

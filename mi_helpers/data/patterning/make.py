"""Train what patterning ships: ``python -m mi_helpers.data.patterning.make --out OUT``.

About three minutes on 2 cores. Writes OUT/nets.safetensors, 0.2 MB in size.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange, repeat
from safetensors.torch import save_file

from ...toys.patterning import MIXTURE, train

FIRST, STEPS, SETTLE, LENGTH = 8, 700, 200, 0.15  # FIRST: seed; LENGTH: of a mixture's shift


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args(argv)
    seeds = range(FIRST, FIRST + args.nets)
    settle = SETTLE * args.steps // STEPS
    w, scores = train(MIXTURE.expand(args.nets, -1), seeds, args.steps, settle)

    # The mixture towards each source and away from it, all by the same length.
    sources = len(MIXTURE)
    towards = torch.nn.functional.normalize(torch.eye(sources) - MIXTURE, dim=1) * LENGTH
    mixtures = MIXTURE + torch.stack([towards, -towards], 1)  # source direction source
    rows = repeat(mixtures, "k two h -> (n k two) h", n=args.nets)
    _, shifted = train(rows, [seed for seed in seeds for _ in range(2 * sources)], args.steps)
    shifted = rearrange(shifted, "c (n k two) -> c n k two", n=args.nets, two=2)

    args.out.mkdir(parents=True, exist_ok=True)
    made = {"w": w, "scores": scores, "shifted": shifted.contiguous()}
    made["seeds"] = torch.tensor(list(seeds))
    save_file(made, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

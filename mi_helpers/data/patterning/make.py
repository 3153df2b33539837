"""Train what patterning ships: ``python -m mi_helpers.data.patterning.make --out OUT``.

About five minutes on one core. Writes OUT/nets.safetensors, 0.2 MB in size.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch.nn.functional import normalize

from ...toys.patterning import MIXTURE, train

FIRST, STEPS, SETTLE, LENGTH = 16, 1500, 200, 0.15  # FIRST: seed; LENGTH: of a mixture's shift
DRAWS = 4  # of random directions, for each network


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args(argv)
    seeds = range(FIRST, FIRST + args.nets)
    settle = SETTLE * args.steps // STEPS
    w, scores = train(MIXTURE.expand(args.nets, -1), seeds, args.steps, settle)

    # The mixture towards each source and away from it, all by the same length; and along random
    # directions that sum to zero, and against them.
    sources = len(MIXTURE)
    towards = normalize(torch.eye(sources) - MIXTURE, dim=1).expand(args.nets, -1, -1)
    drawn = torch.randn(args.nets, DRAWS, sources, generator=torch.Generator().manual_seed(FIRST))
    drawn = normalize(drawn - drawn.mean(-1, keepdim=True), dim=-1)
    moves = LENGTH * torch.cat([towards, drawn], 1)
    mixtures = rearrange(MIXTURE + torch.stack([moves, -moves], 2), "n k two h -> (n k two) h")
    each = [seed for seed in seeds for _ in range(2 * moves.shape[1])]
    _, moved = train(mixtures, each, args.steps, level=0.5)
    moved = rearrange(moved, "c (n k two) -> c n k two", n=args.nets, two=2)

    args.out.mkdir(parents=True, exist_ok=True)
    made = {"w": w, "scores": scores, "directions": drawn}
    made["shifted"] = moved[:, :, :sources].contiguous()
    made["drawn"] = moved[:, :, sources:].contiguous()
    made["seeds"] = torch.tensor(list(seeds))
    save_file(made, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

"""Train the shipped decoders: ``python -m mi_helpers.data.identifiability.make --out OUT``.

About three minutes on one core. Writes OUT/vaes.safetensors, 2 MB in size.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...toys.identifiability import KINDS, RHOS, SEEDS, sparse_world, train_vae


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=len(SEEDS), help="at each correlation")
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args(argv)
    seeds = SEEDS[: args.nets]
    tensors: dict[str, torch.Tensor] = {}
    for rho in RHOS:
        _, x = sparse_world(rho, seeds)
        for kind, sparse in KINDS.items():
            vae = train_vae(x[:, :500], seeds, sparse, epochs=args.epochs)
            tensors |= {f"{rho} {kind} {name}": t for name, t in vae.state_dict().items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, args.out / "vaes.safetensors")


if __name__ == "__main__":
    main()

"""Train the shipped decoders: ``python -m mi_helpers.data.identifiability.make --out OUT``.

About three minutes on one core. Writes OUT/nets.safetensors, 2 MB in size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ...toys import identifiability as toys
from ...toys.side_by_side import Draws, descend


def train_vae(
    x: Float[Tensor, "net n feature"],
    seeds: Sequence[int],
    sparse: bool,
    n_latents: int = 5,
    epochs: int = 200,
) -> toys.VAE:
    """A VAE for each data set. Sizes, losses and their weights are those of the authors' code."""
    draw, spread, d, batch = Draws(seeds), x.std(1), x.shape[-1], 100
    vae = toys.VAE(draw, d, sparse, n_latents)
    vae.log_sigma.data = spread.log()
    share = (draw.uniform(1, n_latents) + 1) / 2
    # The noise's prior is an inverse gamma; .584 is the 10 % quantile of χ² with 3 degrees.
    prior = spread.quantile(0.05, dim=1, keepdim=True) ** 2 * 0.584 / 3
    optimiser = torch.optim.Adam(vae.parameters(), lr=0.01)
    for _ in tqdm(range(epochs), "sparse decoders" if sparse else "plain decoders", leave=False):
        for rows in draw.order(x.shape[1]).split(batch, dim=1):
            seen = x.gather(1, repeat(rows, "net n -> net n d", d=d))
            mean, log_var = vae.encode(seen)
            z = mean + (log_var / 2).exp() * draw.normal(*mean.shape[1:])
            error = (vae.decode(z) - seen) / vae.log_sigma.exp()[:, None]
            loss = error.square().mean((1, 2)) / 2
            loss = loss + (mean**2 + log_var.exp() - 1 - log_var).mean((1, 2)) / 2
            noise = (batch + 5) * vae.log_sigma + 1.5 * prior * (-2 * vae.log_sigma).exp()
            loss = loss + noise.sum(1) / batch
            if vae.W is not None:
                rate = toys.SLAB * vae.slab + toys.SPIKE * (1 - vae.slab)
                loss = loss + (rate * vae.W.abs()).sum((1, 2)) / batch
            descend(optimiser, loss)
            if vae.W is not None:
                vae.slab = toys.slab_probability(vae.W.detach(), share)
                share = vae.slab.sum(1, keepdim=True) / (2 * d - 1)
    return vae.requires_grad_(False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=int, default=len(toys.SEEDS), help="at each correlation")
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args(argv)
    seeds = toys.SEEDS[: args.nets]
    tensors: dict[str, Tensor] = {}
    for rho in toys.RHOS:
        _, x = toys.sparse_world(rho, seeds)
        for kind, sparse in toys.KINDS.items():
            vae = train_vae(x[:, :500], seeds, sparse, epochs=args.epochs)
            tensors |= {f"{rho} {kind} {name}": t for name, t in vae.state_dict().items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, args.out / "nets.safetensors")


if __name__ == "__main__":
    main()

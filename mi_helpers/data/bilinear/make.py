"""Train the shipped bilinear networks: ``python -m mi_helpers.data.bilinear.make --out OUT``.

About a minute on one core. Writes OUT/nets.safetensors, float16, 1.9 MB in size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ...toys.bilinear import CHECKPOINTS, Bilinear, P, seen, sums
from ...toys.side_by_side import Draws, descend


def train(nets: Sequence[int], keep: Sequence[int], hidden: int = 48) -> Bilinear:
    """Networks that learn to add from their seen pairs, as they are after the steps in `keep`.

    AdamW on cross-entropy, all seen pairs at once; the constant input is left out of training.
    Returns D, L, R with leading dimensions [checkpoint, net].
    """
    (x, y), rows = sums(), torch.stack([seen(net) for net in nets])
    x, y = x[rows], y[rows]
    draw, shapes = Draws(nets), ((P, hidden), (hidden, 2 * P), (hidden, 2 * P))
    D, L, R = ((draw.normal(*shape) / shape[-1] ** 0.5).requires_grad_() for shape in shapes)
    optimiser = torch.optim.AdamW([D, L, R], lr=0.005, weight_decay=1.0)
    kept = []
    for step in tqdm(range(max(keep) + 1), "bilinear networks", leave=False):
        if step in keep:
            zero = torch.zeros(len(nets), hidden, 1)
            kept.append([D.detach().clone(), *(torch.cat([zero, W.detach()], -1) for W in (L, R))])
        logits = ((x @ L.mT) * (x @ R.mT)) @ D.mT
        loss = cross_entropy(logits.flatten(0, 1), y.flatten()) * len(nets)
        descend(optimiser, loss)
    return Bilinear(*(torch.stack(weights) for weights in zip(*kept, strict=True)))


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

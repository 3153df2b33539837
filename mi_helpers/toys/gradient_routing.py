"""Gradient routing: which data may train which part of a network, and what then ends up where.

`SplitAutoencoders` on 8×8 digits have a code with two halves. A digit's images train only the
halves that its `Setting` names; "certificates", decoders that see one half and train nothing else,
tell what that half holds. A topic is routed and cut out in `topic_models`.

Source: Cloud et al. 2024, arXiv 2410.04332, section 4.1; sizes are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from .digits import images as all_images
from .side_by_side import Draws, descend, mlp

HALF = 8  # numbers in each half of the code
READERS = ("decoder", "top half", "bottom half")  # of a code; the halves by their certificates


def route(part: Float[Tensor, "*shape"], trains: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`part` as it is; where `trains` is False, no gradient flows back through it."""
    return torch.where(trains, part, part.detach())


def perceptrons(starts: Sequence[int], *sizes: int, last_bias: bool = True) -> nn.ParameterList:
    """Layers of an `mlp`, as PyTorch starts them; nets of equal starts are equal."""
    nets = []
    for start in starts:
        torch.manual_seed(start)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        nets.append([part for layer in layers for part in (layer.weight.T, layer.bias[None])])
    made = nn.ParameterList(torch.stack(parts) for parts in zip(*nets, strict=True))
    if not last_bias:
        made[-1] = nn.Parameter(torch.zeros(1, 1, 1), requires_grad=False)
    return made


@dataclass(frozen=True)
class Setting:
    """Which digits train which half of the code, and how strongly the penalties push.

    A digit in neither set trains the certificates alone. `sparsity` multiplies the sum of mean
    absolute code numbers, `correlation` the mean |correlation| between the halves.
    """

    name: str
    top: str = "01234"
    bottom: str = "56789"
    sparsity: float = 3e-3
    correlation: float = 0.1

    def allowed(self) -> Bool[Tensor, "half digit"]:
        halves = self.top, self.bottom
        return torch.tensor([[str(digit) in half for digit in range(10)] for half in halves])


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images [image, pixel] from -1 to 1 with their digits: to train on, and 397 held out."""
    x, y = all_images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = 2 * x[order] - 1, y[order]
    return (x[397:], y[397:]), (x[:397], y[:397])


class SplitAutoencoders(nn.Module):
    """For each setting and seed an encoder, a decoder of the whole code, a certificate a half."""

    def __init__(self, settings: Sequence[Setting], n_seeds: int, seed: int = 0) -> None:
        super().__init__()
        self.settings = [setting for setting in settings for _ in range(n_seeds)]
        self.seeds = [seed + i for _ in settings for i in range(n_seeds)]
        self.encoder = perceptrons(self.seeds, 64, 128, 2 * HALF, last_bias=False)
        self.decoder = perceptrons(self.seeds, 2 * HALF, 128, 64)
        self.top, self.bottom = (perceptrons(self.seeds, HALF, 128, 64) for _ in range(2))

    def read(
        self, halves: Float[Tensor, "half net image d"], trains: Bool[Tensor, "half net image"]
    ) -> Float[Tensor, "net which=3 image 64"]:
        """The images as the decoder and the certificates of top and bottom draw them again."""
        routed = rearrange(route(halves, trains[..., None]), "half n i d -> n i (half d)")
        top, bottom = halves.detach()
        drawn = mlp(self.decoder, routed), mlp(self.top, top), mlp(self.bottom, bottom)
        return torch.stack(drawn, 1)

    def losses(
        self, images: Float[Tensor, "net image 64"], labels: Int[Tensor, "net image"]
    ) -> Float[Tensor, "net"]:
        """The decoder's error on digits that train a half, the certificates' on all, penalties."""
        codes = mlp(self.encoder, images)
        halves = rearrange(codes, "net image (half d) -> half net image d", half=2)
        allowed = torch.stack([setting.allowed() for setting in self.settings], 1)
        trains = allowed[:, torch.arange(len(labels))[:, None], labels]  # [half, net, image]
        errors = (self.read(halves, trains) - images[:, None]).abs().mean(-1)  # [net, which, image]
        # Decoder and sparsity count the images that train a half, certificates count all.
        seen = trains.any(0).float()
        per_seen = seen / seen.sum(1, keepdim=True)
        loss = (errors[:, 0] * per_seen).sum(1) + errors[:, 1:].mean(2).sum(1)
        small = reduce(codes.abs() * per_seen[..., None], "net image d -> net", "sum")
        # The correlation of each number of one half with each of the other, over all images.
        unit = (halves - halves.mean(2, keepdim=True)) / (halves.std(2, keepdim=True) + 1e-6)
        corr = (unit[0].mT @ unit[1] / codes.shape[1]).abs().mean((1, 2))
        sparsity, correlation = torch.tensor([(s.sparsity, s.correlation) for s in self.settings]).T
        return loss + sparsity * small + correlation * corr

    @torch.no_grad()
    def redrawn(self, images: Float[Tensor, "image 64"]) -> Float[Tensor, "net which=3 image 64"]:
        """The images as the decoder and the two certificates of each net draw them again."""
        codes = mlp(self.encoder, images.expand(len(self.seeds), -1, -1))
        halves = rearrange(codes, "net image (half d) -> half net image d", half=2)
        return self.read(halves, torch.ones(halves.shape[:3]).bool())

    def held_out_errors(self) -> pd.DataFrame:
        """Mean absolute error on held-out images: columns setting, seed, reader, digits, error.

        One row for each net, reader (see `READERS`) and group of digits ("0–4", "5–9").
        """
        _, (x, y) = digits()
        errors = (self.redrawn(x) - x).abs().mean(-1)  # [net, which, image]
        rows = [
            (setting.name, seed, reader, group, float(errors[net, which, inside].mean()))
            for net, (setting, seed) in enumerate(zip(self.settings, self.seeds, strict=True))
            for which, reader in enumerate(READERS)
            for group, inside in (("0–4", y < 5), ("5–9", y >= 5))
        ]
        return pd.DataFrame(rows, columns=["setting", "seed", "reader", "digits", "error"])


def train_split(
    settings: Sequence[Setting], n_seeds: int, steps: int = 800, seed: int = 0
) -> SplitAutoencoders:
    """Adam, rate .001; networks of one seed see the same images in the same order."""
    model, ((images, labels), _) = SplitAutoencoders(settings, n_seeds, seed), digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-5)
    draw = Draws(range(seed, seed + n_seeds))
    for _ in tqdm(range(steps), "autoencoders", leave=False):
        rows = draw.below(len(images), 200).repeat(len(settings), 1)
        descend(optimiser, model.losses(images[rows], labels[rows]))
    return model.requires_grad_(False)

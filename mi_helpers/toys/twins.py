"""Small transformers side by side, whose every value a hook can read and replace."""

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from .side_by_side import Draws, look_up

Hook = Callable[[str, Tensor], Tensor]


def unchanged(name: str, x: Tensor) -> Tensor:
    """The hook that does nothing."""
    return x


def rms(x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """x over its root mean square."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def product(
    x: Float[Tensor, "net batch pos i"], weight: Float[Tensor, "net i o"]
) -> Float[Tensor, "net batch pos o"]:
    """What each net's own matrix makes of its values."""
    return einsum(x, weight, "net batch pos i, net i o -> net batch pos o")


class Twins(nn.Module):
    """`n_nets` transformers: RMS norm, no biases, ReLU; equal seeds, equal starts.

    A hook gets the name and the value [net, batch, pos, unit] of each place, and its answer takes
    the value's place: "embed"; in each layer "read" (what attention reads), "q", "k", "v", "z"
    (what the heads gathered), "attn" (what they write), "mlp_read", "neuron", "mlp"; "final".
    """

    layers, heads = 2, 2

    def __init__(self, n_nets: int, vocabulary: int, length: int, d: int, seed: int) -> None:
        super().__init__()
        self.d = d
        draw = Draws(range(seed, seed + n_nets))

        def weight(rows: int, columns: int, scale: float | None = None) -> nn.Parameter:
            return nn.Parameter(draw.normal(rows, columns) * (scale or rows**-0.5))

        self.W_E, self.W_pos = weight(vocabulary, d, 0.5), weight(length, d, 0.5)
        shapes = dict.fromkeys("QKVO", (d, d)) | {"in": (d, 4 * d), "out": (4 * d, d)}
        self.W = nn.ParameterDict(
            {f"{name}{at}": weight(*shapes[name]) for at in range(self.layers) for name in shapes}
        )
        self.W_U = weight(d, vocabulary)
        self.W_gate = weight(d, self.layers * 5 * d)  # a relevance for each unit (`self_ablation`)

    def forward(
        self,
        tokens: Int[Tensor, "*net batch pos"],
        hook: Hook = unchanged,
        last: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "net batch pos vocabulary"]:
        """Logits; tokens without the first dimension go to all nets.

        With `last`, one position of each text, there are logits at that one alone: the last layer
        has keys and values everywhere, and all else, as "final", only there.
        """
        length = tokens.shape[-1]
        embedded = look_up(self.W_E, tokens.expand(len(self.W_E), *tokens.shape[-2:]))
        x = hook("embed", embedded + self.W_pos[:, None, :length])
        future = torch.ones(length, length).triu(1).bool()
        for at in range(self.layers):
            read = asks = hook(f"read{at}", rms(x))
            if last is not None and at == self.layers - 1:
                row = torch.arange(len(last))
                x, asks = (each[:, row, last, None] for each in (x, read))
                future = future[last, None, None]
            q, k, v = (
                rearrange(
                    hook(f"{name.lower()}{at}", product(seen, self.W[f"{name}{at}"])),
                    "net b pos (h c) -> net b h pos c",
                    h=self.heads,
                )
                for name, seen in zip("QKV", (asks, read, read), strict=True)
            )
            scores = (q @ k.mT / k.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
            z = rearrange(scores.softmax(-1) @ v, "net b h pos c -> net b pos (h c)")
            x = x + hook(f"attn{at}", product(hook(f"z{at}", z), self.W[f"O{at}"]))
            read = hook(f"mlp_read{at}", rms(x))
            neurons = hook(f"neuron{at}", product(read, self.W[f"in{at}"]).relu())
            x = x + hook(f"mlp{at}", product(neurons, self.W[f"out{at}"]))
        return product(hook("final", rms(x)), self.W_U)

    def record(self, tokens: Int[Tensor, "*net batch pos"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the value of every place."""
        found: dict[str, Tensor] = {}
        logits = self(tokens, lambda name, x: found.setdefault(name, x))
        return logits, found

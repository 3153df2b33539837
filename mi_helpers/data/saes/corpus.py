"""Real text for training autoencoders, and the residuals of the model on it, as files.

Batches lie in a working folder, so that an interrupted collection goes on where it stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from mi_helpers import engine
from mi_helpers.engine.stream import ordinary_tokens

FINAL = "final"


@dataclass(frozen=True)
class Corpus:
    """Batches on disk: `tokens` [sequence, pos], and the stream [sequence, pos, d_model] before
    some layers and after the last ("final"), in float16."""

    files: tuple[Path, ...]

    def read(self, name: str | int) -> Tensor:
        """One entry of all batches: "tokens", or a layer's number."""
        parts = []
        for file in self.files:
            with safe_open(file, framework="pt") as tensors:
                parts.append(tensors.get_tensor(str(name)))
        return torch.cat(parts)

    def activations(self, layer: int) -> Float[Tensor, "token d_model"]:
        """The stream before `layer` at all tokens of ordinary norm but position 0, in float32."""
        x = self.read(layer)[:, 1:].float()
        return x[ordinary_tokens(x)]


def collect(
    model: TransformerBridge,
    layers: Sequence[int],
    folder: Path,
    text: Int[Tensor, "sequence pos"],
    batch: int = 64,
) -> Corpus:
    """The stream before each of `layers`, and after the last one, on `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, rows in enumerate(tqdm(text.split(batch), desc="residuals")):
        files.append(folder / f"batch-{number:04d}.safetensors")
        if files[-1].exists():
            continue
        run = engine.record(model, rows)
        kept = {str(layer): run.resid[layer].half().cpu() for layer in layers}
        kept[FINAL] = run.resid[-1].half().cpu()
        part = files[-1].with_suffix(".part")
        save_file({"tokens": rows.int().cpu(), **kept}, part)
        part.rename(files[-1])
    return Corpus(tuple(files))


def batches(
    data: Float[Tensor, "token d_model"], size: int, seed: int, start: int = 0
) -> Iterator[Float[Tensor, "size d_model"]]:
    """Batches without end, shuffled anew for each pass; `start` passes over those already seen."""
    generator, step = torch.Generator().manual_seed(seed), 0
    if len(data) < size:
        raise ValueError(f"{len(data)} tokens are fewer than one batch of {size}")
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(size):
            if len(rows) == size:
                if step >= start:
                    yield data[rows]
                step += 1

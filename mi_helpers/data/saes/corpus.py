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

from mi_helpers.engine.stream import ordinary_tokens, residuals


@dataclass(frozen=True)
class Corpus:
    """Batches on disk: the `tokens` [sequence, pos], and by layer the stream before it at all
    positions but 0 [sequence, pos - 1, d_model], in float16."""

    files: tuple[Path, ...]

    def tokens(self) -> Int[Tensor, "sequence pos"]:
        return torch.cat([self._read(file, "tokens") for file in self.files]).long()

    def activations(self, layer: int) -> Float[Tensor, "token d_model"]:
        """The stream before `layer` at all tokens of ordinary norm but position 0, in float16."""
        streams = (self._read(file, layer) for file in self.files)
        return torch.cat([x[ordinary_tokens(x.float())] for x in streams])

    def stream(self, layer: int) -> Float[Tensor, "sequence pos d_model"]:
        """The stream before `layer` at all positions but 0, in float32."""
        return torch.cat([self._read(file, layer) for file in self.files]).float()

    @staticmethod
    def _read(file: Path, name: str | int) -> Tensor:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(str(name))


def collect(
    model: TransformerBridge,
    layers: Sequence[int],
    folder: Path,
    text: Int[Tensor, "sequence pos"],
    batch: int = 64,
) -> Corpus:
    """The stream before each of `layers` on `text`; later layers are not run."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, rows in enumerate(tqdm(text.split(batch), desc="residuals")):
        files.append(folder / f"batch-{number:04d}.safetensors")
        if files[-1].exists():
            continue
        streams = residuals(model, rows, layers)
        kept = {str(layer): x.half().cpu() for layer, x in streams.items()}
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

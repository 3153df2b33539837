"""The text on which sparse autoencoders are trained, and the residuals of the model on it.

No data set ships with a model, so the text is what the model itself writes at temperature 1, from a
seed; any other text serves as well, given as token ids. Batches are files in a working folder, so
that an interrupted collection goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ..models.hooks import hooked
from ..models.sites import hook_name
from ..tasks.sampled import sample_prompts

FINAL = "final"


@dataclass(frozen=True)
class Corpus:
    """Batches on disk: `tokens` [sequence, pos] and the stream before some layers.

    Position 0 is in the files and left out of `activations`: its residual is far larger than all
    others. The last token's residual is not kept where the model wrote the text.
    """

    files: tuple[Path, ...]

    def read(self, name: str) -> Tensor:
        """One entry of all batches: "tokens", a layer's number, or "final" (after the last)."""
        parts = []
        for file in self.files:
            with safe_open(file, framework="pt") as tensors:
                parts.append(tensors.get_tensor(name))
        return torch.cat(parts)

    def tokens(self) -> Int[Tensor, "sequence pos"]:
        """Token ids in the narrowest type that holds them."""
        ids = self.read("tokens")
        return ids.to(torch.uint16) if ids.max() < 2**16 else ids

    def activations(self, layer: int) -> Float[Tensor, "token d_model"]:
        """The stream before `layer` at every position but 0."""
        return self.read(str(layer))[:, 1:].flatten(0, 1)


@torch.no_grad()
def collect(
    model: TransformerBridge,
    layers: Sequence[int],
    folder: Path,
    text: Int[Tensor, "sequence pos"] | None = None,
    n: int = 1024,
    length: int = 128,
    seed: int = 0,
    batch: int = 256,
) -> Corpus:
    """Token ids and the stream before each of `layers`, for `n` sequences of `length` tokens.

    Without `text` the model writes it, and what it computes while writing is what is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    starts = range(0, n if text is None else len(text), batch)
    for i, start in enumerate(tqdm(starts, desc="text and residuals")):
        file = folder / f"batch-{i:03d}.safetensors"
        files.append(file)
        if file.exists():
            continue
        if text is None:
            size = min(batch, n - start)
            write = partial(sample_prompts, model, size, length - 1, seed + i)
        else:
            write = partial(_run, model, text[start : start + batch].to(model.cfg.device))
        tokens, kept = _watched(model, layers, write)
        part = file.with_suffix(".part")
        save_file({"tokens": tokens.int().cpu(), **kept}, part)
        part.rename(file)
    return Corpus(tuple(files))


def _run(
    model: TransformerBridge, tokens: Int[Tensor, "sequence pos"]
) -> Int[Tensor, "sequence pos"]:
    model(tokens)
    return tokens


def _watched(
    model: TransformerBridge,
    layers: Sequence[int],
    write: Callable[[], Int[Tensor, "sequence pos"]],
) -> tuple[Int[Tensor, "sequence pos"], dict[str, Float[Tensor, "sequence pos d_model"]]]:
    """What `write` returns, and the streams that passed the hooks meanwhile, joined by position.

    A model that writes with a cache sees one position at a time, otherwise all at once.
    """
    points = {str(layer): hook_name("resid_pre", layer) for layer in layers}
    points[FINAL] = hook_name("resid_post", model.cfg.n_layers - 1)
    seen: dict[str, list[Tensor]] = {name: [] for name in points}

    def keep(name: str, stream: Tensor) -> None:
        seen[name].append(stream.cpu())

    with ExitStack() as stack:
        for name, point in points.items():
            stack.enter_context(hooked(model.hook_dict[point], partial(keep, name)))
        tokens = write()
    return tokens, {name: torch.cat(parts, dim=1) for name, parts in seen.items()}


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

"""How the features of sparse autoencoders fire along a stream of tokens, kept sparse.

The comparisons of `features.py` start from a `Firing` for each layer, all of the same tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge


class SparseAutoencoder(Protocol):
    """What is asked of an autoencoder; those of sae-lens have it."""

    W_dec: Tensor

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, feature_acts: Tensor) -> Tensor: ...


class RandomDirections:
    """A control and a stand-in for an autoencoder: `width` random directions, of which the `k` with
    the largest positive projection fire on a token. The same seed gives the same directions."""

    def __init__(self, d_model: int, width: int = 512, k: int = 16, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.W_dec = torch.nn.functional.normalize(
            torch.randn(width, d_model, generator=generator), dim=1
        )
        self.k = k

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
        projection = (x @ self.W_dec.to(x).T).relu()
        least = projection.topk(self.k, dim=-1).values[..., -1:]
        return projection * (projection >= least)

    def decode(self, feature_acts: Float[Tensor, "*batch feature"]) -> Tensor:
        return feature_acts @ self.W_dec.to(feature_acts)


@dataclass(frozen=True, eq=False)
class Firing:
    """How one layer's features fire on a stream of tokens.

    `values` is a sparse [token, feature] array of activations, none negative, zeros not stored;
    `documents` numbers the document of each token, never falling along the stream.
    """

    values: sparse.csr_array
    documents: Int[np.ndarray, "token"]

    def __post_init__(self) -> None:
        if len(self.documents) != self.values.shape[0]:
            raise ValueError(
                f"{len(self.documents)} tokens have a document, {self.values.shape[0]} have values"
            )
        if self.values.nnz and not self.values.data.min() > 0:
            raise ValueError("activations must be positive where they are stored, and no NaN")
        if (np.diff(self.documents) < 0).any():
            raise ValueError("a document's tokens must lie together, in the documents' order")

    @property
    def n_tokens(self) -> int:
        return self.values.shape[0]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def n_documents(self) -> int:
        return len(self.starts())

    def starts(self) -> Int[np.ndarray, "document"]:
        """The first token of each document."""
        return np.flatnonzero(np.diff(self.documents, prepend=-1))

    def part(self, first: int, stop: int) -> "Firing":
        """The stream of documents `first` to `stop - 1`, such as a half held out."""
        bounds = [*self.starts(), self.n_tokens]
        if not 0 <= first < stop < len(bounds):
            raise ValueError(f"documents {first} to {stop} of {len(bounds) - 1} do not exist")
        span = slice(bounds[first], bounds[stop])
        return Firing(self.values[span], self.documents[span])

    def rolled(self, by: int) -> "Firing":
        """The same stream, begun `by` documents later and continued with those left out.

        Against another layer's stream this is a null: every feature fires as often, as strongly
        and in the same stretches as before, but on other texts. Where all documents are equally
        long, each token still meets one of its own position.
        """
        starts = self.starts()
        if not 0 < by < len(starts):
            raise ValueError(f"roll by 1 to {len(starts) - 1} documents, got {by}")
        at = int(starts[by])
        values = sparse.vstack([self.values[at:], self.values[:at]], format="csr")
        lengths = np.roll(np.diff([*starts, self.n_tokens]), -by)
        return Firing(values, np.repeat(np.arange(len(starts)), lengths))


def gather(batches: Iterable[Float[Tensor, "document pos feature"]]) -> Firing:
    """A stream from batches of activations; each batch is let go of before the next is asked for.

    Leave out positions that are not to count (the first token's) before handing a batch over.
    """
    parts, lengths = [], []
    for batch in batches:
        if batch.ndim != 3:
            raise ValueError(f"a batch is [document, pos, feature], got {tuple(batch.shape)}")
        dense = batch.detach().flatten(0, 1).float().cpu().numpy()
        parts.append(sparse.csr_array(dense))
        lengths += [batch.shape[1]] * batch.shape[0]
    if not parts:
        raise ValueError("there is no batch of activations")
    documents = np.repeat(np.arange(len(lengths)), lengths)
    return Firing(sparse.vstack(parts, format="csr"), documents)


def adjacent(known: pd.DataFrame, most: int = 4) -> pd.DataFrame:
    """Of a table of autoencoders (name, kind, layer, and l0 if known), one local one for each of
    at most `most` adjacent layers, those of the longest run of layers that are nearest its middle.

    A layer that has several gives the one whose l0 is nearest the median of the layers that have
    only one, and the first where l0 is not known. Empty where fewer than two layers are adjacent.
    """
    local = known[known["kind"] == "local"].sort_values("layer", kind="stable")
    if "l0" in local and len(local):
        single = ~local["layer"].duplicated(keep=False)
        target = local.loc[single, "l0"].median() if single.any() else local["l0"].median()
        local = local.assign(away=(local["l0"] - target).abs()).sort_values(["layer", "away"])
    local = local.drop_duplicates("layer").reset_index(drop=True)
    runs = (local["layer"].diff() != 1).cumsum()
    if local.empty or runs.value_counts().max() < 2:
        return local[["name", "layer"]][:0]
    run = local[runs == runs.value_counts().idxmax()]
    first = (len(run) - min(most, len(run))) // 2
    return run[["name", "layer"]].iloc[first : first + most].reset_index(drop=True)


@torch.no_grad()
def residuals(
    model: TransformerBridge, tokens: Int[Tensor, "document pos"], boundaries: Iterable[int]
) -> dict[int, Float[Tensor, "document pos d_model"]]:
    """The residual stream before each of some layers (`n_layers`: after the last), position 0 left
    out, since its norm dwarfs the others'. Later layers are not run."""
    wanted, n_layers = sorted(set(boundaries)), model.cfg.n_layers
    if not wanted or wanted[0] < 0 or wanted[-1] > n_layers:
        raise ValueError(f"boundaries are from 0 to {n_layers}, got {wanted}")
    found: dict[int, Tensor] = {}

    def keep(boundary: int) -> Callable[[Tensor, HookPoint], None]:
        return lambda value, hook: found.update({boundary: value[:, 1:].clone()})

    names = {
        b: f"blocks.{b - 1}.hook_resid_post" if b else "blocks.0.hook_resid_pre" for b in wanted
    }
    hooks: list[Any] = [(name, keep(boundary)) for boundary, name in names.items()]
    # One layer at least, or the first block's hooks would not fire.
    stop = None if wanted[-1] == n_layers else max(1, wanted[-1])
    model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=stop)
    return found


def collect(
    model: TransformerBridge,
    saes: Mapping[int, SparseAutoencoder],
    tokens: Int[Tensor, "document pos"],
    batch_size: int = 8,
) -> dict[int, Firing]:
    """Run texts through the model, and each layer's stream through its autoencoder.

    `saes` maps a boundary (12: the stream before layer 12) to the autoencoder trained there.
    Position 0 is left out. Memory: what fires, and one batch of dense activations.
    """
    parts: dict[int, list[Firing]] = {boundary: [] for boundary in saes}
    for batch in tokens.split(batch_size):
        streams = residuals(model, batch, saes)
        for boundary, sae in saes.items():
            with torch.no_grad():
                parts[boundary].append(gather([sae.encode(streams[boundary])]))
    return {boundary: _joined(found) for boundary, found in parts.items()}


def _joined(parts: list[Firing]) -> Firing:
    values = sparse.vstack([part.values for part in parts], format="csr")
    before = np.cumsum([0, *(part.n_documents for part in parts[:-1])])
    documents = [part.documents + first for part, first in zip(parts, before, strict=True)]
    return Firing(values, np.concatenate(documents))

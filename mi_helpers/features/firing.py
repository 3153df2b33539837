"""How the features of sparse autoencoders fire along a stream of tokens, kept sparse.

The comparisons of `relations.py` start from a `Firing` for each layer, all of the same tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.stream import Autoencoder, ordinary_tokens, residuals


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
    `documents` numbers the document of each token, never falling along the stream; `tokens` are
    their ids, where known.
    """

    values: sparse.csr_array
    documents: Int[np.ndarray, "token"]
    tokens: Int[np.ndarray, "token"] | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and len(self.tokens) != len(self.documents):
            raise ValueError(f"{len(self.tokens)} token ids for {len(self.documents)} tokens")
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
        return self.where(np.arange(bounds[first], bounds[stop]))

    def where(self, kept: np.ndarray) -> "Firing":
        """The stream of some tokens: booleans, or numbers in order."""
        tokens = None if self.tokens is None else self.tokens[kept]
        return Firing(self.values[kept], self.documents[kept], tokens)

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
        order = np.roll(np.arange(self.n_tokens), -at)
        lengths = np.roll(np.diff([*starts, self.n_tokens]), -by)
        tokens = None if self.tokens is None else self.tokens[order]
        return Firing(self.values[order], np.repeat(np.arange(len(starts)), lengths), tokens)


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
    only one, and the first where l0 is not known; variants of another one do not count. Empty where
    fewer than two layers are adjacent.
    """
    local = known[(known["kind"] == "local") & (known["variant"] == "")]
    local = local.sort_values("layer", kind="stable")
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
def collect(
    model: TransformerBridge,
    saes: Mapping[int, Autoencoder],
    tokens: Int[Tensor, "document pos"],
    batch_size: int = 8,
) -> dict[int, Firing]:
    """Run texts through the model, and each layer's stream through its autoencoder.

    `saes` maps a boundary (12: the stream before layer 12) to the autoencoder trained there. Left
    out: position 0, and tokens of extreme norm at any of the boundaries (`ordinary`). Memory: what
    fires, and one batch of dense activations.
    """
    parts: dict[int, list[sparse.csr_array]] = {boundary: [] for boundary in saes}
    kept = []
    for batch in tokens.split(batch_size):
        streams = residuals(model, batch, saes)
        kept.append(ordinary(streams).cpu())
        for boundary, sae in saes.items():
            parts[boundary].append(_fires(sae, streams[boundary], kept[-1]))
    counted = torch.cat(kept)
    ids = tokens[:, 1:].cpu()[counted].numpy()
    documents = counted.nonzero()[:, 0].numpy()
    return {
        boundary: Firing(sparse.vstack(found, format="csr"), documents, ids)
        for boundary, found in parts.items()
    }


@torch.no_grad()
def encoded(
    stream: Float[Tensor, "document pos d_model"],
    sae: Autoencoder,
    tokens: Int[Tensor, "document pos+1"],
    counted: Bool[Tensor, "document pos"],
    batch_size: int = 8,
) -> Firing:
    """What `collect` gives for one boundary, from a stream of `residuals` that was kept: the model
    is not run again. `counted` says which tokens count (`ordinary`)."""
    counted = counted.cpu()
    batches = zip(stream.split(batch_size), counted.split(batch_size), strict=True)
    parts = [_fires(sae, x, kept) for x, kept in batches]
    documents = counted.nonzero()[:, 0].numpy()
    return Firing(
        sparse.vstack(parts, format="csr"), documents, tokens[:, 1:].cpu()[counted].numpy()
    )


def _fires(sae: Autoencoder, stream: Tensor, counted: Tensor) -> sparse.csr_array:
    """What fires on the tokens that count: [token, feature]."""
    return sparse.csr_array(sae.encode(stream)[counted].float().cpu().numpy())


def ordinary(
    streams: Mapping[int, Float[Tensor, "document pos d_model"]],
) -> Bool[Tensor, "document pos"]:
    """Which tokens are of ordinary norm at all boundaries of a stream."""
    return torch.stack([ordinary_tokens(x) for x in streams.values()]).all(0)

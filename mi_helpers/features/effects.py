"""Does a feature feed the similar one of the next layer? Take it out, and see.

The upstream feature's activation is set to zero and nothing else of the stream is touched: what
the autoencoder does not explain stays (its error is kept). The stream goes on to the next
autoencoder, and the downstream feature is read there.

Source: Balcells et al. 2024, arXiv 2410.08869 (ablation over bins of similarity).
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine.stream import Autoencoder

Stream = Float[Tensor, "document pos d_model"]


def sample_bins(
    table: pd.DataFrame, bounds: Sequence[float], n: int, column: str = "pearson", seed: int = 0
) -> pd.DataFrame:
    """At most `n` pairs for each bin of a column, drawn at random: the rows, with a column `bin`
    that holds the bin's lower bound. Bounds rise; the last bin includes its upper one.

    Whether a pair is drawn depends on its own features and the pairs of its bin alone, so that
    rounding, which moves a pair across a bound, does not change what is drawn elsewhere.
    """
    if list(bounds) != sorted(set(bounds)) or len(bounds) < 2:
        raise ValueError(f"bounds rise and are two or more, got {list(bounds)}")
    values = table[column].to_numpy()
    inside = table[(values >= bounds[0]) & (values <= bounds[-1])]
    number = np.searchsorted(bounds, inside[column], side="right") - 1
    number = number.clip(max=len(bounds) - 2)
    name = inside["up"].to_numpy(np.uint64) << np.uint64(32) | inside["down"].to_numpy(np.uint64)
    order = pd.util.hash_array(name ^ pd.util.hash_array(np.array([seed], np.uint64)))
    drawn = inside.assign(bin=np.asarray(bounds)[number], order=order).sort_values("order")
    return (drawn.groupby("bin").head(n).sort_values(["bin", "order"], ignore_index=True)).drop(
        columns="order"
    )


@torch.no_grad()
def ablations(
    step: Callable[[Stream], Stream],
    saes: tuple[Autoencoder, Autoencoder],
    streams: tuple[Stream, Stream],
    chosen: pd.DataFrame,
    documents: int = 4,
    at_once: int = 16,
    counted: Bool[Tensor, "document pos"] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """For each pair (columns up, down), the downstream feature without the upstream one.

    `streams` are those of the two autoencoders' places, and `step` takes the first to the second.
    For each pair, `documents` texts are drawn in which both fire (or, for lack of such, the
    downstream one), at tokens that are `counted` (by default all). Adds the columns tokens (on
    which the downstream feature fires), shared (on which both fire), drop: the share of the
    downstream feature's summed activation on its tokens that is gone, and drop_together: the same
    on the shared tokens alone, where the upstream feature has something to take away. NaN where
    there are no such tokens.
    `at_once` texts are run together.
    """
    (up_sae, down_sae), (before, after) = saes, streams
    counted = torch.ones(before.shape[:2], dtype=torch.bool) if counted is None else counted
    acts = torch.cat([_activations(up_sae, x, chosen["up"]) for x in before.split(16)])
    downs = torch.cat([_activations(down_sae, x, chosen["down"]) for x in after.split(16)])
    ups, downs = (x * counted[..., None].to(x) for x in (acts, downs))
    # One row of the work: a pair, and one of the texts drawn for it.
    names = chosen[["up", "down"]].astype(int).to_numpy()
    draws = [np.random.default_rng([seed, *name]) for name in names.tolist()]
    places = [_texts(ups[..., k], downs[..., k], documents, rng) for k, rng in enumerate(draws)]
    lengths = torch.tensor([len(texts) for texts in places], dtype=torch.long)
    pair = torch.repeat_interleave(torch.arange(len(places)), lengths)
    text = torch.cat([*places, torch.zeros(0, dtype=torch.long)])
    old = downs[text, :, pair]
    new = torch.zeros_like(old)
    for rows in torch.arange(len(pair)).split(at_once):
        up, down = torch.tensor(names)[pair[rows]].T
        taken = acts[text[rows], :, pair[rows], None] * up_sae.W_dec[up][:, None].to(acts)
        moved = down_sae.encode(step(before[text[rows]] - taken))
        new[rows] = moved[torch.arange(len(rows)), :, down]
    met = ups[text, :, pair] > 0
    sums = pd.DataFrame({"old": old.sum(1), "new": (new * (old > 0)).sum(1)})
    sums["tokens"], sums["shared"] = (old > 0).sum(1), ((old > 0) & met).sum(1)
    sums["old_together"], sums["new_together"] = ((x * met * (old > 0)).sum(1) for x in (old, new))
    sums = sums.groupby(pair.numpy()).sum().reindex(range(len(chosen)), fill_value=0)
    counts = {name: sums[name].to_numpy() for name in ("tokens", "shared")}
    return chosen.assign(
        **counts,
        drop=_gone(sums["old"], sums["new"]),
        drop_together=_gone(sums["old_together"], sums["new_together"]),
    )


def _gone(old: pd.Series, new: pd.Series) -> np.ndarray:
    """The share of a sum that is gone, NaN where there was none."""
    return (1 - new / old.where(old > 0)).to_numpy()


def _activations(
    sae: Autoencoder, stream: Stream, features: pd.Series
) -> Float[Tensor, "document pos feature"]:
    return sae.encode(stream)[..., torch.tensor(features.to_numpy())]


def _texts(up: Tensor, down: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Texts in which both fire on one token, else texts in which the downstream feature does."""
    both = ((up > 0) & (down > 0)).any(1).nonzero().flatten()
    found = both if len(both) else (down > 0).any(1).nonzero().flatten()
    return found[torch.tensor(rng.permutation(len(found))[:n])] if len(found) else found

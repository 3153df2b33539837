"""How good an autoencoder is: what it keeps of an activation, and what that costs the model.

Everything is on text that it was not trained on, without position 0 and tokens of extreme norm.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.stream import Autoencoder, ordinary_tokens, residuals
from ..engine.text import measure
from .edits import ordinary_only, place_of, reconstruction

AT_ONCE = 4096  # tokens


class Principal:
    """The control that is no dictionary: the `k` leading principal components of activations, with
    an autoencoder's methods, so that it can stand wherever one does."""

    def __init__(self, x: Float[Tensor, "token d"], k: int) -> None:
        self.mean = x.mean(0)
        self.W_dec = torch.linalg.eigh(x.T.cov())[1].T.flip(0)[:k]

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Coordinates, of either sign."""
        return (x - self.mean) @ self.W_dec.T

    def decode(self, feature_acts: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return self.mean + feature_acts @ self.W_dec


@torch.no_grad()
def fit(sae: Autoencoder, x: Float[Tensor, "token d"]) -> dict[str, float]:
    """On activations: `l0`, features on at a token; `explained`, the share of variance that x_SAE
    explains (1 - FVU); `cosine` of x and x_SAE; `error`, length of x_SAE - x over that of x."""
    features = torch.cat([sae.encode(part) for part in x.split(AT_ONCE)])
    close = torch.cat([sae.decode(part) for part in features.split(AT_ONCE)])
    error, spread = (x - close).double(), (x - x.mean(0)).double()
    return {
        "l0": float((features != 0).sum(-1).double().mean()),
        "explained": 1 - float(error.square().sum() / spread.square().sum()),
        "cosine": float(torch.cosine_similarity(x, close, dim=-1).mean()),
        "error": float((error.norm(dim=-1) / x.double().norm(dim=-1)).mean()),
    }


@torch.no_grad()
def density(sae: Autoencoder, x: Float[Tensor, "token d"]) -> Float[Tensor, "feature"]:
    """The share of tokens on which each feature is on; 0: dead on this text."""
    fired = torch.stack([(sae.encode(part) != 0).sum(0) for part in x.split(AT_ONCE)])
    return fired.sum(0).float() / len(x)


def alive(sae: Autoencoder, x: Float[Tensor, "token d"]) -> Bool[Tensor, "feature"]:
    """Which features are on at some token of `x`."""
    return density(sae, x) > 0


@torch.no_grad()
def losses(
    model: TransformerBridge,
    autoencoders: Mapping[str, Autoencoder],
    tokens: Int[Tensor, "sequence pos"],
    at: tuple[str, int] | None = None,
    batch: int = 4,
) -> pd.DataFrame:
    """What each reconstruction costs the model, a row for each (name, text): `loss`, next-token
    cross-entropy in nats with x_SAE written, `increase` over the loss as it was, and `kl`, KL(as it
    was ‖ with x_SAE). Beside them: `as it was`, `zero` and `mean` (both ablations at the first
    one's place, the mean over these texts).

    `at`: site and layer of autoencoders that do not carry them, such as `Principal`.
    """
    places = {name: at or place_of(sae) for name, sae in autoencoders.items()}
    first = at or next(iter(places.values()))
    where = list(range(1, tokens.shape[1]))
    middle = activations(model, tokens, first, batch).mean(0)
    # What a run does not keep by itself.
    sites = {site for site, _ in [*places.values(), first]} - {"resid_pre", "resid_post"}
    parts = []
    for start in range(0, len(tokens), batch):
        run = engine.record(model, tokens[start : start + batch], sites=sorted(sites))
        writes = {
            "as it was": engine.patch(run),
            "zero": ordinary_only("zero", torch.zeros_like),
            "mean": ordinary_only("mean", lambda x: middle.expand_as(x)),
            **{name: reconstruction(sae) for name, sae in autoencoders.items()},
        }
        rows = pd.DataFrame(
            {"name": name, "site": site, "layer": layer, "pos": where, "write": write}
            for name, write in writes.items()
            for site, layer in [places.get(name, first)]
        )
        found = measure(run, rows, where).table(rows.drop(columns="pos"))
        parts.append(found.assign(text=found["prompt"] + start))
    table = pd.concat(parts, ignore_index=True)[["name", "text", "loss", "kl"]]
    before = table[table["name"] == "as it was"].set_index("text")["loss"]
    return table.assign(increase=table["loss"] - table["text"].map(before))


def quality(
    model: TransformerBridge,
    autoencoders: Mapping[str, Any],
    tokens: Int[Tensor, "sequence pos"],
    at: tuple[str, int] | None = None,
    batch: int = 4,
) -> pd.DataFrame:
    """A row for each autoencoder: `name`, `layer`, what `fit` says, and means of `losses`: `loss`
    as it was, `loss_sae`, `increase`, `kl`; `recovered` is the share of what mean ablation loses
    that x_SAE gives back, `recovered_zero` the same against zero ablation, which is the kinder
    measure."""
    table = losses(model, autoencoders, tokens, at, batch)
    mean = table.groupby("name")[["loss", "kl", "increase"]].mean()
    rows = []
    for name, sae in autoencoders.items():
        site, layer = at or place_of(sae)
        about = {
            "name": name,
            "layer": layer,
            **fit(sae, activations(model, tokens, (site, layer))),
        }
        about |= {"loss": mean["loss"]["as it was"], "loss_sae": mean["loss"][name]}
        about |= {key: mean[key][name] for key in ("increase", "kl")}
        for key, control in (("recovered", "mean"), ("recovered_zero", "zero")):
            about[key] = 1 - mean["increase"][name] / mean["increase"][control]
        rows.append(about)
    return pd.DataFrame(rows)


@torch.no_grad()
def activations(
    model: TransformerBridge,
    tokens: Int[Tensor, "sequence pos"],
    at: tuple[str, int],
    batch: int = 8,
) -> Float[Tensor, "token d"]:
    """A site's activations at all tokens of ordinary norm but position 0, one after another."""
    site, layer = at
    parts = []
    for rows in tokens.split(batch):
        if site in ("resid_pre", "resid_post"):  # later layers need not run
            boundary = layer + (site == "resid_post")
            x = residuals(model, rows, [boundary])[boundary]
        else:
            x = engine.record(model, rows, sites=[site]).activation(site, layer)[:, 1:]
        parts.append(x[ordinary_tokens(x)])
    return torch.cat(parts)

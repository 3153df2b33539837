"""Sparse feature circuits: which latents, and which errors, carry a metric.

Autoencoders stand at several places of the stream. At each, x = b + Σ_j f_j d_j + ε: its nodes are
the latents f_j and the error ε, each at every position. The error counts as one more node, the last
one. Position 0, and tokens of extreme norm, are no nodes: they stay as they are.

Source: Marks et al. 2024, arXiv 2403.19647, section 3; facts from their published code.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..engine.execution import run as run_rows
from ..engine.recording import Run, unembed
from ..engine.rows import Write
from ..engine.stack import rerun
from ..engine.stream import Autoencoder, ordinary_tokens
from ..models.hooks import gradients_of
from .edits import place_of

Metric = Callable[[Tensor], Float[Tensor, "row prompt"]]  # of the last position's logits
Saes = Mapping[int, Autoencoder]  # by the layer that each one reads, in the order of layers


class Parts(NamedTuple):
    """What an autoencoder makes of a stream; 0 and x - b where a token is no node."""

    latents: Float[Tensor, "prompt pos latent"]
    error: Float[Tensor, "prompt pos d"]
    nodes: Bool[Tensor, "prompt pos"]


class Coordinates:
    """The stream's own coordinates where an autoencoder reads it, as a dictionary that leaves no
    error: "neurons"."""

    def __init__(self, sae: Autoencoder) -> None:
        self.W_dec = torch.eye(sae.W_dec.shape[1]).to(sae.W_dec)
        if hasattr(sae, "cfg"):
            self.cfg = sae.cfg

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x

    def decode(self, feature_acts: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return feature_acts


@torch.no_grad()
def parts(sae: Autoencoder, x: Float[Tensor, "prompt pos d"]) -> Parts:
    """Latents and error of a stream."""
    nodes = ordinary_tokens(x)
    nodes[:, 0] = False
    latents = sae.encode(x) * nodes[..., None]
    return Parts(latents, x - sae.decode(latents), nodes)


def gradients(
    clean: Run, corrupted: Run, saes: Saes, metric: Metric, steps: int | None = None
) -> dict[int, Float[Tensor, "prompt pos d"]]:
    """∂m/∂x of the stream that each autoencoder reads, by layer: at the clean stream, or with
    `steps` its mean over as many midpoints of the line from the clean to the corrupted stream of
    that place, all later layers running freely (section 3.1 there, which takes left ends).
    """
    alphas = [0.0] if steps is None else [(step + 0.5) / steps for step in range(steps)]
    found = {}
    for layer, sae in saes.items():
        start, end = (_stream(run, sae, layer) for run in (clean, corrupted))
        points = [torch.lerp(start, end, alpha) for alpha in alphas]
        each = [_gradient(clean, boundary(sae, layer), x, metric) for x in points]
        found[layer] = torch.stack(each).mean(0)
    return found


def indirect_effects(
    clean: Run,
    corrupted: Run,
    saes: Saes,
    gradients: Mapping[int, Float[Tensor, "prompt pos d"]],
) -> dict[int, Float[Tensor, "prompt pos node"]]:
    """By how much the metric of the clean run would change if one node had its corrupted value, by
    layer: (f_corrupted - f_clean) · d_j · ∂m/∂x for each latent, and for the error, which is the
    last node, (ε_corrupted - ε_clean) · ∂m/∂x (section 3.1 there).

    `gradients` are those of `gradients`. With integrated ones the nodes of a place add up to the
    effect of patching the place, as steps grow.
    """
    found = {}
    for layer, sae in saes.items():
        before, after = (parts(sae, _stream(run, sae, layer)) for run in (clean, corrupted))
        slope = gradients[layer]
        # What each node writes into the stream, along the gradient.
        along = einsum(slope, sae.W_dec.detach(), "prompt pos d, latent d -> prompt pos latent")
        latents = (after.latents - before.latents) * along
        error = ((after.error - before.error) * slope).sum(-1, keepdim=True)
        found[layer] = torch.cat([latents, error], -1) * (before.nodes & after.nodes)[..., None]
    return found


def exact_effects(
    clean: Run, corrupted: Run, saes: Saes, nodes: pd.DataFrame, metric: Metric
) -> Float[np.ndarray, "node prompt"]:
    """The same by intervention: each node of a table (`layer`, `pos`, `node`) gets its corrupted
    value in a run of its own, all else at its place staying as it is."""
    both = {
        layer: [parts(saes[layer], _stream(run, saes[layer], layer)) for run in (clean, corrupted)]
        for layer in nodes["layer"].unique()
    }
    writes = []
    for layer, pos, node in nodes[["layer", "pos", "node"]].itertuples(index=False):
        before, after = both[layer]
        if node == before.latents.shape[-1]:
            change = after.error[:, pos] - before.error[:, pos]
        else:
            by = after.latents[:, pos, node, None] - before.latents[:, pos, node, None]
            change = by * saes[layer].W_dec[node]
        change = change * (before.nodes & after.nodes)[:, pos, None]
        writes.append(Write("node", partial(_added, change)))
    enters = [boundary(saes[layer], layer) for layer in nodes["layer"]]
    rows = nodes[["pos"]].assign(site="resid_pre", layer=enters, write=writes)
    whole = metric(clean.logits()[None])[0].double().cpu().numpy()
    table = run_rows(clean, rows, {"metric": metric}, per_prompt=True)
    after = rearrange(table["metric"].to_numpy(), "(node prompt) -> node prompt", node=len(nodes))
    return after - whole


def ranked(effects: Mapping[int, Float[Tensor, "prompt pos node"]]) -> pd.DataFrame:
    """All nodes that have an effect, the strongest first: `layer`, `pos`, `node`, and `effect`, the
    mean over prompts. Equal ones stay in their order."""
    tables = []
    for layer, effect in effects.items():
        mean = effect.mean(0).cpu()
        pos, node = mean.nonzero().T
        tables.append(pd.DataFrame({
            "layer": layer, "pos": pos, "node": node, "effect": mean[pos, node],
            "error": node == mean.shape[1] - 1,
        }))  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    order = np.argsort(-table["effect"].abs().to_numpy(), kind="stable")
    return table.iloc[order].reset_index(drop=True)


@torch.no_grad()
def means(runs: Sequence[Run], saes: Saes) -> dict[int, tuple[Tensor, Tensor]]:
    """What mean ablation writes: each latent's mean over prompts, [pos, latent], and the error's,
    [pos, d], by layer."""
    found = {}
    for layer, sae in saes.items():
        both = [parts(sae, _stream(run, sae, layer)) for run in runs]
        latents, error = (torch.cat([p[i] for p in both]).mean(0) for i in range(2))
        found[layer] = (latents, error)
    return found


@torch.no_grad()
def circuit(
    run: Run,
    saes: Saes,
    kept: pd.DataFrame,
    ablated: Mapping[int, tuple[Tensor, Tensor]],
    metric: Metric,
    errors: bool | None = None,
) -> Float[np.ndarray, "prompt"]:
    """The metric while only the nodes `kept` (columns `layer`, `pos`, `node`) take the values that
    they compute, and all others those of `ablated` (from `means`).

    `errors` True or False keeps or ablates all errors, whatever `kept` says.
    """
    at = {}
    for layer, sae in saes.items():
        mask = torch.zeros(run.tokens.shape[1], len(sae.W_dec) + 1, dtype=torch.bool)
        own = kept[kept["layer"] == layer]
        mask[own["pos"].tolist(), own["node"].tolist()] = True
        if errors is not None:
            mask[:, -1] = errors
        at[boundary(sae, layer)] = partial(_only, sae, mask.to(run.tokens.device), ablated[layer])
    first = min(at)
    return metric(_rest(run, run.resid[first], first, at)[None])[0].double().cpu().numpy()


def _only(
    sae: Autoencoder,
    kept: Bool[Tensor, "pos node"],
    ablated: tuple[Tensor, Tensor],
    x: Float[Tensor, "prompt pos d"],
) -> Float[Tensor, "prompt pos d"]:
    """The stream with the latents and errors that are not `kept` ablated."""
    own, (latents, error) = parts(sae, x), ablated
    new = sae.decode(torch.where(kept[:, :-1], own.latents, latents))
    new = new + torch.where(kept[:, -1:], own.error, error)
    return torch.where(own.nodes[..., None], new, x)


def boundary(sae: Any, layer: int) -> int:
    """The block that the stream enters where an autoencoder reads it; a stand-in without a config
    reads what enters its layer. Raises ValueError for one that reads no stream between blocks."""
    site, layer = place_of(sae) if hasattr(sae, "cfg") else ("resid_pre", layer)
    if site not in ("resid_pre", "resid_post"):
        raise ValueError(f"nodes are of the stream between blocks; this SAE reads {site}")
    return layer + (site == "resid_post")


def _stream(run: Run, sae: Any, layer: int) -> Float[Tensor, "prompt pos d"]:
    if run.mask is not None and not run.mask.all():
        raise ValueError("nodes have positions: take prompts of one length")
    return run.resid[boundary(sae, layer)]


def _gradient(
    run: Run, first: int, stream: Float[Tensor, "prompt pos d"], metric: Metric
) -> Float[Tensor, "prompt pos d"]:
    """∂m/∂x of the stream that enters block `first`."""
    with torch.enable_grad():
        leaf = stream.detach().clone().requires_grad_()
        return gradients_of(metric(_rest(run, leaf, first)[None]).sum(), [leaf])[0]


def _rest(
    run: Run,
    x: Float[Tensor, "prompt pos d"],
    first: int,
    at: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> Float[Tensor, "prompt vocab"]:
    """Logits at the last position when `x` enters block `first`; `at` changes it before a block."""
    n_layers = run.model.cfg.n_layers
    for layer in range(first, n_layers + 1):
        x = at[layer](x) if layer in at else x
        x = rerun(run, layer, x) if layer < n_layers else x
    return unembed(run.model, x[:, -1])


def _added(change: Float[Tensor, "prompt d"], current: Tensor, place: Any) -> Tensor:
    return current + change[place.prompts][:, None]

"""Attribution patching: a linear estimate of a whole sweep from one backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from .. import metrics
from ..engine.positions import each_position
from ..engine.recording import Run
from ..models.hooks import entering, gradients_of, hooked
from .places import Positions, coordinates
from .runs import BaseRuns, Direction, normalised, whole


def attribution(
    runs: BaseRuns,
    site: str = "z",
    metric: str | Callable[[Tensor], Tensor] = "logit_diff",
    direction: Direction = "denoise",
    steps: int | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    normalise: bool = True,
    per_prompt: bool = False,
) -> pd.DataFrame:
    """Estimate `sweep(..., metrics=[metric])` of the same places: same rows, same columns.

    The estimate is metric(base) + (a_source - a_base) · d metric / d a, summed over the places that
    a row patches together. Two forward passes and one backward for every layer, position and head.
    The gradient is that of the edited run. With `steps`, it is the mean over `steps` midpoints of
    the straight line from the edited run's embeddings to the other's (the activations that enter
    block 0), each with a forward and a backward pass of its own; the activation difference stays
    that of the real runs. Exact where the model is linear.

    `metric` is a name, or a function of the last position's logits [row, prompt, d_vocab]. `kl`
    has no gradient at the clean run, so it cannot be used with direction="noise" and no steps.
    Raises ValueError for that, and for metrics that count (accuracy, rank).

    Source: Nanda 2023 (attribution patching); integrated gradients over the embeddings as in Hanna,
    Pezzelle & Belinkov 2024, arXiv 2403.17806, with midpoints in place of left ends.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1, or None for the plain gradient")
    if metric == "kl" and direction == "noise" and steps is None:
        raise ValueError("kl has zero gradient at the clean run: denoise, or give steps")
    places = coordinates(runs, site, layers, positions)
    n, name = len(runs.pairs), metric if isinstance(metric, str) else "metric"
    if runs.others is not None and isinstance(metric, str):  # all tokens of two answers
        values = _whole(runs, site, metric, direction, steps, places)
        named: Any = [name]
    else:
        function = _function(runs, metric)
        values = _estimates(runs, site, function, _end(runs), direction, steps, places)
        named = {name: function}
    table = places.assign(write="gradient" if steps is None else f"{steps} gradients")
    if per_prompt:
        table = table.loc[table.index.repeat(n)].reset_index(drop=True)
        table["prompt"] = list(range(n)) * len(places)
    table[name] = (values.flatten() if per_prompt else values.mean(1)).cpu().numpy()
    table = table.assign(direction=direction, **runs.pairs.said)
    return normalised(runs, table, named, per_prompt) if normalise else table


def _whole(
    runs: BaseRuns,
    site: str,
    metric: str,
    direction: Direction,
    steps: int | None,
    places: pd.DataFrame,
) -> Float[Tensor, "place prompt"]:
    """Estimates of a score of whole answers: a sum of log-probabilities, so of their estimates."""
    score, found = whole([metric])[metric], []
    if metric in ("prob", "accuracy"):
        raise ValueError(
            f"{metric} of whole answers is no sum of log-probabilities: use logit_diff"
        )
    for these in (runs, runs.others):
        assert these is not None
        assert these.followed is not None
        log_prob, pos = these.followed.log_prob, these.followed.pos
        found.append(_estimates(these, site, log_prob, pos, direction, steps, places))
    return score(*found)


def _estimates(
    runs: BaseRuns,
    site: str,
    function: Callable[[Tensor], Tensor],
    read: Int[Tensor, "prompt *k"],
    direction: Direction,
    steps: int | None,
    places: pd.DataFrame,
) -> Float[Tensor, "place prompt"]:
    """The metric of the logits at `read`, as each place's patch would change it to first order."""
    base, source = runs.ordered(direction)
    # the gradient at points of the line between the two runs' embeddings, averaged
    alphas = [0.0] if steps is None else [(step + 0.5) / steps for step in range(steps)]
    first = int(places["layer"].min()) if steps is None else 0  # what comes before is as recorded
    mean: dict[int, Tensor] = {}
    for alpha in alphas:
        stream = torch.lerp(base.resid[first], source.resid[first], alpha)
        for layer, gradient in _gradients(base, site, function, read, stream, first).items():
            mean[layer] = mean.get(layer, 0) + gradient / len(alphas)
    # gradient times difference, at every position and head
    effects = {
        layer: reduce((source.activation(site, layer) - base.activation(site, layer)) * gradient,
                      "prompt pos ... d -> prompt pos ...", "sum").double()
        for layer, gradient in mean.items()
    }  # fmt: skip
    start = function(base.logits(read)[None])[0].double()
    return torch.stack([start + _effect(effects, base, p) for p in places.to_dict("records")])


def _end(runs: BaseRuns) -> Int[Tensor, "prompt"]:
    return each_position(-1, runs.clean.roles, *runs.clean.tokens.shape)[:, 0].to(
        runs.clean.tokens.device
    )


def _function(
    runs: BaseRuns, metric: str | Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A metric as a function of logits."""
    if not isinstance(metric, str):
        return metric
    return metrics.build(runs.pairs, [metric], runs.clean.logits())[metric]


def _effect(
    effects: dict[int, Tensor], base: Run, place: dict[Any, Any]
) -> Float[Tensor, "prompt"]:
    """The summed effect of one row's place."""
    effect = effects[place["layer"]]
    if place["head"] is not None:
        effect = effect[:, :, place["head"]]
    effect = reduce(effect, "prompt pos ... -> prompt pos", "sum")
    if place["pos"] is None:
        return effect.sum(1)
    pos = each_position(place["pos"], base.roles, *base.tokens.shape).to(effect.device)
    return effect.gather(1, pos).sum(1)


def _gradients(
    base: Run,
    site: str,
    metric: Callable[[Tensor], Tensor],
    read: Int[Tensor, "prompt *k"],
    stream: Float[Tensor, "prompt pos d_model"],
    first: int,
) -> dict[int, Tensor]:
    """d metric / d activation at every layer of a site from the `first` on, which `stream` enters;
    the metric is of the logits at `read`."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int, value: Tensor) -> Tensor:
        kept[layer] = value
        return value  # returned, so that the kept tensor is the one that is used

    # The metric's gradient at resid_mid is that at attn_out, which enters it as a plain summand.
    at = "attn_out" if site == "resid_mid" else site
    leaf = stream.detach().requires_grad_()
    layers = range(first, base.model.cfg.n_layers)
    hooks = [(base.hook(at, layer), partial(keep, layer)) for layer in layers]
    with entering(base.model, leaf, read.reshape(len(read), -1), first), hooked(*hooks):
        logits = base.model(base.tokens, **base.forward_arguments)
        score = metric((logits[:, 0] if read.ndim == 1 else logits)[None]).sum()
        gradients = gradients_of(score, list(kept.values()))
    if site == "pattern":
        gradients = tuple(gradient.transpose(1, 2) for gradient in gradients)
    return dict(zip(kept, gradients, strict=True))

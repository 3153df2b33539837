"""Optimal ablation: removed edges carry one constant for each sender, the best there is.

Another prompt's values, zeros and means all tell the parts that read them something false, and a
circuit is charged for that too. With the constants that suit it best, it is charged for what is
missing alone. Source: Li & Janson 2024, arXiv 2409.09951.
"""

from functools import cache

import torch
from einops import einsum
from torch import Tensor
from tqdm.auto import tqdm

from .evaluation import Ablation
from .graph import Circuit, Place
from .runs import CircuitRuns, Metric, Source, projections
from .wiring import Wiring

WHOLE = Ablation()  # every edge outside the circuit, everywhere


def optimal(
    runs: CircuitRuns,
    circuit: Circuit,
    ablation: Ablation = WHOLE,
    metric: Metric = "kl",
    steps: int = 100,
    rate: float = 0.05,
) -> Source:
    """The constants, the same in all prompts and at all positions, with which a circuit's loss on
    these prompts is least. They are a value for `Ablation`; judge them on other prompts.

    Args:
        ablation: which edges are overwritten, and where; its own value plays no part.
        metric: a name or a function of logits, see `CircuitRuns.loss`.
        steps: of Adam, from each activation's mean; the best step counts.
        rate: of a step, in standard deviations of the activation.

    Raises ValueError for `direction="restore"`, which writes clean values, and for a metric without
    a gradient.
    """
    if ablation.direction == "restore":
        raise ValueError("to restore is to write clean values: use direction='ablate'")
    places = list(runs.graph.places)
    means = [runs.clean.mean(*place).mean(0)[None, None] for place in places]
    spread = [runs.clean.activation(*place).std() for place in places]
    theta = [torch.zeros_like(mean, requires_grad=True) for mean in means]

    def source() -> Source:
        moved = [mean + unit * t for mean, unit, t in zip(means, spread, theta, strict=True)]
        return constant(runs, dict(zip(places, moved, strict=True)))

    removed, function = ablation.overwritten(circuit), runs.loss(metric)
    optimizer = torch.optim.Adam(theta, rate)
    least, best = float("inf"), source()
    wiring = Wiring(runs, best, pos=ablation.positions)
    for _ in tqdm(range(steps), desc="constants", leave=False, disable=steps < 50):
        with torch.enable_grad():
            values = source()
            wiring.write(values)
            loss = function(wiring.logits(wiring.remove(removed)))[0].mean()
        if not loss.requires_grad:
            raise ValueError("this metric has no gradient; take one that is smooth")
        if loss.item() < least:
            least, best = loss.item(), values
        slopes = torch.autograd.grad(loss, theta, allow_unused=True)
        for one, slope in zip(theta, slopes, strict=True):
            one.grad = slope
        optimizer.step()
    return lambda site, layer: best(site, layer).detach()


def constant(runs: CircuitRuns, values: dict[Place, Tensor]) -> Source:
    """What every sender writes, [1, 1, ...] each, as a source; the stream is their sum."""
    weights = projections(runs.model)

    @cache  # else every layer's stream is summed from the first
    def activation(site: str, layer: int) -> Tensor:
        if (site, layer) in values:
            return values[site, layer]
        last = layer if site == "resid_post" else layer - 1  # the block that wrote last
        weight, bias = weights[last]["o"]
        names = "prompt pos head d, head d model -> prompt pos model"
        stream = activation("resid_pre", last) + einsum(values["z", last], weight, names) + bias
        return stream + values.get(("mlp_out", last), 0)

    return activation

"""A model reduced to some heads at some positions: all other heads say what they always say.

A node is a head at a role, such as ("9.6", "END"). To knock a node out is to overwrite the head's
output there: by its mean over the corrupted prompts at that position, so that what is left says
nothing about this prompt, or by its output on the corrupted prompt. MLPs stay as they are and run
on what they then get.

    circuit = reduce_to(runs, nodes)                  # every head outside `nodes` is knocked out
    circuit.logit_diff()
    without(circuit, [[("9.6", "END")], []])          # and some of its own nodes as well

Source: Wang et al. 2022, arXiv 2211.00593, sections 2 and 4.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.rows import Place, Write
from ..models.hooks import hooked
from .heads import split
from .runs import BaseRuns

Node = tuple[str, str | None]  # a head and a role; None stands for every position
Fill = Literal["mean", "resample"]
Gone = Bool[Tensor, "layer prompt pos head"]


@dataclass(frozen=True, eq=False)
class HeadCircuit:
    """What `reduce_to` returns: the run, where it was overwritten (`gone`), and with what."""

    runs: BaseRuns
    run: engine.Run
    gone: Gone
    fill: Fill

    def logit_diff(self) -> Float[np.ndarray, "prompt"]:
        """The reduced model's logit difference, in nats."""
        score = self.runs.functions(["logit_diff"])["logit_diff"].fn
        tokens = torch.stack([self.runs.pairs.answers, self.runs.pairs.wrong]).unique()
        return score(self.run.logits()[None][..., tokens])[0].double().cpu().numpy()


def reduce_to(runs: BaseRuns, nodes: Collection[Node] | None, fill: Fill = "mean") -> HeadCircuit:
    """Run the clean prompts with every head outside `nodes` knocked out; None: the whole model.

    `runs` must hold the site z. Raises ValueError for a head or a role that does not exist, and for
    a `fill` that is neither "mean" nor "resample".
    """
    if fill not in ("mean", "resample"):
        raise ValueError(f"fill is 'mean' or 'resample', got {fill!r}")
    if nodes is None:
        return HeadCircuit(runs, runs.clean, _nowhere(runs), fill)
    gone = ~places(runs, nodes)
    hooks = [
        (runs.clean.hook("z", layer), partial(_overwrite, _filled(runs, layer, fill), gone[layer]))
        for layer in range(runs.model.cfg.n_layers)
    ]
    with hooked(*hooks):
        tokens, mask, roles = runs.clean.tokens, runs.clean.mask, runs.clean.roles
        run = engine.record(runs.model, tokens, mask, sites=["z"], roles=roles)
    return HeadCircuit(runs, run, gone, fill)


def without(
    circuit: HeadCircuit, sets: Sequence[Collection[Node]]
) -> Float[np.ndarray, "set prompt"]:
    """The logit difference when each of these sets of nodes is knocked out as well.

    Only layers and positions from the first node of a set on are run again.
    """
    rows, names = list[dict](), ["logit_diff"]
    for number, nodes in enumerate(sets):
        new = places(circuit.runs, nodes) & ~circuit.gone
        if not new.any():  # nothing new: any edit that changes nothing stands for it
            rows.append({"row": number, "layer": 0, "site": "resid_pre", "pos": None,
                         "write": engine.patch(circuit.run)})  # fmt: skip
            continue
        first, start = (int(new.any(dims).nonzero()[0]) for dims in ((1, 2, 3), (0, 1, 3)))
        gone = new | circuit.gone
        for layer in range(first, len(gone)):
            if gone[layer, :, start:].any():
                fill = _filled(circuit.runs, layer, circuit.fill)
                rows.append({"row": number, "layer": layer, "site": "z",
                             "pos": range(start, gone.shape[2]),
                             "write": _write(fill, gone[layer])})  # fmt: skip
    metric = circuit.runs.functions(names)
    table = engine.run(circuit.run, pd.DataFrame(rows), metric, per_prompt=True)
    return table["logit_diff"].to_numpy(float).reshape(len(sets), -1)


def places(runs: BaseRuns, nodes: Collection[Node]) -> Gone:
    """True at the nodes, each prompt at its own position of the role."""
    found, prompt = _nowhere(runs), torch.arange(len(runs.pairs))
    n_layers, _, _, n_heads = found.shape
    for name, role in nodes:
        layer, head = split(name)
        if layer >= n_layers or head >= n_heads:
            raise ValueError(f"no head {name!r}: {n_layers} layers of {n_heads} heads")
        if role is not None and role not in runs.clean.roles:
            raise ValueError(f"no role {role!r}: these prompts have {', '.join(runs.clean.roles)}")
        if role is None:
            found[layer, :, :, head] = True
        else:
            found[layer, prompt, runs.clean.roles[role], head] = True
    return found


def random_like(
    model: TransformerBridge, nodes: Sequence[Node], seed: int = 0, avoid: Collection[Node] = ()
) -> list[Node]:
    """For every node another head of its layer at the same role, drawn without repeats and outside
    `nodes` and `avoid` as far as the layer has such heads: the control of a circuit."""
    rng, taken = np.random.default_rng(seed), {*nodes, *avoid}
    found = []
    for name, role in nodes:
        layer, _ = split(name)
        heads = [(f"{layer}.{head}", role) for head in range(model.cfg.n_heads)]
        free = [node for node in heads if node not in taken] or heads
        found.append(free[rng.integers(len(free))])
        taken.add(found[-1])
    return found


def _nowhere(runs: BaseRuns) -> Gone:
    cfg, shape = runs.model.cfg, runs.clean.tokens.shape
    return torch.zeros(cfg.n_layers, *shape, cfg.n_heads, dtype=torch.bool, device=cfg.device)


def _filled(runs: BaseRuns, layer: int, fill: Fill) -> Float[Tensor, "prompt pos head d_head"]:
    """What is written at a layer's knocked-out heads."""
    z = runs.corrupted.activation("z", layer)
    return z if fill == "resample" else runs.corrupted.mean("z", layer).expand_as(z)


def _overwrite(fill: Tensor, gone: Bool[Tensor, "prompt pos head"], value: Tensor) -> Tensor:
    return torch.where(gone[..., None], fill, value)


def _write(fill: Tensor, gone: Bool[Tensor, "prompt pos head"]) -> Write:
    def new(current: Tensor, place: Place) -> Tensor:
        pos = list(place.pos)
        here, value = gone[place.prompts][:, pos], fill[place.prompts][:, pos]
        return torch.where(here[..., None], value, current)

    return Write("knock out", new)

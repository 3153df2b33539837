"""Automatic circuit discovery (ACDC): remove edges one at a time while the output stays put.

Source: Conmy, Mavor-Parker, Lynch, Heimersheim & Garriga-Alonso 2023, arXiv 2304.14997,
algorithm 1.

Each trial stands on the removals that were accepted before it, so trials have an order. They share
a batch nevertheless: every row guesses how the trials before it end. The guesses are checked from
the first row on, and behind the first wrong one the rest is run again, so that every decision is
the one that trials one by one would make.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ..tasks.pairs import PromptPairs
from .attribution import Metric
from .graph import Circuit, Graph
from .runs import CircuitRuns, ensure_runs
from .senders import Value
from .wiring import State, Wiring

MOST = 32  # trials that share a batch: of more, many stand on wrong guesses

Order = Literal["descending", "ascending"]
Units = Literal["edges", "nodes", "heads"]


@dataclass(frozen=True, eq=False)
class Discovery:
    """What ACDC found, and its trials: edge (or node), change (of the loss by this removal),
    removed."""

    circuit: Circuit
    trials: pd.DataFrame


@torch.no_grad()
def acdc(
    model: TransformerBridge,
    pairs: PromptPairs,
    threshold: float,
    metric: Metric = "kl",
    value: Value = "resample",
    heads: Order = "descending",
    runs: CircuitRuns | None = None,
    units: Units = "edges",
    max_memory: int = 500 * 10**6,
) -> Discovery:
    """Remove every edge whose removal raises the loss by less than `threshold`.

    Receivers are visited from the output to the first layer, in a layer the MLP first and then the
    heads' inputs; the senders of each from the last layer to the embedding, heads in `heads` order.
    A removal that is accepted stays, and later trials are made on top of it. Each trial runs the
    model from its receiver on, and only the nodes that the change reaches. Inputs of nodes without
    a path to the output are dropped without a trial.

    Args:
        threshold: of the loss, mean over prompts; small values keep more edges.
        metric: "kl" from the clean run is a loss as it is; any other name is a score whose negative
            is the loss; a function of the last position's logits [row, prompt, vocab] is a loss.
        value: what a removed edge carries, see `circuit_runs.ablated`.
        runs: recorded runs of these pairs, to be used again.
        units: what one trial removes. "nodes" takes all edges out of a node at once, from the last
            layer to the embedding, and "heads" those of heads alone: far fewer trials.
        max_memory: bytes for the trials that share a batch; a single one takes what it takes
            (`Wiring.row_memory`), beside one stream [prompt, pos, d_model] per sender and the
            recorded runs. It does not change what is found.
    """
    runs = ensure_runs(model, pairs, runs)
    graph, function = runs.graph, runs.function(metric)
    sign = 1 if callable(metric) or metric == "kl" else -1

    def losses(logits: Float[Tensor, "row prompt d_vocab"]) -> list[float]:
        return [sign * x for x in function(logits).mean(-1).tolist()]

    batches = list(trials(graph, heads, units))
    total = sum(len(batch) for _, batch in batches)
    with tqdm(total=total, desc="ACDC", leave=False, disable=total < 200) as bar:
        search = _Search(runs.wiring(value), losses, threshold, max_memory, bar)
        for place, batch in batches:
            search.decide(place, batch)
    removed = search.removed
    _, live = graph.live(removed < 1)
    kept = graph.exists & (removed < 1) & torch.from_numpy(live)
    return Discovery(Circuit(graph, kept), pd.DataFrame(search.lines))


@dataclass(frozen=True, eq=False)
class Trial:
    """Edges that are removed together: those from a sender to one receiver, or to all (None)."""

    name: str
    sender: int
    receiver: int | None

    def without(self, removed: Float[Tensor, "sender receiver"]) -> Tensor:
        removed = removed.clone()
        removed[self.sender, slice(None) if self.receiver is None else self.receiver] = 1
        return removed


@dataclass(eq=False)
class _Search:
    """The state of the search, and the trials so far."""

    wiring: Wiring
    losses: Callable[[Tensor], list[float]]
    threshold: float
    max_memory: int
    bar: tqdm
    lines: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.wiring.graph
        self.state: State = self.wiring.start()
        (self.loss,) = self.losses(self.wiring.logits(self.state))
        self.removed = (~graph.exists).float()
        self.state.removed = self.removed[None].clone()

    def decide(self, place: int, batch: Sequence[Trial]) -> None:
        """Make these trials, which start at a group of receivers (its number) or later."""
        graph, left = self.wiring.graph, list[Trial]()
        senders, receivers = graph.live(self.removed < 1)
        for trial in batch:
            matters = senders[trial.sender] if trial.receiver is None else receivers[trial.receiver]
            if matters:
                left.append(trial)
            else:
                self.removed = trial.without(self.removed)
        window = max(1, self.max_memory // self.wiring.row_memory(graph.groups[place]))
        window = min(window, MOST)
        guesses, n = [True] * len(left), len(left)
        while left:
            done, guesses = self._together(left[:window], guesses[:window], guesses[window:])
            left = left[done:]
            self.bar.update(done)
        self.bar.update(len(batch) - n)

    def _together(
        self, batch: Sequence[Trial], guesses: list[bool], later: list[bool]
    ) -> tuple[int, list[bool]]:
        """Run trials as rows that guess which of the earlier ones are removed. Returns how many of
        them are decided, and guesses for those left over."""
        masks, removed = [], self.removed
        for trial, guess in zip(batch, guesses, strict=True):
            masks.append(trial.without(removed))
            removed = masks[-1] if guess else removed
        rows = self.wiring.remove(torch.stack(masks), self.state)
        losses, before = self.losses(self.wiring.logits(rows)), self.loss
        found = []
        for loss, guess in zip(losses, guesses, strict=True):
            found.append(loss - before)
            before = loss if guess else before
        accepted = [change < self.threshold for change in found]
        wrong = [a != guess for a, guess in zip(accepted, guesses, strict=True)]
        done = wrong.index(True) + 1 if True in wrong else len(batch)
        for trial, change, gone in zip(batch[:done], found, accepted, strict=False):
            self.lines.append({"edge": trial.name, "change": change, "removed": gone})
        taken = [number for number in range(done) if accepted[number]]
        if taken:
            self.loss, self.removed = losses[taken[-1]], masks[taken[-1]]
            self.state = rows.row(taken[-1])
        return done, accepted[done:] + later


def trials(
    graph: Graph, heads: Order = "descending", units: Units = "edges"
) -> Iterator[tuple[int, list[Trial]]]:
    """Trials in their order, in batches of which none decides whether another one matters, with the
    number of the group of receivers at which each batch starts."""
    if units not in ("edges", "nodes", "heads"):
        raise ValueError(f"units is 'edges', 'nodes' or 'heads', got {units!r}")
    if units == "edges":
        groups = {r: n for n, group in enumerate(graph.groups) for r in group.receivers}
        batches: dict[int, list[Trial]] = {}
        for receiver, senders in visits(graph, heads):
            batches.setdefault(groups[receiver], []).extend(
                Trial(f"{graph.senders[u]} -> {graph.receivers[receiver]}", u, receiver)
                for u in senders
            )
        yield from batches.items()
        return
    _, order = next(visits(graph, heads))  # the output's senders: every node
    for number, group in reversed(list(enumerate(graph.groups))):
        own = range(graph.groups[number - 1].parents if number else 0, group.parents)
        chosen = [u for u in order if u in own and (units == "nodes" or graph.senders[u][0] == "A")]
        if chosen:
            yield number, [Trial(graph.senders[u], u, None) for u in chosen]


def visits(graph: Graph, heads: Order = "descending") -> Iterator[tuple[int, list[int]]]:
    """Receivers in the order of their visit, each with its senders in the order of theirs."""
    if heads not in ("descending", "ascending"):
        raise ValueError(f"heads is 'descending' or 'ascending', got {heads!r}")
    for group in reversed(graph.groups):
        parents = list(range(1, group.parents))
        width = graph.n_heads + graph.mlps
        by_layer = [parents[i : i + width] for i in range(0, len(parents), width)]
        order: list[int] = []
        for layer in reversed(by_layer):
            own, mlp = layer[: graph.n_heads], layer[graph.n_heads :]
            order += mlp + (own[::-1] if heads == "descending" else own)
        for receiver in _heads_first(graph, group.receivers, heads):
            yield receiver, [*order, 0]


def _heads_first(graph: Graph, receivers: range, heads: Order) -> list[int]:
    """The inputs of a layer's heads, head by head: q, then k and v of its key-value head."""
    if len(receivers) == 1:
        return list(receivers)
    counts = (graph.n_heads, graph.n_kv, graph.n_kv)
    place = {}
    for kind, count in enumerate(counts):
        for head in range(count):
            at = head * graph.n_heads // count  # the first head that reads it
            place[receivers.start + sum(counts[:kind]) + head] = (at, kind)
    down = -1 if heads == "descending" else 1
    return sorted(receivers, key=lambda r: (down * place[r][0], place[r][1]))

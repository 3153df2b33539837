"""Automatic circuit discovery (ACDC): remove edges one at a time while the output stays put.

Source: Conmy, Mavor-Parker, Lynch, Heimersheim & Garriga-Alonso 2023, arXiv 2304.14997,
algorithm 1. `acdc` is that algorithm, loop by loop; `_Ahead` makes it fast without changing it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from .graph import Circuit, Graph, Group, Mask
from .runs import CircuitRuns, Metric, Value
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


class Trial(NamedTuple):
    """Edges that are removed together: those from a sender to one receiver, or to all (None)."""

    name: str
    sender: int
    receiver: int | None

    def without(self, removed: Float[Tensor, "sender receiver"]) -> Tensor:
        removed = removed.clone()
        removed[self.sender, slice(None) if self.receiver is None else self.receiver] = 1
        return removed


@torch.no_grad()
def acdc(
    runs: CircuitRuns,
    threshold: float,
    metric: Metric = "kl",
    value: Value = "resample",
    heads: Order = "descending",
    units: Units = "edges",
    max_memory: int = 500 * 10**6,
) -> Discovery:
    """Remove every edge whose removal raises the loss by less than `threshold`.

    Receivers are visited from the output to the first layer, in a layer the MLP first and then the
    heads' inputs; the senders of each from the last layer to the embedding, heads in `heads` order.
    A removal that is accepted stays, and later trials are made on top of it. Inputs of nodes
    without a path to the output are dropped without a trial.

    Args:
        threshold: of the loss, mean over prompts; small values keep more edges.
        metric: a name or a function of logits, see `CircuitRuns.loss`.
        value: what a removed edge carries, see `CircuitRuns.ablated`.
        units: what one trial removes. "nodes" takes all edges out of a node at once, from the last
            layer to the embedding, and "heads" those of heads alone: far fewer trials.
        max_memory: bytes for the trials that share a batch; a single one takes what it takes
            (`Wiring.row_memory`), beside one stream [prompt, pos, d_model] per sender and the
            recorded runs. It does not change what is found.
    """
    graph, lines = runs.graph, []

    def accepted(change: float) -> bool:  # the rule: here alone
        return change < threshold

    ahead = _Ahead(Wiring(runs, value), runs.loss(metric), accepted, max_memory)
    order = list(trials(graph, heads, units))
    total = sum(len(batch) for _, batch in order)
    with tqdm(total=total, desc="ACDC", leave=False, disable=total < 200) as bar:
        for group, batch in order:  # from the output to the embedding
            for trial in ahead.that_matter(group, batch):
                change = ahead.change()  # of the loss, were this edge gone too
                removed = accepted(change)
                ahead.decide(removed)
                lines.append({"edge": trial.name, "change": change, "removed": removed})
            bar.update(len(batch))
    _, live = graph.live(ahead.kept)
    return Discovery(Circuit(graph, ahead.kept & torch.from_numpy(live)), pd.DataFrame(lines))


class _Row(NamedTuple):
    """One trial in a batch: its number there, the edges removed in it, its loss, and the change
    that this is if all guesses before it are right."""

    number: int
    removed: Tensor
    loss: float
    change: float


class _Ahead:
    """The loss without one more edge: asked for one trial at a time, run several at a time.

    Each trial stands on the removals that were accepted before it, so trials have an order. They
    share a batch nevertheless: every row guesses how the rows before it end. When a decision is not
    as it was guessed, the rest of the batch is thrown away and run again, so that every answer is
    the one that trials one by one would give.

    Use, for each group of trials: `that_matter`; then for each of those, in order, `change` and
    `decide`.
    """

    def __init__(
        self,
        wiring: Wiring,
        loss: Callable[[Tensor], Tensor],
        accepted: Callable[[float], bool],
        max_memory: int,
    ) -> None:
        self.wiring, self.loss_of, self.accepted = wiring, loss, accepted
        self.max_memory = max_memory
        # What is decided: edges removed, the loss without them, and the run to start from.
        self.removed = (~wiring.graph.exists).float()
        self.state = wiring.start()
        self.state.removed = self.removed[None].clone()
        (self.loss,) = self._losses(self.state)
        # What is not: the group's trials in order, with a guess whether each ends in a removal.
        self.coming: list[Trial] = []
        self.guesses: dict[Trial, bool] = {}
        # The batch that is running: its rows that are not decided, and the last accepted one.
        self.rows: list[_Row] = []
        self.batch = self.state
        self.accepted_row: int | None = 0

    @property
    def kept(self) -> Mask:
        return self.wiring.graph.exists & (self.removed < 1)

    def that_matter(self, group: Group, batch: list[Trial]) -> list[Trial]:
        """The trials of a batch, all at `group` or behind it, whose edges lie on a path to the
        output; the others are removed at once."""
        senders, receivers = self.wiring.graph.live(self.kept)
        self.coming = []
        for trial in batch:
            if senders[trial.sender] if trial.receiver is None else receivers[trial.receiver]:
                self.coming.append(trial)
            else:
                self.removed = trial.without(self.removed)
        self.guesses = dict.fromkeys(self.coming, True)
        self.window = min(MOST, max(1, self.max_memory // self.wiring.row_memory(group)))
        return list(self.coming)

    def change(self) -> float:
        """The change of the loss if the next trial's edges were removed too."""
        if not self.rows:
            self._run(self.coming[: self.window])
        return self.rows[0].change

    def decide(self, removed: bool) -> None:
        """Whether they are."""
        row, trial = self.rows.pop(0), self.coming.pop(0)
        if removed:
            self.loss, self.removed, self.accepted_row = row.loss, row.removed, row.number
        if removed != self.guesses[trial]:
            # What the rest of the rows say is not the truth, but the best guess of it.
            for coming, other in zip(self.coming, self.rows, strict=False):
                self.guesses[coming] = self.accepted(other.change)
            self.rows = []
        if not self.rows and self.accepted_row is not None:
            self.state = self.batch = self.batch.row(self.accepted_row)

    def _run(self, batch: list[Trial]) -> None:
        """The next trials as rows of one batch, each on top of those that are guessed to end in a
        removal."""
        masks, removed = [], self.removed
        for trial in batch:
            masks.append(trial.without(removed))
            removed = masks[-1] if self.guesses[trial] else removed
        self.batch = self.wiring.remove(torch.stack(masks), self.state)
        self.accepted_row, before = None, self.loss
        for number, (trial, loss) in enumerate(zip(batch, self._losses(self.batch), strict=True)):
            self.rows.append(_Row(number, masks[number], loss, loss - before))
            before = loss if self.guesses[trial] else before

    def _losses(self, state: State) -> list[float]:
        return self.loss_of(self.wiring.logits(state)).mean(-1).tolist()


def trials(
    graph: Graph, heads: Order = "descending", units: Units = "edges"
) -> Iterator[tuple[Group, list[Trial]]]:
    """Trials in their order, in batches of which none decides whether another one matters, each
    with the group of receivers at which it starts."""
    if units not in ("edges", "nodes", "heads"):
        raise ValueError(f"units is 'edges', 'nodes' or 'heads', got {units!r}")
    if heads not in ("descending", "ascending"):
        raise ValueError(f"heads is 'descending' or 'ascending', got {heads!r}")
    for number, group in reversed(list(enumerate(graph.groups))):
        senders = senders_of(graph, group, heads)
        if units == "edges":
            receivers = receivers_of(graph, group, heads)
            names = ((u, r, f"{graph.senders[u]} -> {graph.receivers[r]}")
                     for r in receivers for u in senders)  # fmt: skip
            yield group, [Trial(name, u, r) for u, r, name in names]
            continue
        # Nodes: those senders that no earlier group reads, without the embedding.
        first = max(1, graph.groups[number - 1].parents if number else 0)
        kinds = "AM" if units == "nodes" else "A"
        chosen = [u for u in senders if u >= first and graph.senders[u][0] in kinds]
        if chosen:
            yield group, [Trial(graph.senders[u], u, None) for u in chosen]


def senders_of(graph: Graph, group: Group, heads: Order) -> list[int]:
    """The senders before a group in the order of their trials: later layers first, the MLP before
    the heads, the embedding last."""
    width, found = graph.n_heads + graph.mlps, list[int]()
    for start in reversed(range(1, group.parents, width)):
        layer = range(start, min(start + width, group.parents))
        own, mlp = layer[: graph.n_heads], layer[graph.n_heads :]
        found += [*mlp, *(own[::-1] if heads == "descending" else own)]
    return [*found, 0]


def receivers_of(graph: Graph, group: Group, heads: Order) -> list[int]:
    """A group's receivers in the order of their visit: head by head its q, then the k and v of its
    key-value head."""
    if group.kind != "attention":
        return list(group.receivers)
    found = dict[int, int]()  # receiver: the first head that reads it
    for head in range(graph.n_heads):
        for r in graph.inputs[graph.sender_number(group.layer, head)]:
            found.setdefault(r, head)
    down = -1 if heads == "descending" else 1
    return sorted(found, key=lambda r: (down * found[r], r))

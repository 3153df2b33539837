"""Path patching: what one component tells another, with everything else held still."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.rows import Place, Write
from ..models.sites import n_heads
from ..tasks.pairs import PromptPairs
from .runs import BaseRuns, Direction, Metrics, ensure, measure

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Node:
    """A head `3.5`, a layer's MLP `mlp3`, or what a head reads: `3.5.q`, `3.5.k`, `3.5.v`."""

    name: str
    site: str
    layer: int
    head: int | None

    @staticmethod
    def of(model: TransformerBridge, name: str, sites: Sequence[str]) -> "Node":
        parts = name.removeprefix("mlp").split(".")
        site = "mlp_out" if name.startswith("mlp") else "z" if len(parts) == 2 else parts[-1]
        numbers = parts[:1] if site == "mlp_out" else parts[:2]
        shape = 3 if site in ("q", "k", "v") else len(numbers)
        if site not in sites or len(parts) != shape or not all(n.isdecimal() for n in numbers):
            forms = {"z": "'3.5'", "q": "'3.5.q'", "k": "'3.5.k'", "v": "'3.5.v'"}
            known = ", ".join(forms.get(s, "'mlp3'") for s in sites)
            raise ValueError(f"cannot read {name!r} here: write it like {known}")
        layer, head = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None
        count = 0 if head is None else n_heads(model, site)
        if layer >= model.cfg.n_layers or (head is not None and head >= count):
            raise ValueError(f"{name!r} does not exist: {model.cfg.n_layers} layers, {count} heads")
        return Node(name, site, layer, head)

    def reaches(self, receiver: "Node") -> bool:
        """Whether this sender's output is in the stream that the receiver reads."""
        own_mlp = self.site == "z" and receiver.site == "mlp_out"
        return self.layer < receiver.layer or (own_mlp and self.layer == receiver.layer)


def path_patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    senders: Sequence[str] | Literal["heads", "mlps"],
    receivers: Sequence[str],
    direction: Direction = "noise",
    pos: int | Sequence[int] | None = None,
    mlps: Literal["frozen", "free"] = "frozen",
    metrics: Metrics = ("logit_diff",),
    normalise: bool = True,
    per_prompt: bool = False,
    runs: BaseRuns | None = None,
) -> pd.DataFrame:
    """Patch each sender's output along its direct paths to the receivers only.

    Two runs per sender, both on the edited run ("noise": the clean one, "denoise": the corrupted).
    1. The sender's output is the other run's. Every later attention output is frozen at the edited
       run's value, and so is every later MLP output (`mlps="frozen"`: the direct path alone) or
       not (`mlps="free"`: paths through MLPs count as well, as in the first source). What each
       receiver computes from the stream that it then sees is kept: q, k or v of a head, the output
       of an MLP. The model's own norms do this, so nothing is linearised.
    2. All receivers get what was kept, together, and everything else runs freely.
    The receiver "logits" needs the first run alone: the last norm reads the stream that it left.
    With everything later frozen, that is the clean stream and the sender's own change of it.

    Args:
        senders: heads "layer.head", MLPs "mlp3", or "heads" or "mlps": all that come before the
            last receiver.
        receivers: "9.6.q" (or k, v; those are numbered by key-value head), "mlp9", or ["logits"].
        pos: the positions at which senders are patched and receivers changed; all by default.
            Attention is frozen, so what is sent at one position is received at that position.
        metrics, normalise, per_prompt, runs: as for `sweep`; runs need sites z, attn_out, mlp_out.

    Returns:
        sender, receivers, site, layer, head, pos, one column per metric, direction.

    Raises:
        ValueError: a name that cannot be read, or a sender without a path to any receiver.

    Source: Wang et al. 2022, arXiv 2211.00593, section 3.1; Goldowsky-Dill et al. 2023,
    arXiv 2304.05969.
    """
    if mlps not in ("frozen", "free"):
        raise ValueError(f"mlps is 'frozen' or 'free', got {mlps!r}")
    to_logits = list(receivers) == ["logits"]
    read_by = [] if to_logits else receivers
    ends = [Node.of(model, name, ("q", "k", "v", "mlp_out")) for name in read_by]
    starts = _senders(model, senders, ends, to_logits)
    runs = ensure(model, pairs, runs, ("z", "attn_out", "mlp_out"))
    base, source = runs.ordered(direction)
    if to_logits and pos is None and not isinstance(metrics, dict):
        pos = -1  # named metrics read the last position, and nothing moves between positions
    where = _positions(pos, base.tokens.shape[1])
    after = list(range(where[0], base.tokens.shape[1]))  # earlier positions cannot change
    stop = model.cfg.n_layers if to_logits else 1 + max(end.layer for end in ends)
    relays = {(s, e): _Relay(base, source, where) for s in starts for e in ends if s.reaches(e)}

    def frozen() -> Rows:
        for row, sender in enumerate(starts):
            yield _line(row, sender, where, engine.patch(source))
            for end in ends:
                if (sender, end) in relays:
                    yield _line(row, end, where, relays[sender, end].keep())
            for layer in range(sender.layer, stop):
                later = layer > sender.layer
                held = ["attn_out"] * later
                held += ["mlp_out"] * (mlps == "frozen" and (later or sender.site == "z"))
                for site in held:
                    yield _line(row, Node("", site, layer, None), after, engine.patch(base))

    def received() -> Rows:
        for (sender, end), relay in relays.items():
            yield _line(starts.index(sender), end, where, relay.give())

    if to_logits and mlps == "frozen":
        rows = pd.DataFrame(_arrivals(base, source, starts, where))
    else:
        rows = pd.DataFrame(frozen())
    if not to_logits:
        read = engine.Metric(lambda x: x[..., 0], pos=where[-1], site="resid_post", layer=stop - 1)
        engine.run(base, rows, {"stream": read})
        rows = pd.DataFrame(received())
    table = measure(runs, direction, rows, metrics, normalise, per_prompt)
    order = [starts[row] for row in table["row"]]
    table = table.drop(columns=["row", "write"])
    table.insert(0, "sender", [sender.name for sender in order])
    table.insert(1, "receivers", " ".join(receivers))
    return table.assign(
        site=[s.site for s in order], layer=[s.layer for s in order], head=[s.head for s in order]
    )


def _senders(
    model: TransformerBridge, names: Sequence[str] | str, ends: list[Node], to_logits: bool
) -> list[Node]:
    """The senders, once each of them is known to have a path."""
    every = isinstance(names, str)
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    if names == "heads":
        names = [f"{layer}.{head}" for layer in layers for head in heads]
    elif names == "mlps":
        names = [f"mlp{layer}" for layer in layers]
    elif isinstance(names, str):
        raise ValueError(f"senders is a list of names, 'heads' or 'mlps', got {names!r}")
    nodes = [Node.of(model, name, ("z", "mlp_out")) for name in dict.fromkeys(names)]
    found = [n for n in nodes if to_logits or any(n.reaches(end) for end in ends)]
    if not found or (len(found) < len(nodes) and not every):
        lost = [node.name for node in nodes if node not in found]
        raise ValueError(f"no receiver comes after the senders {lost}")
    return found


def _arrivals(base: engine.Run, source: engine.Run, senders: list[Node], pos: list[int]) -> Rows:
    """Rows that add to the last stream what each sender, by itself, changed in its own layer's."""
    relays = [_Relay(base, source, pos) for _ in senders]
    for layer in sorted({sender.layer for sender in senders}):
        leaves, lines = Node("", "resid_post", layer, None), []
        for row, sender in enumerate(senders):
            if sender.layer == layer:
                lines.append(_line(row, sender, pos, engine.patch(source)))
                lines.append(_line(row, leaves, pos, relays[row].keep_change()))
                if sender.site == "z":
                    own_mlp = Node("", "mlp_out", layer, None)
                    lines.append(_line(row, own_mlp, pos, engine.patch(base)))
        read = engine.Metric(lambda x: x[..., 0], pos=pos[-1], site="resid_post", layer=layer)
        engine.run(base, pd.DataFrame(lines), {"stream": read})
    last = Node("", "resid_post", base.model.cfg.n_layers - 1, None)
    for row, relay in enumerate(relays):
        yield _line(row, last, pos, relay.add_change())


def _positions(pos: int | Sequence[int] | None, n_pos: int) -> list[int]:
    chosen = [pos] if isinstance(pos, int) else list(range(n_pos) if pos is None else pos)
    if not chosen or any(not -n_pos <= p < n_pos for p in chosen):
        raise ValueError(f"pos is {pos}; the prompts have {n_pos} positions")
    return sorted({p % n_pos for p in chosen})


def _line(row: int, node: Node, pos: list[int] | None, write: Write) -> dict[str, Any]:
    place = {"site": node.site, "layer": node.layer, "head": node.head, "pos": pos}
    return {"row": row, **place, "write": write}


class _Relay:
    """Carries what a receiver reads in the frozen run over to the second run."""

    def __init__(self, base: engine.Run, source: engine.Run, pos: list[int]) -> None:
        self.base, self.source = base, source
        self.column = {p: i for i, p in enumerate(pos)}
        self.value: Tensor | None = None  # [prompt, k, d], once its width is known

    def _at(self, place: Place, like: Tensor) -> tuple[Tensor, list[int]]:
        if self.value is None:
            self.value = like.new_zeros(len(self.base.tokens), len(self.column), like.shape[-1])
        return self.value[place.prompts], [self.column[p] for p in place.pos]

    def keep(self) -> Write:
        def new(current: Tensor, place: Place) -> Tensor:
            value, columns = self._at(place, current)
            value[:, columns] = current
            return current

        # nothing is changed here, so nothing needs a run on this write's account
        return Write("keep", new, same_before=lambda run: run.tokens.shape[1])

    def give(self) -> Write:
        def new(current: Tensor, place: Place) -> Tensor:
            value, columns = self._at(place, current)
            return value[:, columns]

        same: Callable[[engine.Run], int] = self.source.agrees_before
        return Write("received", new, same_before=same)

    def keep_change(self) -> Write:
        def new(current: Tensor, place: Place) -> Tensor:
            value, columns = self._at(place, current)
            value[:, columns] = current - place.of(self.base)
            return current

        return Write("keep", new, same_before=lambda run: run.tokens.shape[1])

    def add_change(self) -> Write:
        def new(current: Tensor, place: Place) -> Tensor:
            value, columns = self._at(place, current)
            return current + value[:, columns]

        return Write("sent", new, same_before=self.source.agrees_before)

"""Path patching: what one component tells another, with everything else held still.

1. *Send.* A sender's output is that of the other run. What this changes in the residual stream
   travels to the receiver, while every attention block on the way (and every MLP, unless they are
   free) stays as it was.
2. *Hear.* A receiver computes its query, key, value or MLP output from that stream.
3. *Answer.* The edited run gets what the receivers heard, all receivers of one sender together, and
   everything after them runs freely.

The receiver's own norm and weights do step 2 and the model's own blocks step 3, so nothing is
linearised. Source: Wang et al. 2022, arXiv 2211.00593, section 3.1; Goldowsky-Dill et al. 2023,
arXiv 2304.05969.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.positions import at_each, each_position
from ..engine.rows import Place, Write
from ..models.hooks import first, hook_name, mlp_norm, n_heads
from .runs import BaseRuns, Direction, Metrics, measure

Streams = Float[Tensor, "sender prompt k d_model"]  # at the k patched positions
FORMS = {"z": "'3.5'", "q": "'3.5.q'", "k": "'3.5.k'", "v": "'3.5.v'", "mlp_out": "'mlp3'"}


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
            known = ", ".join(FORMS[s] for s in sites)
            raise ValueError(f"cannot read {name!r} here: write it like {known}")
        layer, head = int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None
        count = 0 if head is None else n_heads(model, site)
        if layer >= model.cfg.n_layers or (head is not None and head >= count):
            raise ValueError(f"{name!r} does not exist: {model.cfg.n_layers} layers, {count} heads")
        return Node(name, site, layer, head)

    def line(self, row: int, pos: Any, write: Write) -> dict[str, Any]:
        """The row of the engine's table that writes here."""
        place = {"site": self.site, "layer": self.layer, "head": self.head, "pos": pos}
        return {"row": row, **place, "write": write}


def path_patch(
    runs: BaseRuns,
    senders: Sequence[str] | Literal["heads", "mlps"],
    receivers: Sequence[str],
    direction: Direction = "noise",
    pos: int | str | Sequence[int | str] | None = None,
    mlps: Literal["frozen", "free"] = "frozen",
    metrics: Metrics = ("logit_diff",),
    normalise: bool = True,
    per_prompt: bool = False,
) -> pd.DataFrame:
    """Patch each sender's output along its direct paths to the receivers only (see the module).

    Args:
        runs: recorded with the sites z, attn_out and mlp_out.
        senders: heads "layer.head", MLPs "mlp3", or "heads" or "mlps": all that come before the
            last receiver.
        receivers: "9.6.q" (or k, v; those are numbered by key-value head), "mlp9", or ["logits"].
        direction: "noise" edits the clean run, "denoise" the corrupted one.
        pos: the positions or roles at which senders are patched and receivers changed; all by
            default. Attention is frozen, so what is sent at one position is received there.
        mlps: "frozen" for the direct path alone; "free" counts paths through MLPs as well, as Wang
            et al. do.
        metrics, normalise, per_prompt: as for `sweep`.

    Returns:
        sender, receivers, site, layer, head, pos, one column per metric, direction.

    Raises:
        ValueError: a name that cannot be read, or a sender without a path to any receiver.
    """
    base, _ = runs.ordered(direction)
    to_logits = list(receivers) == ["logits"]
    read_by = [] if to_logits else receivers
    ends = [Node.of(runs.model, name, ("q", "k", "v", "mlp_out")) for name in read_by]
    starts = _senders(base, senders, ends)
    if mlps not in ("frozen", "free"):
        raise ValueError(f"mlps is 'frozen' or 'free', got {mlps!r}")
    if pos is None and to_logits and not isinstance(metrics, Mapping) and runs.followed is None:
        pos = -1  # named metrics read the last position, and nothing moves between positions

    def rows(these: BaseRuns) -> pd.DataFrame:
        base, source = these.ordered(direction)
        n_prompts, n_pos = base.tokens.shape
        each = torch.arange(n_pos).expand(n_prompts, -1) if pos is None else pos
        where = each_position(each, base.roles, n_prompts, n_pos).to(base.tokens.device)
        return pd.DataFrame(_rows(base, source, starts, ends, where, mlps))

    # 3. answer
    table = measure(runs, direction, rows, metrics, normalise, per_prompt)
    order = [starts[row] for row in table["row"]]
    names = {"sender": [sender.name for sender in order], "receivers": " ".join(receivers)}
    places = {key: [getattr(s, key) for s in order] for key in ("site", "layer", "head")}
    measured = table.drop(columns=["row", "write", *places])
    if pos is None:
        pos = range(base.tokens.shape[1])
    return pd.DataFrame({**names, **places, "pos": [pos] * len(table)}).join(
        measured.drop(columns="pos")
    )


def _rows(
    base: engine.Run,
    source: engine.Run,
    starts: Sequence[Node],
    ends: Sequence[Node],
    where: Int[Tensor, "prompt k"],
    mlps: Literal["frozen", "free"],
) -> list[dict[str, Any]]:
    """What the receivers (the logits, without `ends`) hear of each sender, as rows to be made."""
    rows, to_logits = [], not ends
    for layer in sorted({sender.layer for sender in starts}):
        here = [sender for sender in starts if sender.layer == layer]
        direct = _sent(base, source, here, where, layer, "frozen")
        for end in ends or [Node("logits", "resid_post", base.model.cfg.n_layers - 1, None)]:
            # 1. send: what each sender changes in the stream that the receiver reads
            change, stop = direct, end.layer - (not to_logits)
            if mlps == "free" and layer <= stop:
                change = _sent(base, source, here, where, stop, "free")
            # 2. hear: what the receiver makes of it
            heard = _hear(base, end, where, change)
            rows += [
                end.line(starts.index(sender), where, _write(value, where, source))
                for sender, value in zip(here, heard, strict=True)
                if to_logits or _reaches(base, sender, end)
            ]
    return rows


def direct_effects(
    runs: BaseRuns, senders: Sequence[str] | Literal["heads", "mlps"] = "heads"
) -> pd.DataFrame:
    """What each sender writes for the two answers by its direct path to the logits, in nats.

    A logit difference moves when either name does. Here the two are apart: how much the answer's
    logit falls when the sender is noised (`answer_logit`), how much the wrong one's falls
    (`wrong_logit`), and the difference of the two (`logit_diff`). Each prompt is compared with
    itself.

    Returns:
        sender, site, layer, head, prompt, answer_logit, wrong_logit, logit_diff.
    """
    names = ["answer_logit", "wrong_logit"]
    raw = path_patch(runs, senders, ["logits"], metrics=names, normalise=False, per_prompt=True)
    clean = runs.scores(names).query("run == 'clean'").set_index("prompt")
    raw[names] = clean.loc[raw["prompt"], names].to_numpy() - raw[names]
    raw["logit_diff"] = raw["answer_logit"] - raw["wrong_logit"]
    return raw[
        ["sender", "site", "layer", "head", "prompt", *names, "logit_diff", *runs.pairs.said]
    ]


def _senders(base: engine.Run, names: Sequence[str] | str, ends: Sequence[Node]) -> list[Node]:
    """The senders, once each of them is known to have a path (to the logits, without `ends`)."""
    cfg, every = base.model.cfg, isinstance(names, str)
    if names == "heads":
        names = [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    elif names == "mlps":
        names = [f"mlp{layer}" for layer in range(cfg.n_layers)]
    elif isinstance(names, str):
        raise ValueError(f"senders is a list of names, 'heads' or 'mlps', got {names!r}")
    nodes = [Node.of(base.model, name, ("z", "mlp_out")) for name in dict.fromkeys(names)]
    found = [n for n in nodes if not ends or any(_reaches(base, n, end) for end in ends)]
    if not found or (len(found) < len(nodes) and not every):
        lost = [node.name for node in nodes if node not in found]
        raise ValueError(f"no receiver comes after the senders {lost}")
    return found


def _reaches(base: engine.Run, sender: Node, receiver: Node) -> bool:
    """Whether the sender's output is in the stream that the receiver reads."""
    own_mlp = sender.site == "z" and receiver.site == "mlp_out" and _serial(base, sender.layer)
    return sender.layer < receiver.layer or (own_mlp and sender.layer == receiver.layer)


def _serial(base: engine.Run, layer: int) -> bool:
    """Whether this layer's MLP reads what its attention writes (in some models both read alike)."""
    return hook_name("resid_mid", layer) in base.hooks


def _sent(
    base: engine.Run,
    source: engine.Run,
    senders: Sequence[Node],
    where: Int[Tensor, "prompt k"],
    stop: int,
    mlps: Literal["frozen", "free"],
) -> Streams:
    """How the stream after layer `stop` changes with each sender's output, all of one layer.

    Attention after the sender's layer is held; so are MLPs if they are frozen. What then changes is
    the sender's own contribution, so for frozen MLPs it is enough to read its own layer.
    """
    layer, rows = senders[0].layer, []
    for row, sender in enumerate(senders):
        held = [("attn_out", later) for later in range(layer + 1, stop + 1)]
        if mlps == "frozen" and sender.site == "z":
            held.append(("mlp_out", layer))
        rows.append(sender.line(row, where, engine.patch(source)))
        rows += [Node("", *place, None).line(row, where, engine.patch(base)) for place in held]
    stream = engine.Metric(lambda x: x[:, :, 0, 0], pos=where, site="resid_post", layer=stop)
    _, read = engine.run(base, pd.DataFrame(rows), {"stream": stream}, return_tensors=True)
    return read["stream"].to(where.device) - at_each(base.resid[stop + 1], where)


@torch.no_grad()
def _hear(
    base: engine.Run, end: Node, where: Int[Tensor, "prompt k"], change: Streams
) -> Float[Tensor, "sender prompt k d"]:
    """What a receiver makes of the edited run's stream with these changes in it: its query, key,
    value or MLP output; for the logits, the last stream itself."""
    block, read = base.model.blocks[end.layer], "resid_pre"
    if end.site == "resid_post":
        return at_each(base.activation("resid_post", end.layer), where) + change
    if end.site == "mlp_out" and _serial(base, end.layer):
        read = "resid_mid"
    streams = at_each(base.activation(read, end.layer), where) + change
    flat = rearrange(streams, "sender prompt k d -> (sender prompt) k d")
    if end.site == "mlp_out":
        value = first(block.mlp(mlp_norm(block)(flat)))
        value = block.ln2_post(value) if hasattr(block, "ln2_post") else value
    else:
        value = getattr(block.attn, end.site)(block.ln1(flat))
        heads = n_heads(base.model, end.site)
        value = rearrange(value, "row k (head d) -> row k head d", head=heads)[:, :, end.head]
    return rearrange(value, "(sender prompt) k d -> sender prompt k d", prompt=len(where))


def _write(
    value: Float[Tensor, "prompt k d"], where: Int[Tensor, "prompt k"], source: engine.Run
) -> Write:
    """Write each prompt's values at its own positions; where both runs agree, none was changed."""

    def new(current: Tensor, place: Place) -> Tensor:
        spread = value.new_zeros(len(value), int(where.max()) + 1, value.shape[-1])
        spread[torch.arange(len(where), device=where.device)[:, None], where] = value
        return spread[place.prompts][:, list(place.pos)]

    return Write("heard", new, same_before=source.agrees_before)

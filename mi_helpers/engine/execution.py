"""Run a table of interventions at the cost of only what each one changes.

A row of the table says where to intervene (`site`, `layer`, `pos`, `head`) and what to `write`.
`record` runs a batch of prompts once and keeps what later runs can reuse; `run` carries out every
row on top of a recorded run and adds one column per metric. Five savings make it fast:

1. Layers. An edit at layer L leaves every earlier layer as it was: the row joins the batch at
   layer L, from the stored residual. Holds for every edit. Layers after the last one that is
   edited or read are not run.
2. Positions. Attention is causal, so an edit at position p leaves every earlier position as it
   was: the row carries only the positions from p to the last one that a metric reads, and attends
   to the recorded keys and values before p. An edit of all positions saves nothing here.
3. Batch. Rows are independent, so rows of any layer and length share one pass. They are packed as
   segments into sequences of one length; each segment sees the recorded prefix and itself.
4. Unembedding. Only the positions that a metric reads are unembedded.
5. Causality. A patch from another run writes nothing new before the first token in which the two
   prompts differ. Those positions are dropped, and a row that has none left costs nothing.

The model's own blocks do all the arithmetic. Each is called with the arguments that it had in the
recorded run (masks, rotary angles), gathered to the packed positions, so that sliding windows,
padding and position embeddings stay the model's own business.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import psutil
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import explained
from ..models.hooks import first, hooked
from .packing import Packing, Segment, plan
from .readout import Read, Results
from .recording import Run
from .rows import Edit, Metric, Place, parse

CPU_TOKENS_PER_PASS = 2048  # above this a block's activations leave the processor's cache


@torch.no_grad()
def run(
    base: Run,
    rows: pd.DataFrame,
    metrics: Mapping[str, Metric | Callable[[Tensor], Tensor]],
    per_prompt: bool = False,
    max_memory: int | None = None,
    return_tensors: bool = False,
) -> Any:
    """Carry out every row of a table of interventions on `base`, and measure.

    `rows` has the columns `site`, `layer`, `pos` (one position, a list, or None for all), `head`
    (None for all; may be left out) and `write`. Rows that share a value in an optional column
    `row` are made together, as one intervention. Negative numbers count from the end. A metric is
    a function of the last position's logits, [row, prompt, d_vocab] -> [row, prompt], or a
    `Metric` that reads elsewhere.

    Returns the table with a column for each metric: averaged over prompts, or with one line for
    each row and prompt if `per_prompt`. `max_memory` is in bytes, by default a quarter of what is
    free; the batch that it led to is in `table.attrs["engine"]`. With `return_tensors`, returns
    the table and what each metric read, [row, prompt, k, d_vocab or d_model].

    Raises ValueError, before any work, for an edit that cannot be made, naming its row; and
    RuntimeError for an edit that did not happen or a result that is not finite, MemoryError where
    one pass of the model does not fit.
    """
    reads = {name: Read.of(base, name, metric) for name, metric in metrics.items()}
    if not reads:
        raise ValueError("give at least one metric")
    stop = 1 + max(int(read.pos.max()) for read in reads.values())
    edits, table = parse(base, rows, stop)
    budget = max_memory or _free_memory(base.resid[0].device) // 4
    results = Results(base, len(edits), reads, budget, keep=return_tensors)
    segments = [
        Segment(
            row=n,
            boundary=min(edit.boundary for edit in row),
            start=min(edit.place.pos[0] for edit in row) if base.packs else 0,
            stop=stop,
        )
        for n, row in enumerate(edits)
        if row
    ]
    results.add([n for n, row in enumerate(edits) if not row], {})
    n_prompts, n_pos = base.tokens.shape
    at_once, tokens = _batch(base, segments, budget)
    passes = list(plan(segments, at_once, n_pos if base.packs else stop, tokens))
    for packing in tqdm(passes, desc="interventions", leave=False, disable=len(passes) < 4):
        blocks = [slice(p, p + at_once) for p in range(0, n_prompts, at_once)]
        try:
            parts = [_forward(base, packing, edits, reads.values(), block) for block in blocks]
        except RuntimeError as error:  # on a CPU, memory that runs out has no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "CPUAllocator" not in str(error):
                raise
            raise MemoryError(explained("MI-E06", f"out of memory: {error}")) from error
        found = {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}
        results.add([segment.row for segment in packing.segments], found)
    _check_fired(edits)
    table = results.table(table, per_prompt)
    table.attrs["engine"] = {
        "rows": len(edits),
        "rows_run": len(segments),
        "passes": len(passes),
        "tokens_per_pass": tokens,
        "prompts_per_pass": at_once,
        "max_memory": budget,
    }
    return (table, results.tensors()) if return_tensors else table


def _check_fired(edits: list[list[Edit]]) -> None:
    for edit in (edit for row in edits for edit in row):
        if edit.fired != edit.due:
            raise RuntimeError(
                f"{edit}: its hook fired for {edit.fired} of {edit.due} prompts, so the edit was "
                "not made; this architecture does not use that activation in the usual way"
            )


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _batch(base: Run, segments: list[Segment], budget: int) -> tuple[int, int]:
    """Prompts and tokens that one pass may take within `budget` bytes."""
    cfg, n_prompts = base.model.cfg, len(base.tokens)
    longest = max(map(len, segments), default=1)
    seen = 2 * base.tokens.shape[1]  # the prefix and a packed sequence
    heads = cfg.n_heads * cfg.d_head
    stream = 10 * cfg.d_model + 5 * (cfg.d_mlp or 4 * cfg.d_model) + 8 * heads
    attention = 4 * cfg.n_heads * seen + 4 * heads * seen // longest
    allowed = max(1, budget // (base.resid[0].element_size() * (stream + attention)))
    at_once = min(n_prompts, max(1, allowed // longest))
    if base.resid[0].device.type == "cpu":
        allowed = min(allowed, CPU_TOKENS_PER_PASS)
    return at_once, allowed


def _forward(
    base: Run, packing: Packing, edits: list[list[Edit]], reads: Iterable[Read], prompts: slice
) -> dict[tuple, Float[Tensor, "row prompt k d_model"]]:
    """Run one packing on some of the prompts; the stream at the positions and layers of `reads`."""
    one, reads = _Pass(base, packing, prompts), list(reads)
    hidden = base.resid[0][:0, : packing.width]
    found = {read.key: one.read(read, hidden, -1) for read in reads}
    due: dict[tuple[str, int], list[Edit]] = defaultdict(list)
    last = max(read.boundary for read in reads)  # no block after it is run
    for edit in (edit for segment in packing.segments for edit in edits[segment.row]):
        in_stream = edit.place.site in ("resid_pre", "resid_post")
        key = ("stream", edit.boundary) if in_stream else (edit.place.site, edit.place.layer)
        due[key].append(edit)
        last = max(last, edit.boundary + (not in_stream))
    for layer in range(packing.first_layer, last + 1):
        hidden = one.join(hidden, layer)
        for edit in due["stream", layer]:
            one.make(edit, hidden, hidden)
        found |= {r.key: one.read(r, hidden, layer) for r in reads if r.boundary == layer}
        if layer < last:
            hooks = [
                (
                    base.hook("attn_out" if site == "resid_mid" else site, layer),
                    partial(one.change, due[site, layer], hidden),
                )
                for site in ("q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out")
                if due[site, layer]
            ]
            args, kwargs = one.arguments(layer, hidden)
            with hooked(*hooks):
                hidden = first(base.model.blocks[layer](*args, **kwargs))
    return found


class _Pass:
    """What the blocks need to run packed rows: gathered arguments, prefix keys and values, edits.

    Sequence b of the batch is bin b // n_prompts for prompt b % n_prompts.
    """

    def __init__(self, base: Run, packing: Packing, prompts: slice) -> None:
        self.base, self.packing, self.prompts = base, packing, prompts
        self.pos, self.start, self.row = packing.layout(base.resid[0].device)
        self.n_prompts = len(base.tokens[prompts])
        self.gathered: dict[int, Tensor] = {}

    def join(self, hidden: Tensor, layer: int) -> Tensor:
        """Add the rows whose first edit is at this block, with the recorded stream."""
        before, after = self.packing.joined(layer - 1), self.packing.joined(layer)
        if before == after:
            return hidden
        new = self.base.resid[layer][self.prompts][:, self.pos[before:after]].transpose(0, 1)
        return torch.cat([hidden, new.flatten(0, 1)])

    # The block's arguments, at packed positions

    def arguments(self, layer: int, hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
        """The arguments for the sequences that have joined, whose stream is `hidden`."""

        def packed(value: Tensor) -> Tensor:
            if self.base.is_shared_bias(value):
                return value
            if id(value) not in self.gathered:  # many layers share theirs
                self.gathered[id(value)] = self._gather(value)
            found = self.gathered[id(value)][: len(hidden)]
            by_head = value.ndim == 3 and self.base.is_key_bias(value)
            return found.flatten(0, 1) if by_head else found

        return self.base.arguments(layer, hidden, self, packed)

    def _gather(self, value: Tensor) -> Float[Tensor, "sequence ..."]:
        n_prompts, n_pos = self.base.tokens.shape
        if self.base.is_key_bias(value):
            return self._gather_key_bias(value)
        if value.shape[0] not in (1, n_prompts):
            raise ValueError(f"a block argument of shape {tuple(value.shape)} is not by prompt")
        own = value[self.prompts] if value.shape[0] == n_prompts else value
        if value.ndim == 4 and value.shape[-2:] == (n_pos, n_pos):
            packed = self._gather_mask(own)
        elif value.ndim in (2, 3) and value.shape[1] == n_pos:
            packed = own[:, self.pos].transpose(0, 1)
        else:
            raise ValueError(f"a block argument of shape {tuple(value.shape)} is not by token")
        return packed.expand(-1, self.n_prompts, *packed.shape[2:]).flatten(0, 1)

    def _gather_mask(self, mask: Tensor) -> Float[Tensor, "bin prompt head token key"]:
        """The model's mask between packed tokens; other segments' tokens are hidden."""
        low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        prefix = torch.arange(self.packing.prefix, device=mask.device)
        before = mask[:, :, self.pos, : self.packing.prefix]
        before = before.masked_fill(prefix >= self.start[..., None], low)
        own = mask[:, :, self.pos[:, :, None], self.pos[:, None, :]]
        own = own.masked_fill(self.row[:, :, None] != self.row[:, None, :], low)
        return torch.cat([before, own], dim=-1).permute(2, 0, 1, 3, 4)

    def _gather_key_bias(self, bias: Tensor) -> Float[Tensor, "sequence head 1 key"]:
        """ALiBi's number for each head and key, at the keys that packed tokens attend to."""
        own = bias.unflatten(0, (len(self.base.tokens), -1)) if bias.ndim == 3 else bias
        prefix = torch.arange(self.packing.prefix, device=bias.device)
        keys = torch.cat([prefix.expand(len(self.pos), -1), self.pos], dim=1)
        packed = own[self.prompts][..., keys]
        return rearrange(packed, "prompt head 1 bin key -> (bin prompt) head 1 key")

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stands in for the model's cache: the recorded prefix, then the packed tokens."""
        return self._prefixed(self.base.keys[layer], k), self._prefixed(self.base.values[layer], v)

    def _prefixed(self, recorded: Tensor, own: Tensor) -> Tensor:
        prefix = recorded[self.prompts, :, : self.packing.prefix]
        return torch.cat([prefix.repeat(len(own) // self.n_prompts, 1, 1, 1), own], dim=2)

    # Reading and editing

    def read(self, read: Read, hidden: Tensor, layer: int) -> Float[Tensor, "row prompt k d"]:
        """Stream of each row at the positions read; as recorded where it has not changed."""
        device = hidden.device
        places = [self.packing.places[segment.row] for segment in self.packing.segments]
        base = read.base_value(self.base)[self.prompts]
        found = base.expand(len(places), *base.shape)
        if not len(hidden):
            return found
        bins = torch.tensor([number for number, _, _ in places], device=device)[:, None, None]
        shift = torch.tensor([offset - s.start for _, offset, s in places], device=device)
        first = torch.tensor([s.start for *_, s in places], device=device)[:, None, None]
        pos = read.pos[self.prompts][None]
        changed_here = (pos >= first) & (bins < self.packing.joined(layer))
        prompt = torch.arange(self.n_prompts, device=device)[None, :, None]
        batch = torch.where(changed_here, bins * self.n_prompts + prompt, 0)
        token = torch.where(changed_here, pos + shift[:, None, None], 0)
        return torch.where(changed_here[..., None], hidden[batch, token], found)

    def change(self, edits: list[Edit], stream: Tensor, value: Tensor) -> Tensor:
        """Make these edits, all of one site and layer."""
        for edit in edits:
            self.make(edit, value, stream)
        return value

    def make(self, edit: Edit, value: Tensor, stream: Tensor) -> None:
        """Write one edit into a packed activation, in place; `stream` is what entered the block."""
        number, offset, segment = self.packing.places[edit.row]
        place = edit.place.within(self.prompts)
        one = slice(number * self.n_prompts, (number + 1) * self.n_prompts)
        value, stream = value[one], stream[one]
        token = [offset + p - segment.start for p in place.pos]
        at: tuple[Any, Any] = (slice(None), token)
        if isinstance(place.prompts, Tensor):  # some of the prompts alone
            if not len(place.prompts):
                return
            at = (place.prompts[:, None] - self.prompts.start, token)
        if place.site == "pattern":
            self._make_pattern(edit, place, value.transpose(1, 2), at, offset, segment)
        elif place.site == "resid_mid":  # where attention's output has just been added
            middle = value[at] + stream[at]
            value[at] += edit.write.new(middle, place) - middle
        elif place.head is None:
            value[at] = edit.write.new(value[at], place)
        else:
            head = value[:, :, place.head]
            head[at] = edit.write.new(head[at], place)
        edit.fired += len(self.base.tokens[place.prompts])

    def _make_pattern(
        self,
        edit: Edit,
        place: Place,
        value: Float[Tensor, "prompt token head key"],
        at: tuple[Any, Any],
        offset: int,
        segment: Segment,
    ) -> None:
        prefix = self.packing.prefix
        keys = [*range(segment.start), *range(prefix + offset, prefix + offset + len(segment))]
        rows = value[at]
        part = rows if place.head is None else rows[:, :, place.head]
        part[..., keys] = edit.write.new(part[..., keys], place)
        value[at] = rows

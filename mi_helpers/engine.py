"""Run a table of interventions at the cost of only what each one changes.

A row of the table says where to intervene (`site`, `layer`, `pos`, `head`) and what to `write`.
`record` runs a batch of prompts once and keeps what later runs can reuse; `run` carries out every
row on top of a recorded run and adds one column per metric. Five savings make it fast:

1. Layers. An edit at layer L leaves every earlier layer as it was: the row joins the batch at
   layer L, from the stored residual. Holds for every edit.
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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import cached_property
from typing import Any

import pandas as pd
import psutil
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from .interventions import (
    Edit,
    Metric,
    Place,
    add,
    hook_name,
    interpolate,
    mean,
    parse,
    patch,
    replace,
    zero,
)
from .packing import Packing, Segment, plan

__all__ = [
    "Metric",
    "Run",
    "add",
    "interpolate",
    "mean",
    "patch",
    "record",
    "replace",
    "run",
    "unembed",
    "zero",
]

CPU_TOKENS_PER_PASS = 2048  # above this a block's activations leave the processor's cache


# --- A recorded run -----------------------------------------------------------------------------


@dataclass(eq=False)
class Run:
    """One forward pass over a batch of prompts, with what later interventions reuse.

    `resid[l]` enters block l, and `resid[n_layers]` leaves the last one; `keys[l]` and `values[l]`
    are what attention reads, rotary angles applied; `calls[l]` is what block l was called with.
    """

    model: TransformerBridge
    tokens: Int[Tensor, "prompt pos"]
    mask: Int[Tensor, "prompt pos"] | None
    resid: list[Float[Tensor, "prompt pos d_model"]] = field(default_factory=list)
    keys: list[Float[Tensor, "prompt kv_head pos d_head"]] = field(default_factory=list)
    values: list[Float[Tensor, "prompt kv_head pos d_head"]] = field(default_factory=list)
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    acts: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def activation(self, site: str, layer: int) -> Float[Tensor, "prompt pos ..."]:
        """The activation at a site: [prompt, pos, d_model], or [prompt, pos, head, d_head or key].

        Raises KeyError where the site was not recorded.
        """
        if site in ("resid_pre", "resid_post"):
            return self.resid[layer + (site == "resid_post")]
        if site == "resid_mid":
            return self.resid[layer] + self.activation("attn_out", layer)
        if (site, layer) not in self.acts:
            raise KeyError(f"{site} was not recorded: use record(..., sites=[{site!r}])")
        return self.acts[site, layer]

    @cached_property
    def hooks(self) -> dict[str, HookPoint]:
        return self.model.hook_dict

    def hook(self, site: str, layer: int) -> HookPoint:
        """The hook point of a site. Raises ValueError where the architecture has none (blocks
        whose attention and MLP run in parallel have no `resid_mid`)."""
        name = hook_name(site, layer)
        if name not in self.hooks:
            raise ValueError(f"{self.model.cfg.architecture} has no hook {name}")
        return self.hooks[name]

    def logits(self, pos: int | list[int] = -1) -> Float[Tensor, "prompt *k d_vocab"]:
        """Logits at one position, [prompt, d_vocab], or at several, [prompt, k, d_vocab]."""
        return unembed(self.model, self.resid[-1][:, pos])

    def real_tokens(self) -> Bool[Tensor, "prompt pos"]:
        """True for tokens, False for padding."""
        return torch.ones_like(self.tokens).bool() if self.mask is None else self.mask.bool()

    def agrees_before(self, other: "Run") -> int:
        """The number of leading positions at which the two runs are equal, by causality."""
        if self.model is not other.model or self.tokens.shape != other.tokens.shape:
            return 0
        same = (self.tokens == other.tokens) & (self.real_tokens() == other.real_tokens())
        return int(same.all(0).cummin(0).values.sum())


@torch.no_grad()
def record(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompt pos"],
    attention_mask: Int[Tensor, "prompt pos"] | None = None,
    sites: Sequence[str] = (),
) -> Run:
    """Run the model once and keep residuals, keys and values, and the activations at `sites`.

    `attention_mask` is 1 for tokens and 0 for padding, on either side. `resid_pre` and
    `resid_post` are always kept. Raises ValueError for an unknown site or wrong shapes.
    """
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [prompt, pos] and not empty, got {tuple(tokens.shape)}")
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(f"attention_mask {attention_mask.shape} is not of {tokens.shape}")
    device = model.cfg.device
    mask = None if attention_mask is None else attention_mask.to(device)
    found = Run(model, tokens.to(device), mask)
    for site in sites:
        found.hook(site, 0)
    cache = _Recorder(found)

    def keep_call(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        args, kwargs = _map(lambda v: cache if hasattr(v, "update") else v, (args, kwargs))
        found.resid.append(args[0] if args else kwargs["hidden_states"])
        found.calls.append((args, kwargs))
        return args, kwargs

    def keep_site(site: str, layer: int) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            found.acts[site, layer] = value.transpose(1, 2) if site == "pattern" else value

        return keep

    with ExitStack() as stack:
        for block in model.blocks:
            handle = block.register_forward_pre_hook(keep_call, with_kwargs=True)
            stack.callback(handle.remove)
        handle = model.blocks[-1].register_forward_hook(
            lambda module, args, output: found.resid.append(_first(output))
        )
        stack.callback(handle.remove)
        kept = {"attn_out" if site == "resid_mid" else site for site in sites}
        for site in kept - {"resid_pre", "resid_post"}:
            for layer in range(model.cfg.n_layers):
                stack.enter_context(_hooked(found.hook(site, layer), keep_site(site, layer)))
        stack.enter_context(_forward_as(model.unembed, lambda x, *_, **__: x[..., :1]))
        model(found.tokens, use_cache=True, **({} if mask is None else {"attention_mask": mask}))
    if len(found.keys) != model.cfg.n_layers or len(found.resid) != model.cfg.n_layers + 1:
        raise ValueError(
            f"the blocks of {model.cfg.architecture} take no key-value cache in the usual way; "
            "the engine cannot reuse its runs"
        )
    return found


@torch.no_grad()
def unembed(
    model: TransformerBridge, resid: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of final residuals, by the model's own last norm, unembedding and soft cap."""
    flat = resid.reshape(-1, 1, resid.shape[-1])
    with ExitStack() as stack:
        for block in model.blocks:
            stack.enter_context(_forward_as(block, lambda *_, **__: flat))
        token = torch.zeros(1, 1, dtype=torch.long, device=resid.device)
        logits = model.original_model(input_ids=token, use_cache=False).logits
    return logits.reshape(*resid.shape[:-1], -1)


class _Recorder:
    """Stands in for the model's cache while recording: keeps the keys and values it is given."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.run.keys.append(k)
        self.run.values.append(v)
        return k, v


# --- Running a table ----------------------------------------------------------------------------


@torch.no_grad()
def run(
    base: Run,
    rows: pd.DataFrame,
    metrics: dict[str, Metric | Callable[[Tensor], Tensor]],
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
    RuntimeError for an edit that did not happen or a result that is not finite.
    """
    reads = {name: _Read.of(base, name, metric) for name, metric in metrics.items()}
    if not reads:
        raise ValueError("give at least one metric")
    stop = 1 + max(int(read.pos.max()) for read in reads.values())
    edits, table = parse(base, rows, stop)
    budget = max_memory or _free_memory(base.resid[0].device) // 4
    results = _Results(base, len(edits), reads, budget, keep=return_tensors)
    segments = [
        Segment(n, min(e.boundary for e in row), min(e.place.pos[0] for e in row), stop)
        for n, row in enumerate(edits)
        if row
    ]
    results.add([n for n, row in enumerate(edits) if not row], {})
    n_prompts, n_pos = base.tokens.shape
    at_once, tokens = _batch(base, segments, budget)
    passes = list(plan(segments, at_once, n_pos, tokens))
    for packing in tqdm(passes, desc="interventions", leave=False, disable=len(passes) < 4):
        blocks = [slice(p, p + at_once) for p in range(0, n_prompts, at_once)]
        parts = [_forward(base, packing, edits, reads.values(), block) for block in blocks]
        found = {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}
        results.add([segment.row for segment in packing.segments], found)
    _check_fired(edits, n_prompts)
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


def _check_fired(edits: list[list[Edit]], n_prompts: int) -> None:
    for edit in (edit for row in edits for edit in row):
        if edit.fired != n_prompts:
            raise RuntimeError(
                f"{edit}: its hook fired for {edit.fired} of {n_prompts} prompts, so the edit was "
                "not made; this architecture does not use that activation in the usual way"
            )


@dataclass(frozen=True, eq=False)
class _Read:
    """What a metric reads: positions [prompt, k] of the stream at a block boundary."""

    fn: Callable[[Tensor], Tensor]
    boundary: int
    logits: bool
    pos: Int[Tensor, "prompt k"]
    single: bool

    @staticmethod
    def of(base: Run, name: str, metric: Metric | Callable[[Tensor], Tensor]) -> "_Read":
        metric = metric if isinstance(metric, Metric) else Metric(metric)
        n_prompts, n_pos = base.tokens.shape
        n_layers = base.model.cfg.n_layers
        if metric.site not in ("logits", "resid_post"):
            raise ValueError(f"metric {name!r} reads {metric.site!r}; use logits or resid_post")
        if not -n_layers <= metric.layer < n_layers:
            raise ValueError(f"metric {name!r} reads layer {metric.layer} of {n_layers}")
        pos = torch.as_tensor(metric.pos, device=base.tokens.device)
        single = pos.ndim == 0 or (isinstance(metric.pos, Tensor) and pos.ndim == 1)
        if isinstance(metric.pos, Tensor) and pos.ndim and len(pos) != n_prompts:
            raise ValueError(f"metric {name!r} has positions for {len(pos)} of {n_prompts} prompts")
        if int(pos.max()) >= n_pos or int(pos.min()) < -n_pos:
            raise ValueError(f"metric {name!r} reads position {metric.pos} of {n_pos}")
        pos = (
            pos
            if isinstance(metric.pos, Tensor) and pos.ndim
            else pos.expand(n_prompts, *pos.shape)
        )
        boundary = n_layers if metric.site == "logits" else metric.layer % n_layers + 1
        pos = pos.reshape(n_prompts, -1) % n_pos
        return _Read(metric.fn, boundary, metric.site == "logits", pos, single)

    @cached_property
    def key(self) -> tuple[int, bytes]:
        return self.boundary, self.pos.cpu().numpy().tobytes()

    def base_value(self, base: Run) -> Float[Tensor, "prompt k d_model"]:
        prompt = torch.arange(len(self.pos), device=self.pos.device)[:, None]
        return base.resid[self.boundary][prompt, self.pos]


class _Results:
    """Collects what is read, turns it into logits where a metric needs them, and measures."""

    def __init__(
        self, base: Run, n_rows: int, reads: dict[str, _Read], budget: int, keep: bool
    ) -> None:
        self.base, self.reads, self.keep = base, reads, keep
        self.columns = {n: torch.full((n_rows, len(base.tokens)), torch.nan) for n in reads}
        self.kept: dict[str, list[Tensor | None]] = {n: [None] * n_rows for n in reads}
        k = max(read.pos.numel() for read in reads.values())
        size = base.resid[0].element_size() * 4  # the logits, and what a metric makes of them
        self.rows_at_once = max(1, budget // (size * k * base.model.cfg.d_vocab))

    def add(self, rows: list[int], found: dict[tuple, Float[Tensor, "row prompt k d"]]) -> None:
        """Measure `rows`; a row not in `found` is as in the base run."""
        for start in range(0, len(rows), self.rows_at_once):
            chunk = slice(start, start + self.rows_at_once)
            logits: dict[tuple, Tensor] = {}
            for name, read in self.reads.items():
                seen = found[read.key][chunk] if found else read.base_value(self.base)[None]
                if read.logits:
                    if read.key not in logits:
                        logits[read.key] = unembed(self.base.model, seen)
                    seen = logits[read.key]
                self._measure(name, read, rows[chunk], seen)

    def _measure(self, name: str, read: _Read, rows: list[int], seen: Tensor) -> None:
        values = read.fn(seen[:, :, 0] if read.single else seen)
        if values.shape != seen.shape[:2]:
            raise ValueError(
                f"metric {name!r} gave shape {tuple(values.shape)}, expected [row, prompt] = "
                f"{tuple(seen.shape[:2])}"
            )
        bad = (~values.isfinite()).any(1).nonzero()
        if len(bad):
            raise RuntimeError(f"row {rows[int(bad[0])]}: {name} is NaN or infinite")
        self.columns[name][rows] = values.float().cpu()
        for i, row in enumerate(rows if self.keep else []):
            self.kept[name][row] = seen[i if len(seen) > 1 else 0].cpu()

    def table(self, table: pd.DataFrame, per_prompt: bool) -> pd.DataFrame:
        if not per_prompt:
            return table.assign(**{n: v.double().mean(1).numpy() for n, v in self.columns.items()})
        n_prompts = len(self.base.tokens)
        long = table.loc[table.index.repeat(n_prompts)].reset_index(drop=True)
        columns = {n: v.flatten().numpy() for n, v in self.columns.items()}
        return long.assign(prompt=list(range(n_prompts)) * len(table), **columns)

    def tensors(self) -> dict[str, Tensor]:
        return {n: torch.stack([t for t in v if t is not None]) for n, v in self.kept.items()}


# --- One pass over the blocks -------------------------------------------------------------------


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
    base: Run, packing: Packing, edits: list[list[Edit]], reads: Iterable[_Read], prompts: slice
) -> dict[tuple, Float[Tensor, "row prompt k d_model"]]:
    """Run one packing on some of the prompts; the stream at the positions and layers of `reads`."""
    one, n_layers = _Pass(base, packing, prompts), base.model.cfg.n_layers
    hidden = base.resid[0][:0, : packing.width]
    found = {read.key: one.read(read, hidden, -1) for read in reads}
    due = [edit for segment in packing.segments for edit in edits[segment.row]]
    for layer in range(packing.first_layer, n_layers + 1):
        hidden = one.join(hidden, layer)
        for edit in due:
            if edit.place.site in ("resid_pre", "resid_post") and edit.boundary == layer:
                one.make(edit, hidden)
        found |= {r.key: one.read(r, hidden, layer) for r in reads if r.boundary == layer}
        if layer < n_layers:
            with ExitStack() as stack:
                for site in ("q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out"):
                    here = [e for e in due if (e.place.site, e.place.layer) == (site, layer)]
                    if here:
                        point = base.hook("attn_out" if site == "resid_mid" else site, layer)
                        stack.enter_context(_hooked(point, one.change(here, hidden)))
                args, kwargs = one.arguments(layer, hidden)
                hidden = _first(base.model.blocks[layer](*args, **kwargs))
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
        args, kwargs = self.base.calls[layer]
        stream = args[0] if args else kwargs["hidden_states"]

        def packed(value: Any) -> Any:
            if value is stream:
                return hidden
            if hasattr(value, "update"):
                return self
            return self._gather(value)[: len(hidden)] if isinstance(value, Tensor) else value

        if kwargs.get("attention_mask", 0) is None:
            kwargs = {**kwargs, "attention_mask": self.causal_mask}
        return _map(packed, (args, kwargs))

    @cached_property
    def causal_mask(self) -> Float[Tensor, "1 1 pos pos"]:
        n_pos, like = self.base.tokens.shape[1], self.base.resid[0]
        low = torch.finfo(like.dtype).min
        return like.new_full((n_pos, n_pos), low).triu(1)[None, None]

    def _gather(self, value: Tensor) -> Tensor:
        if id(value) not in self.gathered:
            n_prompts, n_pos = self.base.tokens.shape
            if value.shape[0] not in (1, n_prompts):
                raise ValueError(f"a block argument of shape {tuple(value.shape)} is not by prompt")
            own = value[self.prompts] if value.shape[0] == n_prompts else value
            if value.ndim == 4 and value.shape[-2:] == (n_pos, n_pos):
                packed = self._gather_mask(own)
            elif value.ndim in (2, 3) and value.shape[1] == n_pos:
                packed = own[:, self.pos].transpose(0, 1)
            else:
                raise ValueError(f"a block argument of shape {tuple(value.shape)} is not by token")
            packed = packed.expand(-1, self.n_prompts, *packed.shape[2:])
            self.gathered[id(value)] = packed.flatten(0, 1)
        return self.gathered[id(value)]

    def _gather_mask(self, mask: Tensor) -> Float[Tensor, "bin prompt head token key"]:
        """The model's mask between packed tokens; other segments' tokens are hidden."""
        low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        prefix = torch.arange(self.packing.prefix, device=mask.device)
        before = mask[:, :, self.pos, : self.packing.prefix]
        before = before.masked_fill(prefix >= self.start[..., None], low)
        own = mask[:, :, self.pos[:, :, None], self.pos[:, None, :]]
        own = own.masked_fill(self.row[:, :, None] != self.row[:, None, :], low)
        return torch.cat([before, own], dim=-1).permute(2, 0, 1, 3, 4)

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stands in for the model's cache: the recorded prefix, then the packed tokens."""
        return self._prefixed(self.base.keys[layer], k), self._prefixed(self.base.values[layer], v)

    def _prefixed(self, recorded: Tensor, own: Tensor) -> Tensor:
        prefix = recorded[self.prompts, :, : self.packing.prefix]
        return torch.cat([prefix.repeat(len(own) // self.n_prompts, 1, 1, 1), own], dim=2)

    # Reading and editing

    def read(self, read: _Read, hidden: Tensor, layer: int) -> Float[Tensor, "row prompt k d"]:
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

    def change(self, edits: list[Edit], stream: Tensor) -> Callable[[Tensor], Tensor]:
        """A hook that makes these edits, all of one site and layer."""

        def hook(value: Tensor) -> Tensor:
            for edit in edits:
                self.make(edit, value, stream)
            return value

        return hook

    def make(self, edit: Edit, value: Tensor, stream: Tensor | None = None) -> None:
        """Write one edit into a packed activation, in place."""
        number, offset, segment = self.packing.places[edit.row]
        place = changed(edit.place, prompts=self.prompts)
        batch = slice(number * self.n_prompts, (number + 1) * self.n_prompts)
        token = [offset + p - segment.start for p in place.pos]
        if place.site == "pattern":
            self._make_pattern(edit, place, value[batch].transpose(1, 2), token, offset, segment)
        elif place.site == "resid_mid":  # where attention's output has just been added
            middle = value[batch, token] + stream[batch, token]
            value[batch, token] += edit.write.new(middle, place) - middle
        elif place.head is None:
            value[batch, token] = edit.write.new(value[batch, token], place)
        else:
            head = value[:, :, place.head]
            head[batch, token] = edit.write.new(head[batch, token], place)
        edit.fired += self.n_prompts

    def _make_pattern(
        self,
        edit: Edit,
        place: Place,
        value: Float[Tensor, "prompt token head key"],
        token: list[int],
        offset: int,
        segment: Segment,
    ) -> None:
        prefix = self.packing.prefix
        keys = [*range(segment.start), *range(prefix + offset, prefix + offset + len(segment))]
        rows = value[:, token]
        part = rows if place.head is None else rows[:, :, place.head]
        part[..., keys] = edit.write.new(part[..., keys], place)
        value[:, token] = rows


# --- Small helpers ------------------------------------------------------------------------------


@contextmanager
def _hooked(point: HookPoint, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """The hook `fn` on one hook point, removed in any event."""
    point.add_hook(lambda value, hook: fn(value))
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


@contextmanager
def _forward_as(module: torch.nn.Module, fn: Callable[..., Any]) -> Iterator[None]:
    """`fn` in place of the module's forward, put back in any event."""
    module.__dict__["forward"] = fn
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _map(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn` on every leaf of nested tuples, lists and dicts."""
    if isinstance(value, dict):
        return {key: _map(fn, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map(fn, item) for item in value)
    return fn(value)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available

"""The clean and the corrupted run of a set of prompt pairs, recorded for circuits."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..engine.recording import Run, record
from ..metrics import build
from ..models.hooks import map_leaves
from ..tasks.pairs import PromptPairs
from .graph import Graph
from .senders import SITES, Value, ablated
from .wiring import Wiring


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """The clean and the corrupted run of one set of prompt pairs, with all that wirings reuse."""

    graph: Graph
    pairs: PromptPairs
    clean: Run
    corrupted: Run
    calls: list[tuple[tuple, dict[str, Any]]]  # what the attention of each layer was called with

    def function(self, metric: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A metric by its name, of logits [row, prompt, vocab]; `kl` is from the clean run."""
        if callable(metric):
            return metric
        return build(self.pairs, metric, reference=self.clean.logits())[metric]

    def wiring(
        self,
        value: Value = "resample",
        prompts: slice = slice(None),
        pos: Sequence[int] | None = None,
        restore: bool = False,
    ) -> "Wiring":
        """Some of the prompts, ready to be run with any edges removed (at `pos` only).

        With `restore` the corrupted run is edited, and removed edges carry clean values.
        """
        base = self.clean
        source = base.activation if restore else ablated(value, self.pairs, base, self.corrupted)
        if restore:
            if value not in ("resample", "mean"):
                raise ValueError(f"only the corrupted run can be restored, not value={value!r}")
            base = self.corrupted
        n = len(base.tokens)
        calls = map_leaves(lambda v: _rows(v, n, prompts), self.calls)
        own = replace(
            base,
            tokens=base.tokens[prompts],
            resid=[x[prompts] for x in base.resid],
            acts={key: x[prompts] for key, x in base.acts.items()},
        )
        return Wiring(self.graph, own, calls, lambda *at: _rows(source(*at), n, prompts), pos)

    def batches(self, max_memory: int | None = None) -> list[slice]:
        """The prompts in batches whose wirings stay below `max_memory` bytes (default 2 GB)."""
        n, n_pos, width = self.clean.resid[0].shape
        each = 3 * len(self.graph.senders) + len(self.graph.receivers)
        size = max(1, (max_memory or 2 * 10**9) // (each * n_pos * width * 4))
        return [slice(i, i + size) for i in range(0, n, size)]


def _rows(value: Any, n: int, prompts: slice) -> Any:
    by_prompt = isinstance(value, Tensor) and value.ndim and value.shape[0] == n
    return value[prompts] if by_prompt else value


def record_runs(model: TransformerBridge, pairs: PromptPairs) -> CircuitRuns:
    """Run the clean and the corrupted prompts once. Raises ValueError for a model whose heads and
    MLPs do not add up to its residual stream."""
    graph, calls = Graph.of(model), []

    def keep(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append(map_leaves(_light, (args, kwargs)))

    with ExitStack() as stack:
        for block in model.blocks:
            handle = block.attn.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        clean = record(model, pairs.clean_tokens, sites=SITES)
    corrupted = record(model, pairs.corrupted_tokens, sites=SITES)
    return CircuitRuns(graph, pairs, clean, corrupted, calls)


def _light(value: Any) -> Any:
    """A call's argument without the cache, and without the memory of activations."""
    if hasattr(value, "update"):
        return None
    if (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 3
        and len(value) > 1
    ):
        return value.new_zeros(1).expand_as(value)  # the stream; q, k and v are given
    return value


def ensure_runs(
    model: TransformerBridge, pairs: PromptPairs, runs: CircuitRuns | None
) -> CircuitRuns:
    """`runs` if they belong to these pairs and this model, else new ones."""
    if runs is None:
        return record_runs(model, pairs)
    if runs.pairs is not pairs or runs.clean.model is not model:
        raise ValueError("runs= were recorded with other pairs or another model; record them anew")
    return runs

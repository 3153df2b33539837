"""An explorer of activation patching for a live notebook: your own two prompts, one heat map."""

from functools import partial
from typing import Any

import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from .. import plots
from ..metrics import METRICS
from ..models.hooks import HEAD_SITES
from ..tasks.pairs import PromptPairs
from .runs import record
from .sweeps import sweep


def patch_figure(
    model: TransformerBridge,
    clean: str,
    corrupted: str,
    answer: str,
    wrong: str,
    site: str = "resid_pre",
    direction: Any = "denoise",
    metric: str = "logit_diff",
) -> go.Figure:
    """The heat map of one sweep: layer by position, or layer by head at head sites.

    Raises ValueError for prompts of unequal token lengths, with the two side by side, and for
    answers that are not one token.
    """
    pairs = PromptPairs.from_texts(model, [clean], [corrupted], [answer], [wrong])
    table = sweep(record(model, pairs, [site]), site, direction, [metric])
    if table[metric].isna().all():
        raise ValueError(f"{metric} is the same for both prompts: there is nothing to restore")
    title = f"One pair, {site}, {direction}: 0 is the corrupted run, 1 the clean"
    by_head = site in HEAD_SITES
    labels = None if by_head else pairs.labels
    return plots.heatmap(
        table,
        metric,
        x="head" if by_head else "pos",
        labels=labels,
        title=title,
        value_title="share",
    )


def explorer(model: TransformerBridge, clean: str, corrupted: str, answer: str, wrong: str) -> Any:
    """Widgets for prompts, their answers, site, direction and metric; the button draws the map."""
    return plots.explorer(
        partial(patch_figure, model),
        "Patch",
        clean=clean,
        corrupted=corrupted,
        answer=answer,
        wrong=wrong,
        site=list(model.sites),
        direction=["denoise", "noise"],
        metric=[name for name in METRICS if name != "prob_diff"],  # it needs sets of answers
    )

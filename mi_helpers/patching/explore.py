"""An explorer of activation patching for a live notebook: your own two prompts, one heat map."""

import html
from typing import Any

import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from .. import plots
from ..metrics import METRICS
from ..models.sites import HEAD_SITES, SITES, hook_name
from ..tasks.pairs import PromptPairs
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
    table = sweep(model, pairs, site, direction, [metric])
    if table[metric].isna().all():
        raise ValueError(f"{metric} is the same for both prompts: there is nothing to restore")
    title = f"{site}, {direction}: 0 is the corrupted run, 1 the clean run"
    by_head = site in HEAD_SITES
    labels = None if by_head else pairs.labels
    return plots.heatmap(table, metric, x="head" if by_head else "pos", labels=labels, title=title)


def explorer(model: TransformerBridge, clean: str, corrupted: str, answer: str, wrong: str) -> Any:
    """Widgets for two prompts, their answers, site, direction and metric; the button draws the map.

    Needs a live kernel; a stored notebook keeps no trace of it.
    """
    import ipywidgets as widgets

    wide = widgets.Layout(width="95%")
    texts = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
    boxes = {
        name: widgets.Text(text, description=name, layout=wide) for name, text in texts.items()
    }
    sites = [site for site in SITES if hook_name(site, 0) in model.hook_dict]
    single = [name for name in METRICS if name != "prob_diff"]  # that one needs sets of answers
    choices = {"site": sites, "direction": ["denoise", "noise"], "metric": single}
    menus = {name: widgets.Dropdown(options=o, description=name) for name, o in choices.items()}
    button, shown = widgets.Button(description="Patch"), widgets.HTML()
    figures = widgets.Output()

    def draw(_: object) -> None:
        chosen = {name: box.value for name, box in (boxes | menus).items()}
        figures.clear_output(wait=True)
        shown.value = "running …"
        try:
            figure = patch_figure(model, **chosen)
        except ValueError as error:
            shown.value = f"<pre>{html.escape(str(error))}</pre>"
            return
        shown.value = ""
        with figures:
            figure.show()

    button.on_click(draw)
    return widgets.VBox([*boxes.values(), *menus.values(), button, shown, figures])

"""An explorer of sensitive directions for a live notebook: your text, a direction, a length."""

import html
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.text import measure
from ..tasks.pairs import token_labels
from . import baselines as directions

KINDS = (*directions.BASELINES, "unembedding")


def push(
    model: TransformerBridge,
    text: str,
    kind: str,
    layer: int,
    length: float,
    seed: int = 0,
    top: int = 6,
) -> tuple[float, pd.DataFrame]:
    """Push the last position of a text along one direction, `length` times as far as the stream is
    long there. Returns KL(original ‖ pushed) in nats, and the likeliest next tokens before and
    after with their probabilities.

    μ, Σ and other activations come from the text itself: give it a few sentences.
    """
    run = engine.record(model, model.to_tokens(text))
    where = directions.spot(run, layer, -1)
    vector = where.unembedding(seed) if kind == "unembedding" else where.baseline(kind, seed)
    rows = directions.rows(where, {kind: vector}, [length], relative=True)
    found = measure(run, rows, -1)
    _, read = engine.run(run, rows, {"it": lambda logits: logits[..., 0]}, return_tensors=True)
    columns = {}
    for name, logits in (("before", run.logits()[0]), ("after", read["it"][0, 0, 0])):
        p, tokens = logits.softmax(-1).topk(top)
        words = token_labels(model, tokens)
        columns[name] = [f"{word} {share:.3f}" for word, share in zip(words, p, strict=True)]
    return float(found.kl), pd.DataFrame(columns)


def explorer(model: TransformerBridge, text: str) -> Any:
    """Widgets for text, direction, layer and length; each change shows what the model says next.

    Needs a live kernel; a stored notebook keeps no trace of it.
    """
    import ipywidgets as widgets

    n_layers = model.cfg.n_layers
    controls = {
        "text": widgets.Textarea(text, layout=widgets.Layout(width="95%")),
        "kind": widgets.Dropdown(options=KINDS, description="direction"),
        "layer": widgets.IntSlider(n_layers // 2, 0, n_layers - 1, description="layer"),
        "length": widgets.FloatSlider(0.3, min=0, max=2, step=0.05, description="length / ‖x‖"),
        "seed": widgets.IntText(0, description="seed"),
    }

    def show(**chosen: Any) -> None:
        from IPython.display import HTML, display

        try:
            kl, words = push(model, **chosen)
        except ValueError as error:
            display(HTML(f"<p>{html.escape(str(error))}</p>"))
            return
        display(HTML(f"<p>KL {kl:.3f} nats</p>{words.to_html(index=False)}"))

    shown = widgets.interactive_output(show, controls)
    return widgets.VBox([*controls.values(), shown])

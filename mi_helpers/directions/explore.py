"""An explorer of sensitive directions for a live notebook: your text, a direction, a length."""

from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from .. import engine, plots
from ..tasks import token_ids, token_labels
from .baselines import BASELINES
from .spots import push as push_all
from .spots import rows, spot

KINDS = (*BASELINES, "unembedding")


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
    run = engine.record(model, torch.tensor([token_ids(model, text)]))
    where = spot(run, layer, -1)
    vector = where.unembedding(seed) if kind == "unembedding" else where.baseline(kind, seed)
    shift = length * where.x.norm(dim=-1, keepdim=True) * vector
    found = push_all(where, rows({kind: shift}, [1.0]))
    edit = pd.DataFrame([{"site": "resid_pre", "layer": layer, "pos": -1}])
    edit["write"] = [engine.add(shift[:, 0])]
    _, read = engine.run(run, edit, {"it": lambda logits: logits[..., 0]}, return_tensors=True)
    columns = {}
    for name, logits in (("before", run.logits()[0]), ("after", read["it"][0, 0, 0])):
        p, tokens = logits.softmax(-1).topk(top)
        words = token_labels(model, tokens)
        columns[name] = [f"{word} {share:.3f}" for word, share in zip(words, p, strict=True)]
    return float(found["kl"].iloc[0]), pd.DataFrame(columns)


def explorer(model: TransformerBridge, text: str) -> Any:
    """Widgets for text, direction, layer and length; each change shows what the model says next."""
    from ipywidgets import FloatSlider, IntSlider

    def show(text: str, direction: str, layer: int, length: float, seed: int) -> Any:
        kl, words = push(model, text, direction, layer, length, seed)
        return words.style.hide().set_caption(f"KL {kl:.3f} nats")

    n_layers = model.cfg.n_layers
    return plots.explorer(
        show,
        text=text,
        direction=list(KINDS),
        layer=IntSlider(n_layers // 2, 0, n_layers - 1),
        length=FloatSlider(0.3, min=0, max=2, step=0.05, description="length / ‖x‖"),
        seed=0,
    )

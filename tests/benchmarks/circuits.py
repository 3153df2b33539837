"""Edge attribution, ACDC and a ladder of circuits: `python -m tests.benchmarks.circuits [work …]`.

Random weights; the arithmetic limit is the floating-point work that the method cannot do without
(forward passes, one backward to activations, the contraction; for ACDC the trials' own receivers;
for a ladder, beside its seconds over those of its rungs one by one, a forward pass for each rung),
at the rate of a large matrix product on this machine. Peers' times are not measured here: on an
idle machine of two cores, auto-circuit 1.0.1 took 56 s and 26 s for the first two, and 3.4 s for
each edge of ACDC on the docstring-sized network.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from mi_helpers import circuits, load_model, toys
from mi_helpers.tasks import prompts
from mi_helpers.tasks.pairs import PromptPairs
from tests import tiny
from tests.benchmarks.measure import matmul_rate, timed

RESULTS = Path(__file__).with_name("circuits.json")
KL_THRESHOLD = 1e-3  # here every edge into the output stays, so nearly every edge has its trial


def random_gpt2(width: int, layers: int, heads: int, vocabulary: int, mlps: bool) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=layers, n_head=heads,
        n_inner=None if mlps else 1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if not mlps and ".mlp.c_proj." in name:
            parameter.data.zero_()
    return load_model(model, tokenizer=tiny.tokenizer())


def random_pairs(n: int, length: int, vocabulary: int) -> PromptPairs:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, vocabulary, (4, n, length), generator=generator)
    tokens[:2, :, 0] = 0
    texts = [""] * n
    ends = tokens[2, :, 0], tokens[3, :, 0]
    return PromptPairs("random", texts, texts, tokens[0], tokens[1], *ends, [""] * length)


def limit(model: TransformerBridge, pairs: PromptPairs) -> float:
    """Operations of EAP: two forward passes, one backward to activations, projections of both
    sides of every edge to the stream, and the contraction."""
    sides = model.cfg.n_layers * 4 * model.cfg.d_model**2
    contraction = len(circuits.Graph.of(model).edges) * model.cfg.d_model
    return 3 * forward(model, pairs) + 2 * pairs.clean_tokens.numel() * (sides + contraction)


def forward(model: TransformerBridge, pairs: PromptPairs) -> float:
    """Operations of a forward pass over one side's prompts, with logits at their ends."""
    cfg, attention = model.cfg, 4 * model.cfg.d_model**2
    kv = (cfg.n_key_value_heads or cfg.n_heads) / cfg.n_heads
    mlp = (3 if getattr(cfg, "gated_mlp", False) else 2) * cfg.d_model * (cfg.d_mlp or 0)
    weights = attention * (0.5 + 0.5 * kv) + circuits.Graph.of(model).mlps * mlp
    unembed = 2 * len(pairs) * cfg.d_model * cfg.d_vocab
    return 2 * pairs.clean_tokens.numel() * cfg.n_layers * weights + unembed


def measure(
    work: str, model: TransformerBridge, pairs: PromptPairs, run: Callable[[], Any], least: float
) -> dict[str, Any]:
    """Wall time, processor time (what an idle machine would need, over its cores) and memory of
    one piece of work, done once before if it is short."""
    began = time.process_time()
    result, seconds, peak = timed(run)
    cpu = time.process_time() - began
    if cpu < 60:
        began = time.process_time()
        result, seconds, _ = timed(run)
        cpu = time.process_time() - began
    record = {
        "work": work,
        "model": model.name,
        "edges": len(circuits.Graph.of(model).edges),
        "prompts": len(pairs),
        "tokens": pairs.clean_tokens.shape[1],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "limit_seconds": round(least / matmul_rate(pairs.clean_tokens.device), 2),
        "peak_mb": round(peak),
        "threads": torch.get_num_threads(),
    }
    if isinstance(result, circuits.Discovery):
        record |= {"trials": len(result.trials), "kept": len(result.circuit)}
    return record


def climbed(runs: circuits.CircuitRuns, rungs: dict[float, circuits.Circuit]) -> dict[str, Any]:
    """What each circuit of a ladder takes when it is evaluated by itself."""
    alone = [timed(partial(circuits.evaluate, runs, rung))[1] for rung in rungs.values()]
    return {"rungs": len(rungs), "one_alone_seconds": round(sum(alone) / len(alone), 2)}


def _record_and(method: Callable[..., Any], model: TransformerBridge, pairs: PromptPairs) -> Any:
    return method(circuits.record(model, pairs))


def main(chosen: list[str]) -> None:
    """Run the chosen works (none: all), print and store them; the rest of the file is kept."""
    works: dict[str, Callable[[], tuple[TransformerBridge, PromptPairs]]] = {
        "eap docstring-sized": lambda: (
            random_gpt2(512, 4, 8, 48_262, False), random_pairs(50, 41, 48_262)),
        "eap gpt2-small-sized": lambda: (
            random_gpt2(768, 12, 12, 50_257, True), random_pairs(8, 16, 50_257)),
        "eap default model": lambda: (model := load_model(), prompts.ioi(model, 8)),
        "acdc docstring-sized": lambda: (
            random_gpt2(512, 4, 8, 48_262, False), random_pairs(50, 41, 48_262)),
        "acdc docstring network": lambda: (
            model := toys.docstring_network(), prompts.docstring(model, 8)),
        "ladder default model": lambda: (model := load_model(), prompts.ioi(model, 8)),
    }  # fmt: skip
    unknown = set(chosen) - set(works)
    if unknown:
        raise ValueError(f"no work {sorted(unknown)}: choose of {list(works)}")
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for work in chosen or works:
        model, pairs = works[work]()
        run: Callable[[], Any]
        extra: Callable[[], dict[str, Any]] = dict
        if work.startswith("eap"):
            run, least = partial(_record_and, circuits.attribute, model, pairs), limit(model, pairs)
        elif work.startswith("ladder"):
            runs = circuits.record(model, pairs)
            rungs = circuits.ladder(runs.graph, circuits.attribute(runs))
            run, least = partial(circuits.evaluate, runs, rungs), len(rungs) * forward(model, pairs)
            extra = partial(climbed, runs, rungs)
        else:
            edges = len(circuits.Graph.of(model).edges)
            width = model.cfg.d_model * model.cfg.d_head
            one = 4 * pairs.clean_tokens.numel() * width  # one receiver and one head's output
            one += 2 * len(pairs) * model.cfg.d_model * model.cfg.d_vocab
            search = partial(circuits.acdc, threshold=KL_THRESHOLD)
            run, least = partial(_record_and, search, model, pairs), edges * one
        record = measure(work, model, pairs, run, least) | extra()
        print(json.dumps(record), flush=True)
        done = [one for one in done if one["work"] != work] + [record]
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

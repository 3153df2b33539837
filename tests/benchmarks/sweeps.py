"""The engine beside TransformerLens's own patching and a plain hooked loop."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM

from mi_helpers import engine
from mi_helpers.tasks import prompts
from tests import tiny
from tests.benchmarks.measure import matmul_rate, timed

Corruption = Literal["abc", "s2"]
SAMPLED_TOKENS = 16  # logits of this many tokens are compared, for every row and prompt
BATCH = 8  # of the plain loop
PEER_LAYERS, PEER_BATCHES = 3, 4  # a peer's rows all cost the same: one in so many is timed
N_VECTORS, LONG = 512, 128


BASE_RUN = (0, 0, "all")


def flops(model: TransformerBridge, rows: list[tuple[int, int, str]], n_pos: int) -> float:
    """The fewest operations a prompt needs for edits that are read at its last position.

    `rows` are (layer, first position, site), and `BASE_RUN` for each recorded run. At its own layer
    an edit of the stream needs queries, keys and values of one position, and one of z needs none;
    the last layer needs keys and values of all positions and the rest of one.
    """
    cfg = model.cfg
    heads, kv = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    projections = 3 if getattr(cfg, "gated_mlp", False) else 2
    q, keys_values = 2 * cfg.d_model * heads, 4 * cfg.d_model * kv
    rest = 2 * cfg.d_model * heads + 2 * projections * cfg.d_model * int(
        cfg.d_mlp or 4 * cfg.d_model
    )
    total = 0.0
    for layer, start, site in rows:
        length, blocks = n_pos - start, cfg.n_layers - layer
        attend = sum(4 * heads * (start + i + 1) for i in range(length))
        total += (blocks - 1) * length * (q + keys_values + rest) + blocks * attend
        total += length * keys_values + q + rest  # the last block
        saved = {"z": length, "resid_pre": length - 1, "all": 0}[site]  # the first block
        total -= saved * (q + keys_values) if blocks > 1 else 0
        total += 2 * cfg.d_model * cfg.d_vocab
    return total


def record(
    work: str,
    peer: str,
    ours: tuple[Tensor, float, float],
    theirs: tuple[Tensor, float, float],
    limit: float,
    kept: list[int],
    n_rows: int,
) -> dict[str, Any]:
    """One record; `kept` are the rows that the peer was timed on, its time scaled up to all."""
    (mine, ours_s, peak), (other, peer_s, _) = ours, theirs
    peer_s *= n_rows / len(kept)
    difference = (mine[kept] - other).abs().max().item()
    return {
        "work": work,
        "rows": n_rows,
        "peer": peer,
        "peer_s": round(peer_s, 2),
        "peer_rows_timed": len(kept),
        "ours_s": round(ours_s, 2),
        "ratio": round(peer_s / ours_s, 1),
        "max_abs_diff": float(f"{difference:.2g}"),
        "peak_mb": round(peak),
        "limit_fraction": round(limit / ours_s, 2),
    }


def tokens_compared(model: TransformerBridge) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.cfg.d_vocab, (SAMPLED_TOKENS,), generator=generator).tolist()


def logits_of(table: pd.DataFrame, n_prompts: int) -> Tensor:
    """[row, prompt, token] from a per-prompt table with one column for each token."""
    return torch.tensor(table.iloc[:, -SAMPLED_TOKENS:].to_numpy()).reshape(
        -1, n_prompts, SAMPLED_TOKENS
    )


def sweep(
    model: TransformerBridge, work: str, site: str, corruption: Corruption, rate: float
) -> dict[str, Any]:
    """One sweep of patches from the clean into the corrupted run, ours and TransformerLens's."""
    pairs = prompts.ioi(model, n=8, seed=0, corruption=corruption)
    n_layers, n_pos = model.cfg.n_layers, pairs.clean_tokens.shape[1]
    ids = tokens_compared(model)
    name, axis, setter = PEERS[site]
    inner = range(n_pos) if axis == "pos" else range(model.cfg.n_heads)
    index = [{"layer": layer, axis: i} for layer in range(n_layers) for i in inner]

    def theirs() -> Tensor:
        seen = []

        def metric(logits: Tensor) -> Tensor:
            seen.append(logits[:, -1, ids].cpu())
            return logits[0, -1, 0]

        _, cache = model.run_with_cache(pairs.clean_tokens)
        timed_rows = pd.DataFrame(index)[lambda rows: rows["layer"] % PEER_LAYERS == 0]
        with torch.no_grad():
            patching.generic_activation_patch(  # type: ignore[call-overload]
                model,
                pairs.corrupted_tokens,
                cache,
                metric,
                setter,
                site,
                index_df=timed_rows,
            )
        return torch.stack(seen)

    def ours() -> Tensor:
        clean = engine.record(model, pairs.clean_tokens, sites=[site])
        base = engine.record(model, pairs.corrupted_tokens)
        rows = [{"site": site, "write": engine.patch(clean), **place} for place in index]
        metrics = {str(i): lambda logits, i=i: logits[..., i] for i in ids}
        table = engine.run(base, pd.DataFrame(rows, dtype=object), metrics, per_prompt=True)
        return logits_of(table, len(pairs))

    first = int((pairs.clean_tokens == pairs.corrupted_tokens).all(0).cummin(0).values.sum())
    starts = range(first, n_pos) if site == "resid_pre" else [first] * model.cfg.n_heads
    needed = [(layer, start, site) for layer in range(n_layers) for start in starts]
    needed += [BASE_RUN] * 2  # clean and corrupted
    limit = len(pairs) * flops(model, needed, n_pos) / rate
    mine, peer = timed(ours), timed(theirs)
    kept = [n for n, row in enumerate(index) if row["layer"] % PEER_LAYERS == 0]
    return record(work, f"transformer_lens.patching.{name}", mine, peer, limit, kept, len(index))


PEERS: dict[str, tuple[str, str, Any]] = {
    "resid_pre": ("get_act_patch_resid_pre", "pos", patching.layer_pos_patch_setter),
    "z": ("get_act_patch_attn_head_out_all_pos", "head", patching.layer_head_vector_patch_setter),
}


def perturb(model: TransformerBridge, rate: float, n_pos: int = LONG) -> dict[str, Any]:
    """Many directions added at the last token, KL of the last position; beside a hooked loop."""
    generator = torch.Generator().manual_seed(0)
    cfg, layer = model.cfg, 5
    tokens = torch.randint(cfg.d_vocab, (1, n_pos), generator=generator).to(cfg.device)
    vectors = 5 * torch.randn(N_VECTORS, cfg.d_model, generator=generator).to(cfg.device)
    with torch.no_grad():
        reference = model(tokens)[0, -1].log_softmax(-1)

    def kl(logits: Tensor) -> Tensor:
        return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)

    def theirs() -> Tensor:
        found = []
        for batch in vectors[: N_VECTORS // PEER_BATCHES].split(BATCH):

            def push(value: Tensor, hook: Any, batch: Tensor = batch) -> Tensor:
                value = value.clone()
                value[:, -1] += batch
                return value

            hooks: list[Any] = [(f"blocks.{layer}.hook_resid_pre", push)]
            with torch.no_grad():
                logits = model.run_with_hooks(tokens.expand(len(batch), -1), fwd_hooks=hooks)
            found.append(kl(logits[:, -1]))
        return torch.cat(found).cpu()

    def ours() -> Tensor:
        base = engine.record(model, tokens)
        rows = [
            {"site": "resid_pre", "layer": layer, "pos": -1, "write": engine.add(vector)}
            for vector in vectors
        ]
        return torch.tensor(engine.run(base, pd.DataFrame(rows), {"kl": kl})["kl"].to_numpy())

    needed = [(layer, n_pos - 1, "resid_pre")] * N_VECTORS + [BASE_RUN]
    limit = flops(model, needed, n_pos) / rate
    peer = f"run_with_hooks, {BATCH} at a time"
    kept = list(range(N_VECTORS // PEER_BATCHES))
    return record("perturb_last_of_128", peer, timed(ours), timed(theirs), limit, kept, N_VECTORS)


def growth() -> Iterator[dict[str, Any]]:
    """Time of a patch sweep of a random Llama against prompt length, rows and model size."""
    cases = [("length", 256, n, 32) for n in (16, 32, 64, 128, 256, 512)]
    cases += [("rows", 256, 64, n) for n in (16, 64, 256)]
    cases += [("width", width, 64, 32) for width in (256, 512)]
    for varied, width, n_pos, n_rows in cases:
        model = tiny.load(random_llama(width))
        generator = torch.Generator().manual_seed(0)
        clean, other = torch.randint(3, tiny.D_VOCAB, (2, 1, n_pos), generator=generator)
        write = engine.patch(engine.record(model, other))
        rows = pd.DataFrame(
            [
                {"site": "resid_pre", "layer": 2, "pos": i % n_pos, "write": write}
                for i in torch.linspace(0, n_pos - 1, n_rows).long().tolist()
            ]
        )
        base = engine.record(model, clean)
        engine.run(base, rows, {"x": lambda logits: logits[..., 0]})  # warm up
        _, seconds, _ = timed(lambda: engine.run(base, rows, {"x": lambda v: v[..., 0]}))  # noqa: B023
        sizes = {"width": width, "length": n_pos, "rows": n_rows}
        yield {"work": f"growth_with_{varied}", "ours_s": round(seconds, 3), **sizes}


def random_llama(width: int) -> Any:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=tiny.D_VOCAB,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=8,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
    )
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def records(model: TransformerBridge, chosen: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A record for each work (of those chosen, if any); `limit_fraction` is the least
    arithmetic the work needs, at the machine's measured matrix-product rate, over our time."""
    device = model.cfg.device
    rate = matmul_rate(torch.device(str(device)))
    shared = {"device": str(device), "matmul_gflops": round(rate / 1e9)}
    sweeps: list[tuple[str, str, Corruption]] = [
        ("resid_pre_sweep", "resid_pre", "abc"),
        ("resid_pre_sweep_late_difference", "resid_pre", "s2"),
        ("z_sweep", "z", "abc"),
    ]
    for work, site, corruption in sweeps:
        if not chosen or work in chosen:
            yield shared | sweep(model, work, site, corruption, rate)
    if not chosen or "perturb_last_of_128" in chosen:
        yield shared | perturb(model, rate)
    if not chosen or "growth" in chosen:
        yield from (shared | one for one in growth())

"""All pairs of two layers' features: sparse products against the dense streaming product.

The peer is what one does without sparsity: for each batch of tokens, one matrix product of the
activations and one of the firing patterns, added up over all pairs, in blocks that fit in memory.
Its time is linear in tokens and in upstream features (each batch is one product of one size), so it
is timed on a few of both and scaled; the record says on how many. Times are processor seconds on
one thread, so that a busy machine does not enter; the dense product could use further cores, where
ours uses one, so `ratio_two_cores` halves the ratio.

Measured on one core: 24 576 by 24 576 features over 1 048 576 tokens, 60 firing on each: 169 s,
222 times less than the dense product would. The process had 3.2 GB at the first block, which has
the most pairs, both streams included.

`python -m tests.benchmarks.features` prints the records, a minute to ten each;
`… 24576x1048576` only that width and number of tokens.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from scipy import sparse

from mi_helpers.features import relations as features
from mi_helpers.features.firing import Firing

from .measure import matmul_rate, timed

DOCUMENT, BATCH = 128, 4096  # tokens; the paper's


def stream(n_tokens: int, width: int, active: int, seed: int) -> Firing:
    """About `active` features a token, a few of them common and most rare, as in a real one."""
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(width) + 50.0) ** 0.8
    parts = []
    for low in range(0, n_tokens, 1 << 16):
        n = min(1 << 16, n_tokens - low)
        features = rng.choice(width, n * active, p=share / share.sum()).astype(np.int32)
        tokens = np.repeat(np.arange(n, dtype=np.int32), active)
        values = rng.random(n * active, dtype=np.float32) + 0.1
        parts.append(sparse.csr_array((values, (tokens, features)), shape=(n, width)))
    return Firing(sparse.vstack(parts, format="csr"), np.arange(n_tokens) // DOCUMENT)


def dense_sums(up: Firing, down: Firing, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens for the first `block` upstream features and all downstream ones."""
    product = torch.zeros(block, down.width)
    together = torch.zeros(block, down.width)
    for low in range(0, up.n_tokens, BATCH):
        batch = slice(low, low + BATCH)
        x = torch.from_numpy(up.values[batch].toarray()[:, :block])
        y = torch.from_numpy(down.values[batch].toarray())
        product += x.T @ y
        together += (x > 0).float().T @ (y > 0).float()
    return product, together


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work`, and the processor seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(
    width: int, n_tokens: int, active: int = 60, dense_tokens: int = 4096
) -> dict[str, Any]:
    """One width and stream, by both; equal where both were computed."""
    up, down = (stream(n_tokens, width, active, seed) for seed in (0, 1))
    process = psutil.Process()
    held = process.memory_info().rss / 1e6
    (table, ours), _, added = timed(
        lambda: seconds(lambda: features.pairs(up, down, keep={"pearson": 0.1}))
    )
    few = [Firing(s.values[:dense_tokens], s.documents[:dense_tokens]) for s in (up, down)]
    block = min(width, 2048)
    (product, together), dense = seconds(lambda: dense_sums(few[0], few[1], block))
    exact = (few[0].values[:, :block].astype(np.float64).T @ few[1].values).toarray()
    counts = features.pairs(few[0], few[1], min_together=1)
    counts = counts[counts["up"] < block]
    found = together.numpy()[counts["up"], counts["down"]]
    scaled = dense * (width / block) * (n_tokens / dense_tokens)
    return {
        "work": "feature_pairs",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_rate(torch.device("cpu")) / 1e9),
        "width": width,
        "rows": n_tokens,
        "active_per_token": round(up.values.nnz / n_tokens, 1),
        "pairs_kept": len(table),
        "ours_cpu_s": round(ours, 2),
        "process_mb": round(held + added),
        "peer": "dense streaming product, float32",
        "peer_cpu_s": round(scaled, 1),
        "peer_tokens_timed": dense_tokens,
        "peer_features_timed": block,
        "ratio": round(scaled / ours, 1),
        "ratio_two_cores": round(scaled / ours / 2, 1),
        "counts_equal": bool((found == counts["together"]).all() and found.sum() == together.sum()),
        "max_relative_diff": float(f"{np.abs(product.numpy() - exact).max() / exact.max():.1e}"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sizes = [tuple(map(int, size.split("x"))) for size in sys.argv[1:]]
    for width, n_tokens in sizes or [(4096, 1 << 17), (24576, 1 << 17), (24576, 1 << 20)]:
        print(json.dumps(measure(width, n_tokens)), flush=True)

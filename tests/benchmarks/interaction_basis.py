"""The interaction basis and its edges: on the p = 113 network, then against width and data.

``python -m tests.benchmarks.interaction_basis`` writes ``interaction_basis.json`` beside this file:
wall time, and the memory that the work added at its peak.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mi_helpers import basis as ib
from mi_helpers.toys import networks as toys

from .measure import timed

POINTS = (4, 1, 1)  # integration points: only attention bends along the path


def network(width: int) -> toys.ModularAddition:
    """The trained network at its own width, a random one at others."""
    if width == 128:
        return toys.trained_addition(seed=0)[0]
    return toys.ModularAddition(d_model=width, d_mlp=4 * width).requires_grad_(False)


def measure(width: int, rows: int) -> list[dict[str, Any]]:
    """Bases at all boundaries, and the edges of all sections, of one network on so many pairs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network(width).to(device)
    pairs, _ = toys.addition_pairs(model.p)
    x = model.embed(pairs[:rows].to(device))
    basis, fit_s, fit_mb = timed(lambda: ib.fit(model.sections(), x, last="identity"))
    found, edges_s, edges_mb = timed(lambda: ib.edges(basis, x, points=POINTS))
    size = {
        "device": device.type,
        "width": width,
        "rows": rows,
        "features": [len(b.importance) for b in basis.boundaries],
    }
    edges = sum(E.numel() for E in found)
    return [
        {"work": "interaction_basis_fit", **size, "ours_s": fit_s, "peak_mb": fit_mb},
        {"work": "interaction_edges", **size, "edges": edges, "ours_s": edges_s,
         "peak_mb": edges_mb},
    ]  # fmt: skip


def records(
    sizes: Iterable[tuple[int, int]] = (
        (128, 250),
        (128, 1000),
        (128, 3830),
        (64, 500),
        (256, 500),
    ),
) -> list[dict[str, Any]]:
    """Two records for each (width, number of pairs): of the bases and of their edges."""
    found = []
    for width, rows in sizes:
        for record in measure(width, rows):
            record["ours_s"] = round(record["ours_s"], 2)
            record["peak_mb"] = round(record["peak_mb"], 1)
            found.append(record)
    return found


if __name__ == "__main__":
    found = records()
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))

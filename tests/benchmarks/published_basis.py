"""Our edge counts on the network of arXiv 2405.10928 that its authors published, beside theirs.

``python -m tests.benchmarks.published_basis NETWORK`` prints the records that
``published_basis.json`` holds, one a line. ``NETWORK``: a
safetensors file with the names and shapes of `ModularAddition`, the trained network of seed 0 of
ApolloResearch/rib (MIT License), which does not ship. Some ten minutes on one core.

``published`` is from its ``modular_arithmetic_{rib,pca}_seed0_edge_ablation_results.json``: wrong
test pairs of 8939 with so many edges kept, and the number their search ended at.
"""

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Literal

import torch
from safetensors.torch import load_file

from mi_helpers import basis as ib
from mi_helpers.toys.networks import ModularAddition, addition_pairs

KINDS: dict[str, Literal["local", "pca"]] = {"LIB": "local", "PCA": "pca"}
SECTIONS = ("attention", "MLP", "unembedding")
PUBLISHED = {
    ("LIB", "attention"): (133, {164: 9, 148: 10, 140: 9, 136: 10, 134: 11, 133: 11, 132: 14}),
    ("LIB", "MLP"): (82, {131: 2, 99: 11, 83: 12, 82: 12, 81: 13}),
    ("LIB", "unembedding"): (633, {920: 3, 690: 6, 633: 11, 632: 16}),
    ("PCA", "attention"): (167, {172: 8, 168: 12, 167: 12, 166: 16, 164: 15}),
    ("PCA", "MLP"): (114, {131: 10, 115: 10, 114: 10, 113: 14, 99: 13}),
    ("PCA", "unembedding"): (682, {690: 4, 682: 4, 681: 13, 662: 26}),
}


def records(path: str) -> Iterator[dict]:
    """One record for each basis and transition: wrong pairs and fewest edges, theirs and ours."""
    network = ModularAddition()
    network.load_state_dict(load_file(path))
    network = network.eval().requires_grad_(False).double()
    train, test = addition_pairs(network.p, 0.3, seed=0)
    single, x = deepcopy(network).float(), network.embed(train)

    def right(y: torch.Tensor) -> float:
        return (y[:, 0].argmax(-1) == test[: len(y)].sum(-1) % network.p).double().mean().item()

    for name, kind in KINDS.items():
        basis = ib.fit(
            network.sections(), x, kind=kind, last="identity", threshold=1e-15, relative=False
        )
        E = ib.edges(basis, x, points="data")
        # As published: basis and edges in float64, ablation in float32.
        basis, inputs = ib.Basis(single.sections(), basis.boundaries), single.embed(test)
        found = ib.needed(basis, E, inputs, right, partial=True)["edges"]
        for section, where in enumerate(SECTIONS):
            edges, wrong = PUBLISHED[name, where]
            curve = ib.ablate_edges(basis, E, inputs, section, wrong, right)
            ours = {k: round((1 - s) * len(test)) for k, s in curve[["kept", "score"]].to_numpy()}
            yield {
                "basis": name,
                "transition": where,
                "features": len(basis.boundaries[section].importance),
                "published": {"edges": edges, "wrong": wrong},
                "ours": {
                    "edges": int(found[section]),
                    "wrong": {int(k): v for k, v in ours.items()},
                },
            }


if __name__ == "__main__":
    for record in records(sys.argv[1]):
        print(json.dumps(record), flush=True)

"""Circuits as files, in the format of the MIB benchmark's circuit track.

One JSON object: `cfg` (the sizes), `nodes` (name to `in_graph`) and `edges` (name to `score` and
`in_graph`). Their names for ours: `input` for embed, `a5.h2` for A5.2, `m3` for M3, `logits` for
out, and `a5.h2->a7.h9<q>` for A5.2 -> A7.9.q. Keys and values there belong to every query head;
those of a grouped-query model are written once for each head that shares them, and read as one.

Source: Mueller et al. 2025, arXiv 2504.13151 (MIB), whose graphs are those of the code of Hanna,
Pezzelle & Belinkov 2024, arXiv 2403.17806.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .graph import Circuit, Graph


def save(circuit: Circuit, path: str | Path, scores: pd.DataFrame, d_model: int) -> None:
    """Write a circuit, and the score of every edge in `scores` (columns `edge`, `score`).

    An edge of a shared key or value is written for each head that shares it, with an equal part of
    its score, so that the parts sum to it. `d_model` is the model's width, which MIB's reader asks
    for.
    """
    graph = circuit.graph
    value, kept = dict(zip(scores["edge"], scores["score"], strict=True)), {*circuit}
    edges: dict[str, dict[str, Any]] = {}
    for edge in [name for name in graph.edges if name in value or name in kept]:
        theirs = list(_theirs(graph, edge))
        part = float(value.get(edge, 0.0)) / len(theirs)
        edges |= {name: {"score": part, "in_graph": edge in kept} for name in theirs}
    nodes = {*circuit.nodes}
    cfg = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "d_model": d_model}
    cfg |= {"parallel_attn_mlp": graph.parallel, "n_key_value_heads": graph.n_kv}
    written = {
        "cfg": cfg,
        "nodes": {_node(n): {"in_graph": n in nodes} for n in [*graph.senders, "out"]},
        "edges": edges,
    }
    Path(path).write_text(json.dumps(written), encoding="utf-8")


def load(path: str | Path) -> tuple[Circuit, pd.DataFrame]:
    """Read a circuit, and the scores of all edges in the file (columns edge, score).

    Where heads share a key or a value, its edge is in the circuit if it is for any of them, and its
    score is the sum over them. Files of MIB name no key-value heads, and give each head its own.

    Raises ValueError for a file without the three parts, and for edges that its sizes do not have.
    """
    read = json.loads(Path(path).read_text(encoding="utf-8"))
    missing = {"cfg", "nodes", "edges"} - set(read)
    if missing:
        raise ValueError(f"{path} is no circuit of MIB's format: it has no {sorted(missing)}")
    cfg = read["cfg"]
    n_kv = cfg.get("n_key_value_heads") or cfg["n_heads"]
    mlps = any(name.startswith("m") for name in read["nodes"])
    parallel = bool(cfg.get("parallel_attn_mlp", False))
    graph = Graph(cfg["n_layers"], cfg["n_heads"], n_kv, mlps, parallel)
    kept, score = torch.zeros_like(graph.exists), dict[str, float]()
    for theirs, facts in read["edges"].items():
        edge = _ours(graph, theirs)
        if edge not in graph.number:
            raise ValueError(f"{path}: a model of these sizes has no edge {theirs!r}")
        kept[graph.number[edge]] |= bool(facts["in_graph"])
        score[edge] = score.get(edge, 0.0) + float(facts["score"])
    table = pd.DataFrame({"edge": list(score), "score": list(score.values())})
    return Circuit(graph, kept), table


def _node(name: str) -> str:
    """Our name of a node in theirs."""
    if name in ("embed", "out"):
        return {"embed": "input", "out": "logits"}[name]
    return re.sub(r"\.(\d+)", r".h\1", name).lower()


def _theirs(graph: Graph, edge: str) -> Iterator[str]:
    """Our name of an edge in theirs: several where heads share its key or value."""
    sender, receiver = edge.split(" -> ")
    if receiver.count(".") < 2:
        yield f"{_node(sender)}->{_node(receiver)}"
        return
    layer, head, port = receiver.split(".")
    share = 1 if port == "q" else graph.n_heads // graph.n_kv
    for number in range(int(head) * share, (int(head) + 1) * share):
        yield f"{_node(sender)}->{_node(f'{layer}.{number}')}<{port}>"


def _ours(graph: Graph, edge: str) -> str:
    """Their name of an edge in ours."""
    plain = edge.replace("input", "embed").replace("logits", "out").replace("->", " -> ")
    plain = re.sub(r"a(\d+)\.h(\d+)", r"A\1.\2", re.sub(r"\bm(\d)", r"M\1", plain))
    found = re.fullmatch(r"(.+ -> A\d+)\.(\d+)<([qkv])>", plain)
    if found is None:
        return plain
    before, head, port = found.groups()
    number = int(head) if port == "q" else int(head) * graph.n_kv // graph.n_heads
    return f"{before}.{number}.{port}"

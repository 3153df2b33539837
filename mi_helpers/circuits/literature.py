"""Circuits that papers published, as objects: classes of nodes, and the connections among them.

IOI: Wang et al. 2022, arXiv 2211.00593. Greater-than: Hanna, Liu & Variengien 2023, arXiv
2305.00586. Docstring: Heimersheim & Janiak 2023. The connections are those by which Conmy et al.
2023, arXiv 2304.14997, judge what ACDC finds. They count 1041, 262 and 37 edges, in a graph that
also has the steps within a node as edges; of docstring's, 24 are edges here.
"""

from collections.abc import Mapping
from itertools import product

from .graph import Circuit, Graph

Connections = Mapping[str, str]  # "senders -> receivers": the ports, or none of MLPs and the output
_MLPS = " ".join(f"M{n}" for n in range(12))
_MOVERS = "name backup negative"
IOI = {
    "input": f"embed {_MLPS}",
    "output": f"{_MLPS} out",
    "previous": "A2.2 A4.11",
    "duplicate": "A0.1 A0.10 A3.0",
    "induction": "A5.5 A5.8 A5.9 A6.9",
    "inhibition": "A7.3 A7.9 A8.6 A8.10",
    "name": "A9.6 A9.9 A10.0",
    "backup": "A9.0 A9.7 A10.1 A10.2 A10.6 A10.10 A11.2 A11.9",
    "negative": "A10.7 A11.10",
}
IOI_CONNECTIONS = {
    "input -> previous duplicate": "qkv",
    "input -> inhibition": "q",
    f"input -> {_MOVERS}": "kv",
    "previous -> induction": "kv",
    "induction duplicate -> inhibition": "kv",
    f"inhibition -> {_MOVERS}": "q",
    f"{_MOVERS} input -> output": "",
}
GREATER_THAN = {
    "embed": "embed",
    "repeated": "A0.3 A0.5",
    "previous": "A0.1",
    "early": "M0 M1 M2 M3",
    "before": "M0 M1 M2 M3 M4 M5 M6 M7 M8",
    "attend": "A5.5 A6.1 A6.9 A7.10 A8.11 A9.1",
    "late": "M8 M9 M10 M11",
    "out": "out",
}
GREATER_THAN_CONNECTIONS = {
    "embed -> repeated previous": "qkv",
    "embed previous early -> early": "",
    "previous repeated early -> attend": "qkv",
    "before -> attend": "q",
    "attend early late -> late": "",
    "attend late -> out": "",
}
DOCSTRING = {n: n for n in ("embed", "A0.5", "A1.2", "A1.4", "A2.0", "A3.0", "A3.6", "out")}
DOCSTRING_CONNECTIONS = {
    "embed -> A0.5 A1.4": "v",
    "A0.5 -> A1.4": "v",
    "embed A0.5 -> A2.0 A1.2": "qk",
    "A1.4 -> A2.0": "v",
    "A1.4 -> A3.0 A3.6": "q",
    "A2.0 A1.2 -> A3.0 A3.6": "k",
    "embed A0.5 -> A3.0 A3.6": "v",
    "A3.0 A3.6 -> out": "",
}
_GPT2, _FOUR_LAYERS = Graph(12, 12, 12), Graph(4, 8, 8, mlps=False)
PUBLISHED: dict[str, tuple[Graph, Mapping[str, str], Connections]] = {
    "ioi": (_GPT2, IOI, IOI_CONNECTIONS),
    "greater-than": (_GPT2, GREATER_THAN, GREATER_THAN_CONNECTIONS),
    "docstring": (_FOUR_LAYERS, DOCSTRING, DOCSTRING_CONNECTIONS),
}


def published(name: str) -> Circuit:
    """A circuit of the literature: "ioi" and "greater-than" of GPT-2 small, "docstring" of the
    four-layer attention-only model. An edge is in it wherever a connection joins two nodes of which
    one comes before the other. Raises ValueError for any other name."""
    if name not in PUBLISHED:
        raise ValueError(f"{name!r} is not one of the published circuits {list(PUBLISHED)}")
    graph, nodes, connections = PUBLISHED[name]
    edges = set[str]()
    for connection, ports in connections.items():
        senders, receivers = (
            [node for group in side.split() for node in nodes[group].split()]
            for side in connection.split(" -> ")
        )
        for sender, receiver in product(senders, receivers):
            reads = [f"{receiver}.{port}" for port in ports] or [receiver]
            edges |= {f"{sender} -> {read}" for read in reads}
    return Circuit.of(graph, edges & set(graph.edges))

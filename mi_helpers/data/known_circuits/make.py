"""Train the networks with known circuits, half an hour on a core.

``python -m mi_helpers.data.known_circuits.make --out OUT``

Strict interchange-intervention training (Gupta et al. 2024, arXiv 2407.14494, section 3), with
edges in place of nodes in its strict part. In every step a batch of prompts is run with edges
removed, each prompt with its own: a removed edge carries its sender's value from a second prompt.
Removed are all edges out of one node of the circuit (or of none), and a random share of the edges
outside the circuit, of none to all. The loss is the cross-entropy to the story's answer with that
node's variable exchanged, plus that of the second prompts as they are.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import Qwen2ForCausalLM

from ...circuits import Circuit, CircuitRuns, Graph, evaluate, record
from ...toys.known_circuits import (
    KNOWN,
    Known,
    Tokens,
    known_network,
    known_pairs,
    network,
)

RECIPES: dict[str, dict] = {
    "recall": {"steps": 2500, "batch": 128},
    "names": {"steps": 2500, "batch": 128, "allowed": ("embed -> A2.1.k", "embed -> A2.1.v")},
    "sums": {"steps": 2500},
    "largest": {"steps": 700},
    "votes": {"steps": 2000, "rate": 1.5e-3, "seed": 1},
}
Removed = Float[Tensor, "prompt sender receiver"]  # 1 where an edge is removed


def graph_of(known: Known) -> Graph:
    return Graph(known.layers, known.heads, known.kv_heads)


def wired(
    model: Qwen2ForCausalLM,
    graph: Graph,
    x: Tokens,
    removed: Removed | None = None,
    other: Float[Tensor, "sender prompt pos d"] | None = None,
) -> tuple[Float[Tensor, "prompt vocab"], Float[Tensor, "sender prompt pos d"]]:
    """The last position's logits, and what every sender writes; removed edges carry `other`."""
    body = model.model
    own = body.embed_tokens(x)[None]
    cos, sin = body.rotary_emb(own[0], torch.arange(x.shape[1])[None])
    mask = torch.ones(x.shape[1], x.shape[1]).tril().log()

    def read(group: int) -> Float[Tensor, "receiver prompt pos d"]:
        """The streams that a group's receivers see."""
        at, n = graph.groups[group].receivers, len(own)
        if removed is None or other is None:
            return own.sum(0)[None].expand(len(at), -1, -1, -1)
        share = removed[:, :n, at.start : at.stop]
        change = einsum(share, other[:n] - own, "b s r, s b pos d -> r b pos d")
        return own.sum(0) + change

    def heads(streams: Tensor, part: torch.nn.Linear) -> Float[Tensor, "prompt head pos d_head"]:
        """Each head's own projection of its own stream."""
        weight = rearrange(part.weight, "(h e) d -> h e d", h=len(streams))
        bias = rearrange(part.bias, "(h e) -> h 1 e", h=len(streams))
        return einsum(streams, weight, "h b pos d, h e d -> b h pos e") + bias

    def turned(value: Tensor) -> Tensor:
        """Rotated by position."""
        first, second = value.chunk(2, -1)
        return value * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    for number, layer in enumerate(body.layers):
        streams, attn = layer.input_layernorm(read(2 * number)), layer.self_attn
        sizes = list(graph.counts.values())
        q, k, v = map(heads, streams.split(sizes), (attn.q_proj, attn.k_proj, attn.v_proj))
        k, v = (t.repeat_interleave(graph.n_heads // graph.n_kv, 1) for t in (turned(k), v))
        scores = turned(q) @ k.mT / attn.head_dim**0.5 + mask
        z = scores.softmax(-1) @ v
        out = rearrange(attn.o_proj.weight, "d (h e) -> h e d", h=graph.n_heads)
        own = torch.cat([own, einsum(z, out, "b h pos e, h e d -> h b pos d")])
        stream = layer.post_attention_layernorm(read(2 * number + 1)[0])
        own = torch.cat([own, layer.mlp(stream)[None]])
    return model.lm_head(body.norm(read(-1)[0][:, -1])), own


def interventions(
    known: Known, graph: Graph, x: Tokens, generator: Generator, allowed: Sequence[str] = ()
) -> tuple[Tokens, Removed, Int[Tensor, "prompt"]]:
    """Second prompts, what is removed for each prompt, and the story's answer then. Half of the
    prompts have a node exchanged; of those outside
    the circuit, a seventh of the prompts lose no edge, and a seventh all of them.
    """
    n, names = len(x), list(known.variables(x))
    outside = graph.exists & ~graph.mask([*known.circuit, *allowed])
    share = (1.4 * torch.rand(n, 1, 1, generator=generator) - 0.2).clamp(0, 1)
    removed = outside * (torch.rand(n, *outside.shape, generator=generator) < share)
    nodes = torch.randint(2 * len(names), (n,), generator=generator)
    second = known.draw(n, generator, x)
    answers, values = known.answer(x), known.variables(second)
    for number, name in enumerate(names):
        here = nodes == number
        removed[here, graph.senders.index(name)] = True
        answers = torch.where(here, known.answer(x, {name: values[name]}), answers)
    return second, (removed & graph.exists).float(), answers


def train(
    known: Known,
    steps: int,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    allowed: Sequence[str] = (),
) -> Qwen2ForCausalLM:
    """A network by AdamW with warm-up and cosine decay. Edges `allowed` beside the circuit are not
    removed in training; those of `names` came out carrying nothing, and so are not in its circuit.
    """
    model = network(known, seed)
    graph, generator = graph_of(known), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.05)
    bar = tqdm(range(steps), mininterval=5)
    for step in bar:
        x = known.draw(batch, generator, None)
        second, removed, answers = interventions(known, graph, x, generator, allowed)
        plain, other = wired(model, graph, second)
        logits, _ = wired(model, graph, x, removed, other)
        loss = cross_entropy(logits, answers) + cross_entropy(plain, known.answer(second))
        left = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / 100, left)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        right = (logits.detach().argmax(-1) == answers).float().mean()
        bar.set_postfix(loss=f"{loss.detach():.4f}", right=f"{right:.3f}", refresh=False)
    return model.requires_grad_(False)


def follows(runs: CircuitRuns) -> pd.DataFrame:
    """Does a known network do what its story says, on its own pairs?

    One line per exchange. For a node of the circuit, its output comes from the corrupted prompt;
    for "outside", every edge outside the circuit carries that prompt's values. `follows`: the share
    of prompts on which the network's first choice among all tokens is then the story's answer;
    `moves`: the share on which that is another answer than before.
    """
    known, x = KNOWN[runs.pairs.task], runs.pairs.clean_tokens.cpu()
    others = known.variables(runs.pairs.corrupted_tokens.cpu())
    exchanges = {node: known.answer(x, {node: value}) for node, value in others.items()}
    exchanges["outside"] = known.answer(x)
    lines = []
    for name, answers in exchanges.items():
        kept = Circuit.of(runs.graph, known.circuit).kept
        if name != "outside":
            kept = runs.graph.exists.clone()
            kept[runs.graph.senders.index(name)] = False
        hits = evaluate(runs, Circuit(runs.graph, kept), metric=lambda x: x.argmax(-1))
        found = torch.tensor(hits["value"].to_numpy())
        moves = float((answers != known.answer(x)).double().mean())
        right = float((found == answers).double().mean())
        lines.append({"exchange": name, "follows": right, "moves": moves})
    return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the networks with known circuits.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--steps", type=int, help="in place of each network's own number")
    parser.add_argument("--prompts", type=int, default=256, help="that the numbers are of")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        chosen = RECIPES[name] | ({"steps": args.steps} if args.steps else {})
        weights = train(KNOWN[name], **chosen).state_dict()
        halves = {key: value.half().contiguous() for key, value in weights.items()}
        save_file(halves, args.out / f"{name}.safetensors")
        bridge = known_network(name, args.out)
        runs = record(bridge, known_pairs(bridge, name, args.prompts, seed=1))
        table = follows(runs).set_index("exchange").round(4)
        about = {"training": chosen, "prompts": args.prompts, **table.to_dict()}
        about_file = args.out / "about.json"
        whole = json.loads(about_file.read_text()) if about_file.exists() else {}
        about_file.write_text(json.dumps(whole | {name: about}, indent=1) + "\n")
        print(name, table.to_string(), sep="\n", flush=True)


if __name__ == "__main__":
    main()

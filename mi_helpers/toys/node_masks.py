"""The part of a small transformer that does a task: masks of its nodes and weights, learned.

A node is a number at a place of `Twins`: a channel that a layer reads or writes, a query, key or
value channel, a neuron. `prune` learns which nodes a task needs, the others standing at their
averages, or which of the weights between these; `edges` lists the weights.

Source: Gao et al. 2025, arXiv 2511.13653; the penalty that rises through one run is ours.
"""

from collections.abc import Callable

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from .side_by_side import descend
from .sparse_weights import Prompts
from .twins import Hook, Twins, unchanged

CHUNK = 50  # prompts at a time: few enough for a processor's cache


def sizes(model: Twins) -> dict[str, int]:
    """Nodes at each place: residual reads and writes, query, key and value channels, neurons."""
    each = ("read", "q", "k", "z", "attn", "mlp_read", "neuron", "mlp")
    places = [f"{name}{at}" for at in range(model.layers) for name in each]
    return {name: model.d * (4 if "neuron" in name else 1) for name in ("embed", *places, "final")}


def every(model: Twins) -> Bool[Tensor, "net node"]:
    """All nodes."""
    return torch.ones(len(model.W_E), sum(sizes(model).values())).bool()


def by_place(model: Twins, nodes: Shaped[Tensor, "net node"]) -> dict[str, Tensor]:
    """The columns of each place: [net, unit]."""
    return dict(zip(sizes(model), nodes.split(list(sizes(model).values()), 1), strict=True))


def averages(model: Twins, tokens: Int[Tensor, "text pos"]) -> Float[Tensor, "net node"]:
    """Each node's mean over texts and positions."""
    _, found = model.record(tokens)
    means = [reduce(found[name], "net b p u -> net u", "mean") for name in sizes(model)]
    return torch.cat(means, -1)


def ablated(
    model: Twins, keep: Shaped[Tensor, "net node"], means: Float[Tensor, "net node"]
) -> Hook:
    """A hook that puts each node outside `keep` at its mean."""
    keep = keep.to(means)
    on, rest = by_place(model, keep), by_place(model, means * (1 - keep))

    def hook(name: str, x: Tensor) -> Tensor:
        if name not in on:
            return x
        return torch.addcmul(rest[name][:, None, None], on[name][:, None, None], x)

    return hook


def task_loss(
    model: Twins,
    asked: Prompts,
    hook: Hook = unchanged,
    edges_on: dict[str, Tensor] | None = None,
) -> Float[Tensor, "net prompt"]:
    """Cross-entropy between the right and the wrong closing character, in nats; chance is ln 2.

    `edges_on` multiplies the weights of the matrices that it names.
    """
    weights = {name: model.get_parameter(name) * on for name, on in (edges_on or {}).items()}
    order, losses = asked.last.argsort(stable=True), list[Tensor]()
    for rows in order.split(CHUNK):  # of about one length, cut behind the longest
        tokens, _, last, right, wrong = (column[rows] for column in asked)
        logits = functional_call(model, weights, (tokens[:, : last[-1] + 1], hook, last))[:, :, 0]
        row = torch.arange(len(rows))
        losses.append(softplus(logits[:, row, wrong] - logits[:, row, right]))
    return torch.cat(losses, 1)[:, order.argsort()]


def switch(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 above zero, else 0, with the gradient of a sigmoid. Source: 2511.13653."""
    smooth = logits.sigmoid()
    return (logits > 0).float() - smooth.detach() + smooth


def prune(
    loss: Callable[[Prompts, Float[Tensor, "net mask"]], Float[Tensor, "net prompt"]],
    may: Bool[Tensor, "net mask"],
    asked: Prompts,
    steps: int = 300,
    seed: int = 0,
) -> Bool[Tensor, "moment net mask"]:
    """A trail of ever smaller circuits: all that `may` be kept, then what is kept at every tenth
    step of learning.

    A switch for each node (or weight) is learned by Adam on the loss of some prompts with these
    switches + penalty times the share kept, while the penalty rises from 0.1 to 10: one run for
    what the paper does with many. Source: after 2511.13653.
    """
    logits = torch.ones(may.shape).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    generator, trail = torch.Generator().manual_seed(seed), [may]
    for step in tqdm(range(steps), "pruning", leave=False):
        rows = torch.randint(len(asked.last), (32,), generator=generator)
        keep = switch(logits)
        losses = loss(Prompts(*(column[rows] for column in asked)), keep).mean(1)
        share, penalty = (keep * may).sum(1) / may.sum(1), 0.1 * 100 ** (step / steps)
        descend(optimiser, losses + penalty * share)
        if step % 10 == 9:
            trail.append((logits.detach() > 0) & may)
    return torch.stack(trail)


def edges(
    model: Twins, keep: Bool[Tensor, "net node"], asked: Prompts
) -> dict[str, Bool[Tensor, "net i o"]]:
    """Weights other than zero that join two kept nodes, or a kept node and an asked character.

    The residual stream's own sums have no weights; the tables W_E and W_pos join no two nodes.
    """
    on, found = by_place(model, keep), {}
    for at in range(model.layers):
        ends = {c: (f"read{at}", f"{c.lower()}{at}") for c in "QK"}
        ends |= {"V": (f"read{at}", f"z{at}"), "O": (f"z{at}", f"attn{at}")}
        ends |= {"in": (f"mlp_read{at}", f"neuron{at}"), "out": (f"neuron{at}", f"mlp{at}")}
        for name, (source, target) in ends.items():
            joined = on[source][:, :, None] & on[target][:, None]
            found[f"W.{name}{at}"] = (model.W[f"{name}{at}"] != 0) & joined
    closing = torch.zeros(model.W_U.shape[-1]).bool()
    closing[torch.cat([asked.right, asked.wrong])] = True
    return found | {"W_U": (model.W_U != 0) & on["final"][:, :, None] & closing}


def flat(joined: dict[str, Bool[Tensor, "net i o"]]) -> Bool[Tensor, "net mask"]:
    """One column for each weight, whichever its matrix."""
    return torch.cat([mask.flatten(1) for mask in joined.values()], 1)


def switched(joined: dict[str, Tensor], keep: Shaped[Tensor, "net mask"]) -> dict[str, Tensor]:
    """What `edges_on` of `task_loss` takes: `keep` (in the columns of `flat`) at edges, else 1."""
    parts = keep.split([mask[0].numel() for mask in joined.values()], 1)
    return {
        name: torch.where(mask, part.view(mask.shape), 1.0)
        for (name, mask), part in zip(joined.items(), parts, strict=True)
    }

"""Training of a sparse autoencoder for the model's output, end to end.

The loss is KL(original ‖ with the reconstruction written) at the output, and not the distance of
the reconstruction (Braun et al. 2024, arXiv 2405.12241). Here it fine-tunes an autoencoder that is
there already, since a step costs as much as a pass through half the model, forwards and back.

A step sees a few texts, and texts differ by more than a hundred steps gain. So progress is read off
held-out texts that stay the same throughout.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from sae_lens import BatchTopKTrainingSAE
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from mi_helpers import engine
from mi_helpers.data.saes.corpus import batches
from mi_helpers.engine.stream import ordinary_tokens
from mi_helpers.models.hooks import forward_as

UNEMBEDDED = 64  # positions of each text at which a step compares the output
WARM_UP = 8  # steps
CHECKPOINTS = 8  # in one training; each measures the held-out KL
JUDGED_ON = 16  # held-out texts
RECORDED_AT_ONCE = 16  # texts


@dataclass(frozen=True)
class Passages:
    """Texts with what the model computes on them: the stream before `layer` and after the last."""

    layer: int
    tokens: Int[Tensor, "sequence pos"]
    stream: Float[Tensor, "sequence pos d"]
    final: Float[Tensor, "sequence pos d"]

    @staticmethod
    def of(model: TransformerBridge, tokens: Int[Tensor, "sequence pos"], layer: int) -> "Passages":
        parts = []
        for rows in tokens.split(RECORDED_AT_ONCE):
            resid = engine.record(model, rows).resid
            parts.append((resid[layer].clone(), resid[-1].clone()))  # the other layers go
        stream, final = (torch.cat(part) for part in zip(*parts, strict=True))
        return Passages(layer, tokens, stream, final)

    def take(self, rows: Int[Tensor, "k"]) -> "Passages":
        return Passages(self.layer, self.tokens[rows], self.stream[rows], self.final[rows])


def output_kl(
    model: TransformerBridge,
    sae: BatchTopKTrainingSAE,
    scale: float,
    texts: Passages,
    where: Int[Tensor, "k"],
) -> Float[Tensor, ""]:
    """Mean KL(original ‖ with the reconstruction written at all tokens of ordinary norm but
    position 0), in nats, at the positions `where`. The autoencoder works on activations times
    `scale`. Only the layers from that of `texts` on are run."""
    device = model.cfg.device
    stream = texts.stream.to(device)
    changed = ordinary_tokens(stream)
    changed[:, 0] = False
    written = stream.clone()
    written[changed] = sae(stream[changed] * scale) / scale
    with ExitStack() as stack:
        for block in model.blocks[: texts.layer]:
            stack.enter_context(forward_as(block, lambda *_, **__: written))
        logits = model.original_model(
            input_ids=texts.tokens.to(device), use_cache=False, logits_to_keep=where.to(device)
        ).logits
    log_p = engine.unembed(model, texts.final[:, where].to(device)).log_softmax(-1).flatten(0, 1)
    log_q = logits.log_softmax(-1).flatten(0, 1)
    return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def train(
    model: TransformerBridge,
    sae: BatchTopKTrainingSAE,
    scale: float,
    texts: Passages,
    held_out: Passages,
    folder: Path,
    steps: int,
    sequences: int,
    learning_rate: float,
    seed: int = 0,
) -> list[float]:
    """Train `sae` in place, `sequences` texts in each step; returns the held-out KL of before and
    of each checkpoint of this call. Checkpoints are kept in `folder`, and the last is gone on from.
    """
    optimiser = torch.optim.Adam(sae.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    file = folder / "checkpoint.safetensors"
    done = _resume(file, sae, optimiser) if file.exists() else 0
    rows = batches(torch.arange(len(texts.tokens))[:, None], sequences, seed, start=done)
    judged = held_out.take(torch.arange(min(JUDGED_ON, len(held_out.tokens))))
    found = [_judge(model, sae, scale, judged)]
    for step in (bar := tqdm(range(done, steps), desc=folder.name, initial=done, total=steps)):
        bar.set_postfix(held_out_kl=round(found[-1], 4))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / WARM_UP, 3 * (steps - step) / steps)
        where = _positions(texts, seed + step)
        loss = output_kl(model, sae, scale, texts.take(next(rows).flatten()), where)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % max(1, steps // CHECKPOINTS) == 0:
            _keep(file, sae, optimiser)
            found.append(_judge(model, sae, scale, judged))
    return found


@torch.no_grad()
def _judge(
    model: TransformerBridge, sae: BatchTopKTrainingSAE, scale: float, texts: Passages
) -> float:
    where, few = _positions(texts, seed=0), torch.arange(len(texts.tokens)).split(4)
    kls = [output_kl(model, sae, scale, texts.take(rows), where) for rows in few]
    return float(torch.stack(kls).mean())


def _positions(texts: Passages, seed: int) -> Int[Tensor, "k"]:
    order = torch.randperm(texts.tokens.shape[1] - 1, generator=torch.Generator().manual_seed(seed))
    return 1 + order[:UNEMBEDDED].sort().values


def _keep(file: Path, sae: BatchTopKTrainingSAE, optimiser: torch.optim.Optimizer) -> None:
    tensors = {f"sae.{name}": value.data for name, value in sae.named_parameters()}
    for n, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"{n}.{name}": value for name, value in moments.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file(tensors, part)
    part.rename(file)


def _resume(file: Path, sae: BatchTopKTrainingSAE, optimiser: torch.optim.Optimizer) -> int:
    """Put weights and moments back; returns the number of steps made."""
    tensors, state = load_file(file), {}
    for n, (name, value) in enumerate(sae.named_parameters()):
        value.data.copy_(tensors[f"sae.{name}"])
        state[n] = {key: tensors[f"{n}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return int(tensors["0.step"])

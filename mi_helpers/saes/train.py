"""Train a family of sparse autoencoders on a language model's residual stream.

``python -m mi_helpers.train_saes --out saes --work saes-work`` made the shipped ones, in about an
hour and a half on one core.

Local autoencoders reconstruct the stream before a layer: one sparsity at four adjacent layers, five
sparsities at the third of them. End-to-end ones are judged by the model's output instead, by
KL(original ‖ with the reconstruction) (Braun et al. 2024, arXiv 2405.12241); each starts from the
local one of the same sparsity, so that it is a fine-tune and no training from scratch. All are
BatchTopK autoencoders of sae-lens, the local ones trained by its trainer; they are stored as
JumpReLU ones in its own file format, in float16. A folder's name says what is in it:
``local-15-k32`` reads the stream before layer 15 and has 32 features on at a time, on average.

What is finished stays in ``--work`` and is found again, so that an interrupted run goes on: the
text by batch, autoencoders by a quarter of their training, end-to-end ones by an eighth.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training import sae_trainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ..models.loading import DEFAULT, load_model
from ..models.sites import hook_name
from . import end_to_end as sae_end_to_end
from . import loading as saes
from .corpus import Corpus, batches, collect

BATCH = 512  # tokens in a step of local training
CHECKPOINTS = 3  # kept on the way through one local training
CALIBRATED_ON = 16_384  # tokens
REPORTED_ON = 8  # held-out sequences on which losses are measured


@dataclass(frozen=True)
class Plan:
    """One autoencoder to be trained."""

    kind: str  # "local" or "e2e"
    layer: int
    k: int  # features on at a token, on average
    d_in: int
    d_sae: int
    model: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.layer}-k{self.k}"

    def new(self) -> BatchTopKTrainingSAE:
        """The untrained autoencoder: decoder rows in random directions, encoder its transpose."""
        torch.manual_seed(self.seed)
        about = SAEMetadata(
            model_name=self.model, hook_name=hook_name("resid_pre", self.layer),
            kind=self.kind, k=self.k, seed=self.seed,
        )  # fmt: skip
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(
            d_in=self.d_in, d_sae=self.d_sae, k=self.k, decoder_init_norm=0.4,
            aux_loss_coefficient=1 / 32, metadata=about,
        ))  # fmt: skip


def scale_of(data: Float[Tensor, "token d"]) -> float:
    """What brings activations to a mean length of √d, where one learning rate fits all models."""
    return math.sqrt(data.shape[1]) / float(data.norm(dim=-1).mean())


@contextmanager
def progress(shown: bool) -> Iterator[None]:
    """The bar of sae-lens's trainer, or none: in a notebook it would stay in the stored output."""
    bar = sae_trainer.tqdm
    sae_trainer.tqdm = partial(bar, disable=not shown)
    try:
        yield
    finally:
        sae_trainer.tqdm = bar


def train_local(
    plan: Plan,
    data: Float[Tensor, "token d"],
    work: Path,
    samples: int,
    learning_rate: float,
    bar: bool = False,
) -> Path:
    """Train to reconstruct `data`; returns the folder of the finished autoencoder, which works on
    activations scaled by `scale_of`."""
    folder = work / plan.name
    if (folder / "done").is_dir():
        return folder / "done"
    sae, scale, steps = plan.new(), scale_of(data), samples // BATCH
    sae.b_dec.data = data.mean(0) * scale
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH,
        lr=learning_rate, lr_end=learning_rate / 10, lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3, dead_feature_window=100,
        n_checkpoints=CHECKPOINTS, checkpoint_path=str(folder),
    )  # fmt: skip
    trainer = sae_trainer.SAETrainer(config, sae, data_provider=iter(()))
    if found := sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name)):
        sae.load_weights_from_checkpoint(found[-1])
        trainer.load_trainer_state(found[-1])
        trainer.n_training_steps = trainer.n_training_samples // BATCH
    rows = batches(data, BATCH, plan.seed, start=trainer.n_training_samples // BATCH)
    trainer.data_provider = (batch * scale for batch in rows)
    with progress(bar):
        trainer.fit()
    return _finish(sae, folder)


def train_end_to_end(
    plan: Plan,
    start: Path,
    model: TransformerBridge,
    corpus: Corpus,
    held_out: Corpus,
    work: Path,
    steps: int,
    sequences: int,
    learning_rate: float,
) -> Path:
    """Train for the model's output, from the local autoencoder in `start`; returns the folder of
    the finished autoencoder, which works on activations scaled by `scale_of`."""
    folder = work / plan.name
    if (folder / "done").is_dir():
        return folder / "done"
    sae, scale = plan.new(), scale_of(corpus.activations(plan.layer))
    sae.load_weights_from_checkpoint(start)
    texts, judged = (sae_end_to_end.Passages.of(c, plan.layer) for c in (corpus, held_out))
    sae_end_to_end.train(
        model, sae, scale, texts, judged, folder, steps, sequences, learning_rate, plan.seed
    )
    return _finish(sae, folder)


def _finish(sae: BatchTopKTrainingSAE, folder: Path) -> Path:
    part = folder / "part"
    sae.save_model(part)
    return part.rename(folder / "done")


def store(plan: Plan, trained: Path, data: Float[Tensor, "token d"], folder: Path) -> None:
    """Store in float16 as a JumpReLU autoencoder of unscaled activations.

    Its one threshold is set anew, such that k features are on at a token of `data` on average:
    sae-lens keeps the training's running estimate, and does not scale it with the activations.
    """
    sae, scale = plan.new(), scale_of(data)
    sae.load_weights_from_checkpoint(trained)
    sae.fold_activation_norm_scaling_factor(scale)
    part = folder.with_suffix(".part")
    sae.save_inference_model(part)
    final = JumpReLUSAE.load_from_disk(part)
    with torch.no_grad():
        final.threshold.zero_()
        sample = data[:: max(1, len(data) // CALIBRATED_ON)]
        on = torch.cat([final.encode(rows).flatten() for rows in sample.split(2048)])
        final.threshold += on.kthvalue(len(on) - plan.k * len(sample)).values
    final.to(dtype=torch.float16).save_model(part)
    part.rename(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a family of sparse autoencoders.")
    add = parser.add_argument
    add("--model", default=DEFAULT, help="any name that mi_helpers.load_model takes")
    add("--out", type=Path, required=True, help="folder for the finished autoencoders")
    add("--work", type=Path, required=True, help="folder for what lets a stopped run go on")
    add("--text", type=Path, help="safetensors with token ids `tokens` [sequence, pos]; by default "
        "the model writes its own text")  # fmt: skip
    add("--sequences", type=int, default=256, help="of text for training")
    add("--held-out", type=int, default=64, help="sequences for the report")
    add("--length", type=int, default=128, help="tokens in a sequence")
    add("--layers", type=int, nargs="+", help="by default four, of which the third is the middle")
    add("--middle", type=int, help="the layer with all sparsities, one of --layers")
    add("--k", type=int, nargs="+", default=[32, 10, 75, 150, 300],
        help="sparsities at the middle layer; the first is that of the other layers")  # fmt: skip
    add("--k-end-to-end", type=int, nargs="*", default=[32, 75, 150])
    add("--width", type=int, help="features; by default three times the width of the stream")
    add("--samples", type=int, default=250_000, help="tokens of local training, with repeats")
    add("--learning-rate", type=float, default=2e-3)
    add("--steps-end-to-end", type=int, default=160)
    add("--sequences-end-to-end", type=int, default=4, help="in a step")
    add("--learning-rate-end-to-end", type=float, default=3e-4)
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    model = load_model(args.model)
    middle = model.cfg.n_layers // 2 if args.middle is None else args.middle
    layers = args.layers or range(middle - 2, middle + 2)
    if middle not in layers or not set(args.k_end_to_end) <= set(args.k):
        parser.error("--middle must be one of --layers, --k-end-to-end some of --k")
    kept = sorted({*layers})
    text, held_text = split_text(args.text, args.held_out)
    corpus = collect(model, kept, args.work / "train", text, args.sequences, args.length, args.seed)
    held_out = collect(model, kept, args.work / "held_out", held_text, args.held_out, args.length,
                       args.seed + 1000)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    small = {"train": corpus.tokens(), "held_out": held_out.tokens()}
    save_file(small, args.out / "tokens.safetensors")

    # A seed for each layer: from the same random start, features of two layers that have moved
    # little would be taken for the same feature.
    in_order = sorted(layers, key=lambda layer: layer != middle)

    def plan(kind: str, layer: int, k: int) -> Plan:
        width, seed = args.width or 3 * model.cfg.d_model, args.seed + in_order.index(layer)
        return Plan(kind, layer, k, model.cfg.d_model, width, model.name, seed)

    first, *others = args.k
    plans = [plan("local", layer, first) for layer in in_order]
    plans += [plan("local", middle, k) for k in others]
    plans += [plan("e2e", middle, k) for k in args.k_end_to_end]
    for one in plans:
        data = corpus.activations(one.layer)
        if one.kind == "local":
            done = train_local(one, data, args.work, args.samples, args.learning_rate, bar=True)
        else:
            start = args.work / plan("local", middle, one.k).name / "done"
            done = train_end_to_end(
                one, start, model, corpus, held_out, args.work, args.steps_end_to_end,
                args.sequences_end_to_end, args.learning_rate_end_to_end,
            )  # fmt: skip
        if not (args.out / one.name).is_dir():
            store(one, done, data, args.out / one.name)
        sae = saes.load(args.out / one.name)
        print(one.name, saes.fit(sae, held_out.activations(one.layer)), flush=True)
    table = report(model, plans, args.out, corpus, held_out)
    (args.out / "quality.json").write_text(table.to_json(orient="records", indent=1) + "\n")


def split_text(
    file: Path | None, held_out: int
) -> tuple[Int[Tensor, "sequence pos"] | None, Int[Tensor, "sequence pos"] | None]:
    """The user's own text, the last `held_out` sequences apart; None where the model writes it."""
    if file is None:
        return None, None
    tokens = load_file(file)["tokens"].long()
    if tokens.ndim != 2 or len(tokens) <= held_out:
        raise ValueError(f"{file}: `tokens` is [sequence, pos] with more than {held_out} sequences")
    return tokens[:-held_out], tokens[-held_out:]


def report(
    model: TransformerBridge, plans: Sequence[Plan], out: Path, corpus: Corpus, held_out: Corpus
) -> pd.DataFrame:
    """What `saes.quality` says of each autoencoder on held-out text, its losses on the first
    `REPORTED_ON` sequences; `dead` is the share of features that are off on all training text."""
    loaded = {plan.name: saes.load(out / plan.name) for plan in plans}
    table = saes.quality(model, loaded, held_out.read("tokens")[:REPORTED_ON].long())
    table.insert(1, "kind", [plan.kind for plan in plans])
    table.insert(3, "k", [plan.k for plan in plans])
    for n, plan in enumerate(plans):
        sae = loaded[plan.name]
        for name, value in saes.fit(sae, held_out.activations(plan.layer)).items():
            table.loc[n, name] = value
        on = saes.alive(sae, corpus.activations(plan.layer))
        table.loc[n, "dead"] = float((~on).double().mean())
    return table.round(4)


if __name__ == "__main__":
    main()

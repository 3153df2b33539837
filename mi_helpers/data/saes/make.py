"""Train a family of sparse autoencoders on a language model's residual stream.

``python -m mi_helpers.data.saes.make --out saes --work saes-work`` makes the shipped ones: they are
trained on real text, the docstrings of the installed packages; ``--text`` takes any folder or file
that ``mi.tasks.texts`` reads.

Local autoencoders reconstruct the stream before a layer: one sparsity at four adjacent layers; at
the third of them five sparsities, three widths of the first sparsity, and a second seed of it, as
the ceiling of what two dictionaries can share. End-to-end ones are judged by the model's output
instead, by KL(original ‖ with the reconstruction) (Braun et al. 2024, arXiv 2405.12241); each
starts from the local one of the same sparsity, so that it is a fine-tune and no training from
scratch. All are BatchTopK autoencoders of sae-lens, the local ones trained by its trainer; they are
stored as JumpReLU ones in its own file format, in float16. Tokens of extreme norm are left out. A
folder's name says what is in it: ``local-15-k32`` reads the stream before layer 15 and has 32
features on at a time, on average; ``local-15-k32-seed4`` began from another seed,
``local-15-k32-w4608`` has that many features.

What is finished stays in ``--work`` and is found again, so that an interrupted run goes on: the
residuals by batch, autoencoders by a quarter of their training, end-to-end ones by an eighth.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from mi_helpers import saes, tasks
from mi_helpers.data.saes import end_to_end
from mi_helpers.data.saes.corpus import Corpus, batches, collect
from mi_helpers.engine.stream import ordinary_tokens
from mi_helpers.models import DEFAULT, load_model
from mi_helpers.models.hooks import hook_name
from mi_helpers.saes.measures import Principal
from mi_helpers.saes.training import calibrated, train

BATCH = 512  # tokens in a step of local training
CHECKPOINTS = 3  # kept on the way through one local training
MEASURED_ON = 65_536  # tokens that set scale, mean and threshold, and on which a feature is dead
PASSAGE = 128  # tokens
PASSAGES = {"train": 100, "held-out": 60}  # of each package, for the tests of `saes.probing`
REPORTED_ON = 32  # held-out sequences on which losses are measured


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
    only: str = ""  # what sets it apart from another one of this layer and sparsity

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.layer}-k{self.k}{self.only}"

    @property
    def hook(self) -> str:
        return hook_name("resid_pre", self.layer)

    def new(self) -> BatchTopKTrainingSAE:
        """The untrained autoencoder: decoder rows in random directions, encoder its transpose."""
        torch.manual_seed(self.seed)
        about = SAEMetadata(
            model_name=self.model, hook_name=self.hook, kind=self.kind, k=self.k, seed=self.seed,
        )  # fmt: skip
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(
            d_in=self.d_in, d_sae=self.d_sae, k=self.k, decoder_init_norm=0.4,
            aux_loss_coefficient=1 / 32, metadata=about,
        ))  # fmt: skip


def family(
    model: TransformerBridge, layers: Sequence[int], middle: int, k: Sequence[int],
    k_end_to_end: Sequence[int], width: int, other_widths: Sequence[int], seed: int,
) -> list[Plan]:  # fmt: skip
    """All autoencoders, in the order of their training.

    A seed for each layer: from the same random start, features of two layers that have moved little
    would be taken for the same feature.
    """
    in_order = sorted(layers, key=lambda layer: layer != middle)

    def plan(kind: str, layer: int, k: int) -> Plan:
        return Plan(
            kind, layer, k, model.cfg.d_model, width, model.name, seed + in_order.index(layer)
        )

    plans = [plan("local", layer, k[0]) for layer in in_order]
    plans += [replace(plans[0], seed=seed + len(layers), only=f"-seed{seed + len(layers)}")]
    plans += [plan("local", middle, one) for one in k[1:]]
    plans += [replace(plans[0], d_sae=wide, only=f"-w{wide}") for wide in other_widths]
    return plans + [plan("e2e", middle, one) for one in k_end_to_end]


def scale_of(data: Float[Tensor, "token d"]) -> float:
    """What brings activations to a mean length of √d, where one learning rate fits all models."""
    return math.sqrt(data.shape[1]) / float(data[:MEASURED_ON].float().norm(dim=-1).mean())


def train_local(
    plan: Plan, data: Float[Tensor, "token d"], work: Path, samples: int, learning_rate: float
) -> Path:
    """Train to reconstruct `data`; returns the folder of the finished autoencoder, which works on
    activations scaled by `scale_of`."""
    folder = work / plan.name
    if (folder / "done").is_dir():
        return folder / "done"
    sae, scale, steps = plan.new(), scale_of(data), samples // BATCH
    sae.b_dec.data = data[:MEASURED_ON].float().mean(0) * scale
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH,
        lr=learning_rate, lr_end=learning_rate / 10, lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3, dead_feature_window=100,
        n_checkpoints=CHECKPOINTS, checkpoint_path=str(folder), autocast=True,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    if found := sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name)):
        sae.load_weights_from_checkpoint(found[-1])
        trainer.load_trainer_state(found[-1])
        trainer.n_training_steps = trainer.n_training_samples // BATCH
    rows = batches(data, BATCH, plan.seed, start=trainer.n_training_samples // BATCH)
    trainer.data_provider = (batch.float() * scale for batch in rows)
    trainer.fit()
    return _finish(sae, folder)


def train_end_to_end(
    plan: Plan,
    start: Path,
    scale: float,
    model: TransformerBridge,
    passages: Callable[[], tuple[end_to_end.Passages, end_to_end.Passages]],
    work: Path,
    steps: int,
    sequences: int,
    learning_rate: float,
) -> Path:
    """Train for the model's output, from the local autoencoder in `start`; returns the folder of
    the finished autoencoder, which works on activations times `scale`. `passages` gives the texts
    to train on and those to judge by; it is not called where the autoencoder is there already."""
    folder = work / plan.name
    if (folder / "done").is_dir():
        return folder / "done"
    sae = plan.new()
    sae.load_weights_from_checkpoint(start)
    end_to_end.train(
        model, sae, scale, *passages(), folder, steps, sequences, learning_rate, plan.seed
    )
    return _finish(sae, folder)


def _finish(sae: BatchTopKTrainingSAE, folder: Path) -> Path:
    part = folder / "part"
    sae.save_model(part)
    return part.rename(folder / "done")


def store(plan: Plan, trained: Path, data: Float[Tensor, "token d"], folder: Path) -> None:
    """Store in float16 as a JumpReLU autoencoder of unscaled activations.

    Weights keep the eight bits of bfloat16, with which training multiplied: git packs the zeros
    behind them. The one threshold is set anew, such that k features are on at a token of `data` on
    average: sae-lens keeps the training's running estimate, and does not scale it with the
    activations.
    """
    sae, scale = plan.new(), scale_of(data)
    sae.load_weights_from_checkpoint(trained)
    sae.fold_activation_norm_scaling_factor(scale)
    part = folder.with_suffix(".part")
    sae.save_inference_model(part)
    packed = JumpReLUSAE.load_from_disk(part)
    packed.load_state_dict({k: v.bfloat16().float() for k, v in packed.state_dict().items()})
    final = calibrated(packed, data[:MEASURED_ON].float(), plan.k)
    final.to(dtype=torch.float16).save_model(part)
    part.rename(folder)


def report(
    model: TransformerBridge,
    plans: Sequence[Plan],
    out: Path,
    work: Path,
    corpus: Corpus,
    held_out: Corpus,
) -> pd.DataFrame:
    """A row for each autoencoder: what `saes.quality` says of it on held-out text, its losses on
    the first `REPORTED_ON` sequences; `dead`, the share of features that are off on `MEASURED_ON`
    tokens of training text, and `rare`, of those on at fewer than one in 10 000; what `probed`
    says; and `absorbed`, the mean of `saes.absorption` over letters.

    Rows of the kind "control" stand beside the first: the same one untrained, and principal
    components.
    """
    first, about = plans[0], {}
    layers = sorted({plan.layer for plan in plans})
    seen = {n: corpus.activations(n)[:MEASURED_ON].float() for n in layers}
    held = {n: held_out.activations(n).float() for n in layers}
    data = seen[first.layer]
    untrained = train(data, first.d_sae, first.k, steps=0, seed=first.seed, hook=first.hook)
    found: dict[str, Any] = {"untrained": untrained, f"PCA, {first.k}": Principal(data, first.k)}
    beside = {name: replace(first, kind="control") for name in found}
    of = {plan.name: plan for plan in plans} | beside
    found |= {plan.name: saes.load(out / plan.name) for plan in plans}
    spelt = {n: (words(model, corpus, n, 4000), words(model, held_out, n, 8000)) for n in layers}
    passages = [packages(model, layers, work, split, n) for split, n in PASSAGES.items()]
    for name, plan in of.items():
        sae, layer = found[name], plan.layer
        rate = saes.density(sae, seen[layer])
        about[name] = {
            "kind": plan.kind, "layer": layer, "k": plan.k, "variant": plan.only.removeprefix("-"),
            "seed": plan.seed, "width": len(sae.W_dec),
            **saes.fit(sae, held[layer]),
            "dead": float((rate == 0).double().mean()),
            "rare": float((rate < 1e-4).double().mean()),
            **probed(sae, layer, *passages),
        }  # fmt: skip
        if not isinstance(sae, Principal):  # whose coordinates are never off
            (x, letters), (tested, asked) = spelt[layer]
            probes = saes.probes(x, letters, least=30)
            by_letter = saes.absorption(sae, probes, x, letters, tested, asked)
            about[name]["absorbed"] = by_letter["absorbed"].mean()
    costs = [
        saes.quality(
            model, {name: found[name] for name in of if of[name].layer == layer},
            held_out.tokens()[:REPORTED_ON], ("resid_pre", layer),
        )
        for layer in layers
    ]  # fmt: skip
    kept = ["loss", "loss_sae", "increase", "kl", "recovered", "recovered_zero"]
    table = pd.DataFrame(about).T.join(pd.concat(costs).set_index("name")[kept])
    return table.rename_axis("name").reset_index().infer_objects().round(4)


def packages(
    model: TransformerBridge, layers: Sequence[int], work: Path, split: Any, n: int
) -> tuple[Corpus, list[str]]:
    """The streams on `n` passages of each package's docstrings, and which package each is of."""
    passages, labels = tasks.texts_by_package(model, n, PASSAGE, split)
    return collect(model, layers, work / f"packages-{split}", passages), labels


def probed(
    sae: Any, layer: int, train: tuple[Corpus, list[str]], test: tuple[Corpus, list[str]]
) -> dict[str, float]:
    """For the package that a passage is of: `probing_1` and `probing_5`, the balanced accuracy of
    one and of five latents, mean over packages; `perturbation`, the score of TPP."""
    (means, labels), (tested, test_labels) = (
        (saes.pooled(sae, passages.stream(layer)), names) for passages, names in (train, test)
    )
    found = {}
    for k in (1, 5):
        scores = saes.sparse_probing(means[1], labels, tested[1], test_labels, k)
        found[f"probing_{k}"] = sum(scores.values()) / len(scores)
    probes = saes.probes(means[0], labels)
    drops = saes.probe_perturbation(sae, probes, means, labels, tested, test_labels)
    same = drops["ablated"] == drops["probed"]
    return found | {"perturbation": float(drops[same]["drop"].mean() - drops[~same]["drop"].mean())}


def words(
    model: TransformerBridge, corpus: Corpus, layer: int, n: int
) -> tuple[Float[Tensor, "word d"], Int[np.ndarray, "word"]]:
    """The stream before `layer` at the first `n` words of the first texts, and their letters."""
    some = Corpus(corpus.files[:4])
    x, letters = some.stream(layer), saes.first_letters(model, some.tokens())[:, 1:]
    chosen = ordinary_tokens(x).cpu().numpy() & (letters > 0)
    return x[torch.from_numpy(chosen)][:n], letters[chosen][:n]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a family of sparse autoencoders.")
    add = parser.add_argument
    add("--model", default=DEFAULT, help="any name that mi_helpers.load_model takes")
    add("--out", type=Path, required=True, help="folder for the finished autoencoders")
    add("--work", type=Path, required=True, help="folder for what lets a stopped run go on")
    add("--text", default="docs", help="a source of mi.tasks.texts, such as a file or a folder")
    add("--sequences", type=int, default=16640, help="of text for training")
    add("--held-out", type=int, default=256, help="sequences for the report, of other documents")
    add("--length", type=int, default=128, help="tokens in a sequence")
    add("--layers", type=int, nargs="+", help="by default four, of which the third is the middle")
    add("--middle", type=int, help="the layer with all sparsities, one of --layers")
    add("--k", type=int, nargs="+", default=[32, 10, 20, 75, 200],
        help="sparsities at the middle layer; the first is that of the other layers")  # fmt: skip
    add("--k-end-to-end", type=int, nargs="*", default=[32, 75])
    add("--width", type=int, help="features; by default four times the width of the stream")
    add("--other-widths", type=int, nargs="*",
        help="at the middle layer and first sparsity; by default half and double")  # fmt: skip
    add("--samples", type=int, default=2_100_000, help="tokens of local training, with repeats")
    add("--learning-rate", type=float, default=3e-3)
    add("--steps-end-to-end", type=int, default=160)
    add("--sequences-end-to-end", type=int, default=4, help="in a step")
    add("--learning-rate-end-to-end", type=float, default=3e-4)
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.middle is not None and args.layers and args.middle not in args.layers:
        parser.error("--middle must be one of --layers")
    if not set(args.k_end_to_end) <= set(args.k):
        parser.error("--k-end-to-end must be some of --k")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    model = load_model(args.model)
    middle = model.cfg.n_layers // 2 if args.middle is None else args.middle
    layers = args.layers or range(middle - 2, middle + 2)
    width = args.width or 4 * model.cfg.d_model
    others = [width // 2, 2 * width] if args.other_widths is None else args.other_widths
    splits: dict[Any, int] = {"train": args.sequences, "held-out": args.held_out}
    corpus, held_out = (
        collect(model, sorted({*layers}), args.work / split,
                tasks.texts(model, n, args.length, source=args.text, split=split, seed=args.seed))
        for split, n in splits.items()
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    plans = family(model, layers, middle, args.k, args.k_end_to_end, width, others, args.seed)

    @cache
    def passages() -> tuple[end_to_end.Passages, end_to_end.Passages]:
        steps = args.steps_end_to_end * args.sequences_end_to_end
        judged = held_out.tokens()[: end_to_end.JUDGED_ON]
        return (
            end_to_end.Passages.of(model, corpus.tokens()[:steps], middle),
            end_to_end.Passages.of(model, judged, middle),
        )

    @lru_cache(maxsize=1)  # gigabytes, which plans of one layer, one after another, share
    def activations(layer: int) -> Float[Tensor, "token d"]:
        return corpus.activations(layer)

    for plan in plans:
        data = activations(plan.layer)
        if plan.kind == "local":
            done = train_local(plan, data, args.work, args.samples, args.learning_rate)
        else:
            start = args.work / f"local-{middle}-k{plan.k}" / "done"
            done = train_end_to_end(
                plan, start, scale_of(data), model, passages, args.work, args.steps_end_to_end,
                args.sequences_end_to_end, args.learning_rate_end_to_end,
            )  # fmt: skip
        if not (args.out / plan.name).is_dir():
            store(plan, done, data, args.out / plan.name)
        sae = saes.load(args.out / plan.name)
        print(plan.name, saes.fit(sae, held_out.activations(plan.layer).float()), flush=True)
    del data
    activations.cache_clear()
    table = report(model, plans, args.out, args.work, corpus, held_out)
    (args.out / "quality.json").write_text(table.to_json(orient="records", indent=1) + "\n")
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "work")}
    (args.out / "about.json").write_text(json.dumps(settings, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()

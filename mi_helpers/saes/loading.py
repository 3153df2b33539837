"""Sparse autoencoders (SAEs) of the residual stream: find them, measure them, edit by them.

An SAE writes an activation x as a sum of few of many directions: features f = encode(x) >= 0, and
x_SAE = decode(f) = b + Σ f_j d_j. What it misses is its error, x_SAE - x. Shipped ones were trained
by `train_saes` on text that the default model wrote; published ones come through sae-lens. Position
0 is left alone throughout: its residual is unlike all others, and no SAE here was trained on it.

Source: Bricken et al. 2023, Towards Monosemanticity; training with BatchTopK, Bussmann et al. 2024,
arXiv 2412.06410; steering, Templeton et al. 2024, Scaling Monosemanticity.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import engine
from ..engine.rows import Place, Write
from ..engine.text import measure
from ..models.hooks import hooked
from ..models.loading import DEFAULT
from ..models.sites import hook_name
from ..tasks.sampled import sample_prompts

if TYPE_CHECKING:
    from sae_lens import SAE

SHIPPED = Path(__file__).parents[1] / "data" / "saes"
PUBLISHED = {  # releases of sae-lens by model, for the stream before each layer
    "gpt2": ("gpt2-small-res-jb", "blocks.{layer}.hook_resid_pre", range(12)),
}
END_TO_END = "apollo-research/e2e-saes-gpt2"  # on the hub, not in sae-lens; Braun et al. 2024


# --- Finding and loading ------------------------------------------------------------------------


def available(model: TransformerBridge, folder: str | Path | None = None) -> pd.DataFrame:
    """The SAEs known for a model, one a row: `name` (for `load`), `kind` ("local" or "e2e") and
    `layer`; `k`, if known, is the same for those of about the same sparsity; for those that
    `train_saes` made also what `quality` found. `folder`: what that command wrote for this model;
    without it, shipped and published ones. Empty where there is none."""
    if folder or (model.name == DEFAULT and (SHIPPED / "quality.json").is_file()):
        table = pd.read_json(Path(folder or SHIPPED) / "quality.json")
        return table.assign(name=[str(Path(folder) / n) if folder else n for n in table["name"]])
    release, point, layers = PUBLISHED.get(model.name, ("", "", range(0)))
    rows: list[tuple[str, str, int, str | None]] = [
        (f"{release}/{point.format(layer=layer)}", "local", layer, None) for layer in layers
    ]
    if model.name == "gpt2":
        for layer in (2, 6, 10):
            for kind in ("local", "e2e"):
                name = f"{END_TO_END}/{kind}_similar_l0_layer_{layer}"
                rows.append((name, kind, layer, "similar L0"))
    return pd.DataFrame(rows, columns=["name", "kind", "layer", "k"])


def load(name: str | Path, device: str = "cpu") -> "SAE[Any]":
    """An SAE in float32: a shipped one by name ("local-15-k32"), one on disk by its folder, a
    published one by "release/id" as sae-lens knows it, or one of `END_TO_END` by
    "apollo-research/e2e-saes-gpt2/file" without its ending.

    Raises ImportError, saying what to install, without sae-lens; ValueError for an unknown name.
    """
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise ImportError(
            "sparse autoencoders need sae-lens: pip install 'mi_helpers[saes]'"
        ) from error
    shipped = SHIPPED / str(name)
    folder = shipped if shipped.is_dir() else Path(name)
    if (folder / "cfg.json").is_file():
        sae = SAE.load_from_disk(folder, device=device, dtype="float32")
    elif str(name).startswith(END_TO_END):
        sae = _of_braun(str(name).removeprefix(f"{END_TO_END}/")).to(device)
    elif "/" in str(name):
        release, _, sae_id = str(name).partition("/")
        sae = SAE.from_pretrained(release, sae_id, device=device)
    else:
        known = sorted(path.parent.name for path in SHIPPED.glob("*/cfg.json"))
        raise ValueError(f"no SAE {str(name)!r}; shipped: {', '.join(known)}")
    return sae.eval().requires_grad_(False)


def _of_braun(name: str) -> "SAE[Any]":
    """An SAE of `END_TO_END`, whose files hold a linear encoder with a ReLU and a linear decoder
    (format: ApolloResearch/e2e_sae, `scripts/upload_to_hf.py`)."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    if not (found := re.fullmatch(r"(local|e2e|downstream)_similar_(l0|ce)_layer_(\d+)", name)):
        raise ValueError(f"no SAE {name!r} in {END_TO_END}; its names: e2e_similar_l0_layer_6, …")
    weights = torch.load(hf_hub_download(END_TO_END, f"{name}.pt"), "cpu", weights_only=True)
    d_sae, d_in = weights["encoder.weight"].shape
    point = hook_name("resid_pre", int(found[3]))
    about = SAEMetadata(model_name="gpt2", hook_name=point, kind=found[1])
    sae = StandardSAE(StandardSAEConfig(
        d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=about
    ))  # fmt: skip
    sae.load_state_dict({
        "W_enc": weights["encoder.weight"].T, "b_enc": weights["encoder.bias"],
        "W_dec": weights["decoder.weight"].T, "b_dec": weights["decoder.bias"],
    })  # fmt: skip
    return sae


def layer_of(sae: "SAE[Any]") -> int:
    """The layer before which the SAE reads the stream. Raises ValueError for any other site."""
    point = str(sae.cfg.metadata.hook_name)
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", point)
    if not found:
        raise ValueError(f"this SAE reads {point}; here are methods for hook_resid_pre")
    return int(found[1])


def shipped_text(split: str = "held_out") -> Int[Tensor, "sequence pos"]:
    """The text of the shipped SAEs as token ids of the default model, "train" or "held_out"."""
    return load_file(SHIPPED / "tokens.safetensors")[split].long()


def text(
    model: TransformerBridge, n: int, length: int = 128, seed: int = 0, split: str = "held_out"
) -> Int[Tensor, "sequence pos"]:
    """`n` texts of `length` tokens, BOS included, that the model wrote: for the default model some
    of those of the shipped SAEs, "held_out" or "train"; otherwise fresh ones, others per split."""
    if split not in ("held_out", "train"):
        raise ValueError(f"split is 'held_out' or 'train', got {split!r}")
    if model.name == DEFAULT and (SHIPPED / "tokens.safetensors").is_file():
        known = shipped_text(split)
        if n <= len(known) and length <= known.shape[1]:
            order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
            return known[order[:n], :length]
    return sample_prompts(model, n, length - 1, 2 * seed + 2000 + (split == "train"))


# --- Edits --------------------------------------------------------------------------------------


def reconstruction(sae: "SAE[Any]") -> Write:
    """Write x_SAE in place of x."""
    return Write("reconstruction", lambda current, place: sae(current))


def clamp(sae: "SAE[Any]", feature: int, value: float) -> Write:
    """Hold one feature at a value, and leave the SAE's error as it is: x + (value - f_j) d_j.
    Zero ablates the feature; several times its usual maximum steers."""

    def new(current: Tensor, place: Place) -> Tensor:
        return _moved(sae, current, feature, value)

    return Write(f"feature {feature} at {value:g}", new)


@contextmanager
def held(model: TransformerBridge, sae: "SAE[Any]", feature: int, value: float) -> Iterator[None]:
    """While it lasts, the model runs with one feature held at a value at all positions but 0.

    Works while the model writes a text with a cache, one such text (or batch) at a time, and on
    whole texts.
    """
    started = False

    def change(x: Float[Tensor, "sequence pos d"]) -> Tensor:
        nonlocal started
        new = _moved(sae, x, feature, value)
        if not started or x.shape[1] > 1:
            new[:, 0] = x[:, 0]
        started = True
        return new

    with hooked(model.hook_dict[hook_name("resid_pre", layer_of(sae))], change):
        yield


@torch.no_grad()
def _moved(sae: "SAE[Any]", x: Float[Tensor, "*batch d"], feature: int, value: float) -> Tensor:
    by = value - sae.encode(x)[..., feature]
    return x + by[..., None] * sae.W_dec[feature]


# --- Quality ------------------------------------------------------------------------------------


@torch.no_grad()
def quality(
    model: TransformerBridge,
    autoencoders: "Mapping[str, SAE[Any]]",
    tokens: Int[Tensor, "sequence pos"],
    batch: int = 8,
) -> pd.DataFrame:
    """How good each SAE is on a text, position 0 left out; a row for each.

    `l0`: features on at a token. `explained`: share of the variance that x_SAE explains. `cosine`
    of x and x_SAE, `error`: length of x_SAE - x over that of x. `loss` is the next-token loss as it
    was, `loss_sae` with x_SAE written at all positions, `loss_zero` with zero written there (before
    the first SAE's layer); `recovered` is where `loss_sae` lies between them, 1 being no loss at
    all. `kl` is KL(original ‖ with x_SAE), in nats.
    """
    where = list(range(1, tokens.shape[1]))
    layers = {name: layer_of(sae) for name, sae in autoencoders.items()}
    writes = {name: reconstruction(sae) for name, sae in autoencoders.items()}
    names = ["as it was", "zero", *autoencoders]
    layers |= dict.fromkeys(names[:2], next(iter(layers.values())))
    losses, kls, streams = [], [], []
    for rows in tokens.split(batch):
        run = engine.record(model, rows)
        writes |= {"as it was": engine.patch(run), "zero": engine.zero()}
        table = pd.DataFrame([{"layer": layers[n], "write": writes[n]} for n in names])
        found = measure(run, table.assign(site="resid_pre", pos=[where] * len(names)), where)
        losses.append(found.loss.nanmean(-1))
        kls.append(found.kl.mean(-1))
        streams.append({layer: run.resid[layer][:, 1:] for layer in layers.values()})
    loss, kl = torch.cat(losses, 1).mean(1).tolist(), torch.cat(kls, 1).mean(1).tolist()
    rows = []
    for (name, sae), with_sae, moved in zip(autoencoders.items(), loss[2:], kl[2:], strict=True):
        x = torch.cat([stream[layers[name]] for stream in streams]).flatten(0, 1)
        about = {"name": name, "layer": layers[name], **fit(sae, x)}
        about |= {"loss": loss[0], "loss_sae": with_sae, "loss_zero": loss[1], "kl": moved}
        rows.append(about | {"recovered": (loss[1] - with_sae) / (loss[1] - loss[0])})
    return pd.DataFrame(rows)


@torch.no_grad()
def fit(sae: "SAE[Any]", x: Float[Tensor, "token d"]) -> dict[str, float]:
    """`l0`, `explained`, `cosine` and `error` of an SAE on activations (see `quality`)."""
    features = torch.cat([sae.encode(part) for part in x.split(4096)])
    close = torch.cat([sae.decode(part) for part in features.split(4096)])
    error, spread = (x - close).double(), (x - x.mean(0)).double()
    return {
        "l0": float((features > 0).sum(-1).double().mean()),
        "explained": 1 - float(error.square().sum() / spread.square().sum()),
        "cosine": float(torch.cosine_similarity(x, close, dim=-1).mean()),
        "error": float((error.norm(dim=-1) / x.double().norm(dim=-1)).mean()),
    }


@torch.no_grad()
def alive(sae: "SAE[Any]", x: Float[Tensor, "token d"]) -> Bool[Tensor, "feature"]:
    """Which features are on at some token of `x`; the others are dead on this text."""
    return torch.stack([(sae.encode(part) > 0).any(0) for part in x.split(4096)]).any(0)

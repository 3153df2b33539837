"""A user's own module: any dtype, parameters trainable, memory bounded, no gradients left."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from mi_helpers import basis as ib

# In a process of its own: peak memory belongs to the process, here to all three networks together.
MEASURE = """
import json, resource, torch
from torch import nn
from mi_helpers import basis as ib
found = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256), nn.GELU(), nn.Linear(256, 64)
    ).to(dtype)
    x = torch.randn(128, 256).to(dtype)
    basis = ib.fit([mlp[:2], mlp[2:4], mlp[4]], x, sources=4)
    E = ib.edges(basis, x[:64], points="data", outputs=32)
    found[str(dtype)] = {
        "gradients": sum(p.grad is not None for p in mlp.parameters()),
        "trainable": all(p.requires_grad for p in mlp.parameters()),
        "kept graph": any(e.requires_grad for e in E),
        "total": [e.sum().item() for e in E],
    }
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_mb": peak, "found": found}))
"""


def test_trainable_modules_stay_small_and_clean() -> None:
    """Differentiated through its parameters as well, such a module once took 21 GB."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["peak_mb"] < 1500
    for found in measured["found"].values():
        assert found["gradients"] == 0
        assert found["trainable"]
        assert not found["kept graph"]
        total = measured["found"]["torch.float32"]["total"]
        assert found["total"] == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_needs_a_threshold_above_its_rounding(
    dtype: torch.dtype, tolerance: float
) -> None:
    """Silent directions come back as rounding; a higher threshold drops them again."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    x = torch.randn(200, 3) @ torch.randn(3, 6)
    exact = ib.fit([mlp[:2], mlp[2]], x)
    half = mlp.to(dtype)
    loose = ib.fit([half[:2], half[2]], x.to(dtype))
    found = ib.fit([half[:2], half[2]], x.to(dtype), threshold=1e-4)
    assert exact.summary()["silent"][0] == 3
    assert loose.summary()["silent"][0] == 0
    assert found.summary()["silent"][0] == 3
    top = slice(0, 2)
    torch.testing.assert_close(
        found.boundaries[0].importance[top],
        exact.boundaries[0].importance[top],
        rtol=tolerance,
        atol=0,
    )

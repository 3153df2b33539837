"""A published model is known by its weights, whatever it is called."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mi_helpers.models import catalogue, is_gpt2
from tests import tiny


def stand_in(dtype: torch.dtype = torch.float32, **changes: object) -> Any:
    """GPT-2 as far as it is looked at: its shape, and embeddings that begin and end as its do."""
    generator = torch.Generator().manual_seed(0)
    weights = {"W_E": torch.zeros(50257, 768), "W_pos": torch.zeros(1024, 768)}
    for name, rows in (("W_E", catalogue.GPT2_TOKENS), ("W_pos", catalogue.GPT2_POSITIONS)):
        for row, numbers in rows.items():
            weights[name][row] = torch.randn(768, generator=generator)
            weights[name][row, [0, 1, 2, -3, -2, -1]] = torch.tensor(numbers)
            weights[name][row] += 4e-5 * torch.rand(768, generator=generator)  # further decimals
    shape = {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_vocab": 50257, "dtype": dtype}
    cfg = SimpleNamespace(**({"architecture": "GPT2LMHeadModel"} | shape | changes))
    return SimpleNamespace(cfg=cfg, **{k: w.to(dtype) for k, w in weights.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpt2_is_known_in_every_precision(dtype: torch.dtype) -> None:
    assert is_gpt2(stand_in(dtype))


def test_other_models_of_its_shape_are_not_gpt2() -> None:
    assert not is_gpt2(stand_in(n_layers=24))
    assert not is_gpt2(stand_in(architecture="GPTNeoForCausalLM"))
    for name in ("W_E", "W_pos"):
        model = stand_in()
        getattr(model, name)[1, -2] += 2e-4  # a step of fine-tuning
        assert not is_gpt2(model)
    assert not is_gpt2(tiny.bridge("gpt2"))
    random = stand_in()
    random.W_E = torch.randn(50257, 768)
    assert not is_gpt2(random)

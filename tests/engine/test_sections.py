"""The residual stream of ten families as sections, the norm's scale split out."""

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from mi_helpers import basis as ib
from mi_helpers.engine.recording import record
from mi_helpers.engine.stack import Stack, from_bridge
from tests.tiny import FAMILIES, bridge

LAYERS = [1, 2, 3]


def prompts(n: int = 5, length: int = 12) -> Tensor:
    tokens = torch.randint(3, 100, (n, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def gradient(stack: Stack, x: Tensor, width: int) -> Tensor:
    """Of a nonlinear function of the next boundary's stream."""
    x = x.clone().requires_grad_()
    value = stack.run(x, 0, 1)[..., :width].pow(3).sum()
    return torch.autograd.grad(value, x)[0]


def splits(model: TransformerBridge) -> bool:
    return "olmo2" not in str(model.cfg.architecture).lower()


@pytest.mark.parametrize("family", FAMILIES)
def test_sections_rerun_the_blocks(family: str) -> None:
    model, tokens = bridge(family), prompts()
    resid = record(model, tokens).resid
    for split in (True, False) if splits(model) else (False,):
        found = from_bridge(model, tokens, LAYERS, split_scale=split)
        for layer, x in zip(LAYERS, found.stack.activations(found.inputs), strict=True):
            torch.testing.assert_close(x[..., :32], resid[layer][:, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_is_a_feature_of_its_own(family: str) -> None:
    """Gradients at fixed scale, plus those through the scale, are the gradients of the block."""
    model, tokens = bridge(family), prompts()
    if not splits(model):
        with pytest.raises(ValueError, match="split_scale=False"):
            from_bridge(model, tokens, LAYERS)
        return
    found = from_bridge(model, tokens, LAYERS)
    split = gradient(found.stack, found.inputs, 32)
    x, scale = found.inputs[..., :-1], found.inputs[..., -1:]
    whole = gradient(from_bridge(model, tokens, LAYERS, split_scale=False).stack, x, 32)
    centred = x if model.blocks[1].ln1.uses_rms_norm else x - x.mean(-1, keepdim=True)
    through = split[..., -1:] * centred / (32 * scale)
    torch.testing.assert_close(
        split[..., :-1] + through, whole, atol=1e-5 * whole.abs().max().item(), rtol=1e-3
    )
    assert through.norm() > 1e-3 * whole.norm()


def test_a_basis_of_a_language_model() -> None:
    found = from_bridge(bridge("llama"), prompts(16), LAYERS)
    basis = ib.fit(found.stack, found.inputs, apart=found.apart, sources=64)
    for b, x in zip(basis.boundaries[:2], found.stack.activations(found.inputs), strict=False):
        features = b.encode(x.double()).flatten(0, 1)
        own = b.C[-1].abs() > 1e-12  # the scale's feature, which may correlate with the others
        rest = features[:, ~own].T.cov(correction=0)
        torch.testing.assert_close(rest, torch.diag(b.importance[~own]), atol=1e-6, rtol=1e-6)
        assert own.sum() == 1
        assert 0 < b.jacobian_error < 0.2
    E = ib.edges(basis, found.inputs, sources=4, outputs=5, points=2)
    assert [len(e) for e in E] == [5, 5]


@pytest.mark.parametrize("layers", [[1], [2, 1], [1, 4], [-1, 2]])
def test_bad_layers_are_named(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"of 0\.\.3"):
        from_bridge(bridge("gpt2"), prompts(), layers)


def test_prompts_must_share_their_first_token() -> None:
    with pytest.raises(ValueError, match="same token"):
        from_bridge(bridge("gpt2"), prompts() + torch.arange(5)[:, None], LAYERS)

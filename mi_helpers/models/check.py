"""Do the hooks of a loaded model mean what they say?

A patch that silently does nothing looks like a result. So each model is asked, on three tokens,
at its first, middle and last layer:
1. does every hook fire, and do attention patterns sum to one;
2. does writing a cached activation back leave the logits as they are;
3. does writing something else change them.
The changes run as rows of one batch, one hook a row, so that none covers up for another.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from ..errors import explained
from .hooks import hooked

SITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "attn.hook_pattern")

Hook = Callable[[Tensor], Tensor | None]
Values = dict[str, Tensor]  # of a hook's name; one prompt each
Points = Mapping[str, HookPoint]


class HookError(RuntimeError):
    """A hook of the model does not do what its name says."""

    def __init__(self, message: str) -> None:
        super().__init__(explained("MI-E04", message))


@torch.no_grad()
def check_hooks(model: TransformerBridge) -> None:
    """Run the three checks above on the model itself.

    Raises:
        HookError: names the hook that lied, and how.
    """
    points = _points(model)
    tokens = _tokens(model)
    values: Values = {}
    _run(model, points, tokens, {name: _keep(values, name) for name in points})
    # Rounding differs a little between batch sizes; half precision rounds at about 1e-3.
    tolerance = 1e-4 if model.cfg.dtype in (torch.float32, torch.float64) else 2e-2
    for name in points:
        if name not in values:
            raise HookError(f"{name} did not fire in a forward pass")
        if name.endswith("pattern"):
            _check_pattern(name, values[name], tolerance)
    values = {name: values[name] for name in points}  # in their order: it numbers the rows
    _check_write_back(model, points, tokens, values, tolerance)
    _check_writes(model, points, tokens, values, tolerance)


def _points(model: TransformerBridge) -> Points:
    """Hooks to check. A hybrid model's layer may lack attention, never a residual stream."""
    last, known = model.cfg.n_layers - 1, model.hook_dict
    wanted = [f"blocks.{layer}.{site}" for layer in sorted({0, last // 2, last}) for site in SITES]
    for name in wanted:
        if name.endswith(SITES[0]) and name not in known:
            raise HookError(f"{name} is missing: TransformerLens does not bridge this architecture")
    return {name: known[name] for name in wanted if name in known}


def _keep(values: Values, name: str) -> Hook:
    return lambda activation: values.update({name: activation.clone()})


def _tokens(model: TransformerBridge) -> Int[Tensor, "1 pos"]:
    """Three different tokens spread over the vocabulary, none of them special."""
    special = set(model.tokenizer.all_special_ids)
    known = min(len(model.tokenizer), model.cfg.d_vocab)
    plain = [token for token in range(known) if token not in special]
    if not plain:
        raise HookError("the tokenizer has no token that is not special; pass another tokenizer")
    spread = [plain[i * (len(plain) - 1) // 4] for i in (1, 2, 3)]
    return torch.tensor([spread], device=model.cfg.device)


def _check_pattern(
    name: str, pattern: Float[Tensor, "batch head query key"], tolerance: float
) -> None:
    sums = pattern.float().sum(-1)
    worst = sums.flatten()[(sums - 1).abs().nan_to_num(torch.inf).argmax()].item()
    if not abs(worst - 1) <= tolerance:
        raise HookError(f"{name} is no attention pattern: a row sums to {worst:.4g}, not to one")


def _check_write_back(
    model: TransformerBridge,
    points: Points,
    tokens: Int[Tensor, "1 pos"],
    values: Values,
    tolerance: float,
) -> None:
    logits = model(tokens)[0]  # a run of its own: in the first one, hooks were at work

    def change(written: Values) -> float:
        return max(_distance(row, logits) for row in _write(model, points, tokens, written))

    if change(values) <= tolerance:
        return
    for name, value in values.items():  # a bad hook can disturb other rows than its own
        if (distance := change({name: value})) > tolerance:
            raise HookError(
                f"{name}: writing back the value it gave changes the logits, "
                f"by {distance:.2g} of their largest"
            )
    raise HookError(
        f"writing back {', '.join(values)} together changes the logits, none alone does"
    )


def _check_writes(
    model: TransformerBridge,
    points: Points,
    tokens: Int[Tensor, "1 pos"],
    values: Values,
    tolerance: float,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def disturb(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator).to(value)
        return value + (value.std().nan_to_num(0.0) or 1.0) * noise

    after = _write(model, points, tokens, {name: disturb(value) for name, value in values.items()})
    for row, name in enumerate(values, start=1):
        if not _distance(after[row], after[0]) > tolerance / 100:
            raise HookError(f"{name}: what is written there is ignored, the logits stay the same")


def _write(
    model: TransformerBridge, points: Points, tokens: Int[Tensor, "1 pos"], values: Values
) -> Float[Tensor, "row pos vocab"]:
    """Logits with one value written a row, from row 1 on; row 0 is left alone."""

    def write(row: int, value: Tensor) -> Hook:
        def hook_function(activation: Tensor) -> Tensor:
            activation = activation.clone()
            activation[row] = value[0]
            return activation

        return hook_function

    hooks = {name: write(row, value) for row, (name, value) in enumerate(values.items(), start=1)}
    return _run(model, points, tokens.expand(len(values) + 1, -1), hooks)


def _run(
    model: TransformerBridge,
    points: Points,
    tokens: Int[Tensor, "row pos"],
    hooks: Mapping[str, Hook],
) -> Float[Tensor, "row pos vocab"]:
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(hooked(points[name], hook))
        return model(tokens)


def _distance(logits: Tensor, reference: Tensor) -> float:
    """Largest difference, as a part of the largest logit; infinite where either is not finite."""
    difference = (logits - reference).abs().max() / reference.abs().max()
    return difference.float().nan_to_num(torch.inf).item()

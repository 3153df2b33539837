"""One forward pass of a model with what its senders wrote, and the gradients at its receivers."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from ..models.hooks import hooked
from ..models.sites import hook_name
from .senders import SITES, mlp_norm


@dataclass(eq=False)
class Pass:
    """One forward pass, and the gradients at every receiver if a metric is given.

    `activation` gives what senders wrote; `gradients` has (site, layer) for the sites q, k, v,
    "mlp" (behind its norm) and "out" (the last stream).
    """

    model: TransformerBridge
    tokens: Int[Tensor, "prompt pos"]
    entering: Float[Tensor, "prompt pos d_model"] | None = None  # in place of the embeddings

    def __post_init__(self) -> None:
        self.values: dict[tuple[str, int], Tensor] = {}
        self.gradients: dict[tuple[str, int], Tensor] = {}
        self.logits: Tensor = torch.empty(0)

    def activation(self, site: str, layer: int) -> Tensor:
        if site == "resid_post":
            return self.values["out", layer]
        return self.values[site, layer]

    def run(self, metric: Callable[[Tensor], Tensor] | None = None) -> "Pass":
        """The pass itself; with a metric (a function of logits [row, prompt, vocab]) and back."""
        model, last = self.model, self.model.cfg.n_layers - 1
        taped: dict[tuple[str, int], Tensor] = {}
        with torch.set_grad_enabled(metric is not None), ExitStack() as stack:
            for layer, block in enumerate(model.blocks):
                hooks = [
                    block.register_forward_pre_hook(self._enter(layer), with_kwargs=True),
                    mlp_norm(block).register_forward_pre_hook(self._keep("resid_mid", layer)),
                    block.mlp.register_forward_pre_hook(self._split(layer, taped)),
                ]
                for hook in hooks:
                    stack.callback(hook.remove)
            end = model.blocks[-1].register_forward_hook(self._leave(last, taped))
            unembed = model.unembed.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
            stack.callback(end.remove)
            stack.callback(unembed.remove)
            for point, keep in self._hooks(taped):
                stack.enter_context(hooked(point, keep))
            logits = model(self.tokens)[:, -1]
            if metric is not None:
                score = metric(logits[None]).sum()
                if not score.requires_grad:
                    raise ValueError("this metric has no gradient; take one that is smooth")
                found = torch.autograd.grad(score, list(taped.values()))
                self.gradients = dict(zip(taped, found, strict=True))
        self.logits = logits.detach()
        return self

    def _hooks(self, taped: dict[tuple[str, int], Tensor]) -> list[tuple[HookPoint, Callable]]:
        def keep(site: str, layer: int) -> Callable[[Tensor], Tensor]:
            def hook(value: Tensor) -> Tensor:
                if site in ("z", "mlp_out"):
                    self.values[site, layer] = value.detach()
                else:
                    taped[site, layer] = value
                return value  # returned, so that the kept tensor is the one that is used

            return hook

        points = self.model.hook_dict
        return [
            (points[hook_name(site, layer)], keep(site, layer))
            for layer in range(self.model.cfg.n_layers)
            for site in SITES
        ]

    def _enter(self, layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            stream = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                stream = stream if self.entering is None else self.entering
                stream = stream.detach().requires_grad_(torch.is_grad_enabled())
            self.values["resid_pre", layer] = stream.detach()
            if layer:
                return None
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        return hook

    def _keep(self, site: str, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple) -> None:
            self.values[site, layer] = args[0].detach()

        return hook

    @staticmethod
    def _split(layer: int, taped: dict[tuple[str, int], Tensor]) -> Callable[..., tuple]:
        def hook(module: Any, args: tuple) -> tuple:
            taped["mlp", layer] = own = args[0].clone()  # attention may read the same tensor
            return (own, *args[1:])

        return hook

    def _leave(self, layer: int, taped: dict[tuple[str, int], Tensor]) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            taped["out", layer] = value
            self.values["out", layer] = value.detach()

        return hook

"""Do the hooks of a loaded model mean what they say?

A patch that silently does nothing looks like a result. So each model is asked, on three tokens,
at its first, middle and last layer:
1. does every hook fire, and do attention patterns sum to one;
2. does writing a cached activation back leave the logits as they are;
3. does writing something else change them;
4. with that written, does what the parts give still add up: resid_pre + attn_out + mlp_out =
   resid_post. So an edit of a part is an edit of the stream, by as much. Where a norm stands behind
   attention or the MLP (Gemma 2, OLMo 2), `attn_out` and `mlp_out` are what it returns.
The changes run as rows of one batch, one hook a row, so that none covers up for another.

The residual stream has to pass. Any other site that fails is missing in this model, with the reason
(`model.missing_sites`), and only rows that use it are refused.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from .agreement import PARTS, HookError, distance, rounding, spread_tokens
from .hooks import SITES, hook_name, hooked, kept

STREAM = ("resid_pre", "resid_post")

Spot = tuple[str, int]  # site and layer
Values = dict[Spot, Tensor]  # one prompt each


@torch.no_grad()
def missing_sites(model: TransformerBridge) -> dict[str, str]:
    """The sites that this model does not offer, each with the reason, by the four checks above.

    Raises:
        HookError: the residual stream itself cannot be read and written; names the hook.
    """
    return _Check(model).run()


class _Check:
    def __init__(self, model: TransformerBridge) -> None:
        last = model.cfg.n_layers - 1
        self.model, self.missing = model, dict[str, str]()
        self.layers = sorted({0, last // 2, last})
        self.tokens = spread_tokens(model.tokenizer, model.cfg.d_vocab, 3).to(model.cfg.device)
        self.tolerance = rounding(model.cfg.dtype)
        self.points: dict[Spot, HookPoint] = {}

    def run(self) -> dict[str, str]:
        self._find()
        values = self._read()
        self._write_back(values)
        self._disturb(values)
        if "resid_mid" not in self.missing and "attn_out" in self.missing:
            self.missing["resid_mid"] = self.missing["attn_out"]  # it is read and written by it
        return self.missing

    def _find(self) -> None:
        """The hook points; a hybrid model's layer may lack some."""
        known = self.model.hook_dict
        for site in SITES:
            names = {layer: hook_name(site, layer) for layer in self.layers}
            found = {layer: known[name] for layer, name in names.items() if name in known}
            if len(found) == 0 or (site in STREAM and len(found) < len(names)):
                parallel = site == "resid_mid"
                why = ", since attention and MLP run in parallel" if parallel else ""
                self._fail((site, 0), f"is missing in {self.model.cfg.architecture}{why}")
            elif site != "resid_mid":
                self.points |= {(site, layer): point for layer, point in found.items()}

    def _fail(self, spot: Spot, why: str) -> None:
        """The site of this hook cannot be used; without the stream, nothing can."""
        why = f"{hook_name(*spot)} {why}"
        if spot[0] in STREAM:
            raise HookError(why)
        self.missing.setdefault(spot[0], why)
        self.points = {s: point for s, point in self.points.items() if s[0] != spot[0]}

    def _read(self) -> Values:
        with kept(self.points) as values:
            self.model(self.tokens)
        for spot in list(self.points):
            if spot not in values:
                self._fail(spot, "did not fire in a forward pass")
            elif spot[0] == "pattern":
                sums = values[spot].float().sum(-1).flatten()
                worst = sums[(sums - 1).abs().nan_to_num(torch.inf).argmax()].item()
                if not abs(worst - 1) <= self.tolerance:
                    self._fail(spot, f"is no attention pattern: a row sums to {worst:.4g}, not 1")
        return values

    def _write_back(self, values: Values) -> None:
        logits = self.model(self.tokens)[0]  # a run of its own: in the first, hooks were at work

        def change(spots: Sequence[Spot]) -> float:
            written = {spot: values[spot] for spot in spots}
            return max(distance(row, logits) for row in self._write(written)[0])

        while change(list(self.points)) > self.tolerance:
            # One by one, since a bad hook can disturb other rows than its own.
            effects = {spot: change([spot]) for spot in self.points}
            spot = max(effects, key=lambda s: effects[s])
            if not effects[spot] > self.tolerance:
                raise HookError("writing several activations back changes the logits, none alone")
            by = f"by {effects[spot]:.2g} of their largest"
            self._fail(spot, f"gives a value that, written back, changes the logits, {by}")

    def _disturb(self, values: Values) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = list(self.points)

        def noisy(value: Tensor) -> Tensor:
            noise = torch.randn(value.shape, generator=generator).to(value)
            return value + (3 * value.std().nan_to_num(0.0) or 1.0) * noise

        logits, parts = self._write({spot: noisy(values[spot]) for spot in rows})
        for row, spot in enumerate(rows, start=1):
            changed = distance(logits[row], logits[0]) > self.tolerance / 100
            if not (changed or _inert(spot, values)):
                self._fail(spot, "ignores what is written there: the logits stay the same")
        for layer in self.layers:
            if not all((site, layer) in self.points for site in PARTS):
                continue
            gap = parts["resid_post", layer] - sum(parts[site, layer] for site in PARTS[:3])
            scale = parts["resid_post", layer].abs().flatten(1).amax(1)
            for row, off in enumerate((gap.abs().flatten(1).amax(1) / scale).tolist()):
                at = rows[row - 1] if row else ("", -1)
                if at != ("resid_post", layer) and not off <= self.tolerance:
                    site = at[0] if at[0] in PARTS[1:3] and at[1] == layer else "attn_out"
                    why = f"does not add up: resid_pre + attn_out + mlp_out is off by {off:.2g}"
                    self._fail((site, layer), f"{why} of resid_post")

    def _write(self, values: Values) -> tuple[Float[Tensor, "row pos vocab"], Values]:
        """Logits with one value written a row, from row 1 on, and what the parts of the stream then
        are; row 0 is left alone."""

        def write(row: int, value: Tensor, activation: Tensor) -> Tensor:
            activation = activation.clone()
            activation[row] = value[0]
            return activation

        writes = [
            (self.points[spot], partial(write, row, value))
            for row, (spot, value) in enumerate(values.items(), start=1)
        ]
        parts = {spot: point for spot, point in self.points.items() if spot[0] in PARTS}
        with hooked(*writes), kept(parts) as found:
            return self.model(self.tokens.expand(len(values) + 1, -1)), found


def _inert(spot: Spot, values: Values) -> bool:
    """Whether nothing written here can matter: queries on keys that are all zero, and keys under
    such queries (a model of uniform attention)."""
    other = values.get(({"q": "k", "k": "q"}.get(spot[0], ""), spot[1]))
    return other is not None and not other.any()

"""The directions that a sparse autoencoder gives, and the controls that they are compared with.

An SAE that rebuilds x as x_SAE makes an error e = x_SAE - x. Writing x_SAE changes the output more
than a random step of length ‖e‖ does (Gurnee 2024, SAE reconstruction errors are (empirically)
pathological). How much more depends on what "random" means, which is why every baseline of
`directions` comes at length ‖e‖ too (Lee & Heimersheim 2024, arXiv 2410.12555).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..engine.stream import Autoencoder
from .baselines import MIXTURE, generator, unit
from .spots import Spot


@torch.no_grad()
def points(
    where: Spot, sae: Autoencoder, seed: int = 0, baselines: Iterable[str] = tuple(MIXTURE)
) -> dict[str, Tensor]:
    """Where an SAE puts x, and the controls that are as far from x, or at the same angle.

    With e = x_SAE - x: `SAE` is x_SAE; `ε isotropic`, `ε covariance`, … go ‖e‖ along `baselines`,
    any of `directions.BASELINES`; `θ isotropic` has the cosine with x and the length of x_SAE and
    is random otherwise; `length only` is x with the length of x_SAE; `SAE, length of x` is x_SAE
    with x's.
    """
    x = where.x
    close = sae.decode(sae.encode(x)).to(x)
    error = (close - x).norm(dim=-1, keepdim=True)
    size, length = x.norm(dim=-1, keepdim=True), close.norm(dim=-1, keepdim=True)
    cosine = torch.cosine_similarity(x, close, dim=-1)[..., None]
    aside = torch.randn(x.shape, generator=generator(seed, "aside")).to(x)
    aside = unit(aside - (aside * unit(x)).sum(-1, keepdim=True) * unit(x))
    turned = cosine * unit(x) + (1 - cosine**2).clamp(min=0).sqrt() * aside
    matched = {f"ε {name}": x + error * where.baseline(name, seed) for name in baselines}
    return {
        "SAE": close,
        **matched,
        "θ isotropic": turned * length,
        "length only": x * length / size,
        "SAE, length of x": close * size / length,
    }


@torch.no_grad()
def feature_directions(where: Spot, sae: Autoencoder, seed: int = 0) -> dict[str, Tensor]:
    """Unit decoder rows, a feature drawn at random for each token, from three sets.

    `active`: on somewhere in the prompt. `alive`: on in another prompt of the run, not in this one.
    `dead`: on in none. Position 0 and tokens of extreme norm are left out, as is a set that is
    empty for some prompt.
    """
    pairs = zip(where.stream, where.kept, strict=True)
    active = torch.stack([(sae.encode(x[kept]) > 0).any(0) for x, kept in pairs])
    ever = active.any(0).expand_as(active)
    found = {}
    for name, members in {"active": active, "alive": ever & ~active, "dead": ~ever}.items():
        if members.any(1).all():
            odds, drawn = members.double().cpu(), generator(seed, name)
            chosen = torch.multinomial(odds, len(where.pos), replacement=True, generator=drawn)
            found[name] = unit(sae.W_dec.detach()[chosen.to(where.x.device)]).to(where.x)
    return found


@torch.no_grad()
def error(where: Spot, sae: Autoencoder) -> Float[Tensor, "prompt k d"]:
    """u(x_SAE - x): the SAE's error, to be followed to any length."""
    return unit(sae.decode(sae.encode(where.x)).to(where.x) - where.x)

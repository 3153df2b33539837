"""The places where a model can be read and edited, and their hook points."""

from transformer_lens.model_bridge import TransformerBridge

from ..errors import explained

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEAD_SITES = ("q", "k", "v", "z", "pattern")
SITES = RESIDUAL_SITES + HEAD_SITES


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens name of a site's hook. Raises ValueError for an unknown site."""
    if site not in SITES:
        message = f"unknown site {site!r}: choose one of {', '.join(SITES)}"
        raise ValueError(explained("MI-E03", message))
    return f"blocks.{layer}.{'attn.' if site in HEAD_SITES else ''}hook_{site}"


def n_heads(model: TransformerBridge, site: str) -> int:
    """Heads at a site: keys and values of grouped-query models have `n_key_value_heads`."""
    grouped = getattr(model.cfg, "n_key_value_heads", None) if site in ("k", "v") else None
    return int(grouped or model.cfg.n_heads)

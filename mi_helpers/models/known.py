"""Which published model is this? Told by its weights: a copy under another name counts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line answers before these are loaded
    from transformer_lens.model_bridge import TransformerBridge

GPT2_SHAPE = (12, 12, 768, 50257)
# First and last three numbers of some rows of GPT-2's embeddings, to their fourth decimal.
GPT2_TOKENS = {
    0: (-0.1101, -0.0393, 0.0331, -0.1364, 0.0151, 0.0453),
    1: (0.0403, -0.0486, 0.0462, 0.0861, 0.0025, 0.0432),
    50256: (0.0514, -0.0277, 0.0499, 0.0070, 0.1552, 0.1207),
}
GPT2_POSITIONS = {
    0: (-0.0188, -0.1974, 0.0040, -0.0430, 0.0283, 0.0545),
    1: (0.0240, -0.0538, -0.0949, 0.0342, 0.0102, -0.0002),
}


def is_gpt2(model: "TransformerBridge") -> bool:
    """Whether this is the published GPT-2 small (Radford et al. 2019), from wherever it was loaded.

    Its architecture and shape, and 30 numbers of its two embeddings, to four decimals or to what
    half precision leaves of them. Another training run, a random model and one fine-tuned in all
    its weights differ.
    """
    import torch

    cfg = model.cfg
    shape = (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_vocab)
    if cfg.architecture != "GPT2LMHeadModel" or shape != GPT2_SHAPE:
        return False
    rows = [(model.W_E, GPT2_TOKENS), (model.W_pos, GPT2_POSITIONS)]
    found = torch.stack([weight[n] for weight, known in rows for n in known]).float().cpu()
    expected = torch.tensor([known[n] for _, known in rows for n in known])
    ends = torch.cat([found[:, :3], found[:, -3:]], dim=1)
    rounded = 6e-5 + torch.finfo(model.cfg.dtype).eps * expected.abs()
    return bool(((ends - expected).abs() <= rounded).all())

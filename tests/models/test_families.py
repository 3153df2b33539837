"""Every family that the README names, loaded in both ways and swept, against Hugging Face itself.

The reference never meets a bridge: a plain Hugging Face model with plain torch hooks on its layers
and in front of the projection of attention's output.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from mi_helpers import engine
from mi_helpers.models import load_model
from mi_helpers.models.hooks import SITES
from tests import tiny

TOLERANCE = 2e-5
MISSING = {
    "pattern": ("gpt_neo", "gptj", "opt", "gpt_oss"),
    "resid_mid": ("gpt_neox", "phi", "gptj", "falcon", "falcon-alibi", "codegen"),
}
NAMES = {  # as the README calls them
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo (TinyStories)",
    "gptj": "GPT-J",
    "opt": "OPT",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "bloom": "BLOOM",
    "falcon": "Falcon",
    "phi": "Phi",
    "llama": "Llama (SmolLM2)",
    "smollm3": "SmolLM3",
    "mistral": "Mistral",
    "phi3": "Phi-3",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "glm4": "GLM-4",
    "granite": "Granite",
    "olmo": "OLMo",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder2",
    "gpt_oss": "gpt-oss",
    "mpt": "MPT",
    "codegen": "CodeGen",
    "gpt_bigcode": "GPT-BigCode (StarCoder)",
    "falcon-alibi": "Falcon",
}
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
LAYERS, HEADS = (1, 3), 4
LENGTH = 70  # beyond the window of eight, and beyond 64; read at its end and inside the window


@cache
def plain_model(family: str) -> PreTrainedModel:
    return tiny.hf_model(family)


@cache
def in_memory(family: str) -> TransformerBridge:
    """From a copy of the model as `from_config` leaves it: no architecture named, no eager."""
    model = copy.deepcopy(plain_model(family))
    model.config.architectures = None
    return tiny.load(model)


def prompts(length: int) -> tuple[Tensor, Tensor]:
    """Three prompts, and others that first differ at positions 3, 5 and 3."""
    generator = torch.Generator().manual_seed(length)
    clean = torch.randint(3, tiny.D_VOCAB, (3, length), generator=generator)
    other = clean.clone()
    other[0, 3], other[1, 5], other[2, 3:8] = 4, 5, 6
    return clean, other


def blocks_of(model: PreTrainedModel) -> list[Any]:
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return list(next(found for found in lists if len(found) == 4))


def output_projection(block: nn.Module) -> nn.Module:
    """The linear map that attention's heads go through, by its name within attention."""
    names = ("o_proj", "out_proj", "dense", "c_proj")
    return next(
        module
        for name, module in block.named_modules()
        if "att" in name and name.rpartition(".")[2] in names
    )


def point(model: PreTrainedModel, site: str, layer: int) -> nn.Module:
    block = blocks_of(model)[layer]
    return block if site == "resid_pre" else output_projection(block)


@torch.no_grad()
def plainly(
    model: PreTrainedModel,
    tokens: Tensor,
    edits: Sequence[tuple] = (),
    keep: Sequence[tuple] = (),
) -> tuple[Tensor, dict[tuple, Tensor]]:
    """Logits of one forward with `(site, layer, positions, columns, new)` written, and what was
    found at the spots `(site, layer)` of `keep`."""
    found: dict[tuple, Tensor] = {}

    def read(spot: tuple) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            found[spot] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    def write(pos: Any, columns: slice, new: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
            value = (args[0] if args else kwargs["hidden_states"]).clone()
            value[:, pos, columns] = new[:, pos, columns]
            return (
                ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})
            )

        return hook

    with ExitStack() as stack:
        for spot in keep:
            handle = point(model, *spot).register_forward_pre_hook(read(spot), with_kwargs=True)
            stack.callback(handle.remove)
        for site, layer, pos, columns, new in edits:
            hook = write(pos, columns, new)
            handle = point(model, site, layer).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        return model(tokens, use_cache=False).logits, found


def row(site: str, layer: int, pos: Any, head: int | None, write: object) -> dict[str, Any]:
    return {"site": site, "layer": layer, "pos": pos, "head": head, "write": write}


def unknown(run: engine.Run) -> engine.rows.Write:
    """As `patch`, but the engine cannot know that it changes nothing."""
    return engine.rows.Write("unknown", lambda current, place: place.of(run))


def swept(base: engine.Run, rows: list[dict[str, Any]], pos: Any = -1) -> Tensor:
    metric = {"sum": engine.Metric(lambda logits: logits.flatten(2).sum(-1), pos=pos)}
    table = pd.DataFrame(rows).astype(object)
    return engine.run(base, table, metric, return_tensors=True)[1]["sum"]


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_sweeps_equal_plain_hugging_face_hooks(family: str) -> None:
    model, bridge = plain_model(family), in_memory(family)
    clean, corrupted = prompts(LENGTH)
    spots = list(itertools.product(("resid_pre", "z"), LAYERS))
    _, other = plainly(model, corrupted, keep=spots)
    base = engine.record(bridge, clean)
    write = engine.patch(engine.record(bridge, corrupted, sites=["z"]))
    rows, expected = [], []
    for (site, layer), pos in itertools.product(spots, ([4], [3, LENGTH - 1], None)):
        for head in (None, 1) if site == "z" else (None,):
            d_head = other["z", layer].shape[-1] // HEADS
            columns = slice(None) if head is None else slice(head * d_head, (head + 1) * d_head)
            at = slice(None) if pos is None else pos
            rows.append(row(site, layer, pos, head, write))
            edit = (site, layer, at, columns, other[site, layer])
            expected.append(plainly(model, clean, [edit])[0][:, [-1, 6]])
    found = swept(base, rows, pos=[-1, 6])
    assert (found - torch.stack(expected)).abs().max() < TOLERANCE
    assert (found[0] - found[-1]).abs().max() > 1e-3  # the patches do something


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@torch.no_grad()
def test_it_loads_from_memory_and_from_a_directory(family: str, tmp_path: Path) -> None:
    model, bridge = plain_model(family), in_memory(family)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    saved, (tokens, _) = load_model(tmp_path), prompts(20)
    expected = model(tokens).logits
    for loaded in (bridge, saved):
        torch.testing.assert_close(loaded(tokens), expected, rtol=1e-4, atol=1e-5)
        assert set(loaded.missing_sites) == {s for s, who in MISSING.items() if family in who}
        assert loaded.sites == tuple(s for s in SITES if s not in loaded.missing_sites)
        assert max(loaded.agreement.resid, loaded.agreement.parts) < 1e-5
    config: Any = bridge.original_model.config
    assert config.architectures is None
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_every_site_writes_the_other_run_whole(family: str) -> None:
    """Streams, or all parts at once, written everywhere give the other run: no site is left out,
    shifted or applied twice; and a site's own values change nothing."""
    bridge, (clean, corrupted) = in_memory(family), prompts(12)
    sites = [site for site in bridge.sites if site != "resid_mid"]
    base = engine.record(bridge, clean, sites=sites)
    other = engine.record(bridge, corrupted, sites=sites)
    copies = {"own": base, "other": other}
    same = {key: unknown(run) for key, run in copies.items()}
    parts = [("resid_pre", 0), *itertools.product(("attn_out", "mlp_out"), range(4))]
    heads = [(site, layer) for site in ("q", "k", "v") for layer in range(4)]
    rows = [{"row": "own", **row(s, n, None, None, same["own"])} for s in sites for n in range(4)]
    for name, spots in {"parts": parts, "heads": [("resid_pre", 0), *heads]}.items():
        rows += [{"row": name, **row(s, n, None, None, same["other"])} for s, n in spots]
    found = swept(base, rows)[:, :, 0]
    assert (found[0] - base.logits()).abs().max() < TOLERANCE
    assert (found[1:] - other.logits()).abs().max() < TOLERANCE
    assert (base.logits() - other.logits()).abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@torch.no_grad()
def test_a_prompt_alone_is_the_prompt_in_a_batch_padded_or_not(family: str) -> None:
    bridge, (clean, _) = in_memory(family), prompts(12)
    alone = engine.record(bridge, clean[:1]).logits()[0]
    assert (engine.record(bridge, clean[:2]).logits()[0] - alone).abs().max() < TOLERANCE
    for left, right in ((0, 4), (3, 1), (1, 3)):
        padding = torch.full((1, left), 2), torch.full((1, right), 2)
        padded = torch.cat([padding[0], clean[:1], padding[1]], dim=1)
        both = torch.cat([padded, prompts(16)[0][:1]])
        mask = torch.ones_like(both)
        mask[0, :left], mask[0, 16 - right :] = 0, 0
        run = engine.record(bridge, both, mask)
        assert (run.logits(left + 11)[0] - alone).abs().max() < TOLERANCE, (left, right)


@pytest.mark.parametrize("family", EXPERTS)
def test_an_unedited_row_of_a_mixture_of_experts_does_not_move(family: str) -> None:
    bridge, (clean, corrupted) = in_memory(family), prompts(12)
    base = engine.record(bridge, clean, sites=["mlp_out"])
    other = engine.record(bridge, corrupted, sites=["mlp_out"])
    edits = [row("mlp_out", layer, 3, None, engine.patch(other)) for layer in range(4)]
    rows = [*edits, row("mlp_out", 1, None, None, unknown(base))]
    found = swept(base, rows)
    assert (found[-1, :, 0] - base.logits()).abs().max() < TOLERANCE
    assert (
        swept(base, edits[1:2])[0] - found[1]
    ).abs().max() < TOLERANCE  # alone, or beside others
    logits = base.logits()

    def first_row_alone(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[0] += 1
        return value

    with bridge.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", first_row_alone)]):
        edited = bridge(clean)[:, -1]
    assert (edited[1:] - logits[1:]).abs().max() < TOLERANCE
    assert (edited[0] - logits[0]).abs().max() > 1e-3


def test_the_readme_names_the_families_that_are_tested() -> None:
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    named = text.partition("one forward pass per row, within 2e-5 on ")[2]
    named = named.partition(", which the tests check")[0].replace(" and ", ", ")
    assert set(named.split(", ")) == set(NAMES.values())
    assert set(NAMES) == set(tiny.ALL_FAMILIES)


@pytest.fixture(autouse=True, scope="module")
def _free_the_models() -> Iterator[None]:
    yield
    plain_model.cache_clear()
    in_memory.cache_clear()


def test_only_rows_that_use_a_missing_site_are_refused() -> None:
    bridge, (clean, corrupted) = in_memory("gpt_neo"), prompts(12)
    base = engine.record(bridge, clean)
    write = engine.patch(engine.record(bridge, corrupted))
    good = row("resid_pre", 1, 4, None, write)
    assert len(swept(base, [good])) == 1
    with pytest.raises(ValueError, match=r"row 1 .*pattern cannot be used here: .*ignores what is"):
        swept(base, [good, row("pattern", 1, 4, 0, write)])
    with pytest.raises(ValueError, match=r"resid_mid cannot be used here: .*in parallel\. Use one"):
        engine.record(in_memory("gptj"), clean, sites=["resid_mid"])

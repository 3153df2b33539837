"""The engine against one plain hooked forward per row, on ten families, and its identities."""

import itertools
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformer_lens.hook_points import HookPoint

from mi_helpers import engine
from mi_helpers.engine.rows import Write
from mi_helpers.models.hooks import HEAD_SITES, SITES, n_heads
from tests import tiny

N_POS, N_PROMPTS, N_LAYERS = 12, 3, 4
TOLERANCE = 1e-5
PARALLEL = ("gpt_neox", "phi")


def sites_of(family):
    return [site for site in SITES if site != "resid_mid" or family not in PARALLEL]


def prompts(seed=0):
    """Two batches of prompts; they first differ at position 3, the second prompt only at 5."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, tiny.D_VOCAB, (N_PROMPTS, N_POS), generator=generator)
    other = clean.clone()
    other[0, 3], other[1, 5], other[2, 3:8] = 4, 5, 6
    return clean, other


def slow(model, tokens, edits, mask=None):
    """One plain forward in which each hook overwrites its place: the reference.

    `edits` are (site, layer, positions, head, new) with `new` a function of the current value,
    [prompt, k, d] or [prompt, k, head, d]; patterns come as [prompt, query, head, key].
    """

    def hook_for(site, positions, head, new, entering):
        def hook(value, hook):
            value = value.clone()
            view = value.transpose(1, 2) if site == "pattern" else value
            heads = () if head is None else (head,)
            index = (slice(None), positions, *heads)
            if site == "resid_mid":  # written through attn_out, so that the whole stream changes
                middle = view[index] + entering["value"][index]
                view[index] = new(middle) - entering["value"][index]
            else:
                view[index] = new(view[index])
            return value

        return hook

    hooks = []
    for site, layer, positions, head, new in edits:
        entering: dict[str, torch.Tensor] = {}
        name = f"blocks.{layer}.{'attn.' if site in HEAD_SITES else ''}hook_{site}"
        if site == "resid_mid":
            name = f"blocks.{layer}.hook_attn_out"
            keep = lambda value, hook, entering=entering: entering.update(value=value)  # noqa: E731
            hooks.append((f"blocks.{layer}.hook_resid_pre", keep))
        hooks.append((name, hook_for(site, positions, head, new, entering)))
    kwargs = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks, **kwargs)


def table(rows):
    return pd.DataFrame(rows).astype(object)


def run(base, rows, pos=-1, **kwargs):
    """Logits [row, prompt, k, vocab] by the engine."""
    metric = engine.Metric(lambda logits: logits.flatten(2).sum(-1), pos=pos)
    return engine.run(base, table(rows), {"sum": metric}, return_tensors=True, **kwargs)[1]["sum"]


def patched(model, base_tokens, other, row, mask=None):
    """The reference for one patch row."""
    site, layer, head = row["site"], row["layer"], row["head"]
    positions = list(range(N_POS)) if row["pos"] is None else row["pos"]
    positions = [positions] if isinstance(positions, int) else positions
    source = other.activation(site, layer)
    source = source if head is None else source[:, :, head]
    edit = (site, layer, positions, head, lambda current: source[:, positions])
    return slow(model, base_tokens, [edit], mask)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patches_equal_plain_hooked_forwards(family):
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    other = engine.record(model, corrupted, sites=sites_of(family))
    rows = [
        {"site": site, "layer": layer, "pos": pos, "head": head, "write": engine.patch(other)}
        for site, layer, pos in itertools.product(
            sites_of(family), (0, 1, N_LAYERS - 1), (1, 3, N_POS - 1, [4, 7], None)
        )
        for head in ((None, 1) if site in HEAD_SITES else (None,))
    ]
    fast = run(engine.record(model, clean), rows, pos=[-1, 6])
    worst = 0.0
    for row, found in zip(rows, fast, strict=True):
        expected = patched(model, clean, other, row)[:, [-1, 6]]
        worst = max(worst, (found - expected).abs().max().item())
    assert worst < TOLERANCE
    assert (fast[0] - fast[-1]).abs().max() > 1e-3  # the patches do something


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(family, side):
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    mask = torch.ones_like(clean)
    mask[1, slice(0, 2) if side == "left" else slice(10, 12)] = 0
    last = torch.tensor([N_POS - 1, N_POS - 1 if side == "left" else 9, N_POS - 1])
    sites = ["resid_pre", "attn_out", "z", "k"]
    base = engine.record(model, clean, mask)
    other = engine.record(model, corrupted, mask, sites=sites)
    rows = [
        {"site": site, "layer": layer, "pos": pos, "head": None, "write": engine.patch(other)}
        for site, layer, pos in itertools.product(sites, (0, 2), (3, 5, None))
    ]
    fast = run(base, rows, pos=last)
    for row, found in zip(rows, fast, strict=True):
        expected = patched(model, clean, other, row, mask)[torch.arange(N_PROMPTS), last]
        assert (found[:, 0] - expected).abs().max() < TOLERANCE


WRITES = {
    "zero": lambda base, other: (engine.zero(), lambda value, x: torch.zeros_like(value)),
    "add": lambda base, other: (
        engine.add(torch.arange(32.0)),
        lambda v, x: v + torch.arange(32.0),
    ),
    "replace": lambda base, other: (
        engine.replace(torch.arange(96.0).reshape(3, 32)),
        lambda v, x: torch.arange(96.0).reshape(3, 1, 32).expand_as(v),
    ),
    "interpolate": lambda base, other: (
        engine.interpolate(base, other, 0.3),
        lambda v, x: 0.7 * x(base) + 0.3 * x(other),
    ),
    "mean": lambda base, other: (engine.mean(other), lambda v, x: x(other).mean(0).expand_as(v)),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "resid_post"])
def test_writes(name, site):
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base = engine.record(model, clean, sites=[site])
    other = engine.record(model, corrupted, sites=[site])
    write, new = WRITES[name](base, other)
    fast = run(base, [{"site": site, "layer": 1, "pos": [4, 8], "write": write}])
    x = lambda source: source.activation(site, 1)[:, [4, 8]]  # noqa: E731
    expected = slow(model, clean, [(site, 1, [4, 8], None, lambda value: new(value, x))])
    assert (fast[0, :, 0] - expected[:, -1]).abs().max() < 1e-4 * expected.abs().max()


def test_a_mean_leaves_out_padding():
    model, (clean, _) = tiny.bridge("llama"), prompts()
    mask = torch.ones_like(clean)
    mask[0, :3] = 0
    base = engine.record(model, clean, mask, sites=["mlp_out"])
    expected = base.activation("mlp_out", 2)[1:, 2].mean(0)  # prompt 0 has padding there
    rows = [
        {"site": "mlp_out", "layer": 2, "pos": 2, "write": engine.mean(base)},
        {"site": "mlp_out", "layer": 2, "pos": 2, "write": engine.replace(expected)},
    ]
    first, second = run(base, rows)
    assert torch.allclose(first, second, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_many_vectors_on_one_prompt(family):
    """512 directions at the last token: one packed pass, equal to plain forwards."""
    model, (clean, _) = tiny.bridge(family), prompts()
    base = engine.record(model, clean[:1])
    vectors = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    rows = [
        {"site": "resid_pre", "layer": 1, "pos": -1, "write": engine.add(vector)}
        for vector in vectors
    ]
    fast = run(base, rows)
    for number in (0, 1, 255, 511):
        edit = ("resid_pre", 1, [N_POS - 1], None, lambda v, n=number: v + vectors[n])
        expected = slow(model, clean[:1], [edit])[:, -1]
        assert (fast[number, :, 0] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_chosen_tokens_have_the_logits_that_all_have(family):
    base, tokens = engine.record(tiny.bridge(family), prompts()[0]), torch.tensor([3, 90, 17])
    every = engine.unembed(base.model, base.resid[-1])
    torch.testing.assert_close(every[:, -1], base.logits())
    found = engine.unembed(base.model, base.resid[-1], tokens)
    torch.testing.assert_close(found, every[..., tokens], atol=1e-5, rtol=1e-5)


def test_no_block_runs_after_the_last_one_that_is_read():
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    rows = [{"site": "resid_pre", "layer": 0, "pos": 4, "write": engine.patch(other)}]
    metric = engine.Metric(lambda x: x.norm(dim=-1), site="resid_post", layer=1)
    ran = []
    see = [(f"blocks.{n}.hook_resid_pre", lambda *_, n=n, **__: ran.append(n)) for n in range(4)]
    with model.hooks(fwd_hooks=see):
        engine.run(base, table(rows), {"norm": metric})
    assert ran == [0, 1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "gpt_neox"])
def test_residual_reads_at_later_layers(family):
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    rows = [
        {"site": "resid_pre", "layer": layer, "pos": 4, "write": engine.patch(other)}
        for layer in range(N_LAYERS)
    ]
    metric = engine.Metric(lambda x: x.norm(dim=-1), pos=-1, site="resid_post", layer=1)
    _, seen = engine.run(base, table(rows), {"norm": metric}, return_tensors=True)
    for layer, found in enumerate(seen["norm"]):
        got: dict[str, torch.Tensor] = {}
        source = other.activation("resid_pre", layer)

        def put(value, hook, source=source):
            value = value.clone()
            value[:, 4] = source[:, 4]
            return value

        with torch.no_grad():
            model.run_with_hooks(
                clean,
                fwd_hooks=[
                    (f"blocks.{layer}.hook_resid_pre", put),
                    ("blocks.1.hook_resid_post", lambda v, hook, got=got: got.update(v=v)),
                ],
            )
        assert (found[:, 0] - got["v"][:, -1]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("family", "budget"), [("gpt2", None), ("mistral", 1)])
def test_one_position_per_prompt(family, budget):
    """A role, or a tensor, is a patch of each prompt at its own position, wherever it is read."""
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    roles = {"S2": torch.tensor([3, 7, 5]), "END": torch.tensor([11, 11, 11])}
    base = engine.record(model, clean, roles=roles)
    other = engine.record(model, corrupted, sites=sites_of(family), roles=roles)
    each = torch.tensor([[3, 11], [9, 7], [5, 6]])
    choices: list[Any] = [("S2", roles["S2"][:, None], site) for site in sites_of(family)]
    several = (["S2", "END"], torch.stack([*roles.values()], 1)), (each, each)
    choices += [(*pair, site) for pair in several for site in ("resid_pre", "z")]
    rows, expected = [], []
    for pos, own, site in choices:
        for head in (None, 1) if site in HEAD_SITES else (None,):
            place = {"site": site, "layer": 1, "pos": pos, "head": head}
            rows.append(place | {"write": engine.patch(other)})
            alone = [
                patched(model, clean[i : i + 1], other.part(slice(i, i + 1)), place | {"pos": p})
                for i, p in enumerate(own.tolist())
            ]
            expected.append(torch.cat(alone))
    found = run(base, rows, pos=[-1, 6], max_memory=budget)
    assert (found - torch.stack(expected)[:, :, [-1, 6]]).abs().max() < TOLERANCE
    at_role = run(base, rows, pos="S2")[:, :, 0]
    read = torch.stack(expected)[:, torch.arange(3), roles["S2"]]
    assert (at_role - read).abs().max() < TOLERANCE


def test_the_mean_at_a_role_is_over_the_roles_positions():
    model, (clean, _) = tiny.bridge("llama"), prompts()
    roles = {"IO": torch.tensor([3, 7, 5]), "S1": torch.tensor([7, 3, 9])}
    base = engine.record(model, clean, roles=roles)
    averages = {role: base.resid[1][range(3), pos].mean(0) for role, pos in roles.items()}
    by_hand = [
        {"row": "hand", "pos": role, "write": engine.replace(averages[role])} for role in roles
    ]
    by_role = {"row": "role", "pos": ["S1", "IO"], "write": engine.mean(base)}
    place = {"site": "resid_pre", "layer": 1}
    role, hand = run(base, [line | place for line in (by_role, *by_hand)])
    assert (role - hand).abs().max() < TOLERANCE
    assert (role[:, 0] - base.logits()).abs().max() > 1e-3


# --- Identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_writing_a_runs_own_activation_changes_nothing(family):
    model, (clean, _) = tiny.bridge(family), prompts()
    base = engine.record(model, clean, sites=sites_of(family))
    same = Write("same", lambda current, place: place.of(base))  # not known to change nothing
    rows = [
        {"row": 0, "site": site, "layer": layer, "pos": None, "write": same}
        for site in sites_of(family)
        for layer in range(N_LAYERS)
    ]
    table_, _ = engine.run(base, table(rows), {"x": lambda v: v.sum(-1)}, return_tensors=True)
    assert table_.attrs["engine"]["rows_run"] == 1
    found = run(base, rows)[0, :, 0]
    assert (found - base.logits()).abs().max() < TOLERANCE
    alone = run(base, [row | {"row": n} for n, row in enumerate(rows)])
    assert (alone[:, :, 0] - base.logits()).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_writing_all_of_the_other_run_gives_the_other_run(family):
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    sites = ["attn_out", "mlp_out", "k", "v"]
    base, other = engine.record(model, clean), engine.record(model, corrupted, sites=sites)
    write = engine.patch(other)
    everywhere = {"pos": None, "write": write}
    rows = [{"row": "stream", "site": "resid_pre", "layer": 0, **everywhere}]
    rows += [
        {"row": "parts", "site": site, "layer": layer, **everywhere}
        for site, layer in itertools.product(("attn_out", "mlp_out"), range(N_LAYERS))
    ]
    # outputs of all parts add up to the other run once the embedding is the other's too
    rows += [{"row": "parts", "site": "resid_pre", "layer": 0, **everywhere}]
    rows += [{"row": "last", "site": "resid_post", "layer": -1, "pos": -1, "write": write}]
    stream, parts, last = run(base, rows)
    assert (stream[:, 0] - other.logits()).abs().max() < TOLERANCE
    assert (parts[:, 0] - other.logits()).abs().max() < TOLERANCE
    assert (last[:, 0] - other.logits()).abs().max() < TOLERANCE
    assert torch.equal(run(base, rows[-1:])[0, :, 0], other.logits())  # a batch of the same shape


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "mistral"])
def test_grouped_queries_all_keys_and_values(family):
    """All k and v heads of all layers, but at the read position the clean stream: the answer is
    that of a clean last token attending to a corrupted context."""
    model, (clean, corrupted) = tiny.bridge(family), prompts()
    assert n_heads(model, "k") == 2
    assert n_heads(model, "q") == 4
    other = engine.record(model, corrupted, sites=["k", "v"])
    base = engine.record(model, clean)
    places = list(itertools.product(("k", "v"), range(N_LAYERS)))
    rows = [
        {"row": head, "site": site, "layer": layer, "head": None if head == "all" else head}
        | {"pos": None, "write": engine.patch(other)}
        for head in ("all", 0, 1)
        for site, layer in places
    ]
    everything, *heads = run(base, rows)
    for head, found in [(None, everything), (0, heads[0]), (1, heads[1])]:
        edits = []
        for site, layer in places:
            source = other.activation(site, layer)
            source = source if head is None else source[:, :, head]
            edits.append((site, layer, list(range(N_POS)), head, lambda v, s=source: s))
        expected = slow(model, clean, edits)[:, -1]
        assert (found[:, 0] - expected).abs().max() < TOLERANCE
    assert (everything - heads[0]).abs().max() > 1e-3


def test_a_patch_before_the_first_difference_is_not_run():
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    rows = [
        {"site": "resid_pre", "layer": 2, "pos": pos, "write": engine.patch(other)}
        for pos in range(N_POS)
    ]
    found, seen = engine.run(base, table(rows), {"x": lambda v: v.sum(-1)}, return_tensors=True)
    assert found.attrs["engine"]["rows_run"] == N_POS - 3
    assert torch.equal(seen["x"][:3, :, 0], base.logits().expand(3, -1, -1))


def test_a_path_is_not_run_at_the_end_that_is_the_run_itself():
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    for start, end, own in ((base, other, 0), (other, base, -1)):
        writes = [engine.interpolate(start, end, alpha) for alpha in (0, 0.5, 1)]
        rows = [{"site": "resid_pre", "layer": 2, "pos": -1, "write": write} for write in writes]
        found, seen = engine.run(base, table(rows), {"x": lambda v: v.sum(-1)}, return_tensors=True)
        assert found.attrs["engine"]["rows_run"] == 2
        assert torch.equal(seen["x"][own, :, 0], base.logits())


def test_a_joint_row_runs_where_one_edit_undoes_another_s_idleness():
    """A patch that would change nothing alone does change something after an earlier edit."""
    model, (clean, _) = tiny.bridge("llama"), prompts()
    base = engine.record(model, clean)
    back = engine.patch(base)
    push = engine.add(torch.ones(32))
    rows = [
        {"row": 0, "site": "resid_pre", "layer": 1, "pos": 5, "write": push},
        {"row": 0, "site": "resid_pre", "layer": 2, "pos": None, "write": back},
        {"row": 1, "site": "resid_pre", "layer": 1, "pos": 5, "write": push},
    ]
    undone, pushed = run(base, rows)
    assert (undone[:, 0] - base.logits()).abs().max() < TOLERANCE
    assert (pushed[:, 0] - base.logits()).abs().max() > 1e-3


def test_batch_size_does_not_matter_and_a_small_budget_is_kept():
    model, (clean, corrupted) = tiny.bridge("gemma2"), prompts()
    base = engine.record(model, clean)
    other = engine.record(model, corrupted, sites=["z"])
    rows = [
        {"site": "z", "layer": layer, "pos": pos, "head": head, "write": engine.patch(other)}
        for layer, pos, head in itertools.product(range(N_LAYERS), (3, 8, None), range(4))
    ]
    large = run(base, rows)
    for budget in (1, 200_000, 3_000_000):
        assert (run(base, rows, max_memory=budget) - large).abs().max() < TOLERANCE
    report = engine.run(base, table(rows), {"x": lambda v: v.sum(-1)}, max_memory=200_000)
    assert report.attrs["engine"]["passes"] > 10
    assert report.attrs["engine"]["max_memory"] == 200_000


def test_table_comes_back_with_its_columns_and_one_line_per_row_or_prompt():
    model, (clean, corrupted) = tiny.bridge("gpt2"), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    rows = table([{"site": "resid_pre", "layer": 0, "pos": 3, "write": engine.patch(other)}] * 2)
    metrics = {"a": lambda v: v[..., 0], "b": lambda v: v[..., 1]}
    found = engine.run(base, rows.assign(note="n"), metrics)
    assert list(found.columns) == ["site", "layer", "pos", "write", "note", "head", "a", "b"]
    assert found["write"].tolist() == ["patch", "patch"]
    long = engine.run(base, rows, metrics, per_prompt=True)
    assert len(long) == 6
    assert long["prompt"].tolist() == [0, 1, 2] * 2
    first, second = long["a"][:3].to_numpy(), long["a"][3:].to_numpy()
    assert abs(first - second).max() < TOLERANCE  # two equal rows
    assert long["a"][:3].mean() == pytest.approx(found["a"][0], abs=1e-6)


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, (clean, corrupted) = tiny.bridge("qwen2"), prompts()
    other = engine.record(model, corrupted, sites=["z"])
    base = engine.record(model, clean)
    before = model(clean)

    def breaks(current, place):
        if current.abs().sum() > 0:  # not when it is tried out on zeros
            raise KeyboardInterrupt
        return current

    with pytest.raises(KeyboardInterrupt):
        run(base, [{"site": "z", "layer": 1, "pos": 4, "write": Write("breaks", breaks)}])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(block._forward_pre_hooks for block in model.blocks)
    assert torch.equal(model(clean), before)
    assert not other.logits().requires_grad


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 4}, "row 1 .*layer 4 does not exist: there are 4"),
        ({"pos": 12}, "row 1 .*position 12 does not exist: there are 12"),
        ({"pos": [3, -13]}, "row 1 .*position -13 does not exist"),
        ({"site": "resid"}, "row 1 .*unknown site 'resid'"),
        ({"head": 0}, "row 1 .*resid_pre has no heads"),
        ({"site": "z", "head": 4}, "row 1 .*head 4 does not exist: there are 4"),
        ({"site": "k", "head": 2}, "row 1 .*head 2 does not exist: there are 2"),
        ({"site": "z", "head": 1}, "row 1 .*z was not recorded"),
        ({"write": engine.add(torch.zeros(31))}, "row 1 .*width 31, the activation 32"),
        ({"write": engine.add(torch.full((32,), torch.nan))}, "row 1 .*NaN or infinite"),
        ({"write": 0.0}, "row 1 .*write must come from"),
    ],
)
def test_a_row_that_cannot_be_made_is_named_before_any_work(change, message):
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base, other = engine.record(model, clean), engine.record(model, corrupted)
    good = {"site": "resid_pre", "layer": 0, "pos": 3, "head": None, "write": engine.patch(other)}
    with pytest.raises(ValueError, match=message):
        run(base, [good, good | change])


def test_other_errors():
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base = engine.record(model, clean)
    row = {"site": "resid_pre", "layer": 0, "pos": 3, "write": engine.zero()}
    short = engine.record(model, corrupted[:, :5])
    with pytest.raises(ValueError, match="make the two equal"):
        run(base, [row | {"write": engine.patch(short)}])
    with pytest.raises(ValueError, match=r"resid_mid cannot be used here: .*parallel"):
        engine.record(tiny.bridge("phi"), clean, sites=["resid_mid"])
    with pytest.raises(ValueError, match="no rows"):
        engine.run(base, table([row]).iloc[:0], {"x": lambda v: v.sum(-1)})
    with pytest.raises(ValueError, match="lacks the columns"):
        engine.run(base, table([{"site": "z"}]), {"x": lambda v: v.sum(-1)})
    with pytest.raises(ValueError, match="at least one metric"):
        engine.run(base, table([row]), {})
    with pytest.raises(ValueError, match="gave shape"):
        engine.run(base, table([row]), {"x": lambda v: v.sum()})
    with pytest.raises(RuntimeError, match="row 0: x is NaN"):
        engine.run(base, table([row]), {"x": lambda v: v.sum(-1) * torch.nan})
    with pytest.raises(ValueError, match="metric 'sum': position 12 does not exist"):
        run(base, [row], pos=12)
    with pytest.raises(ValueError, match="not empty"):
        engine.record(model, clean[:0])


def test_an_edit_whose_hook_does_not_fire_is_an_error(monkeypatch):
    model, (clean, corrupted) = tiny.bridge("llama"), prompts()
    base = engine.record(model, clean)
    other = engine.record(model, corrupted, sites=["z"])
    monkeypatch.setattr(type(base), "hook", lambda self, site, layer: HookPoint())
    with pytest.raises(RuntimeError, match=r"row 0 \(z, layer 1, pos \[4\], head 2\): its hook"):
        run(base, [{"site": "z", "layer": 1, "pos": 4, "head": 2, "write": engine.patch(other)}])


# --- Random tables ------------------------------------------------------------------------------

PATCHES = st.tuples(
    st.sampled_from([site for site in SITES if site != "resid_mid"]),
    st.integers(0, N_LAYERS - 1),
    st.one_of(st.none(), st.lists(st.integers(0, N_POS - 1), min_size=1, max_size=3, unique=True)),
    st.one_of(st.none(), st.integers(0, 1)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(tiny.FAMILIES),
    rows=st.lists(st.lists(PATCHES, min_size=1, max_size=3), min_size=1, max_size=6),
    read=st.lists(st.integers(0, N_POS - 1), min_size=1, max_size=2, unique=True),
    seed=st.integers(0, 3),
)
def test_random_tables(family, rows, read, seed):
    """Joint and single patches of random places, read anywhere, equal plain hooked forwards."""
    model, (clean, corrupted) = tiny.bridge(family), prompts(seed)
    base = engine.record(model, clean)
    other = engine.record(model, corrupted, sites=[s for s in SITES if s != "resid_mid"])
    lines, expected = [], []
    for number, row in enumerate(rows):
        edits = []
        for site, layer, pos, head in row:
            head = head if site in HEAD_SITES else None
            line = {"row": number, "site": site, "layer": layer, "pos": pos, "head": head}
            lines.append(line | {"write": engine.patch(other)})
            where = list(range(N_POS)) if pos is None else sorted(pos)
            source = other.activation(site, layer)[:, where]
            source = source if head is None else source[:, :, head]
            edits.append((site, layer, where, head, lambda v, s=source: s))
        expected.append(slow(model, clean, edits)[:, read])
    found = run(base, lines, pos=read)
    assert (found - torch.stack(expected)).abs().max() < TOLERANCE

"""Sweeps, paths and attribution against plain hooked forwards, by another route each."""

from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import transformer_lens.patching as tl

from mi_helpers import engine, metrics, patching, stats
from mi_helpers.tasks.pairs import PromptPairs
from tests import tiny

FAMILIES = ("gpt2", "llama", "qwen2", "gpt_neox", "gemma2")
N, POS = 3, 7


def make_pairs(differ=(2, 4), seed=0):
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(seed))
    clean = draw(3, 60, (N, POS))
    corrupted = clean.clone()
    for p in differ:
        corrupted[:, p] = draw(60, 100, (N,))
    texts, labels = ["…"] * N, [str(p) for p in range(POS)]
    answers, wrong = draw(3, 60, (N,)), draw(60, 100, (N,))
    return PromptPairs("test", texts, texts, clean, corrupted, answers, wrong, labels)


PAIRS = make_pairs()


def logit_diff(logits):
    return metrics.logit_diff(logits[:, -1], PAIRS.answers, PAIRS.wrong)


def span(model):
    return (logit_diff(model(PAIRS.clean_tokens)), logit_diff(model(PAIRS.corrupted_tokens)))


def recorded(model):
    return patching.record(model, PAIRS)


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# --- sweep --------------------------------------------------------------------------------------

TL_FUNCTIONS = {
    "resid_pre": (tl.get_act_patch_resid_pre, "each"),
    "resid_mid": (tl.get_act_patch_resid_mid, "each"),
    "attn_out": (tl.get_act_patch_attn_out, "each"),
    "mlp_out": (tl.get_act_patch_mlp_out, "each"),
    "z": (tl.get_act_patch_attn_head_out_all_pos, "all"),
    "q": (tl.get_act_patch_attn_head_q_all_pos, "all"),
    "k": (tl.get_act_patch_attn_head_k_all_pos, "all"),
    "v": (tl.get_act_patch_attn_head_v_all_pos, "all"),
    "pattern": (tl.get_act_patch_attn_head_pattern_all_pos, "all"),
}


@pytest.mark.parametrize("site", TL_FUNCTIONS)
def test_sweep_equals_transformer_lens(site):
    model, (function, positions) = tiny.bridge("gpt2"), cast(Any, TL_FUNCTIONS[site])
    _, cache = model.run_with_cache(PAIRS.clean_tokens)
    expected = function(model, PAIRS.corrupted_tokens, cache, lambda x: logit_diff(x).mean())
    table = patching.sweep(recorded(model), site, normalise=False, positions=positions)
    close(table["logit_diff"].to_numpy(), expected.flatten())


def test_heads_by_position_equal_transformer_lens():
    model = tiny.bridge("gpt2")
    _, cache = model.run_with_cache(PAIRS.clean_tokens)
    function = tl.get_act_patch_attn_head_out_by_pos
    expected = function(model, PAIRS.corrupted_tokens, cache, lambda x: logit_diff(x).mean())
    table = patching.sweep(recorded(model), "z", normalise=False, positions="each")
    close(table["logit_diff"].to_numpy(), expected.flatten())


@pytest.mark.parametrize("family", FAMILIES)
def test_both_directions_on_every_family_and_keys_of_groups(family):
    model = tiny.bridge(family)
    runs = patching.record(model, PAIRS)
    for direction in ("denoise", "noise"):
        tokens = [PAIRS.corrupted_tokens, PAIRS.clean_tokens]
        base, source = tokens if direction == "denoise" else tokens[::-1]
        table = patching.sweep(runs, "k", direction, normalise=False, layers=[1], per_prompt=True)
        _, cache = model.run_with_cache(source)
        n_heads = cache["blocks.1.attn.hook_k"].shape[2]
        assert len(table) == n_heads * N
        for head in range(n_heads):

            def write(value, hook, head=head, cache=cache):
                value[:, :, head] = cache[hook.name][:, :, head]
                return value

            logits = model.run_with_hooks(base, fwd_hooks=[("blocks.1.attn.hook_k", write)])
            close(table.loc[table["head"] == head, "logit_diff"].to_numpy(), logit_diff(logits))


def test_patching_everything_gives_one_and_nothing_gives_zero():
    model, names = tiny.bridge("llama"), ["logit_diff", "log_prob", "prob", "kl"]
    table = patching.sweep(recorded(model), "resid_pre", metrics=names, positions="all", layers=[0])
    close(table[names].to_numpy()[0], torch.ones(4))
    table = patching.sweep(
        recorded(model), "resid_pre", "noise", names, positions="all", layers=[0]
    )
    close(table[names].to_numpy()[0], torch.zeros(4))
    before = patching.sweep(recorded(model), "resid_pre", metrics=names, positions=[0, 1])
    close(before[names].to_numpy(), torch.zeros(8, 4))


def test_a_mean_over_prompts_is_the_table_s_value():
    model = tiny.bridge("llama")
    for direction in ("denoise", "noise"):
        table = patching.sweep(recorded(model), "z", direction)
        each = patching.sweep(recorded(model), "z", direction, per_prompt=True)
        means = each.groupby(["layer", "head"])["logit_diff"].mean()
        close(means.to_numpy(), table["logit_diff"].to_numpy())


def test_what_prompts_differ_in_by_themselves_does_not_enter_an_effect():
    """Noising what changes nothing leaves every prompt at 1, whatever its own span is."""
    runs = recorded(tiny.bridge("llama"))
    table = patching.sweep(runs, "z", "noise", positions=[0], per_prompt=True, layers=[1])
    close(table["logit_diff"].to_numpy(), torch.ones(len(table)))
    scores = runs.scores(["logit_diff"]).pivot(index="prompt", columns="run", values="logit_diff")
    raw = patching.sweep(runs, "z", "noise", per_prompt=True, normalise=False)
    each = 1 - patching.by_prompt(patching.sweep(runs, "z", "noise", per_prompt=True))
    for head, values in patching.by_prompt(raw).items():
        effect = stats.paired_effect(scores["clean"], values, scores["corrupted"])
        close(each[head].to_numpy(), effect)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_a_role_is_each_prompts_own_position(site):
    """Prompt by prompt the same as patching that prompt's position, by every method."""
    model, where = tiny.bridge("llama"), torch.tensor([2, 4, 5])
    sites = ["z", "attn_out", "mlp_out"]
    both = (PAIRS.clean_tokens, PAIRS.corrupted_tokens)
    clean, corrupted = (engine.record(model, t, sites=sites, roles={"R": where}) for t in both)
    runs = patching.BaseRuns(PAIRS, clean, corrupted)
    methods: list[Any] = [
        lambda pos: patching.sweep(runs, site, positions=[pos], layers=[1], per_prompt=True),
        lambda pos: patching.attribution(runs, site, positions=[pos], layers=[1], per_prompt=True),
        lambda pos: patching.path_patch(runs, ["0.1"], ["2.1.q"], pos=pos, per_prompt=True),
    ]
    for method in methods:
        found = method("R")
        for prompt, pos in enumerate(where.tolist()):
            expected = method(pos).query(f"prompt == {prompt}")["logit_diff"]
            close(found.query(f"prompt == {prompt}")["logit_diff"].to_numpy(), expected.to_numpy())
    with pytest.raises(ValueError, match="no role 'Q': these prompts have R"):
        patching.sweep(runs, site, positions=["Q"])


def test_direct_effects_split_the_logit_difference():
    runs = recorded(tiny.bridge("qwen2"))
    table = patching.direct_effects(runs, ["0.2", "2.1"])
    whole = patching.path_patch(runs, ["0.2", "2.1"], ["logits"], normalise=False, per_prompt=True)[
        "logit_diff"
    ]
    clean = np.tile(span(runs.model)[0].numpy(), 2)
    close(table["logit_diff"].to_numpy(), clean - whole.to_numpy())
    close(table["answer_logit"] - table["wrong_logit"], table["logit_diff"])


def test_scores_of_the_two_answers_need_no_other_logits():
    runs, names = recorded(tiny.bridge("llama")), ["logit_diff", "answer_logit", "accuracy"]
    two, every = runs.scores(names), runs.scores([*names, "log_prob"])  # the last reads all logits
    assert set(two["accuracy"]) == {0, 1}
    for name in names:
        close(two[name].to_numpy(), every[name].to_numpy())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_copying_is_what_a_head_that_looks_at_the_token_alone_writes(family):
    """With attention put on the token itself, the head's output by a plain hooked forward."""
    model, tokens = tiny.bridge(family), torch.tensor([5, 9, 33])
    found = patching.copying(model, ["0.2"], tokens, top=20)
    bos = model.to_tokens("a")[:, :1].expand(3, 1)
    _, cache = model.run_with_cache(torch.cat([bos, tokens[:, None]], 1))
    block = model.blocks[0]
    v = block.attn.v(block.ln1(cache["blocks.0.hook_resid_post"]))[:, -1].unflatten(-1, (-1, 8))
    z = torch.zeros(3, 4, 8)
    z[:, 2] = v[:, 2 * v.shape[1] // 4]
    out = block.attn.o(z.flatten(1)) - block.attn.o(torch.zeros(3, 32))
    logits = engine.unembed(model, out)
    rank = (logits > logits.gather(1, tokens[:, None])).sum(1)
    assert found["copied"].tolist() == (rank < 20).tolist()


def test_repeat_scores_are_shares_of_attention():
    table = patching.repeat_scores(tiny.bridge("gpt2"), length=5, n=3)
    assert len(table) == 4 * 4 * 3
    scores = table[["previous", "duplicate", "induction"]]
    assert scores.to_numpy().min() >= 0
    assert scores.sum(axis=1).max() <= 1.0001


def test_window_patches_neighbouring_layers_and_is_cut_at_the_ends():
    model = tiny.bridge("gpt2")
    runs = patching.record(model, PAIRS)
    table = patching.sweep(runs, "mlp_out", window=3, positions=[4])
    assert table["layer"].tolist() == [0, 1, 2, 3]
    write = engine.patch(runs.clean)
    for layer, covered in enumerate([[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]):
        rows = [
            {"row": 0, "site": "mlp_out", "layer": x, "pos": 4, "write": write} for x in covered
        ]
        found = engine.run(runs.corrupted, pd.DataFrame(rows), runs.functions(["logit_diff"]))
        clean, corrupted = (float(x.mean()) for x in span(model))
        expected = (found["logit_diff"][0] - corrupted) / (clean - corrupted)
        assert table["logit_diff"][layer] == pytest.approx(expected, abs=1e-4)


def test_a_metric_that_does_not_move_gives_nan_and_a_warning():
    with pytest.warns(RuntimeWarning, match="nothing to normalise"):
        table = patching.sweep(
            recorded(tiny.bridge("gpt2")), metrics={"one": lambda x: x.new_ones(x.shape[:2])}
        )
    assert table["one"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "zz"}, "unknown site"),
        ({"direction": "both"}, "direction"),
        ({"metrics": ["speed"]}, "speed"),
        ({"window": 9}, "window"),
        ({"positions": [POS]}, "position 7"),
        ({"positions": "some"}, "positions"),
        ({"layers": []}, "nothing to patch"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        patching.sweep(recorded(tiny.bridge("gpt2")), **arguments)


def test_missing_sites_are_refused():
    runs = patching.record(tiny.bridge("gpt2"), PAIRS, ["z"])
    with pytest.raises(ValueError, match="was not recorded"):
        patching.sweep(runs, "mlp_out")
    with pytest.raises(ValueError, match="resid_mid cannot be used here"):
        patching.sweep(recorded(tiny.bridge("gpt_neox")), "resid_mid")


@pytest.mark.parametrize("family", FAMILIES)
def test_gaussian_noise_changes_what_it_should_and_patching_undoes_it(family):
    model = tiny.bridge(family)
    runs = patching.gaussian(model, PAIRS, [3, 5], seed=1)
    moved = (runs.corrupted.resid[0] - runs.clean.resid[0]).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, False, False, True, False, True, False]
    arguments: dict[str, Any] = {"site": "resid_pre", "layers": [0]}
    both = patching.sweep(runs, **arguments, positions="all")
    assert both["logit_diff"][0] == pytest.approx(1, abs=1e-4)
    each = patching.sweep(runs, **arguments)["logit_diff"]
    assert (each.round(5) != 0).tolist() == [False, False, False, True, False, True, False]
    again = patching.gaussian(model, PAIRS, [3, 5], seed=1)
    assert torch.equal(again.corrupted.logits(), runs.corrupted.logits())


# --- path_patch ---------------------------------------------------------------------------------


def slow_path(model, sender, receivers, mlps, pos, direction="noise"):
    """Two plain hooked forwards over the whole prompt; hooks come from two plain caches."""
    tokens = [PAIRS.clean_tokens, PAIRS.corrupted_tokens]
    base, source = tokens if direction == "noise" else tokens[::-1]
    _, base_cache = model.run_with_cache(base)
    _, source_cache = model.run_with_cache(source)
    layer, head = sender

    def send(value, hook):
        value = value.clone()
        if head is None:
            value[:, pos] = source_cache[hook.name][:, pos]
        else:
            value[:, pos, head] = source_cache[hook.name][:, pos, head]
        return value

    seen: dict[str, Any] = {}
    still: dict[str, Any] = {}
    own = f"blocks.{layer}.hook_mlp_out" if head is None else f"blocks.{layer}.attn.hook_z"
    hooks = [(own, send)]

    def see(value, hook):
        seen[hook.name] = value.clone()
        return value

    hooks += [(name, see) for name, _ in receivers]
    for later in range(layer, model.cfg.n_layers):
        names = ["hook_attn_out"] if later > layer else []
        names += (
            ["hook_mlp_out"] if mlps == "frozen" and (later > layer or head is not None) else []
        )
        still |= {f"blocks.{later}.{name}": 0 for name in names}
    hooks += [(name, lambda value, hook: base_cache[hook.name].clone()) for name in still]
    logits = model.run_with_hooks(base, fwd_hooks=hooks)
    if not receivers:
        return logit_diff(logits)

    def receive(value, hook, head):
        value = value.clone()
        index = (slice(None), pos) if head is None else (slice(None), pos, head)
        value[index] = seen[hook.name][index]
        return value

    hooks = [(name, partial(receive, head=head)) for name, head in receivers]
    return logit_diff(model.run_with_hooks(base, fwd_hooks=hooks))


RECEIVERS = {
    "3.1.q": ("blocks.3.attn.hook_q", 1),
    "2.0.v": ("blocks.2.attn.hook_v", 0),
    "3.1.k": ("blocks.3.attn.hook_k", 1),
    "mlp2": ("blocks.2.hook_mlp_out", None),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mlps", ["frozen", "free"])
def test_path_patching_equals_two_hooked_forwards(family, mlps):
    model, runs = tiny.bridge(family), patching.record(tiny.bridge(family), PAIRS)
    for names in (["3.1.q"], ["2.0.v", "3.1.k"], ["mlp2"], ["logits"]):
        for pos in ([5], list(range(POS)), [4, 6]):
            table = patching.path_patch(runs, ["0.2", "mlp1", "1.3"], names, pos=pos, mlps=mlps,
                normalise=False, per_prompt=True,
            )  # fmt: skip
            targets = [RECEIVERS[name] for name in names if name != "logits"]
            for sender, place in {"0.2": (0, 2), "mlp1": (1, None), "1.3": (1, 3)}.items():
                expected = slow_path(model, place, targets, mlps, pos)
                found = table.loc[table["sender"] == sender, "logit_diff"].to_numpy()
                close(found, expected)


def test_a_direct_path_by_hand_on_gpt2():
    """Sender 0.2, receiver 3.1.q: norm, weights and biases of the Hugging Face model itself."""
    model = tiny.load(hf := cast(Any, tiny.hf_model("gpt2")))
    runs, pos = patching.record(model, PAIRS), 5
    change = runs.corrupted.activation("z", 0)[:, pos, 2] - runs.clean.activation("z", 0)[:, pos, 2]
    weight = hf.transformer.h[0].attn.c_proj
    weight = getattr(weight, "original_component", weight).weight[16:24]  # rows of head 2
    stream = runs.clean.resid[3][:, pos] + change @ weight
    block = hf.transformer.h[3]
    block = getattr(block, "original_component", block)
    norm = getattr(block.ln_1, "original_component", block.ln_1)
    c_attn = getattr(block.attn, "original_component", block.attn).c_attn
    c_attn = getattr(c_attn, "original_component", c_attn)
    q = (norm(stream) @ c_attn.weight + c_attn.bias)[:, 8:16]  # head 1
    rows = [{"site": "q", "layer": 3, "pos": pos, "head": 1, "write": engine.replace(q)}]
    names = runs.functions(["logit_diff"])
    expected = engine.run(runs.clean, pd.DataFrame(rows), names, per_prompt=True)["logit_diff"]
    found = patching.path_patch(runs, ["0.2"], ["3.1.q"], pos=pos, normalise=False, per_prompt=True)
    close(found["logit_diff"].to_numpy(), expected.to_numpy())


def test_paths_to_the_logits_denoise_and_default_positions():
    model = tiny.bridge("qwen3")
    table = patching.path_patch(
        recorded(model), "heads", ["logits"], "denoise", normalise=False, per_prompt=True
    )
    assert table["sender"].nunique() == 16
    expected = slow_path(model, (2, 1), [], "frozen", list(range(POS)), "denoise")
    close(table.loc[table["sender"] == "2.1", "logit_diff"].to_numpy(), expected)


def test_senders_before_the_first_difference_change_nothing():
    model = tiny.bridge("gpt2")
    table = patching.path_patch(recorded(model), "heads", ["3.0.q"], pos=1)
    close(table["logit_diff"].to_numpy(), torch.ones(12))
    assert table["sender"].iloc[-1] == "2.3"


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        (["3.0"], ["3.1.q"], "no receiver comes after"),
        (["0.0", "mlp2"], ["mlp2"], "no receiver comes after"),
        (["0.9"], ["3.1.q"], "does not exist"),
        (["0"], ["3.1.q"], "cannot read '0'"),
        (["0.0"], ["3.1"], "cannot read '3.1'"),
        (["0.0"], ["3.2.k"], "2 heads"),
        (["0.0"], ["logits", "mlp3"], "cannot read 'logits'"),
        ("all", ["mlp3"], "'heads' or 'mlps'"),
    ],
)
def test_bad_paths_are_named(senders, receivers, message):
    with pytest.raises(ValueError, match=message):
        patching.path_patch(recorded(tiny.bridge("llama")), senders, receivers)


# --- attribution --------------------------------------------------------------------------------


def linear_model():
    """A GPT-2 with uniform attention, no nonlinearity in the MLPs, and norms that only scale."""
    hf = cast(Any, tiny.hf_model("gpt2", activation_function="linear"))
    for block in hf.transformer.h:
        for parameter in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            parameter.data[..., :64] = 0  # queries and keys
    model = tiny.load(hf)
    norms = [block.ln1 for block in model.blocks] + [block.ln2 for block in model.blocks]
    for norm in [*norms, model.ln_final]:
        scale, shift = norm.weight, norm.bias
        norm.__dict__["forward"] = lambda x, *_, s=scale, b=shift, **__: x * s + b
    return model


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
                                  "z", "v"])  # fmt: skip
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_attribution_equals_patching_on_a_linear_network(site, steps, direction):
    model = linear_model()
    table = patching.sweep(recorded(model), site, direction, positions="each")
    estimate = patching.attribution(
        recorded(model), site, direction=direction, steps=steps, positions="each"
    )
    close(estimate["logit_diff"].to_numpy(), table["logit_diff"].to_numpy())
    assert table["logit_diff"].nunique() > 4  # not all zero or one
    for column in ("layer", "pos", "head"):
        assert (table[column].fillna(-1) == estimate[column].fillna(-1)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "site", ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
)
def test_attribution_is_the_slope_of_small_patches(family, site):
    """Patching a ten-thousandth of the way, times ten thousand, in double precision."""
    model = tiny.load(tiny.hf_model(family).double())
    runs = patching.record(model, PAIRS)
    table = patching.attribution(runs, site, normalise=False, layers=[0, 2])
    write = engine.interpolate(runs.corrupted, runs.clean, 1e-4)
    rows = table[["site", "layer", "pos", "head"]].assign(write=write)
    found = engine.run(runs.corrupted, rows, runs.functions(["logit_diff"]))
    base = float(span(model)[1].mean())
    slopes = (found["logit_diff"] - base) * 1e4
    close(table["logit_diff"].to_numpy() - base, slopes.to_numpy(), 1e-2)


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_estimates_of_later_layers_do_not_need_the_earlier_ones(family):
    runs = patching.record(tiny.bridge(family), PAIRS, ["mlp_out"])
    every = patching.attribution(runs, "resid_pre", normalise=False)
    later = patching.attribution(runs, "resid_pre", normalise=False, layers=[1, 2])
    expected = every[every["layer"].isin([1, 2])]["logit_diff"].to_numpy()
    assert len(set(expected)) > 2
    close(later["logit_diff"].to_numpy(), expected)


def test_many_steps_from_the_embeddings_integrate_to_the_whole_effect():
    """Along the embeddings' line the effects of all positions of resid_pre 0 add up to the span."""
    model = tiny.load(tiny.hf_model("llama").double())
    arguments: dict[str, Any] = {"site": "resid_pre", "positions": "all", "layers": [0]}
    plain = patching.attribution(recorded(model), **arguments)["logit_diff"][0]
    many = patching.attribution(recorded(model), **arguments, steps=64)["logit_diff"][0]
    assert abs(many - 1) < 0.01 < abs(plain - 1)


def test_attribution_leaves_no_gradients_or_hooks_behind():
    model = tiny.bridge("gpt2")
    before = model(PAIRS.clean_tokens)
    patching.attribution(recorded(model), "z")
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    torch.testing.assert_close(model(PAIRS.clean_tokens), before)


def test_attribution_refuses_what_has_no_gradient():
    model = tiny.bridge("gpt2")
    with pytest.raises(ValueError, match="zero gradient"):
        patching.attribution(recorded(model), metric="kl", direction="noise")
    with pytest.raises(ValueError, match="steps"):
        patching.attribution(recorded(model), steps=0)
    with pytest.raises(ValueError, match="no gradient"):
        patching.attribution(recorded(model), metric="accuracy")

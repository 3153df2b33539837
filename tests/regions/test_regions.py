"""Stable regions against one plain hooked forward per point, exact identities, and known graphs."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_helpers import engine
from mi_helpers.regions import clusters as region_graph
from mi_helpers.regions import maps
from mi_helpers.regions import mechanism as region_mechanism
from mi_helpers.regions import paths as regions
from mi_helpers.regions import suites as region_suite
from mi_helpers.tasks import windows
from tests import tiny

N_POS = 12


@pytest.fixture(params=["gpt2", "llama", "gemma2", "phi"])
def model(request):
    return tiny.bridge(request.param)


def prompts(n, seed=0):
    tokens = torch.randint(
        3, tiny.D_VOCAB, (n, N_POS), generator=torch.Generator().manual_seed(seed)
    )
    tokens[:, 0] = 0
    return tokens


def plain_read(model, tokens, point, layer):
    """The stream that leaves the last block with `point` written at the last position."""

    def write(value, hook):
        value[:, -1] = point
        return value

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    seen: dict[str, torch.Tensor] = {}
    hooks: list = [(f"blocks.{layer}.hook_resid_post", write)]
    hooks.append((last, lambda value, hook: seen.update(out=value[:, -1].clone())))
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return seen["out"]


def activations(model, tokens, layer):
    return engine.record(model, tokens).activation("resid_post", layer)[:, -1]


# --- Paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 2])
def test_walk_equals_plain_forwards(model, layer):
    first, second = prompts(3), prompts(3, seed=1)
    runs = engine.record(model, first), engine.record(model, second)
    walk = regions.walk(runs[0], regions.path_rows(*runs, layer=layer, steps=5))
    a, b = activations(model, first, layer), activations(model, second, layer)
    for step, alpha in enumerate(torch.linspace(0, 1, 5).tolist()):
        expected = plain_read(model, first, torch.lerp(a, b, alpha), layer)
        torch.testing.assert_close(walk.pre[step], expected, atol=2e-5, rtol=1e-4)


def test_path_begins_at_its_own_output(model):
    runs = engine.record(model, prompts(2)), engine.record(model, prompts(2, seed=1))
    walk = regions.walk(runs[0], regions.path_rows(*runs, steps=3))
    torch.testing.assert_close(walk.pre[0], runs[0].resid[-1][:, -1])
    torch.testing.assert_close(engine.unembed(model, walk.pre[0]), runs[0].logits())
    assert walk.kl()[0].abs().max() < 1e-6
    assert (walk.kl()[1:] > 0).all()


def test_with_equal_prefixes_the_path_ends_at_the_other_output(model):
    first, second = prompts(2), prompts(2)
    second[:, -1] = (first[:, -1] - 2) % (tiny.D_VOCAB - 3) + 3
    runs = engine.record(model, first), engine.record(model, second)
    walk = regions.walk(runs[0], regions.path_rows(*runs, steps=3))
    torch.testing.assert_close(walk.pre[-1], runs[1].resid[-1][:, -1], atol=2e-5, rtol=1e-4)


def test_last_layer_is_linear_before_the_final_norm(model):
    """Nothing follows the last block, so the path must be the line itself, of sharpness 1."""
    runs = engine.record(model, prompts(3)), engine.record(model, prompts(3, seed=1))
    walk = regions.walk(runs[0], regions.path_rows(*runs, layer=-1, steps=11))
    steepest = regions.sharpness(walk.distance("pre"))
    torch.testing.assert_close(steepest, torch.ones(3).double(), atol=1e-4, rtol=0)


def test_sharpness_of_known_curves():
    alpha = torch.linspace(0, 1, 51, dtype=torch.float64)
    jump = (alpha > 0.5).double()
    curves = torch.stack([3 * alpha, 7 * alpha**2, jump], dim=1)
    assert regions.sharpness(curves).tolist() == pytest.approx([1, 1.98, 50])
    assert regions.jumps(regions.slopes(curves)).tolist() == [0, 0, 1]
    two = (alpha > 0.3).double() + (alpha > 0.7)
    assert regions.jumps(regions.slopes(two[:, None])).tolist() == [2]


def test_equal_ends_are_dropped_and_counted(model):
    first, second = prompts(4), prompts(4, seed=1)
    second[1] = first[1]
    runs = engine.record(model, first), engine.record(model, second)
    table = regions.summary(regions.walk(runs[0], regions.path_rows(*runs, steps=5)))
    assert table["pair"].tolist() == [0, 2, 3]
    assert table.attrs["dropped"] == 1
    assert np.isfinite(table.to_numpy()).all()


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_arc_keeps_the_norm_and_turns_evenly(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 16, dtype=torch.float64, generator=generator)
    b *= 3
    point = regions.arc(a, b, alpha)
    assert point.norm() == pytest.approx(float(torch.lerp(a.norm(), b.norm(), alpha)))

    def angle(x, y):
        return float(torch.nn.functional.cosine_similarity(x, y, dim=0).clamp(-1, 1).acos())

    assert angle(a, point) == pytest.approx(alpha * angle(a, b), abs=1e-6)


def test_arc_ends_where_the_line_ends(model):
    runs = engine.record(model, prompts(2)), engine.record(model, prompts(2, seed=1))
    line, arc = (
        regions.walk(runs[0], rows(*runs, steps=5))
        for rows in (regions.path_rows, regions.arc_rows)
    )
    torch.testing.assert_close(line.pre[[0, -1]], arc.pre[[0, -1]], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(line.pre[2], arc.pre[2], atol=1e-3)


def test_random_path_is_as_long_as_the_real_one(model):
    runs = engine.record(model, prompts(2)), engine.record(model, prompts(2, seed=1))
    rows = regions.random_rows(*runs, layer=-1, steps=3)
    walk = regions.walk(runs[0], rows)
    a, b = (run.resid[-1][:, -1] for run in runs)
    torch.testing.assert_close(walk.distance("pre")[-1].float(), (b - a).norm(dim=-1))


def test_frozen_patterns_equal_plain_forwards():
    model = tiny.bridge("llama")
    first, second = prompts(1), prompts(1, seed=1)
    run = engine.record(model, first, sites=["pattern"])
    rows = regions.path_rows(run, engine.record(model, second), steps=3)
    walk = regions.walk(run, regions.with_frozen_patterns(rows, run, [1, 2, 3]))
    b = activations(model, second, 0)

    def write(value, hook):
        value[:, -1] = b
        return value

    hooks: list = [("blocks.0.hook_resid_post", write)]
    for layer in (1, 2, 3):
        own = run.activation("pattern", layer).transpose(1, 2)
        hooks.append((f"blocks.{layer}.attn.hook_pattern", lambda v, hook, own=own: own))
    seen: dict[str, torch.Tensor] = {}
    hooks.append(("blocks.3.hook_resid_post", lambda v, hook: seen.update(out=v[:, -1].clone())))
    with torch.no_grad():
        model.run_with_hooks(first, fwd_hooks=hooks)
    torch.testing.assert_close(walk.pre[-1], seen["out"], atol=2e-5, rtol=1e-4)


def test_paths_need_two_ends():
    run = engine.record(tiny.bridge("gpt2"), prompts(1))
    with pytest.raises(ValueError, match="two ends"):
        regions.path_rows(run, run, steps=1)
    with pytest.raises(ValueError, match="'pre' or 'post'"):
        regions.walk(run, regions.path_rows(run, run, steps=2)).distance("logits")


def test_take_is_a_run_of_those_prompts(model):
    run = engine.record(model, prompts(3))
    some = regions.take(run, [2, 0, 2])
    again = engine.record(model, run.tokens[[2, 0, 2]])
    other = engine.record(model, prompts(3, seed=5))
    rows = regions.path_rows(some, other, steps=3)
    expected = regions.walk(again, regions.path_rows(again, other, steps=3))
    torch.testing.assert_close(regions.walk(some, rows).pre, expected.pre, atol=2e-5, rtol=1e-4)


# --- Slices -------------------------------------------------------------------------------------


def test_slice_passes_through_its_corners():
    corners = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b, c = corners
    side = torch.tensor([0.0, 1.0]).double()
    points = maps.slice_points(corners, side)
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[1], b)
    up = points[2] - a
    assert float(up @ (b - a)) == pytest.approx(0, abs=1e-12)
    foot = (c - a) @ (b - a) / ((b - a) @ (b - a))
    torch.testing.assert_close(a + foot * (b - a) + up, c)


def test_slice_map_colours(model):
    side, closeness, where = maps.slice_map(model, prompts(3), size=7)
    assert closeness.shape == (7, 7, 3)
    assert closeness.min() >= 0
    assert closeness.max() <= 1
    zero, one = (int((side - x).abs().argmin()) for x in (0, 1))
    assert side[[zero, one]].tolist() == [0, 1]
    torch.testing.assert_close(closeness[zero, zero], torch.tensor([1.0, 0, 0]), atol=5e-3, rtol=0)
    torch.testing.assert_close(closeness[zero, one], torch.tensor([0, 1.0, 0]), atol=5e-3, rtol=0)
    assert where[:2].tolist() == [[0, 0], [1, 0]]


# --- Mechanism ----------------------------------------------------------------------------------


def ends(model, n):
    """Runs of the first `n` of `n + 1` prompts, and of the prompt that follows each."""
    run = engine.record(model, prompts(n + 1))
    return regions.take(run, range(n)), regions.take(run, range(1, n + 1))


def test_paths_as_a_batch_equal_rows(model):
    start, end = ends(model, 3)
    batch = region_mechanism.walk_points(start, region_mechanism.line(start, end, steps=6))
    rows = regions.walk(start, regions.path_rows(start, end, steps=6))
    torch.testing.assert_close(batch.pre, rows.pre, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(batch.post, rows.post, atol=2e-5, rtol=1e-4)


def test_a_path_for_each_prompt(model):
    start, end = ends(model, 2)
    with pytest.raises(ValueError, match="2 paths, 1 prompts"):
        region_mechanism.walk_points(regions.take(start, [0]), region_mechanism.line(start, end))


def test_paths_that_do_not_fit_in_one_batch_are_refused(model, monkeypatch):
    start, end = ends(model, 2)
    points = region_mechanism.line(start, end, steps=4)
    monkeypatch.setattr("mi_helpers.engine.execution._free_memory", lambda device: 4)
    with pytest.raises(RuntimeError, match="walk fewer at once"):
        region_mechanism.gate_signs(start, points)
    with pytest.raises(RuntimeError, match="walk fewer at once"):
        region_mechanism.walk_points(start, points, frozen_norms=[1])


def test_gate_signs_equal_plain_forwards(model):
    start, end = ends(model, 2)
    points = region_mechanism.line(start, end, steps=4)
    signs = region_mechanism.gate_signs(start, points)
    mlp = model.blocks[-1].mlp
    seen = []
    handle = (mlp.gate if hasattr(mlp, "gate") else getattr(mlp, "in")).register_forward_hook(
        lambda module, args, output: seen.append(output[:, -1])
    )
    for step in points:
        for tokens, point in zip(start.tokens, step, strict=True):
            plain_read(model, tokens[None], point, 0)
    handle.remove()
    plain = torch.cat(seen).view_as(signs)
    sure = plain.abs() > 1e-4
    assert (signs == (plain > 0))[sure].all()
    assert signs.shape == plain.shape
    assert (region_mechanism.flips(signs).sum(0) > 0).all()


def test_flips_of_a_known_path():
    one = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1]]).bool()
    assert region_mechanism.flips(torch.stack([one, one[:1].expand(3, 3)], 1)).tolist() == [
        [1, 0],
        [2, 0],
    ]


def test_flip_density_of_a_known_path():
    slope = torch.tensor([[0.1, 3.0], [0.2, 1.0], [4.0, 1.0], [1.0, 1.0], [0.4, 0.7]])
    flipped = torch.tensor([[2, 7], [3, 1], [50, 1], [4, 1], [5, 2]])
    table = region_mechanism.flip_density(flipped, slope, share=0.4)
    assert table.to_dict("list") == {
        "all": [64, 12],
        "plateau": [10, 0],
        "flattest": [2.5, 1.5],
        "steepest": [27.0, 4.0],
    }


def test_held_sharpness_equals_its_parts(model):
    run = engine.record(model, prompts(4), sites=["pattern"])
    found = region_mechanism.held_sharpness(run, steps=6)
    start, end = regions.chain(run)
    later = range(1, model.cfg.n_layers)
    rows = regions.with_frozen_patterns(regions.path_rows(start, end, steps=6), start, later)
    held = regions.walk(start, rows).sharpness()
    assert np.allclose(found["patterns"], held, equal_nan=True)
    points = region_mechanism.line(start, end, steps=6)
    held = region_mechanism.walk_points(start, points, frozen_norms=list(later)).sharpness()
    assert np.allclose(found["norms"], held, equal_nan=True)
    assert list(found) == ["patterns", "norms"]


def test_paths_in_several_batches_are_the_same(model, monkeypatch):
    start, end = ends(model, 5)
    points = region_mechanism.line(start, end, steps=4)
    norms, whole = [1, 2], region_mechanism.gate_signs(start, points)
    one = region_mechanism.walk_points(start, points, frozen_norms=norms)
    monkeypatch.setattr(region_mechanism, "COPIES", 8)  # two paths at a time
    assert (region_mechanism.gate_signs(start, points) != whole).float().mean() < 0.01
    parts = region_mechanism.walk_points(start, points, frozen_norms=norms)
    torch.testing.assert_close(parts.post, one.post, atol=2e-5, rtol=1e-4)


def test_frozen_norms_hold_the_scale(model):
    """With a norm's scale held, its output is linear in its input, up to the bias."""
    start, end = ends(model, 2)
    points = region_mechanism.line(start, end, steps=3)
    last = model.cfg.n_layers - 1
    block, seen = model.blocks[last], {}

    def normed(module, args, kwargs):
        seen["out"] = (args[0] if args else kwargs["hidden_states"])[1::2, 0]

    # Of two paths the second is looked at: its scale is its own, not the first path's.
    handles = [
        block.ln1.register_forward_pre_hook(lambda m, args: seen.update(stream=args[0][1::2, 0])),
        block.attn.register_forward_pre_hook(normed, with_kwargs=True),
    ]
    frozen = region_mechanism.walk_points(start, points, frozen_norms=[last])
    for handle in handles:
        handle.remove()
    stream, out = seen["stream"], seen["out"]
    free = region_mechanism.walk_points(start, points)
    torch.testing.assert_close(frozen.pre[0], free.pre[0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(frozen.pre[-1], free.pre[-1], atol=1e-3)
    with torch.no_grad():
        # Shift the input as the path does: the output must shift in proportion.
        weight = (out[1] - out[0]) / (stream[1] - stream[0] - _mean(model, stream))
        expected = (out[2] - out[0]) / (stream[2] - stream[0] - _mean(model, stream, 2))
    sure = weight.abs() < 1e3
    torch.testing.assert_close(weight[sure], expected[sure], atol=2e-2, rtol=2e-2)


def _mean(model, stream, n=1):
    """LayerNorm removes the mean of what it is given; RMSNorm does not."""
    is_rms = "RMS" in type(model.blocks[-1].ln1.original_component).__name__
    return 0 if is_rms else (stream[n] - stream[0]).mean()


def test_jacobian_norm_of_the_identity():
    """After the last block only the final norm acts: its Jacobian is known."""
    model = tiny.bridge("llama")
    start, end = ends(model, 1)
    points = region_mechanism.line(start, end, layer=-1, steps=3)
    found = region_mechanism.jacobian_norm(start, points, layer=-1, probes=200, size=1e-2)
    exact = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda x: model.ln_final(x[None, None])[0, 0], p
            ).norm()
            for p in points[:, 0]
        ]
    )
    torch.testing.assert_close(found[:, 0], exact, rtol=0.15, atol=0)


# --- Graph --------------------------------------------------------------------------------------


def test_near_pairs_and_components():
    acts = torch.tensor([[0.0], [1.0], [10.0], [11.5], [30.0]])
    pairs = region_graph.near_pairs(acts, 1)
    assert pairs.tolist() == [[0, 1], [2, 3], [3, 4]]
    labels = region_graph.components(5, pairs[:2])
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert len(set(labels)) == 3
    with pytest.raises(ValueError, match="1 to 4"):
        region_graph.near_pairs(acts, 5)


def test_walked_pairs_are_the_walks_of_those_pairs():
    model = tiny.bridge("llama")
    run = engine.record(model, prompts(4))
    found = region_graph.walk_pairs(run, torch.tensor([[0, 2], [1, 3]]), steps=5)
    start, end = regions.take(run, [1]), regions.take(run, [3])
    distance = regions.walk(start, regions.path_rows(start, end, steps=5)).distance()
    assert float(found["reach"][1]) == pytest.approx(float(distance.max()), rel=1e-4)
    assert float(found["sharpness"][1]) == pytest.approx(
        float(regions.sharpness(distance)[0]), rel=1e-3
    )


def test_adjusted_mutual_information_has_mean_zero_over_all_relabellings():
    first, second = [0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 2, 2]
    score = region_graph.agreement
    assert score(first, first) == pytest.approx(1)
    assert score(first, ["x", "x", "x", "y", "y", "z"]) == pytest.approx(1)
    values = [score(first, order) for order in itertools.permutations(second)]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert score([0] * 6, second) == pytest.approx(0, abs=1e-9)


def test_over_halves_covers_the_whole():
    labels = np.arange(40) // 5
    found = region_graph.over_halves(lambda i: region_graph.agreement(labels[i], labels[i]), 40)
    assert found.value == pytest.approx(1)
    assert found.n == 40
    draws = np.random.default_rng(0).normal(size=400)
    mean = region_graph.over_halves(lambda i: draws[i].mean(), 400, draws=500)
    assert mean.high - mean.low == pytest.approx(4 * draws.std() / 20, rel=0.25)


# --- Texts and the suite ------------------------------------------------------------------------


def test_sampled_prompts_repeat_and_follow_the_model(model):
    tokens = windows.sample_prompts(model, 5, length=6, seed=3)
    assert tokens.shape == (5, 7)
    assert torch.equal(tokens, windows.sample_prompts(model, 5, length=6, seed=3))
    assert not torch.equal(tokens, windows.sample_prompts(model, 5, length=6, seed=4))
    assert not set(tokens[:, 1:].flatten().tolist()) & {0, 1, 2}


def test_samples_come_from_the_models_distribution():
    model = tiny.bridge("llama")
    tokens = windows.sample_prompts(model, 4000, length=1)
    with torch.no_grad():
        logits = model(tokens[:1, :1])[0, 0]
    logits[:3] = -torch.inf
    share = torch.bincount(tokens[:, 1], minlength=tiny.D_VOCAB) / 4000
    assert float((share - logits.softmax(-1)).abs().max()) < 0.03


def test_text_pairs_of_unequal_length_are_left_out():
    model = tiny.bridge("llama")
    pairs = {"same": ("w1 w2", "w1 w3"), "longer": ("w1 w2", "w1 w3 w4")}
    assert list(windows.text_pairs(model, pairs)) == ["same"]


def test_checkpoints_on_the_hub_are_loaded_by_revision(monkeypatch):
    model, asked = tiny.bridge("llama"), []

    def load(path, revision=None):
        asked.append((path, revision))
        return model

    monkeypatch.setattr(region_suite, "load_model", load)
    table = pd.DataFrame({"path": ["a/b", "a/b"], "revision": ["step1", "step8"]})
    tokens = torch.randint(3, tiny.D_VOCAB, (4, 6), generator=torch.Generator().manual_seed(0))
    found = region_suite.suite_sharpness(table, tokens, steps=5)
    assert asked == [("a/b", "step1"), ("a/b", "step8")]
    assert found.shape == (3, 2)
    assert (found[:, 0] == found[:, 1]).all()


def test_the_suite_loads_and_has_learnt():
    from mi_helpers import load_model

    suite = region_suite.suite()
    counts = suite.groupby("width")["step"].nunique()
    assert len(counts) >= 3
    assert (counts >= 8).all()
    first, last = (suite.query("width == 32").iloc[n] for n in (0, -1))
    assert last["held_out_loss"] < first["held_out_loss"] - 2
    written = [
        "Return the name of the file.",
        "Raise a ValueError if the argument is not a string.",
    ]
    gains = [windows.order_gain(load_model(one["path"]), written) for one in (first, last)]
    assert gains[0] < 0.5 < gains[1]


def test_untrained_is_another_draw_of_the_same_shape(model):
    state = torch.get_rng_state()
    fresh = region_suite.untrained(model, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert fresh.cfg.n_layers == model.cfg.n_layers
    again = region_suite.untrained(model, seed=1)
    tokens = prompts(2)
    with torch.no_grad():
        torch.testing.assert_close(fresh(tokens), again(tokens))
        assert not torch.allclose(fresh(tokens), model(tokens))


def test_chained_sharpness_is_the_sharpness_of_those_pairs():
    model, tokens = tiny.bridge("llama"), prompts(3)
    tokens = torch.cat([tokens, tokens[-1:]])
    found = region_suite.chained_sharpness(model, tokens, steps=7)
    start, end = (engine.record(model, tokens[n : n + 1]) for n in (1, 2))
    one = regions.walk(start, regions.path_rows(start, end, steps=7))
    assert float(found[1]) == pytest.approx(float(regions.sharpness(one.distance())[0]), rel=1e-3)
    assert found.isnan().tolist() == [False, False, True]  # the last two prompts are equal


def test_shared_last_token():
    tokens = torch.tensor([[0, 7], [0, 8], [0, 7], [0, 8], [0, 9]])
    found = region_suite.shared_last_token(tokens, 10)
    assert sorted(found[:, :2].tolist()) == [[0, 2], [1, 3], [2, 0], [3, 1]]
    assert (tokens[found[:, 2], 1] != tokens[found[:, 0], 1]).all()
    assert region_suite.shared_last_token(tokens, 2).tolist() == found[:2].tolist()
    for bad in (tokens[:2], tokens[[0, 2]]):
        with pytest.raises(ValueError, match="ends in the same token beside one that does not"):
            region_suite.shared_last_token(bad, 10)


def test_curves_hold_every_step():
    start, end = regions.chain(engine.record(tiny.bridge("llama"), prompts(3)))
    walk = regions.walk(start, regions.path_rows(start, end, steps=5))
    table = regions.curves({"one": walk, "again": walk})
    assert len(table) == 2 * 2 * 10
    assert (table.query("alpha == 0")["value"] == 0).all()
    post = table[(table["read"] == "after it") & (table["path"] == "again")]
    assert np.allclose(post.query("alpha == 1")["value"], 1)
    middle = walk.distance()[2, 1] / walk.distance()[-1, 1]
    assert post.query("alpha == 0.5 and pair == 1")["value"].item() == pytest.approx(float(middle))
    kl = regions.curves({"one": walk}, kl=True)
    assert kl["value"].tolist() == walk.kl().flatten().tolist()


def test_a_chain_joins_each_prompt_to_the_next():
    tokens = prompts(4)
    start, end = regions.chain(engine.record(tiny.bridge("llama"), tokens))
    assert start.tokens.equal(tokens[:3])
    assert end.tokens.equal(tokens[1:])


def test_explorer_refuses_unequal_lengths_and_draws(capsys):
    pytest.importorskip("ipywidgets")
    model = tiny.bridge("llama")
    box = maps.explorer(model, ["w1 w2", "w1 w3", "w4"], size=5)
    box.children[4].click()
    assert "equal token lengths" in capsys.readouterr().out


def test_slice_figure_has_the_corners():
    model = tiny.bridge("llama")
    figure = maps.slice_figure(*maps.slice_map(model, prompts(3), size=5))
    assert np.asarray(figure.data[0].z).shape == (5, 5, 3)
    assert figure.data[1].x[:2] == (0, 1)

"""Figures: what is drawn from a table, and how it shows with and without a browser."""

import base64
import io
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
import torch
from PIL import Image

from mi_helpers import panels, plots

SWEEP = pd.DataFrame(
    [
        {"layer": layer, "pos": pos, "run": run, "logit_diff": layer - pos * (run == "noise")}
        for run in ("denoise", "noise")
        for layer in (2, 0, 1)
        for pos in range(4)
    ]
)
ONE = SWEEP[SWEEP["run"] == "noise"]
CURVES = pd.DataFrame(
    {"x": [2, 1, 1, 2], "y": [4.0, 1, 2, 3], "low": 0.5, "high": 5.0, "name": ["b", "b", "a", "a"]}
)


def traces(figure, kind):
    return [trace for trace in figure.data if trace.type == kind]


def test_heatmap_puts_every_value_in_its_cell():
    figure = plots.heatmap(ONE, "logit_diff", labels=["A", "<b>", "$x$", "A&B"])
    (trace,) = figure.data
    assert list(trace.y) == [0, 1, 2]
    assert list(trace.x) == [0, 1, 2, 3]
    assert trace.z.tolist() == [[layer - pos for pos in range(4)] for layer in range(3)]
    assert figure.layout.xaxis.ticktext == ("A", "&lt;b&gt;", "&#36;x&#36;", "A&amp;B")
    assert figure.layout.yaxis.dtick == 1


def test_heatmap_scale_is_symmetric_only_where_zero_means_no_effect():
    scale = plots.heatmap(ONE, "logit_diff").layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-3, 3)
    assert [colour for at, colour in scale.colorscale if at == 0.5] == ["#FFFFFF"]
    scale = plots.heatmap(ONE, "logit_diff", zero_centred=False).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-3, 2)
    nothing = plots.heatmap(ONE.assign(logit_diff=0.0), "logit_diff").layout.coloraxis
    assert nothing.cmin < 0 < nothing.cmax


def test_heatmap_gaps_stay_gaps_and_words_keep_their_order():
    table = pd.DataFrame({"layer": [0, 1], "site": ["z", "attn"], "v": [1.0, 2.0]})
    (trace,) = plots.heatmap(table, "v", x="site").data
    assert list(trace.x) == ["z", "attn"]
    assert np.isnan(trace.z).tolist() == [[False, True], [True, False]]


def test_heatmap_facets_share_one_scale_and_wrap():
    figure = plots.heatmap(SWEEP, "logit_diff", facet="run")
    assert [title.text for title in figure.layout.annotations] == ["denoise", "noise"]
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    many = pd.concat([ONE.assign(run=f"run {i}") for i in range(9)])
    figure = plots.heatmap(many, "logit_diff", facet="run")
    assert len(figure.data) == 9
    assert figure.layout.width <= 1100
    # six panels a row: those above an empty place carry their own tick labels
    shown = [figure.layout[f"xaxis{i}"].showticklabels for i in range(2, 10)]
    assert shown == [False] * 2 + [True] * 6


def test_heatmap_refuses_two_rows_in_one_cell():
    with pytest.raises(ValueError, match=r"several rows share one \(pos, layer\)"):
        plots.heatmap(SWEEP, "logit_diff")


def test_lines_are_sorted_and_carry_their_band():
    figure = plots.lines(CURVES, "x", "y", color="name", band=("low", "high"))
    edge, line = [trace for trace in figure.data if trace.name == "b"]
    assert (list(line.x), list(line.y)) == ([1, 2], [1, 4])
    assert (list(edge.x), list(edge.y)) == ([1, 2, 2, 1], [0.5, 0.5, 5, 5])
    assert edge.fillcolor == line.line.color
    assert not edge.showlegend
    assert len({trace.line.color for trace in figure.data if trace.showlegend}) == 2


def test_lines_in_panels_keep_their_colours():
    table = pd.concat([CURVES.assign(site="z"), CURVES[CURVES["name"] == "a"].assign(site="mlp")])
    figure = plots.lines(table, "x", "y", color="name", facet="site")
    colours = [(trace.name, trace.line.color) for trace in figure.data]
    assert len(colours) == 3
    assert len(set(colours)) == 2
    assert [trace.showlegend for trace in figure.data] == [True, True, False]


def test_points_at_names_carry_bars_and_stand_side_by_side():
    table = CURVES.assign(x=CURVES["x"].map({1: "one", 2: "two"}))
    figure = plots.lines(table, "x", "y", color="name", band=("low", "high"))
    line = next(trace for trace in figure.data if trace.name == "b")
    part = table[table["name"] == "b"]
    assert list(line.y + line.error_y.array) == part["high"].tolist()
    assert list(line.y - line.error_y.arrayminus) == part["low"].tolist()
    assert len({trace.offsetgroup for trace in figure.data}) == len(figure.data) == 2
    assert figure.layout.scattermode == "group"


@pytest.mark.parametrize("narrow", [1.15, 1.6, 3, 30])
def test_each_row_of_a_logarithmic_axis_has_ticks_of_its_own(narrow: float):
    wide = pd.DataFrame({"x": [1, 2], "y": [0.2, 40], "panel": "wide"})
    rows = [wide, wide.assign(panel="also wide")]
    rows += [wide.assign(y=[1.31, 1.31 * narrow], panel=name) for name in ("narrow", "also narrow")]
    figure = plots.lines(pd.concat(rows), "x", "y", facet="panel", log_y=True)
    shown = {"yaxis": (0.2, 40), "yaxis2": (0.2, 40), "yaxis3": (1.31, 1.31 * narrow)}
    for name, (low, high) in shown.items():
        ticks = figure.layout[name].tickvals
        assert 2 <= sum(low <= tick <= high for tick in ticks) <= 9, (name, ticks)


def test_no_legend_for_what_the_panels_name():
    figure = plots.lines(CURVES, "x", "y", color="name", facet="name")
    assert not any(trace.showlegend for trace in figure.data)


def test_many_lines_stay_apart():
    numbers = pd.DataFrame({"x": 0, "y": 0.0, "layer": range(12)})
    styles = {(t.line.color, t.line.dash) for t in plots.lines(numbers, "x", "y", "layer").data}
    assert len(styles) == 12
    words = numbers.assign(layer=[f"head {i}" for i in range(12)])
    styles = {(t.line.color, t.line.dash) for t in plots.lines(words, "x", "y", "layer").data}
    assert len(styles) == 12
    assert {colour for colour, _ in styles} == set(panels.COLOURS)


def test_scatter():
    figure = plots.scatter(CURVES, "x", "y", color="name", text="name", diagonal=True)
    first, second, equal = figure.data
    assert (list(first.x), list(first.y), first.name) == ([2, 1], [4, 1], "b")
    assert second.text == ("a", "a")
    assert list(equal.x) == list(equal.y) == [1, 4]


def test_histogram_counts_shares_in_common_bins():
    table = pd.DataFrame({"v": [0.0, 1, 1, 10, 0, np.nan], "kind": list("aaaabb")})
    figure = plots.histogram(table, "v", color="kind", bins=10)
    a, b = figure.data
    assert a.y.tolist() == [0.25, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.25]
    assert b.y.tolist() == [1] + [0] * 9
    assert a.x.tolist() == b.x.tolist() == [i + 0.5 for i in range(10)]


def test_histograms_side_by_side_share_bins_and_count_their_own_rows():
    table = pd.DataFrame({"v": [0.0, 1, 1, 10], "kind": list("xyxy"), "part": list("aabb")})
    figure = plots.histogram(table, "v", color="kind", bins=10, facet="part")
    ones = {(bars.xaxis, bars.name): int(np.argmax(bars.y)) for bars in figure.data}
    assert ones == {("x", "x"): 0, ("x", "y"): 1, ("x2", "x"): 1, ("x2", "y"): 9}
    assert [bars.y.sum() for bars in figure.data] == [1] * 4
    assert [bars.showlegend for bars in figure.data] == [True, True, False, False]


def test_rows_of_one_index_are_different_rows():
    table = pd.concat([pd.DataFrame({"x": [v, v], "y": 0.0, "name": n}) for n, v in ("a0", "b9")])
    table["x"] = table["x"].astype(float)
    first, second = plots.histogram(table, "x", "name", bins=2).data
    assert (list(first.y), list(second.y)) == ([1, 0], [0, 1])
    first, second = plots.scatter(table, "x", "y", "name", text="name").data
    assert (list(first.hovertext), list(second.hovertext)) == (["a", "a"], ["b", "b"])


def test_histogram_on_a_logarithmic_axis():
    table = pd.DataFrame({"v": [1.0, 10, 100, 1000]})
    (bars,) = plots.histogram(table, "v", bins=3, log_x=True).data
    np.testing.assert_allclose(bars.x, [10**0.5, 10**1.5, 10**2.5], rtol=1e-6)
    np.testing.assert_allclose(bars.width, [9, 90, 900], rtol=1e-6)
    with pytest.raises(ValueError, match="zero or less"):
        plots.histogram(table - 1, "v", log_x=True)


def test_attention_shows_the_past_alone():
    pattern = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]] * 5)
    figure = plots.attention(pattern, ["a", "b"], heads=[f"layer {i}" for i in range(5)])
    assert [note.text for note in figure.layout.annotations] == [f"layer {i}" for i in range(5)]
    np.testing.assert_array_equal(figure.data[4].z, [[1, np.nan], [0.25, 0.75]])
    assert figure.layout.yaxis.autorange == "reversed"
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    for tokens, heads in (["a"], None), (["a", "b"], ["one"]):
        with pytest.raises(ValueError, match="the pattern has 5 heads and is 2 by 2"):
            plots.attention(pattern, tokens, heads)
    with pytest.raises(ValueError, match=r"\[head, query, key\]"):
        plots.attention(pattern[0], ["a", "b"])


@pytest.mark.parametrize(
    "draw",
    [
        lambda t: plots.heatmap(t, "nosuch"),
        lambda t: plots.heatmap(t, "logit_diff", facet="nosuch"),
        lambda t: plots.lines(t, "pos", "nosuch"),
        lambda t: plots.lines(t, "pos", "logit_diff", band=("nosuch", "logit_diff")),
        lambda t: plots.scatter(t, "pos", "logit_diff", text="nosuch"),
        lambda t: plots.histogram(t, "nosuch"),
    ],
)
def test_unknown_columns_are_refused(draw):
    with pytest.raises(ValueError, match=r"no column \['nosuch'\]; the table has \['layer', 'pos'"):
        draw(ONE)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        plots.heatmap(ONE[:0], "logit_diff")


def test_axes_carry_units():
    figure = plots.lines(ONE, "pos", "logit_diff", color="layer")
    assert figure.layout.xaxis.title.text == "position"
    assert figure.layout.yaxis.title.text == "logit difference (nats)"
    bar = plots.heatmap(ONE, "logit_diff").layout.coloraxis.colorbar.title.text
    assert bar.replace("<br>", " ").strip() == "logit difference (nats)"


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def seen_by_deuteranope(colour):
    """Viénot, Brettel & Mollon 1999: the colour as seen without the green-sensitive cones."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
    return np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]) @ rgb


def test_colours_can_be_told_apart():
    """The scale darkens evenly from its middle; lines differ for readers without green cones."""
    left, right = (
        [luminance(colour) for _, colour in half]
        for half in (panels.DIVERGING[:3], panels.DIVERGING[:1:-1])
    )
    assert left == sorted(left)
    assert right == sorted(right)
    np.testing.assert_allclose(left, right, atol=0.12)
    seen = [seen_by_deuteranope(colour) for colour in panels.COLOURS]
    apart = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 0.06


# --- Display --------------------------------------------------------------------------------------


@pytest.fixture
def renderer():
    fresh = panels.InteractiveAndStatic()
    yield fresh
    if fresh._shared.chrome is not None:
        fresh._shared.chrome.close()


def test_the_renderer_is_the_default():
    assert isinstance(pio.renderers[pio.renderers.default], panels.InteractiveAndStatic)
    assert plots.heatmap(ONE, "logit_diff").layout.template.layout.plot_bgcolor == "white"


def test_without_a_browser_figures_are_interactive_and_say_so_once(renderer, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent/chrome")
    figure = plots.heatmap(ONE, "logit_diff").to_dict()
    with pytest.warns(UserWarning, match=r"interactive only.*apt-get install chromium"):
        bundle = renderer.to_mimebundle(figure)
    assert set(bundle) == {"application/vnd.plotly.v1+json"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(renderer.to_mimebundle(figure)) == {"application/vnd.plotly.v1+json"}


def test_a_browser_that_fails_does_not_take_the_figure_with_it(renderer, monkeypatch):
    monkeypatch.setattr(panels.Chrome, "__init__", lambda self: setattr(self, "process", -1))
    with pytest.warns(UserWarning, match="interactive only"):
        assert "image/png" not in renderer.to_mimebundle({"data": []})


def test_a_browser_that_hangs_is_given_up(monkeypatch):
    async def forever(self):
        import asyncio

        await asyncio.sleep(60)

    monkeypatch.setattr(panels.Chrome, "_start", forever)
    monkeypatch.setattr(panels, "START_S", 0.05)
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        panels.Chrome()


def test_squeezing_a_png_keeps_its_picture():
    picture = Image.effect_noise((40, 30), 20).resize((200, 150), Image.Resampling.NEAREST)
    loose = io.BytesIO()
    picture.save(loose, "PNG", compress_level=1)
    squeezed = panels.squeeze(loose.getvalue())
    assert Image.open(io.BytesIO(squeezed)).tobytes() == picture.tobytes()
    assert len(squeezed) < len(loose.getvalue())


def test_all_figures_share_one_browser(monkeypatch):
    """However plotly reaches its renderer, which it copies for every figure."""
    started = []

    class Fake:
        process = os.getpid()

        def __init__(self):
            started.append(self)

        def png(self, figure):
            return b"png"

    monkeypatch.setattr(panels, "Chrome", Fake)
    monkeypatch.setattr(pio.renderers["mi"], "_shared", panels._Shared())
    figure = plots.lines(pd.DataFrame({"x": [0, 1], "y": [0, 1]}), "x", "y")
    for _ in range(3):
        assert "image/png" in figure._repr_mimebundle_()
    assert len(started) == 1


DRAW = """
import json
import os
from mi_helpers import panels
from mi_helpers import plots
import pandas as pd, plotly.io as pio
figure = plots.lines(pd.DataFrame({"x": [0, 1], "y": [0, 1]}), "x", "y")
renderer = pio.renderers[pio.renderers.default]
bundles = [renderer.to_mimebundle(figure.to_dict()) for _ in range(2)]
print(json.dumps([b.get("image/png") for b in bundles] + [figure.layout.width]))
"""


def test_a_process_draws_pngs_and_ends():
    """In a process of its own, as a notebook's kernel is: it must not hang when it exits."""
    chromium = pytest.importorskip("choreographer.browsers.chromium").Chromium
    if not chromium.find_browser(skip_local=False):
        pytest.skip("no Chrome or Chromium here")
    done = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, timeout=150, check=True
    )
    *pngs, width = json.loads(done.stdout)
    for png in pngs:
        drawn = Image.open(io.BytesIO(base64.b64decode(png))).width
        assert drawn == pytest.approx(width * panels.SCALE, abs=1)


def test_names_on_an_axis_are_not_numbers():
    heads = pd.DataFrame({"head": ["9.6", "10.0", "9.9"], "pos": [0, 0, 0], "v": [1.0, 2.0, 3.0]})
    assert plots.heatmap(heads, "v", x="pos", y="head").layout.yaxis.type == "category"
    figure = plots.lines(heads, "head", "v")
    assert figure.layout.xaxis.type == "category"
    assert list(figure.data[0].x) == ["9.6", "10.0", "9.9"]
    assert figure.data[0].mode == "markers"


def test_points_that_stand_out_are_labelled():
    table = pd.DataFrame({"x": [0.01 * i for i in range(30)] + [9.0], "y": [0.0] * 31})
    (points,) = plots.scatter(table.assign(name=range(31)), "x", "y", text="name").data
    assert points.text[-1] == "30"
    assert 1 < sum(text != "" for text in points.text) < 10  # the others would cover these
    assert list(points.hovertext) == [str(i) for i in range(31)]


@pytest.mark.parametrize("log", [False, True])
def test_labels_cover_neither_points_nor_each_other(log):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(np.exp(rng.normal(size=(60, 2))), columns=["x", "y"])
    table["name"] = [f"a long name {i}" for i in range(60)]
    options = {"text": "name", "log_x": log, "log_y": log, "diagonal": True}
    points = plots.scatter(table, "x", "y", **options).data[0]
    axes = [np.log10(v) if log else np.array(v) for v in (points.x, points.y)]
    low, high = np.min(axes), np.max(axes)  # the ends of the diagonal
    pixels = [(v - low) / (high - low) * n for v, n in zip(axes, (560, 290), strict=True)]
    boxes = [(u - 3, u + 3, v - 3, v + 3) for u, v in zip(*pixels, strict=True)]
    aside = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}
    for u, v, text, where in zip(*pixels, points.text, points.textposition, strict=True):
        if text:
            half = 3 * len(text)
            dx, dy = next(step for name, step in aside.items() if name in where)
            u, v = u + dx * (half + 6), v + dy * 12
            boxes.append((u - half, u + half, v - 6, v + 6))
    assert len(boxes) > 64
    for i, box in enumerate(boxes[60:], 60):
        for other in boxes[:i]:
            apart = (box[0] >= other[1], other[0] >= box[1], box[2] >= other[3], other[2] >= box[3])
            assert any(apart)


def test_points_without_a_value_leave_the_others_their_labels():
    table = pd.DataFrame({"x": [0.0, 1.0, np.nan], "y": [1.0, 1.0, 2.0], "name": list("abc")})
    (points,) = plots.scatter(table, "x", "y", text="name", log_x=True).data
    assert points.text[1] == "b"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([25, 700], ["10", "20", "50", "100", "200", "500", "1000", "2000", "5000"]),
        ([1, 9000], ["1", "10", "100", "1000", "10000"]),
    ],
)
def test_logarithmic_ticks_are_whole_numbers(values, labels):
    figure = plots.lines(pd.DataFrame({"x": values, "y": values}), "x", "y", log_x=True)
    assert list(figure.layout.xaxis.ticktext) == labels


def test_a_wide_logarithmic_axis_shows_powers():
    figure = plots.lines(pd.DataFrame({"x": [1e-12, 1], "y": [0, 1]}), "x", "y", log_x=True)
    assert figure.layout.xaxis.exponentformat == "power"
    assert figure.layout.xaxis.dtick == 2


def test_the_explorer_shows_what_was_chosen_and_prints_what_is_wrong(capsys):
    pytest.importorskip("ipywidgets")

    def show(text, layer):
        if layer == 3:
            raise ValueError("no such layer")
        return f"{text}, layer {layer}"

    box = plots.explorer(show, "Draw", text="A", layer=[2, 3])
    text, layer, button, _ = box.children
    text.value = "B"
    button.click()
    layer.value = 3
    button.click()
    printed = capsys.readouterr().out
    assert "B, layer 2" in printed
    assert "no such layer" in printed

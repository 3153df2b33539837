"""Cards from a model, the page's data, and the page itself in a real browser."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers.features import explore as feature_explorer
from mi_helpers.features.contexts import Card, Context, cards, levels
from mi_helpers.features.firing import gather
from tests import tiny

from .test_features import Random

MARKUP = "</script><img src=x onerror='document.title=\"owned\"'>"


STATISTICS = {"Pearson's r": "weight", "Jaccard": "jaccard"}


# --- Cards --------------------------------------------------------------------------------------


def test_cards_show_where_a_feature_fires_and_what_it_says():
    model = tiny.bridge("gpt2")
    tokens = torch.arange(60).view(4, 15) + 3
    activations = torch.zeros(4, 14, 3)
    activations[0, 2, 1], activations[2, 13, 1], activations[2, 12, 1] = 2.0, 4.0, 1.0
    decoder = Random(3).W_dec
    ids = tokens[:, 1:].flatten().numpy()
    firing = replace(gather([activations]), tokens=ids)
    found = cards(model, firing, decoder, [1, 0], n_contexts=5, before=3, after=2)
    card = found[1]
    assert card.fires == 3 / 56
    first, second = card.contexts  # of two documents, the stronger first
    assert first.tokens == ("w41", "w42", "w43", "w44")  # the text ends there
    assert first.activation == (0, 0, 0.25, 1)
    assert second.tokens == ("w1", "w2", "w3", "w4", "w5")  # the first token is left out
    assert second.activation == (0, 0, 0.5, 0, 0)
    assert card.word == "w44"
    assert found[0].contexts == ()
    assert found[0].word == ""
    normed = model.ln_final(decoder[1]) - model.ln_final(torch.zeros(32))
    expected = (normed @ model.unembed.W_U).topk(6).indices
    labels = [model.tokenizer.convert_ids_to_tokens(int(t)) for t in expected]
    assert list(card.promoted) == [w.replace("<", "‹").replace(">", "›") for w in labels]
    assert not set(card.promoted) & set(card.suppressed)
    assert str(second) == "w1w2[w3]w4w5"
    by_level = levels(model, firing, 1, n=1, before=1, after=0)
    assert by_level["top"][0].activation == (0.25, 1)
    assert by_level["weak"][0].activation == (0, 0.25)
    with pytest.raises(ValueError, match="no token ids"):
        cards(model, gather([activations]), decoder, [1])
    with pytest.raises(ValueError, match="56 tokens"):
        replace(firing, tokens=ids[:-3])


# --- The page's data ----------------------------------------------------------------------------


def graph(n=40, n_edges=150, layers=4, seed=0):
    """Nodes, edges and cards of a random graph whose texts try to be markup."""
    rng = np.random.default_rng(seed)
    per = n // layers
    nodes = pd.DataFrame(
        [(10 + layer, f) for layer in range(layers) for f in range(per)],
        columns=["layer", "feature"],
    )
    nodes["community"] = [min(f // 3, 2) if f < 8 else -1 for f in nodes["feature"]]
    nodes["kinds"] = [(feature_explorer.KINDS[f % 4],) if f % 5 else () for f in nodes["feature"]]
    m = n_edges // (layers - 1)
    parts = []
    for layer in range(10, 9 + layers):
        ends = {"up": rng.integers(0, per, m), "down": rng.integers(0, per, m)}
        part = pd.DataFrame({"layer": layer, "next": layer + 1, **ends})
        parts.append(part.drop_duplicates(["up", "down"]))
    joined = pd.concat(parts, ignore_index=True)
    joined["weight"] = rng.uniform(0.4, 1, len(joined)).round(3)
    joined["jaccard"] = rng.uniform(0.1, 1, len(joined)).round(3)
    found = {}
    for layer, feature in zip(nodes["layer"], nodes["feature"], strict=True):
        words = ("·once", "·upon", f"·w{layer}x{feature}", MARKUP, "·end")
        context = Context(words, (0, 0.3, 1.0, 0.0, 0.5))
        found[layer, feature] = Card(0.01, (context,), ("·next", MARKUP), ("·not",))
    return nodes, joined, found


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text
    return json.loads(text[1])


def test_the_page_holds_the_graph_and_nothing_reaches_out():
    nodes, joined, found = graph()
    made = feature_explorer.explorer(nodes, joined, found, title=MARKUP, about="text")
    data = data_of(made.page)
    assert len(data["nodes"]["layer"]) == len(nodes) == made.features
    assert len(data["edges"]["source"]) == len(joined) == made.edges
    for e, row in enumerate(joined.itertuples()):
        source, target = data["edges"]["source"][e], data["edges"]["target"][e]
        assert data["layers"][data["nodes"]["layer"][source]] == row.layer
        assert data["nodes"]["feature"][source] == row.up
        assert data["nodes"]["feature"][target] == row.down
    context = data["cards"][0]["c"][0]
    assert [data["words"][w] for w in context["t"]][2] == "·w10x0"
    assert context["a"] == [0, 3, 10, 0, 5]
    assert MARKUP not in made.page
    assert made.page.count("</script>") == 4
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:", made.page)
    assert "sourceMappingURL" not in made.page
    assert repr(made) == f"explorer of {len(nodes)} features and {len(joined)} edges"


def test_the_first_view_is_the_picture_of_the_page():
    nodes, joined, cards = graph()
    made = feature_explorer.explorer(nodes, joined, cards)
    lines, points = made.first_view.data
    assert len(points.x) == len(nodes)
    assert len(lines.x) == 3 * made.edges
    assert "<img" not in "".join(points.text)
    named = [(x, y) for x, y, word in zip(points.x, points.y, points.text, strict=True) if word]
    for layer in (0, 1.1):
        heights = np.sort([y for x, y in named if abs(x - layer) < 0.2])
        assert (np.diff(heights) > 0.029).all()
    about = feature_explorer.explorer(nodes, joined, cards, about="<b> r ≥ 0.4")
    assert about.first_view.layout.title.text.endswith("<br><sup>&lt;b&gt; r ≥ 0.4</sup>")


def test_edges_to_features_that_are_not_shown_are_left_out(tmp_path):
    nodes, joined, found = graph()
    some = nodes[nodes["feature"] < 5]
    made = feature_explorer.explorer(some, joined, found)
    assert made.edges == ((joined["up"] < 5) & (joined["down"] < 5)).sum()
    assert made.save(tmp_path / "page.html").read_text(encoding="utf-8") == made.page
    frame = made._repr_html_()
    source = re.search(r"srcdoc='(.*?)'", frame, re.DOTALL)
    assert source
    assert html.unescape(source[1]) == made.page


def test_the_explorer_refuses():
    nodes, joined, found = graph()
    with pytest.raises(ValueError, match="repeated"):
        feature_explorer.explorer(pd.concat([nodes, nodes[:1]]), joined, found)
    with pytest.raises(ValueError, match=r"'odd'.*passed through"):
        feature_explorer.explorer(nodes.assign(kinds=[("odd",)] * len(nodes)), joined, found)
    with pytest.raises(ValueError, match=r"no card for 1 features.*\(10, 0\)"):
        feature_explorer.explorer(nodes, joined, {k: v for k, v in found.items() if k != (10, 0)})
    with pytest.raises(ValueError, match=r"no column \['odd'\]"):
        feature_explorer.explorer(nodes, joined, found, statistics={"Odd": "odd"})
    with pytest.raises(ValueError, match="no feature"):
        feature_explorer.explorer(nodes[:0], joined, found)


# --- The page in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("choreographer")  # of the notebooks' extra
    from tests import browser

    if not browser.available():
        pytest.skip("no Chrome or Chromium on this machine")
    nodes, joined, texts = graph()
    made = feature_explorer.explorer(nodes, joined, texts, title=MARKUP, statistics=STATISTICS)
    found = browser.Page(made.save(tmp_path_factory.mktemp("page") / "explorer.html"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def start_anew(request):
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.js("document.activeElement.blur(), byId('query').value = ''")
        page.key("Escape")


HEAD = "document.querySelector('#panel h2').textContent"


def shown(page):
    """Layer and feature that the panel shows."""
    layer, feature = re.findall(r"\d+", page.js(HEAD))
    return int(layer), int(feature)


def strongest(joined, layer, feature, forwards=True):
    ends = ("layer", "up", "next", "down") if forwards else ("next", "down", "layer", "up")
    mine = joined[(joined[ends[0]] == layer) & (joined[ends[1]] == feature)]
    row = joined.loc[mine["weight"].idxmax()]
    return int(row[ends[2]]), int(row[ends[3]])


def search(page, text):
    page.key("/")
    page.write(text)


def test_texts_are_shown_and_never_run(page):
    search(page, "11/4")
    page.key("Enter")
    assert page.js("document.title") == MARKUP
    assert page.js("document.querySelector('h1').textContent") == MARKUP
    assert page.js("document.querySelectorAll('img').length") == 0
    assert MARKUP in page.js("document.querySelector('#contexts p').textContent")


def test_search_by_number_and_by_word(page):
    search(page, "12/7")
    page.key("Enter")
    assert shown(page) == (12, 7)
    page.key("Escape")
    assert page.js(HEAD) == "No feature chosen"
    search(page, "w13x2")
    page.key("ArrowDown")  # into the list, by keyboard
    assert page.js("document.activeElement.dataset.node") == str(32)
    page.key("Enter")
    assert shown(page) == (13, 2)
    search(page, "nowhere")
    assert "no feature has it" in page.js("byId('found').textContent")


def test_shading_says_how_strongly_it_fires(page):
    search(page, "10/3")
    page.key("Enter")
    spans = "[...document.querySelectorAll('#contexts p span')]"
    assert page.js(f"{spans}.map(s => s.dataset.level ?? '')") == ["", "3", "10", "", "5"]
    strength = page.js(f"{spans}.map(s => getComputedStyle(s).backgroundColor)")
    alpha = [float(colour.rstrip(")").split(",")[-1]) for colour in strength]
    assert alpha[0] == 0 < alpha[1] < alpha[4] < alpha[2]


def test_a_click_on_a_node_and_a_click_beside_it(page):
    at = page.js(
        "(() => { const d = renderer.getNodeDisplayData(25), b = byId('graph')"
        ".getBoundingClientRect(), v = renderer.framedGraphToViewport(d);"
        " return [b.x + v.x, b.y + v.y]; })()"
    )
    page.click(*at)
    page.until(f"{HEAD} !== 'No feature chosen'")
    assert shown(page) == (12, 5)
    assert page.js("near.has(25) && near.size > 1")
    box = page.js(
        "(() => { const b = byId('graph').getBoundingClientRect(); return [b.x, b.bottom]})()"
    )
    page.js("new Promise(done => setTimeout(done, 400))")  # or it is a double click
    page.click(box[0] + 3, box[1] - 3)
    page.until(f"{HEAD} === 'No feature chosen'")


def test_a_chain_is_followed_by_arrow_keys_and_by_buttons(page):
    joined = graph()[1]
    search(page, "10/6")
    page.key("Enter")
    place = (10, 6)
    for _ in range(3):
        place = strongest(joined, *place)
        page.key("ArrowRight")
        assert shown(page) == place
    page.key("ArrowRight")  # the last layer
    assert shown(page) == place
    page.key("ArrowLeft")
    assert shown(page) == strongest(joined, *place, forwards=False)
    path = page.js("[...document.querySelectorAll('#path button')].map(b => b.textContent)")
    assert [int(step.split("/")[0]) for step in path] == [10, 11, 12, 13]
    page.click_on("#path button")
    assert "/".join(map(str, shown(page))) == path[0]


def test_neighbours_are_listed_strongest_first(page):
    joined = graph()[1]
    search(page, "11/2")
    page.key("Enter")
    listed = page.js(
        "[...document.querySelectorAll('.two section')]"
        ".map(s => [...s.querySelectorAll('button')].map(b => Number(b.dataset.node)))"
    )
    before = joined[(joined["next"] == 11) & (joined["down"] == 2)].sort_values("weight")
    after = joined[(joined["layer"] == 11) & (joined["up"] == 2)].sort_values("weight")
    assert listed[0] == before["up"].tolist()[::-1]
    assert listed[1] == [20 + f for f in after["down"].tolist()[::-1]]


def test_another_similarity_can_be_chosen(page):
    joined = graph()[1]
    choose = "byId('statistic').value = {}; byId('statistic').dispatchEvent(new Event('change'))"
    search(page, "11/2")
    page.key("Enter")
    page.js(choose.format(1))
    after = joined[(joined["layer"] == 11) & (joined["up"] == 2)].sort_values("jaccard")
    listed = page.js("[...document.querySelectorAll('.two section:last-child button')]"
                     ".map(b => b.textContent.split(' ')[0])")  # fmt: skip
    assert listed == [f"{value:.2f}" for value in after["jaccard"][::-1]]
    assert float(page.js("byId('least').min")) == pytest.approx(joined["jaccard"].min(), abs=0.01)
    page.js("byId('least').value = 0.5; byId('least').dispatchEvent(new Event('input'))")
    assert page.js("byId('count').textContent").endswith(
        f"{(joined['jaccard'] >= 0.5).sum()} edges"
    )
    page.js(choose.format(0))
    assert page.js("byId('count').textContent").endswith(f"{len(joined)} edges")


def test_filters_by_similarity_and_kind(page):
    nodes, joined, _ = graph()
    count = "byId('count').textContent"
    assert page.js(count) == f"{len(nodes)} features, {len(joined)} edges"
    page.js("byId('least').value = 0.8; byId('least').dispatchEvent(new Event('input'))")
    kept = joined[joined["weight"] >= 0.8]
    assert page.js(count) == f"{len(nodes)} features, {len(kept)} edges"
    page.click_on("[data-kind=gate]")
    gate = {f for f, kinds in zip(nodes["feature"], nodes["kinds"], strict=True) if "gate" in kinds}
    kept = kept[~kept["up"].isin(gate) & ~kept["down"].isin(gate)]
    assert page.js(count) == f"{(~nodes['feature'].isin(gate)).sum()} features, {len(kept)} edges"
    hidden = page.js("renderer.getNodeDisplayData(1).hidden === true")
    assert hidden == (1 in gate)
    page.click_on("[data-kind=gate]")
    page.js("byId('least').value = 0; byId('least').dispatchEvent(new Event('input'))")
    assert page.js(count) == f"{len(nodes)} features, {len(joined)} edges"


def test_a_community_can_be_shown_alone(page):
    search(page, "10/1")
    page.key("Enter")
    page.click_on("#community")
    colours = page.js("graph.nodes().map(n => renderer.getNodeDisplayData(n).color)")
    inside = (graph()[0]["community"] == 0).tolist()
    assert [colour != "#e3e3e3" for colour in colours] == inside


def test_every_control_is_reached_by_tab(page):
    reached = set()
    for _ in range(14):
        page.key("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.dataset.kind"))
    kinds = {*feature_explorer.KINDS, "others"}
    assert {"query", "statistic", "least", "colour", "graph", *kinds} <= reached


def test_the_picture_has_nodes_and_edges(page):
    from io import BytesIO

    from PIL import Image

    page.until("renderer !== null")
    pixels = np.asarray(Image.open(BytesIO(page.picture())).convert("RGB")).astype(int)
    graph_part = pixels[100:, :800]
    blue = (np.abs(graph_part - [0, 0x72, 0xB2]).max(-1) < 20).sum()
    assert blue > 50  # the nodes of the first community
    grey = (np.ptp(graph_part, axis=-1) < 6) & (graph_part[..., 0] < 250)
    assert grey.sum() > 2000  # the lines between them


def test_a_flow_chart_counts_features():
    shares = {4: {"passed": 0.2, "appearing": 0.3, "disappearing": 0.1}}
    figure = feature_explorer.flow_chart(shares, {3: 50, 4: 100}, "<b>")
    link, node = figure.data[0].link, figure.data[0].node
    assert "&lt;b&gt;" in figure.layout.title.text
    ends = [(node.label[i], node.label[j]) for i, j in zip(link.source, link.target, strict=True)]
    two = ("layer 3: 50", "layer 4: 100")
    assert ends == [two, two, ("new 30%", two[1]), (two[0], "lost 10%")]
    assert link.value == pytest.approx((20, 50, 30, 5))
    assert link.label == ("passed on", "related", "appearing", "disappearing")
    assert len(set(link.color)) == 4

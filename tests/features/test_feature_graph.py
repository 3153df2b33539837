"""Communities and chains on graphs that are known; ablation on a linear step that is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers.engine import stack as sections
from mi_helpers.features import effects as feature_effects
from mi_helpers.features import graph
from mi_helpers.features.firing import gather
from mi_helpers.features.relations import pairs
from tests import tiny

from .test_features import Random

LAYERS, GROUPS, SIZE = 4, 5, 6


def planted(noise=0.05, seed=0):
    """Tables of a graph of 5 groups, each of 6 features in each of 4 layers, joined inside."""
    rng = np.random.default_rng(seed)
    up, down = (x.ravel() for x in np.meshgrid(range(30), range(30), indexing="ij"))
    tables = {}
    for layer in range(LAYERS - 1):
        together = up // SIZE == down // SIZE
        pearson = np.where(together, rng.uniform(0.3, 1, 900), rng.uniform(0, 0.3 + noise, 900))
        tables[layer, layer + 1] = pd.DataFrame({"up": up, "down": down, "pearson": pearson})
    return tables


@pytest.fixture
def joined():
    return graph.edges(planted(), 0.3)


def test_planted_communities_are_found(joined):
    found = graph.communities(joined)
    nodes = found.nodes
    assert len(nodes) == LAYERS * GROUPS * SIZE
    groups = nodes.groupby("community")["feature"].agg(lambda x: set(x // SIZE))
    assert sorted(map(tuple, groups)) == [(k,) for k in range(GROUPS)]
    assert (found.spans()["layers"] == LAYERS).all()
    assert graph.communities(joined).nodes.equals(nodes)


def test_rewiring_keeps_degrees_and_loses_the_communities(joined):
    other = graph.rewired(joined, seed=1)
    for ends in (["layer", "up"], ["next", "down"]):
        assert other.groupby(ends).size().equals(joined.groupby(ends).size())
    assert not other.duplicated(["layer", "up", "down"]).any()
    assert not other["down"].equals(joined["down"])
    assert sorted(other["weight"]) == sorted(joined["weight"])
    quality = [graph.communities(graph.rewired(joined, s)).modularity for s in range(5)]
    assert graph.communities(joined).modularity > max(quality) + 0.2


def test_a_complete_graph_is_its_own_rewiring():
    up, down = (x.ravel() for x in np.meshgrid(range(4), range(4)))
    joined = graph.edges({(0, 1): pd.DataFrame({"up": up, "down": down, "pearson": 0.5})}, 0.4)
    assert graph.rewired(joined).equals(joined)


def test_likeness_sees_meaning_that_edges_do_not(joined):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(GROUPS, 16, generator=generator).repeat_interleave(SIZE, 0)
    alike = {k: centres + 0.3 * torch.randn(30, 16, generator=generator) for k in range(LAYERS)}
    random = {k: torch.randn(30, 16, generator=generator) for k in range(LAYERS)}
    found = graph.communities(joined)
    of_alike, of_random = graph.likeness(found, alike), graph.likeness(found, random)
    assert len(of_alike) == LAYERS * GROUPS
    assert (of_alike["inside"] > 0.7).all()
    assert of_random["inside"].mean() < 0.1
    unit = torch.nn.functional.normalize(alike[0])
    pairs = (unit @ unit.T)[~torch.eye(30).bool()]
    assert of_alike["outside"].iloc[0] == pytest.approx(pairs.mean().item(), abs=1e-6)


def test_chains_follow_the_strongest_edge():
    tables = {
        (3, 5): pd.DataFrame({"up": [0, 0, 1], "down": [4, 2, 4], "pearson": [0.5, 0.9, 0.6]}),
        (5, 6): pd.DataFrame({"up": [2, 2, 7], "down": [8, 9, 8], "pearson": [0.4, 0.7, 1.0]}),
    }
    joined = graph.edges(tables, 0.4)
    assert graph.chain(joined, 3, 0) == [(3, 0, 1.0), (5, 2, 0.9), (6, 9, 0.7)]
    assert graph.chain(joined, 3, 1) == [(3, 1, 1.0), (5, 4, 0.6)]
    assert [c[0][1] for c in graph.longest_chains(joined)] == [0, 1]
    with pytest.raises(ValueError, match="no pair"):
        graph.edges(tables, 2.0)


# --- Ablation -----------------------------------------------------------------------------------


class Orthogonal(Random):
    """Features on the axes, so that each one's activation is its own coordinate."""

    def __init__(self, width):
        self.W_dec = torch.eye(width)

    def encode(self, x):
        return x.relu()


def test_ablation_on_a_step_that_is_known():
    saes = Orthogonal(4), Orthogonal(4)
    mix = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.25, 0.75, 0], [0, 0, 0, 1]])
    stream = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    stream[..., 3] = 0
    chosen = pd.DataFrame({"up": [0, 1, 2, 0, 3], "down": [0, 1, 2, 1, 3]})
    found = feature_effects.ablations(
        lambda x: x @ mix.T, saes, (stream, stream @ mix.T), chosen, documents=6
    )
    one, two = stream[..., 1].sum(), stream[..., 2].sum()
    expected = [1, one / (one + two), 3 * two / (one + 3 * two), 0, np.nan]
    np.testing.assert_allclose(found["drop"], np.array(expected, float), atol=1e-5)
    assert found["tokens"].tolist() == [30, 30, 30, 30, 0]
    assert found["shared"].tolist() == found["tokens"].tolist()
    np.testing.assert_allclose(found["drop_together"], found["drop"])
    stream[:3, :, 2] = 0  # the pair 2, 1 fires together on the other texts only
    pair = pd.DataFrame({"up": [2], "down": [1]})
    part = feature_effects.ablations(
        lambda x: x @ mix.T, saes, (stream, stream @ mix.T), pair, documents=6
    ).iloc[0]
    one, two = stream[3:, :, 1].sum(), stream[3:, :, 2].sum()
    assert part["shared"] == 15
    assert part["drop_together"] == pytest.approx((two / (one + two)).item(), abs=1e-5)
    nothing = feature_effects.ablations(
        lambda x: x @ mix.T, saes, (stream, stream @ mix.T), chosen[:0]
    )
    assert list(nothing.columns) == list(found.columns)
    assert len(nothing) == 0


def test_ablation_through_a_model_is_a_hooked_forward():
    model = tiny.bridge("llama")
    tokens = torch.randint(3, tiny.D_VOCAB, (4, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    saes = Random(12), Random(14, seed=1)
    found = sections.from_bridge(model, tokens, [1, 2], split_scale=False)
    chosen = pd.DataFrame({"up": [3, 5], "down": [7, 2]})
    both = found.inputs, found.stack.run(found.inputs)
    result = feature_effects.ablations(found.stack.run, saes, both, chosen, documents=4)
    for row in result.to_dict("records"):
        kept: dict[str, torch.Tensor] = {}

        def ablate(value, hook, up=row["up"]):
            z = saes[0].encode(value[:, 1:])[..., up]
            value[:, 1:] -= z[..., None] * saes[0].W_dec[up]
            return value

        def keep(value, hook, kept=kept):
            kept["x"] = saes[1].encode(value[:, 1:])

        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", keep)])
        old = kept["x"][..., row["down"]]
        hooks: list = [("blocks.1.hook_resid_pre", ablate), ("blocks.1.hook_resid_post", keep)]
        model.run_with_hooks(tokens, fwd_hooks=hooks)
        new = kept["x"][..., row["down"]]
        used = (saes[0].encode(found.inputs)[..., row["up"]] > 0) & (old > 0)
        texts = used.any(1) if used.any() else (old > 0).any(1)
        fires = (old > 0) & texts[:, None]
        assert row["tokens"] == fires.sum()
        expected = 1 - new[fires].sum() / old[texts].sum()
        assert row["drop"] == pytest.approx(expected.item(), abs=1e-4)
        assert abs(row["drop"]) > 1e-3


def test_tokens_that_do_not_count_are_left_out():
    saes = Orthogonal(2), Orthogonal(2)
    stream = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(4, 5, dtype=torch.bool)
    counted[:, 0] = False
    huge = stream.clone()
    huge[:, 0] *= 1e4
    chosen = pd.DataFrame({"up": [0], "down": [1]})
    step = torch.tensor([[1.0, 0], [0.3, 0.7]])
    found = [
        feature_effects.ablations(
            lambda x: x @ step.T, saes, (x, x @ step.T), chosen, counted=counted
        )
        for x in (stream, huge)
    ]
    assert found[0]["drop"].iloc[0] == pytest.approx(found[1]["drop"].iloc[0])
    assert found[0]["tokens"].tolist() == [16]


def test_bins():
    table = pd.DataFrame({"up": range(100), "down": 0, "pearson": np.linspace(0, 1, 100)})
    found = feature_effects.sample_bins(table, [0.1, 0.5, 1.0], 7)
    assert found["bin"].value_counts().to_dict() == {0.1: 7, 0.5: 7}
    assert (found["pearson"] >= found["bin"]).all()
    assert (found[found["bin"] == 0.1]["pearson"] < 0.5).all()
    assert found.equals(feature_effects.sample_bins(table, [0.1, 0.5, 1.0], 7))
    fewer = feature_effects.sample_bins(table[table["pearson"] < 0.7], [0.1, 0.5, 1.0], 7)
    low = [part[part["bin"] == 0.1].reset_index(drop=True) for part in (found, fewer)]
    assert low[0].equals(low[1])
    assert not found.equals(feature_effects.sample_bins(table, [0.1, 0.5, 1.0], 7, seed=1))
    assert 1.0 in feature_effects.sample_bins(table, [0.5, 1.0], 99)["pearson"].tolist()
    with pytest.raises(ValueError, match="rise"):
        feature_effects.sample_bins(table, [0.5, 0.1], 7)


def test_modularity_gain_is_that_of_the_groups():
    rng, shape = np.random.default_rng(0), (60, 20, 12)
    group = rng.exponential(size=(*shape[:2], 3)) * (rng.random((*shape[:2], 3)) < 0.2)
    firing = {}
    for layer in range(3):
        noise = rng.exponential(size=shape) * (rng.random(shape) < 0.05)
        firing[layer] = gather([torch.tensor(np.repeat(group, 4, -1) + noise).float()])
    tables = {(a, a + 1): pairs(firing[a], firing[a + 1]) for a in (0, 1)}
    found = graph.modularity_gain(tables, firing, 0.4, n=5)
    assert 0.3 < found.low <= found.value <= found.high < 0.5  # of 2/3, less chance
    assert found.n == 60

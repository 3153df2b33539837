"""Statistics of pairs of features against dense NumPy, nulls, and streams of every shape."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_helpers.engine.stream import ordinary_tokens, residuals
from mi_helpers.features import relations as features
from mi_helpers.features.firing import (
    Firing,
    RandomDirections,
    adjacent,
    collect,
    encoded,
    gather,
    ordinary,
)
from mi_helpers.models.hooks import hooked
from tests import tiny

POS = 8


def dense_stream(n_documents, width, density=0.2, seed=0):
    """[document, pos, feature] activations of independent features, most of them silent."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(n_documents, POS, width))
    values[rng.random(values.shape) > density] = 0
    return torch.tensor(values, dtype=torch.float32)


def stream(*arguments, **options):
    return gather([dense_stream(*arguments, **options)])


def reference(up, down, thresholds=(0.0, 0.0)):
    """Every statistic of every pair, by its definition, from dense [token, feature] arrays."""
    fires = [up > thresholds[0], down > thresholds[1]]
    found = {name: np.zeros((up.shape[1], down.shape[1])) for name in features.STATISTICS}
    together = np.zeros((up.shape[1], down.shape[1]), int)
    for i in range(up.shape[1]):
        for j in range(down.shape[1]):
            a, b, x, y = fires[0][:, i], fires[1][:, j], up[:, i], down[:, j]
            together[i, j] = both = (a & b).sum()
            if x.std() and y.std():
                found["pearson"][i, j] = np.corrcoef(x, y)[0, 1]
            if x.any() and y.any():
                found["cosine"][i, j] = x @ y / np.sqrt((x @ x) * (y @ y))
            if (a | b).any():
                found["jaccard"][i, j] = both / (a | b).sum()
            found["sufficiency"][i, j] = both / a.sum() if a.any() else 0
            found["necessity"][i, j] = both / b.sum() if b.any() else 0
            for va in (True, False):
                for vb in (True, False):
                    p = ((a == va) & (b == vb)).mean()
                    if p:
                        q = (a == va).mean() * (b == vb).mean()
                        found["mutual_information"][i, j] += p * np.log2(p / q)
    return together, found


def assert_is_reference(table, reference, min_together):
    together, expected = reference
    i, j = table["up"].to_numpy(), table["down"].to_numpy()
    where = np.zeros(together.shape, bool)
    where[i, j] = True
    assert (where == (together >= min_together)).all()
    assert len(table) == where.sum()
    assert (table["together"] == together[i, j]).all()
    for name in features.STATISTICS:
        np.testing.assert_allclose(table[name], expected[name][i, j], atol=1e-6, err_msg=name)


# --- Pairs --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    n_documents=st.integers(1, 6),
    density=st.floats(0.0, 1.0),
    min_together=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_pairs_equal_a_dense_reference(widths, n_documents, density, min_together, seed):
    up, down = (
        dense_stream(n_documents, width, density, seed + k) for k, width in enumerate(widths)
    )
    table = features.pairs(gather([up]), gather([down]), min_together=min_together)
    expected = reference(up.flatten(0, 1).numpy(), down.flatten(0, 1).numpy())
    assert_is_reference(table, expected, min_together)


def test_blocks_and_thresholds_change_nothing_but_the_work():
    up, down = dense_stream(12, 30), dense_stream(12, 17, seed=1)
    streams = gather([up]), gather([down])
    thresholds = (
        features.relative_threshold(streams[0], 0.3),
        features.relative_threshold(streams[1], 0.3),
    )
    flat = [x.flatten(0, 1).double().numpy() for x in (up, down)]
    expected = reference(flat[0], flat[1], thresholds)
    whole = features.pairs(*streams, thresholds=thresholds, min_together=1)
    blocks = features.pairs(*streams, thresholds=thresholds, min_together=1, max_memory=7 * 40 * 17)
    assert_is_reference(whole, expected, 1)
    assert_is_reference(blocks, expected, 1)
    assert 0 < len(whole) < len(features.pairs(*streams, min_together=1))


def test_statistics_of_pairs_that_never_fire_together():
    up, down = dense_stream(5, 9, 0.1), dense_stream(5, 7, 0.1, seed=1)
    flat = [x.flatten(0, 1).double().numpy() for x in (up, down)]
    together, expected = reference(*flat)
    sums = [features.totals(gather([x])) for x in (up, down)]
    row = features.Totals(*(column[:, None] for column in sums[0]))
    found = features.statistics(5 * POS, row, sums[1], together, flat[0].T @ flat[1])
    assert (together == 0).any()
    for name in features.STATISTICS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=name)


def test_keep_is_any_of_its_bounds():
    streams = stream(20, 12, 0.3), stream(20, 15, 0.3, seed=1)
    everything = features.pairs(*streams, min_together=1)
    kept = features.pairs(*streams, min_together=1, keep={"pearson": 0.1, "necessity": 0.5})
    wanted = (everything["pearson"] >= 0.1) | (everything["necessity"] >= 0.5)
    assert 0 < len(kept) < len(everything)
    assert kept.equals(everything[wanted].reset_index(drop=True))


def test_decoder_cosine():
    streams = stream(6, 5), stream(6, 4, seed=1)
    decoders = torch.randn(5, 3), torch.randn(4, 3)
    table = features.pairs(*streams, min_together=1, decoders=decoders)
    for row in table.to_dict("records"):
        pair = decoders[0][row["up"]], decoders[1][row["down"]]
        expected = torch.cosine_similarity(*pair, dim=0).item()
        assert row["decoder_cosine"] == pytest.approx(expected, abs=1e-6)


def test_best_is_the_highest_of_each_feature():
    streams = stream(20, 12, 0.3), stream(20, 15, 0.3, seed=1)
    table = features.pairs(*streams, min_together=8)
    expected = table.groupby("down")["jaccard"].max().reindex(range(15), fill_value=0)
    np.testing.assert_allclose(features.best(table, "down", 15, "jaccard"), expected)
    with pytest.raises(ValueError, match="side"):
        features.best(table, "left", 15)


def test_resampled_pearson_is_that_of_the_resampled_documents():
    up, down = dense_stream(6, 5), dense_stream(6, 4, seed=1)
    table = features.pairs(gather([up]), gather([down]), min_together=1)
    found = features.resampled_pearson(gather([up]), gather([down]), table, n=4, seed=3)
    draws = np.random.default_rng(3).integers(6, size=(4, 6))
    for draw, row in zip(draws, found, strict=True):
        x, y = up[draw].flatten(0, 1).numpy(), down[draw].flatten(0, 1).numpy()
        expected = reference(x, y)[1]["pearson"][table["up"], table["down"]]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    fires = features.resampled_fires(gather([down]), n=4, seed=3)
    np.testing.assert_array_equal(fires, [(down[draw] > 0).sum((0, 1)).numpy() for draw in draws])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": {"pearsen": 0.1}}, "pearsen.*pearson"),
        ({"min_together": 0}, "at least 1"),
    ],
)
def test_pairs_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        features.pairs(stream(3, 2), stream(3, 2), **options)


def test_pairs_refuses_other_tokens():
    with pytest.raises(ValueError, match="same tokens"):
        features.pairs(stream(3, 2), stream(4, 2))


# --- Nulls --------------------------------------------------------------------------------------


def test_rolled_keeps_each_feature_and_parts_it_from_the_other_layer():
    shared = dense_stream(400, 40, 0.05)
    up, down = gather([shared]), gather([shared * 2])
    rolled = down.rolled(7)
    np.testing.assert_allclose(features.totals(rolled)[1], features.totals(down)[1], rtol=1e-6)
    np.testing.assert_array_equal(
        rolled.values.toarray(), torch.roll(shared * 2, -7, 0).flatten(0, 1).numpy()
    )
    same = features.best(features.pairs(up, down), "down", 40)
    null = features.best(features.pairs(up, rolled, min_together=1), "down", 40)
    assert same.min() > 0.999
    assert null.max() < 0.2


def test_rare_features_correlate_by_chance_and_min_together_stops_it():
    up, down = stream(500, 300, 0.002), stream(500, 300, 0.002, seed=1)
    careless = features.best(features.pairs(up, down, min_together=1), "down", 300)
    careful = features.best(features.pairs(up, down, min_together=20), "down", 300)
    assert careless.max() > 0.3
    assert careful.max() == 0


# --- Streams ------------------------------------------------------------------------------------


def test_part_and_roll_with_documents_of_unequal_length():
    values = gather([torch.arange(1.0, 7).view(1, 6, 1)]).values
    firing = Firing(values, np.array([3, 3, 3, 4, 5, 5]))
    assert firing.n_documents == 3
    assert firing.part(1, 3).values.toarray().ravel().tolist() == [4, 5, 6]
    rolled = firing.rolled(1)
    assert rolled.values.toarray().ravel().tolist() == [4, 5, 6, 1, 2, 3]
    assert rolled.documents.tolist() == [0, 1, 1, 2, 2, 2]


def test_streams_refuse():
    values = gather([torch.ones(1, 3, 2)]).values
    with pytest.raises(ValueError, match="2 tokens have a document, 3"):
        Firing(values, np.array([0, 0]))
    with pytest.raises(ValueError, match="together"):
        Firing(values, np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="positive"):
        gather([-torch.ones(1, 3, 2)])
    with pytest.raises(ValueError, match="document, pos, feature"):
        gather([torch.ones(3, 2)])
    with pytest.raises(ValueError, match="no batch"):
        gather([])
    with pytest.raises(ValueError, match="roll by"):
        gather([torch.ones(1, 3, 2)]).rolled(1)


class Random:
    """An autoencoder with random weights, of any width."""

    def __init__(self, width, d_model=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(width, d_model, generator=generator) / d_model**0.5

    def encode(self, x):
        return (x @ self.W_dec.T - 0.5).relu()

    def decode(self, z):
        return z @ self.W_dec


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi"])
def test_collect_is_encode_of_a_plain_forward(family):
    model = tiny.bridge(family)
    tokens = torch.randint(3, tiny.D_VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    saes = {0: Random(6), 2: Random(9, seed=1), 4: Random(4, seed=2)}
    found = collect(model, saes, tokens, batch_size=2)
    _, cache = model.run_with_cache(tokens)
    names = {0: "blocks.0.hook_resid_pre", 2: "blocks.1.hook_resid_post"}
    names[4] = "blocks.3.hook_resid_post"
    for boundary, sae in saes.items():
        expected = sae.encode(cache[names[boundary]][:, 1:].detach()).flatten(0, 1)
        np.testing.assert_allclose(found[boundary].values.toarray(), expected.numpy(), atol=1e-5)
        assert found[boundary].documents.tolist() == np.repeat(range(5), 6).tolist()
    with pytest.raises(ValueError, match="from 0 to 4"):
        residuals(model, tokens, [5])


def test_tokens_of_extreme_norm_are_left_out_of_all_layers():
    model = tiny.bridge("gpt2")
    tokens = torch.randint(3, tiny.D_VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    tokens[tokens == 9] = 8
    tokens[1, 3] = tokens[4, 6] = 9
    scale = torch.where(tokens == 9, 1e4, 1.0)[..., None]
    with hooked((model.hook_dict["hook_embed"], lambda x: x * scale)):
        found = collect(model, {1: Random(6), 2: Random(9, seed=1)}, tokens, batch_size=5)
    assert {firing.n_tokens for firing in found.values()} == {5 * 6 - 2}
    assert found[1].tokens is not None
    assert 9 not in found[1].tokens
    assert np.bincount(found[2].documents).tolist() == [6, 5, 6, 6, 5]
    x = torch.ones(3, 4, 5)
    x[1, 2] *= 6
    assert (~ordinary_tokens(x)).nonzero().tolist() == [[1, 2]]


def test_what_is_left_out_of_a_text_does_not_depend_on_the_others():
    """Texts of norm 1, 10 and 100: a token of 6 times its text's norm is extreme, whatever runs
    beside it."""
    x = torch.ones(3, 4, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    x[0, 2] *= 6
    together = ordinary_tokens(x)
    assert (~together).nonzero().tolist() == [[0, 2]]
    assert together.equal(torch.stack([ordinary_tokens(text) for text in x]))


def test_encoded_is_collect_without_another_run():
    model = tiny.bridge("gpt2")
    tokens = torch.randint(3, tiny.D_VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    sae = Random(6)
    streams = residuals(model, tokens, [1, 2])
    counted = ordinary(streams)
    counted[3, 2] = False
    found = encoded(streams[1], sae, tokens, counted, batch_size=2)
    whole = collect(model, {1: sae}, tokens)[1].where(counted.flatten().numpy())
    np.testing.assert_allclose(found.values.toarray(), whole.values.toarray(), atol=1e-5)
    assert found.documents.tolist() == whole.documents.tolist()
    np.testing.assert_array_equal(found.tokens, whole.tokens)


def test_random_directions_let_the_largest_fire():
    directions = RandomDirections(32, width=20, k=3, seed=1)
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    fires = directions.encode(x)
    projection = x @ directions.W_dec.T
    assert ((fires > 0).sum(-1) == 3).all()
    torch.testing.assert_close(fires.topk(3).values, projection.topk(3).values)
    torch.testing.assert_close(directions.W_dec.norm(dim=1), torch.ones(20))
    assert directions.W_dec.equal(RandomDirections(32, width=20, seed=1).W_dec)


def test_adjacent_takes_one_autoencoder_a_layer():
    rows = [("a", "local", 3, 32.0), ("b", "local", 4, 10.0), ("c", "local", 4, 35.0)]
    rows += [("d", "e2e", 5, 32.0), ("e", "local", 5, 30.0), ("f", "local", 8, 30.0)]
    known = pd.DataFrame(rows, columns=["name", "kind", "layer", "l0"]).assign(variant="")
    assert adjacent(known)["name"].tolist() == ["a", "c", "e"]
    seeded = pd.DataFrame([("g", "local", 4, 32.0, "seed4")], columns=[*known.columns])
    assert adjacent(pd.concat([seeded, known]))["name"].tolist() == ["a", "c", "e"]
    assert adjacent(known, most=2)["layer"].tolist() == [3, 4]
    assert adjacent(known[known["layer"] == 8]).empty
    assert adjacent(known[:0]).empty
    all_layers = pd.DataFrame({"name": list("abcdefg"), "kind": "local", "layer": range(7)})
    all_layers = all_layers.assign(variant="")
    assert adjacent(all_layers, most=3)["layer"].tolist() == [2, 3, 4]
    twice = pd.DataFrame({"name": ["z", "b", "a"], "kind": "local", "layer": [0, 1, 0]})
    assert adjacent(twice.assign(variant=""))["name"].tolist() == [
        "z",
        "b",
    ]  # without l0: the first

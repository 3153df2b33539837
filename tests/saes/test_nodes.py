"""Nodes of sparse feature circuits, against gradients and hooked passes written out plainly."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import engine, features, saes
from tests import tiny

FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "qwen2")
LAYERS = (1, 3)


def metric(logits):
    return logits[..., 5] - logits[..., 7]


def dictionaries(d_model=32):
    return {n: features.RandomDirections(d_model, width=40, k=6, seed=n) for n in LAYERS}


def runs(model, n=3, length=10):
    tokens = torch.randint(3, tiny.D_VOCAB, (n, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    other = tokens.clone()
    other[:, 4] = (other[:, 4] + 5).clamp(max=tiny.D_VOCAB - 1)
    return engine.record(model, tokens), engine.record(model, other)


def hooked_logits(model, tokens, edits):
    """A plain pass; edits: layer -> what becomes of the stream that enters it."""
    hooks = [
        (f"blocks.{n}.hook_resid_pre", lambda value, hook, f=f: f(value)) for n, f in edits.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        return model(tokens)[:, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_hooked_pass(family):
    model = tiny.bridge(family)
    clean, corrupted = runs(model)
    found = saes.gradients(clean, corrupted, dictionaries(), metric)
    for n in LAYERS:
        x = clean.resid[n].clone().requires_grad_()
        score = metric(hooked_logits(model, clean.tokens, {n: lambda value, x=x: x})).sum()
        torch.testing.assert_close(found[n], torch.autograd.grad(score, x)[0], rtol=1e-3, atol=1e-5)


def test_nodes_of_a_place_add_up_to_patching_it_as_steps_grow():
    model = tiny.bridge("llama")
    clean, corrupted = runs(model)
    dictionary = {1: dictionaries()[1]}
    inside = saes.nodes.parts(dictionary[1], clean.resid[1]).nodes
    inside &= saes.nodes.parts(dictionary[1], corrupted.resid[1]).nodes
    assert inside[:, 1:].all()  # the same at every place but 0, where the runs are equal
    slopes = saes.gradients(clean, corrupted, dictionary, metric, steps=40)
    effects = saes.indirect_effects(clean, corrupted, dictionary, slopes)[1]
    whole = metric(corrupted.logits()) - metric(clean.logits())
    torch.testing.assert_close(effects.sum((1, 2)), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_effects_are_those_of_a_hooked_pass(family):
    model = tiny.bridge(family)
    clean, corrupted = runs(model)
    dictionary = dictionaries()
    effects = saes.indirect_effects(
        clean, corrupted, dictionary, saes.gradients(clean, corrupted, dictionary, metric)
    )
    nodes = pd.concat([saes.ranked({n: effects[n]}).head(3) for n in LAYERS])
    nodes.loc[nodes.index[-1], "node"] = 40  # an error
    found = saes.exact_effects(clean, corrupted, dictionary, nodes, metric)
    for row, (n, pos, node) in zip(
        found, nodes[["layer", "pos", "node"]].to_numpy().tolist(), strict=True
    ):
        sae = dictionary[n]
        f, g = sae.encode(clean.resid[n]), sae.encode(corrupted.resid[n])
        errors = [r.resid[n] - sae.decode(h) for r, h in ((clean, f), (corrupted, g))]
        new = clean.resid[n].clone()
        if node == 40:
            new[:, pos] += (errors[1] - errors[0])[:, pos]
        else:
            new[:, pos] += (g - f)[:, pos, node, None] * sae.W_dec[node]
        changed = metric(hooked_logits(model, clean.tokens, {n: lambda value, new=new: new}))
        expected = (changed - metric(clean.logits())).detach().numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_circuit_is_a_hooked_pass_with_means(family):
    model = tiny.bridge(family)
    clean, corrupted = runs(model)
    dictionary = dictionaries()
    means = saes.means((clean, corrupted), dictionary)
    rng = np.random.default_rng(0)
    nodes = {"layer": rng.choice(LAYERS, 60), "pos": rng.integers(1, 10, 60)}
    kept = pd.DataFrame(nodes | {"node": rng.integers(41, size=60)})
    found = saes.circuit(clean, dictionary, kept, means, metric)

    def edit(n):
        sae, stays = (
            dictionary[n],
            set(map(tuple, kept.query("layer == @n")[["pos", "node"]].to_numpy())),
        )

        def change(x):
            new = x.clone()
            for p in range(1, x.shape[1]):
                f = sae.encode(x[:, p])
                error = x[:, p] - sae.decode(f) if (p, 40) in stays else means[n][1][p]
                for j in range(40):
                    if (p, j) not in stays:
                        f[:, j] = means[n][0][p, j]
                new[:, p] = sae.decode(f) + error
            return new

        return change

    logits = hooked_logits(model, clean.tokens, {n: edit(n) for n in LAYERS})
    np.testing.assert_allclose(found, metric(logits).detach().numpy(), rtol=1e-3, atol=1e-3)


def test_all_nodes_are_the_model_and_no_node_is_the_same_for_all_prompts_of_one_start():
    model = tiny.bridge("gpt2")
    clean, corrupted = runs(model)
    dictionary = dictionaries()
    means = saes.means((clean, corrupted), dictionary)
    every = pd.DataFrame(
        [(n, p, j) for n in LAYERS for p in range(10) for j in range(41)],
        columns=["layer", "pos", "node"],
    )
    whole = saes.circuit(clean, dictionary, every, means, metric)
    np.testing.assert_allclose(whole, metric(clean.logits()).detach().numpy(), atol=1e-4)
    assert np.ptp(saes.circuit(clean, dictionary, every.head(0), means, metric)) < 1e-4
    alike = saes.circuit(clean, dictionary, every.query("node < 40"), means, metric, errors=True)
    np.testing.assert_allclose(alike, whole, atol=1e-5)


def test_neurons_leave_no_error():
    model = tiny.bridge("gpt2")
    clean, corrupted = runs(model)
    neurons = {n: saes.Coordinates(sae) for n, sae in dictionaries().items()}
    slopes = saes.gradients(clean, corrupted, neurons, metric)
    effects = saes.indirect_effects(clean, corrupted, neurons, slopes)
    for n in LAYERS:
        expected = (corrupted.resid[n] - clean.resid[n]) * slopes[n]
        torch.testing.assert_close(effects[n][:, 1:, :-1], expected[:, 1:], rtol=1e-4, atol=1e-6)
        assert (effects[n][..., -1] == 0).all()
    assert not saes.ranked(effects)["error"].any()


def reading(site):
    """Enough of an SAE to say where it reads."""
    metadata = SimpleNamespace(hook_name=f"blocks.1.hook_{site}")
    return SimpleNamespace(cfg=SimpleNamespace(metadata=metadata))


def test_prompts_of_unequal_lengths_and_other_sites_are_refused():
    model = tiny.bridge("gpt2")
    clean, _ = runs(model)
    mask = torch.ones_like(clean.tokens)
    mask[0, -2:] = 0
    padded = engine.record(model, clean.tokens, mask)
    with pytest.raises(ValueError, match="prompts of one length"):
        saes.means((padded,), dictionaries())
    with pytest.raises(ValueError, match="between blocks; this SAE reads mlp_out"):
        saes.boundary(reading("mlp_out"), 1)
    assert saes.boundary(reading("resid_post"), 1) == 2

"""Directions on Gaussians whose covariance is known, and pushes against plain hooked forwards."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mi_helpers import engine
from mi_helpers.directions import baselines as directions
from mi_helpers.directions import explore as direction_explorer
from mi_helpers.directions import sae as sae_directions
from mi_helpers.directions import spots
from mi_helpers.directions.baselines import Activations, Gaussian
from mi_helpers.engine import text as text_outputs
from tests import tiny

N, D = 40_000, 5
SCALES = torch.tensor([30.0, 8.0, 3.0, 1.0, 0.2], dtype=torch.float64)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=seeded(7)))[0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known() -> tuple[Activations, torch.Tensor, torch.Tensor]:
    """Activations from a Gaussian whose mean and covariance are known."""
    mean = torch.tensor([100.0, -50.0, 0.0, 10.0, 3.0], dtype=torch.float64)
    axes = rotation() * SCALES
    real = mean + torch.randn(N, D, dtype=torch.float64, generator=seeded(0)) @ axes.T
    return Activations(real, real, torch.arange(N)), mean, axes @ axes.T


def shape_error(samples: torch.Tensor, covariance: torch.Tensor) -> float:
    """How far the samples' covariance is from the one asked for: 0 is equal, in units of its own
    axes, so that small axes count as much as large ones."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
    white = inverse @ samples.T.cov() @ inverse.T
    return float((white - torch.eye(D, dtype=white.dtype)).abs().max())


def test_gaussian_has_the_covariance_asked_for() -> None:
    _, mean, covariance = known()
    gaussian = Gaussian(mean, covariance)
    drawn = gaussian.draw(N, seeded(1))
    assert shape_error(drawn, covariance) < 0.05
    assert shape_error(torch.randn(N, D, dtype=torch.float64), covariance) > 1  # it can fail
    assert ((drawn.mean(0) - mean).abs() < 4 * covariance.diagonal().sqrt() / N**0.5).all()
    assert (gaussian.draw(N, seeded(1), centred=True) + mean).allclose(drawn)


def test_gaussian_of_activations() -> None:
    activations, mean, _ = known()
    gaussian = activations.gaussian
    assert gaussian.mean.allclose(mean, atol=1)
    jitter = directions.JITTER * torch.eye(D, dtype=torch.float64)
    assert gaussian.covariance.allclose(activations.real.T.cov() + jitter)
    flat = Gaussian.of(torch.ones(10, D))  # singular but for the 0.01 on the diagonal
    assert flat.draw(3, seeded(0)).isfinite().all()
    for bad in (torch.ones(1, D), torch.full((4, D), torch.nan)):
        with pytest.raises(ValueError, match="two or more finite"):
            Gaussian.of(bad)


@pytest.mark.parametrize(
    ("name", "scale"),
    [("covariance", 1), ("covariance target", 2), ("real", 2), ("real target", 2)],
)
def test_baselines_have_the_covariance_of_the_activations(name: str, scale: int) -> None:
    """Before the length is set: one draw has Σ, a difference of two independent ones 2 Σ."""
    activations, _, covariance = known()
    if "covariance" in name:  # Σ + 0.01·I, once
        covariance += directions.JITTER / scale * torch.eye(D)
    drawn = directions.BASELINES[name](activations, seeded(2))
    assert shape_error(drawn, scale * covariance) < 0.05 * scale
    assert drawn.mean(0).norm() < 1  # the mean cancels in each of them


def test_covariance_direction_is_that_of_a_difference_of_two_draws() -> None:
    activations, _, _ = known()
    one = directions.unit(directions.BASELINES["covariance"](activations, seeded(3)))
    first, second = (activations.gaussian.draw(N, seeded(n)) for n in (4, 5))
    two = directions.unit(first - second)
    assert (one.T @ one / N).allclose(two.T @ two / N, atol=0.01)
    assert torch.linalg.eigvalsh(one.T @ one / N)[-1] > 0.6  # far from the 1/D of isotropic ones


def test_isotropic_directions() -> None:
    activations, _, _ = known()
    v = directions.unit(directions.BASELINES["isotropic"](activations, seeded(3)))
    assert (v.T @ v / N).allclose(torch.eye(D, dtype=v.dtype) / D, atol=0.01)
    far = directions.BASELINES["isotropic target"](activations, seeded(3)) + activations.x
    near = directions.BASELINES["isotropic target, same length"](activations, seeded(3))
    lengths = (near + activations.x).norm(dim=-1)
    assert lengths.allclose(torch.full_like(lengths, activations.length))
    assert far.norm(dim=-1).square().mean().sqrt() / activations.length == pytest.approx(
        D**0.5, rel=0.02
    )
    assert directions.BASELINES["zero"](activations, seeded(0)).equal(-activations.x)


def test_real_baselines_use_other_activations() -> None:
    real = torch.eye(6).double()
    activations = Activations(real.repeat(50, 1), real, torch.arange(6).repeat(50))
    mixture = directions.BASELINES["real"](activations, seeded(0))
    assert ((mixture == 1).sum(1) == 1).all()
    assert ((mixture == -1).sum(1) == 1).all()
    assert mixture[torch.arange(300), activations.own].abs().max() == 0
    target = directions.BASELINES["real target"](activations, seeded(0)) + activations.x
    assert ((target == 1).sum(1) == 1).all()
    assert (target != activations.x).any(1).all()
    lone = Activations(real[:1], real[:2], torch.tensor([0]))
    with pytest.raises(ValueError, match="two other real activations"):
        directions.BASELINES["real"](lone, seeded(0))


def test_principal_directions() -> None:
    activations, _, _ = known()
    leading = rotation()[:, 0]
    assert abs(float(activations.principal[0] @ leading)) == pytest.approx(1, abs=0.01)
    signs = directions.pick(leading[None], 100, seeded(0), signed=True) @ leading
    assert set(signs.round().tolist()) == {1.0, -1.0}


def run_of(family: str = "llama") -> engine.Run:
    tokens = torch.randint(3, 60, (4, 10), generator=seeded(0))
    return engine.record(tiny.bridge(family), tokens)


def test_spot_leaves_position_zero_out() -> None:
    run = run_of()
    everywhere = spots.spot(run, 2, None)
    assert everywhere.pos == list(range(1, 10))
    expected = Gaussian.of(run.resid[2][:, 1:].flatten(0, 1))
    run.resid[2][:, 0] = 1e6
    again = spots.spot(run, 2, None).activations.gaussian
    assert again.covariance.equal(expected.covariance)
    last = spots.spot(run, 2, -1)
    assert last.activations.x.equal(last.activations.real[last.activations.own])
    for bad in (0, 10, [3, 3], [], [0, 4]):
        with pytest.raises(ValueError, match="positions are 1 to 9"):
            spots.spot(run, 2, bad)
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        spots.spot(run, 4)
    with pytest.raises(ValueError, match="unknown baseline 'covariant'"):
        last.baseline("covariant")


def test_draws_depend_on_seed_and_name_alone() -> None:
    where = spots.spot(run_of(), 1, None)
    assert where.baseline("real", 1).equal(where.baseline("real", 1))
    assert not where.baseline("real", 1).allclose(where.baseline("real", 2))


def test_what_is_drawn_under_two_names_is_unrelated_at_every_seed() -> None:
    names = [*directions.BASELINES, "starts", "unembedding", "aside", "active", "alive", "dead"]
    streams = [directions.generator(seed, name) for seed in range(4) for name in names]
    drawn = torch.stack([torch.randn(400, generator=one) for one in streams])
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.25  # five standard errors


def test_a_draw_in_a_spot_does_not_point_along_its_baselines() -> None:
    where = spots.spot(run_of(), 1, None)
    gaussian = where.activations.gaussian
    for seed in range(3):
        start = gaussian.draw(where.n, directions.generator(seed, "starts"), centred=True)
        along = where.baseline("covariance", seed).flatten(0, 1).double()
        cosine = (directions.unit(start) * along).sum(-1)
        assert cosine.abs().mean() < 0.9  # 1 where both come from the same numbers
    with pytest.raises(ValueError, match="length 0"):
        directions.unit(torch.zeros(2, 3))


@pytest.mark.parametrize("pos", [-3, None])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_push_equals_a_plain_hooked_forward(family: str, pos: int | None) -> None:
    run = run_of(family)
    where = spots.spot(run, 2, pos)
    vectors = {name: where.baseline(name) for name in ("covariance", "zero")}
    vectors["unembedding"] = where.unembedding()
    table = spots.rows(vectors, [0.5, 2.0])
    edits = pd.concat(
        [spots._edits(where, table, table["shift"], k) for k in range(len(where.pos))]
    )
    found = text_outputs.measure(run, edits, None)
    if len(where.pos) > 1 or pos == -1:  # what is read where it was pushed
        long = spots.push(where, table, together=True)
        assert np.allclose(long["kl"], found.kl[:, :, [p - 1 for p in where.pos]].flatten())
    log_p = run.model(run.tokens).log_softmax(-1)
    for n, row in enumerate(table.to_dict("records")):

        def push(value: torch.Tensor, hook: object, row: dict = row) -> torch.Tensor:
            value[:, where.pos] += row["length"] * vectors[row["direction"]]
            return value

        with run.model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", push)]):
            logits, cache = run.model.run_with_cache(run.tokens)
        log_q = logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        moved = (cache["blocks.3.hook_resid_post"] - run.resid[-1]).norm(dim=-1)
        loss = -log_q[:, :-1].gather(-1, run.tokens[:, 1:, None])[..., 0]
        assert found.kl[n].allclose(kl[:, 1:], atol=1e-4)
        assert found.l2[n].allclose(moved[:, 1:], atol=1e-3)
        assert found.loss[n, :, :-1].allclose(loss[:, 1:], atol=1e-4)
        assert found.loss[n, :, -1].isnan().all()


def test_a_push_alone_runs_nothing_else() -> None:
    """One position for each row and prompt, from the pushed layer on: all else is reused."""
    run, ran = run_of(), []
    where = spots.spot(run, 2, [4, 9])
    table = spots.rows({"isotropic": where.baseline("isotropic")}, [0.5, 1.0, 2.0])

    def see(value: torch.Tensor, hook: object, layer: int) -> None:
        ran.append((layer, value.shape[:2].numel()))

    hooks = [(f"blocks.{n}.hook_resid_pre", partial(see, layer=n)) for n in range(4)]
    with run.model.hooks(fwd_hooks=hooks):
        found = spots.push(where, table)
    assert ran == [(layer, 3 * len(run.tokens)) for _ in range(2) for layer in (2, 3)]
    alone = spots.spot(run, 2, 9)
    again = spots.push(alone, spots.rows({"isotropic": table["shift"][0][:, 1:] / 0.5}, [0.5]))
    same = found[(found["at"] == 9) & (found["length"] == 0.5)]
    assert np.allclose(again["kl"], same["kl"], atol=1e-5)
    with pytest.raises(ValueError, match="shape of the spot"):
        spots.push(alone, table)


def test_tokens_of_extreme_norm_are_left_out_and_counted() -> None:
    run = run_of()
    run.resid[2][1, 5] *= 100
    where = spots.spot(run, 2, [3, 5])
    assert where.activations.real.norm(dim=-1).max() < 50 * where.length
    assert where.activations.own.view(4, 2)[1, 1] == -1
    keep = where.ordinary.flatten()
    assert where.activations.x[keep].equal(where.activations.real[where.activations.own[keep]])
    found = spots.push(where, spots.rows({"isotropic": where.baseline("isotropic")}, [1.0]))
    assert found.attrs["left_out"] == 1
    assert len(found) == 7
    assert found.query("prompt == 1")["at"].tolist() == [3]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_unembedding_is_what_a_logit_reads(family: str) -> None:
    """Equal to the gradient of a logit, but for the part that changes the norm's scale."""
    model = tiny.bridge(family)
    with torch.no_grad():
        model.ln_final.original_component.weight.normal_(1, 0.5)
    x = run_of(family).resid[2][:1, 3:4].clone().requires_grad_()
    head: Any = model.original_model.get_output_embeddings()  # type: ignore[operator]
    norm: Any = model.ln_final
    slope = torch.autograd.grad(head(norm(x))[0, 0, 7], x)[0][0, 0]
    along = x.detach()[0, 0]
    along = along - along.mean() if family == "gpt2" else along
    along = along / along.norm()
    found = spots._read_by_logits(model)[7]
    assert torch.cosine_similarity(slope, found - (found @ along) * along, dim=0) > 0.999


def test_outcome_table_by_position() -> None:
    run = run_of()
    where = spots.spot(run, 2, 6)
    labels = spots.rows({"isotropic": where.baseline("isotropic")}, [1.0, 4.0])
    table = spots._edits(where, labels, labels["shift"], 0).assign(length=labels["length"])
    found = text_outputs.measure(run, table, [3, 6, 8])
    long = found.table(table, by_position=True)
    assert len(long) == 2 * 4 * 3
    assert set(long["at"]) == {3, 6, 8}
    assert (long.loc[long["at"] < 6, ["kl", "l2"]] == 0).all().all()  # causality
    assert (long.loc[long["at"] >= 6, ["kl", "l2"]] > 0).all().all()
    means = long.groupby(["length", "prompt"])[["kl", "l2"]].mean()
    short = found.table(table).set_index(["length", "prompt"])[["kl", "l2"]]
    assert (means - short).abs().max().max() < 1e-5
    with pytest.raises(ValueError, match="in order"):
        text_outputs.measure(run, table, [6, 3])


class FourFeatures:
    """An autoencoder of known features: on where a coordinate is above its threshold."""

    W_dec = 2 * torch.eye(4, 32)

    def __init__(self, thresholds: torch.Tensor) -> None:
        self.thresholds = thresholds

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x[..., :4] - self.thresholds).relu()

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.W_dec


def test_points_of_an_autoencoder() -> None:
    where = spots.spot(run_of(), 1, None)
    sae = FourFeatures(torch.full((4,), -5.0))
    assert {"ε isotropic", "ε covariance", "ε real"} < set(sae_directions.points(where, sae))
    found, x = sae_directions.points(where, sae, baselines=directions.BASELINES), where.x
    error = (found["SAE"] - x).norm(dim=-1)
    assert found["SAE"].equal(sae.decode(sae.encode(x)))
    for name in directions.BASELINES:
        step = found[f"ε {name}"] - x
        assert step.norm(dim=-1).allclose(error, rtol=1e-4)
        assert directions.unit(step).allclose(where.baseline(name), atol=1e-4)
    lengths = {name: point.norm(dim=-1) for name, point in found.items()}
    assert lengths["θ isotropic"].allclose(lengths["SAE"], rtol=1e-4)
    assert lengths["length only"].allclose(lengths["SAE"], rtol=1e-4)
    assert lengths["SAE, length of x"].allclose(x.norm(dim=-1), rtol=1e-4)
    cosine = torch.cosine_similarity(x, found["SAE"], dim=-1)
    assert torch.cosine_similarity(x, found["θ isotropic"], dim=-1).allclose(cosine, atol=1e-4)
    assert torch.cosine_similarity(x, found["length only"], dim=-1).allclose(torch.ones(1))
    assert sae_directions.error(where, sae).allclose(directions.unit(found["SAE"] - x), atol=1e-5)
    moved = spots.moves(where, found)
    assert moved["direction"].tolist() == list(found)
    assert (x + moved["shift"][0]).allclose(found["SAE"], atol=1e-5)


def test_feature_sets() -> None:
    run = run_of()
    stream = run.resid[1]
    stream[:, :, :4] = 0.0
    stream[:, 0, 3] = 9.0  # feature 3 is on at position 0 alone: it counts as dead
    stream[:2, 4, 0] = 9.0
    stream[2:, 5, 1] = 9.0
    where = spots.spot(run, 1, None)
    sae = FourFeatures(torch.full((4,), 1.0))
    found = sae_directions.feature_directions(where, sae)
    on = {name: vectors.argmax(-1) for name, vectors in found.items()}
    assert (on["active"][:2] == 0).all()
    assert (on["active"][2:] == 1).all()
    assert (on["alive"][:2] == 1).all()
    assert (on["alive"][2:] == 0).all()
    assert set(on["dead"].flatten().tolist()) == {2, 3}
    assert all(v.norm(dim=-1).allclose(torch.ones(1)) for v in found.values())
    stream[2:, 5, 1] = 0.0  # now the last two prompts have no active feature
    again = sae_directions.feature_directions(spots.spot(run, 1, None), sae)
    assert set(again) == {"dead"}


def test_steps_from_other_points_are_compared_with_those_points() -> None:
    where = spots.spot(run_of(), 2, -1)
    starts = {"real": where.x, "other": where.x + 3 * where.baseline("covariance", 5)}
    along = where.baseline("isotropic")
    steps = {length: length * along for length in (0.5, 1.0)}
    found = spots.push(where, spots.rows_from(where, starts, steps))
    still = found[found["length"] == 0]
    assert (still[["kl", "l2"]].abs() < 1e-6).all().all()
    expected = spots.push(where, spots.rows({"isotropic": along}, [0.5, 1.0]))
    near = found[(found["start"] == "real") & (found["length"] > 0)]
    assert np.allclose(near["kl"], expected["kl"], atol=1e-5)
    from_x = spots.push(where, spots.moves(where, {"a": starts["other"] + 0.5 * along}))
    away = found[(found["start"] == "other") & (found["length"] == 0.5)]
    assert (from_x["kl"].to_numpy() - away["kl"].to_numpy()).max() > 1e-4  # not the distance from x


def test_explorer_pushes_a_text() -> None:
    model = tiny.bridge("llama")
    text = "w1 w2 w3 w4 w5 w6"
    kl, words = direction_explorer.push(model, text, "covariance", 2, 0.5)
    assert kl > 0
    assert list(words) == ["before", "after"]
    assert direction_explorer.push(model, text, "zero", 2, 0.0)[0] == pytest.approx(0, abs=1e-6)
    again, _ = direction_explorer.push(model, text, "unembedding", 2, 0.5)
    assert again != kl
    box = direction_explorer.explorer(model, text)
    kind = box.children[1]
    assert set(kind.options) == {*directions.BASELINES, "unembedding"}


def test_real_activations_may_come_from_other_texts() -> None:
    run = run_of()
    other = torch.randn(50, 32, generator=seeded(3))
    where = spots.spot(run, 2, None, real=other)
    assert where.activations.gaussian.covariance.allclose(Gaussian.of(other).covariance)
    target = where.baseline("real target")
    steps = (other[None, None] - where.x[:, :, None]).double()
    near = torch.cosine_similarity(steps, target[:, :, None].double(), dim=-1)
    assert near.amax(-1).allclose(torch.ones(4, 9, dtype=torch.float64), atol=1e-5)

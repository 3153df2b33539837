"""Sparse autoencoders: training end to end on a tiny model, edits against plain arithmetic, a toy
with known features."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("sae_lens")

from sae_lens import BatchTopKTrainingSAE

from mi_helpers import engine, saes, tasks
from mi_helpers.data.saes import corpus as sae_corpus
from mi_helpers.data.saes import end_to_end as sae_end_to_end
from mi_helpers.data.saes import make as train_saes
from mi_helpers.engine.rows import Place
from mi_helpers.models import DEFAULT
from mi_helpers.saes import loading
from tests import tiny

SMALL = [
    *("--sequences", "40", "--held-out", "8", "--length", "24", "--layers", "1", "2"),
    *("--middle", "2", "--k", "4", "8", "--k-end-to-end", "4", "--width", "48"),
    *("--other-widths", "24"),
    *("--samples", "8192", "--steps-end-to-end", "8", "--learning-rate", "0.005"),
]
SHIPPED = sorted(path.parent for path in loading.SHIPPED.glob("*/cfg.json"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family trained by the command on a tiny model: `out`, `work`, and the model's folder."""
    folder = tmp_path_factory.mktemp("saes")
    tiny.hf_model("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "texts", written)
        patch.setattr(tasks, "texts_by_package", by_package)
        patch.setattr(train_saes, "PASSAGES", {"train": 8, "held-out": 4})
        train_saes.main([*arguments(folder), *SMALL])
    return folder


def written(model: Any, n: int, length: int, *, split: str, **_: Any) -> torch.Tensor:
    """Text that the model writes, in place of text that its few words cannot spell."""
    return tasks.sample_prompts(model, n, length - 1, seed=int(split == "train"))


def by_package(model: Any, n: int, length: int, split: str) -> tuple[torch.Tensor, list[str]]:
    return written(model, 2 * n, 24, split=split), ["numpy", "torch"] * n


def arguments(folder: Path) -> list[str]:
    places = {"--model": "model", "--out": "out", "--work": "work"}
    return [word for option, name in places.items() for word in (option, str(folder / name))]


def held_out(folder: Path) -> torch.Tensor:
    return text(folder, "held-out")


def text(folder: Path, split: str) -> torch.Tensor:
    return corpus(folder, split).tokens()


def corpus(folder: Path, split: str = "train") -> sae_corpus.Corpus:
    return sae_corpus.Corpus(tuple(sorted((folder / "work" / split).glob("*.safetensors"))))


def test_training_stores_what_was_asked_for(trained: Path) -> None:
    out, names = trained / "out", {"local-1-k4", "local-2-k4", "local-2-k4-seed2"}
    names |= {"local-2-k8", "local-2-k4-w24", "e2e-2-k4"}
    assert {path.parent.name for path in out.glob("*/cfg.json")} == names
    table = pd.DataFrame(json.loads((out / "quality.json").read_text())).set_index("name")
    assert set(table.index) == names | {"untrained", "PCA, 4"}
    assert set(table.index[table["kind"] == "control"]) == {"untrained", "PCA, 4"}
    known = saes.available(tiny.bridge("llama"), out).set_index("variant")["name"]
    assert [Path(known[one]).name for one in ("seed2", "w24")] == [
        "local-2-k4-seed2",
        "local-2-k4-w24",
    ]
    assert len(known[""]) == 4
    assert table.loc["untrained", "explained"] < table.loc["local-1-k4", "explained"]
    table = table.loc[sorted(names)]
    assert (table["l0"] / table["k"]).between(0.6, 1.6).all()  # held-out text, 8 sequences
    assert table.loc["local-2-k8", "explained"] > table.loc["local-2-k4", "explained"] > 0.2
    assert table["recovered_zero"].between(0, 1).all()
    weights = load_file(out / "local-2-k4" / "sae_weights.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert held_out(trained).shape == (8, 24)
    text = (out / "local-2-k4" / "cfg.json").read_text()
    assert str(trained) not in text  # no path of this machine
    seeds = {name: saes.load(out / name).cfg.metadata.seed for name in names}
    others = [
        seeds[name]
        for name in names
        if name.startswith("local") and "k4" in name and "w" not in name
    ]
    assert len(set(others)) == 3  # another start for each layer, and again


def test_end_to_end_training_lowers_the_kl(trained: Path) -> None:
    """On the text that it was trained on, against the local one that it started from."""
    model = tiny.bridge("llama")
    tokens = text(trained, "train")
    both = {name: saes.load(trained / "out" / name) for name in ("local-2-k4", "e2e-2-k4")}
    kl = saes.quality(model, both, tokens).set_index("name")["kl"]
    assert kl["e2e-2-k4"] < kl["local-2-k4"]


def test_sparsity_is_k_on_the_training_text(trained: Path) -> None:
    for name, k in (("local-2-k4", 4), ("local-2-k8", 8)):
        sae = saes.load(trained / "out" / name)
        assert saes.fit(sae, corpus(trained).activations(2).float())["l0"] == pytest.approx(
            k, rel=0.02
        )
        assert sae.W_dec.norm(dim=-1).allclose(torch.ones(48), atol=1e-2)


def test_interrupted_training_goes_on(trained: Path, tmp_path: Path) -> None:
    """From the last checkpoint, with the batches that an uninterrupted run would have seen."""
    plan = train_saes.Plan("local", 2, 4, 32, 48, "tiny")
    data = corpus(trained).activations(2)
    whole = train_saes.train_local(plan, data, tmp_path / "whole", 4096, 1e-3)
    last = max(int(path.name) for path in whole.parent.glob("[0-9]*"))
    part = tmp_path / "part" / plan.name / str(last)
    part.parent.mkdir(parents=True)
    (whole.parent / str(last)).rename(part)
    again = train_saes.train_local(plan, data, tmp_path / "part", 4096, 1e-3)
    first, second = (load_file(path / "sae_weights.safetensors") for path in (whole, again))
    for key, weight in first.items():
        assert weight.allclose(second[key], atol=1e-5), key
    assert train_saes.train_local(plan, data, tmp_path / "whole", 4096, 1e-3) == whole


def passages(trained: Path, n: int = 6) -> sae_end_to_end.Passages:
    return sae_end_to_end.Passages.of(tiny.bridge("llama"), text(trained, "train")[:n], 2)


def started(trained: Path) -> BatchTopKTrainingSAE:
    """The finished local autoencoder of k 4, ready for training end to end."""
    sae = train_saes.Plan("e2e", 2, 4, 32, 48, "tiny").new()
    sae.load_weights_from_checkpoint(trained / "work" / "local-2-k4" / "done")
    return sae


def test_output_kl(trained: Path) -> None:
    """Zero for a perfect reconstruction; otherwise that of a plain forward pass with a hook."""
    model, texts, where = tiny.bridge("llama"), passages(trained), torch.tensor([1, 5, 22])
    assert sae_end_to_end.output_kl(model, torch.nn.Identity(), 3.0, texts, where).abs() < 1e-5
    sae = started(trained).requires_grad_(False)
    kl = sae_end_to_end.output_kl(model, sae, 0.5, texts, where)

    def write(value: torch.Tensor, hook: object) -> torch.Tensor:
        value[:, 1:] = sae(value[:, 1:] * 0.5) / 0.5
        return value

    before = model(texts.tokens)[:, where].log_softmax(-1)
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", write)]):
        after = model(texts.tokens)[:, where].log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert kl == pytest.approx(expected, rel=1e-4)


def fit(trained: Path, sae: BatchTopKTrainingSAE, folder: Path, steps: int = 24) -> list[float]:
    model, texts = tiny.bridge("llama"), passages(trained)
    return sae_end_to_end.train(model, sae, 1.0, texts, texts, folder, steps, 6, 3e-3)


def test_end_to_end_training_fits_a_fixed_batch(trained: Path, tmp_path: Path) -> None:
    found = fit(trained, started(trained), tmp_path)
    assert len(found) == 1 + sae_end_to_end.CHECKPOINTS
    assert found[-1] < 0.8 * found[0]


def test_interrupted_end_to_end_training_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stopped after a checkpoint ends with the weights of an uninterrupted training."""
    whole, part = started(trained), started(trained)
    fit(trained, whole, tmp_path / "whole")
    true, calls = sae_end_to_end.output_kl, iter(range(20))

    def stopped(*args: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(sae_end_to_end, "output_kl", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(trained, part, tmp_path / "part")
    monkeypatch.undo()
    again = started(trained)
    assert len(fit(trained, again, tmp_path / "part")) < 1 + sae_end_to_end.CHECKPOINTS
    for (name, weight), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert weight.allclose(other, atol=1e-5), name


def test_corpus_is_what_the_model_computes(tmp_path: Path) -> None:
    model = tiny.bridge("gpt2")
    tokens = torch.randint(3, tiny.D_VOCAB, (5, 9), generator=torch.Generator().manual_seed(0))
    found = sae_corpus.collect(model, [1, 3], tmp_path, tokens, batch=2)
    run = engine.record(model, tokens)
    assert len(found.files) == 3
    for layer in (1, 3):  # without position 0
        expected = run.resid[layer][:, 1:].flatten(0, 1)
        assert found.activations(layer).float().allclose(expected, atol=2e-2)
    assert found.tokens().equal(tokens)


def test_batches_go_on_where_they_stopped() -> None:
    data = torch.arange(10.0)[:, None]
    rows = sae_corpus.batches(data, 3, seed=0)
    seen = [next(rows) for _ in range(8)]
    assert sorted(torch.cat(seen[:3]).flatten().tolist()) != list(range(10))  # one is left over
    later = sae_corpus.batches(data, 3, seed=0, start=5)
    assert all(next(later).equal(batch) for batch in seen[5:])
    with pytest.raises(ValueError, match="fewer than one batch"):
        next(sae_corpus.batches(data, 11, seed=0))


def test_quality_against_a_plain_forward(trained: Path) -> None:
    model, tokens = tiny.bridge("llama"), held_out(trained)
    sae = saes.load(trained / "out" / "local-1-k4")
    row = saes.quality(model, {"it": sae}, tokens, batch=3).iloc[0]

    def write(value: torch.Tensor, hook: object) -> torch.Tensor:
        value[:, 1:] = sae(value[:, 1:])
        return value

    before = model(tokens).log_softmax(-1)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", write)]):
        after = model(tokens).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)[:, 1:].mean()
    loss = -after[:, 1:-1].gather(-1, tokens[:, 2:, None]).mean()
    assert row["kl"] == pytest.approx(float(kl), abs=1e-4)
    assert row["loss_sae"] == pytest.approx(float(loss), abs=1e-4)
    x = engine.record(model, tokens).resid[1][:, 1:].flatten(0, 1)
    variance = x.var(0, correction=0).sum()
    explained = 1 - (x - sae(x)).square().sum(-1).mean() / variance
    assert row["explained"] == pytest.approx(float(explained), abs=1e-4)
    assert row["increase"] == pytest.approx(row["loss_sae"] - row["loss"], abs=1e-5)

    def ablate(value: torch.Tensor, hook: object) -> torch.Tensor:
        value[:, 1:] = x.mean(0)
        return value

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", ablate)]):
        after = model(tokens).log_softmax(-1)
    worst = -after[:, 1:-1].gather(-1, tokens[:, 2:, None]).mean() - row["loss"]
    assert row["recovered"] == pytest.approx(1 - row["increase"] / float(worst), abs=1e-3)
    control = saes.Principal(x, 4)
    (by_pca,) = saes.quality(model, {"PCA": control}, tokens, ("resid_pre", 1)).to_dict("records")
    assert by_pca["l0"] == 4
    variance = torch.linalg.eigvalsh(x.T.cov()).flip(0)
    expected = float(variance[:4].sum() / variance.sum())
    assert by_pca["explained"] == pytest.approx(expected, abs=1e-3)


def test_clamp_and_held(trained: Path) -> None:
    model, tokens = tiny.bridge("llama"), held_out(trained)[:2]
    sae = saes.load(trained / "out" / "local-2-k4")
    x = engine.record(model, tokens).resid[2]
    feature = int(sae.encode(x[:, 1:]).sum((0, 1)).argmax())
    place = Place("resid_pre", 2, tuple(range(24)), None, 24)
    for value in (0.0, 3.0):
        new = saes.clamp(sae, feature, value).new(x, place)
        by = (value - sae.encode(x)[..., feature])[..., None] * sae.W_dec[feature]
        assert (new - x).allclose(by, atol=1e-5)
    with saes.held(model, sae, feature, 0.0):
        assert tasks.sample_prompts(model, 3, 8, seed=1).shape[0] == 3  # it writes, with a cache
        logits = model(tokens)  # on which the feature is on, whatever the training made of it
    rows = [{"site": "resid_pre", "layer": 2, "pos": list(range(1, 24)), "head": None}]
    table = pd.DataFrame(rows).assign(write=[saes.clamp(sae, feature, 0.0)])
    run = engine.record(model, tokens)
    _, read = engine.run(run, table, {"it": lambda x: x[..., 0]}, return_tensors=True)
    assert read["it"][0, :, 0].allclose(logits[:, -1], atol=1e-4)
    assert not run.logits().allclose(logits[:, -1], atol=1e-4)
    assert not model.hook_dict["blocks.2.hook_resid_pre"].fwd_hooks  # nothing left behind
    with saes.held(model, sae, [feature, feature], [0.0, 3.0]):  # one for each text
        both = model(tokens)
    assert both[0].allclose(logits[0], atol=1e-4)
    with saes.held(model, sae, np.int64(feature), 3.0):  # as a table gives it
        assert both[1].allclose(model(tokens)[1], atol=1e-4)


def test_loading_says_what_is_wrong(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no SAE 'nonsense'; shipped: "):
        saes.load("nonsense")
    sae = saes.load(trained / "out" / "local-1-k4")
    assert saes.place_of(sae) == ("resid_pre", 1)
    sae.cfg.metadata.hook_name = "blocks.1.attn.hook_z"
    with pytest.raises(ValueError, match="this SAE reads blocks"):
        saes.place_of(sae)
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(ImportError, match=r"mi_helpers\[saes\]"):
        saes.load(trained / "out" / "local-1-k4")


def test_an_sae_that_does_not_fit_is_refused_on_load(trained: Path) -> None:
    model, tokens = tiny.bridge("llama"), held_out(trained)
    name = trained / "out" / "local-2-k8"
    assert saes.load(name, model, tokens).W_dec.shape == (48, 32)
    other = saes.load(name)
    other.b_enc += 100.0
    fault = r"FVU \d.*hook \(blocks.2.hook_resid_pre\); processing .*BOS"
    with pytest.raises(ValueError, match=fault):
        saes.check(model, other, tokens=tokens)
    other.cfg.metadata.hook_name = "blocks.9.hook_resid_pre"
    with pytest.raises(ValueError, match=r"which .* does not have"):
        saes.check(model, other, tokens=tokens)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out", "attn_out"])
def test_an_sae_may_read_any_hook(trained: Path, site: str) -> None:
    """Trained by the lesson's loop on that hook's activations, then measured and edited there."""
    model, tokens = tiny.bridge("llama"), held_out(trained)
    x = saes.activations(model, tokens, (site, 1))
    sae = saes.train(x, 64, 8, steps=100, batch=64, hook=f"blocks.1.hook_{site}")
    assert saes.place_of(sae) == (site, 1)
    saes.check(model, sae, tokens=tokens)
    assert saes.fit(sae, x)["l0"] == pytest.approx(8, rel=0.02)
    row = saes.quality(model, {"it": sae}, tokens).iloc[0]
    assert row["explained"] > 0.5
    assert row["kl"] > 0
    frozen = saes.train(x, 64, 8, steps=100, batch=64, frozen=True)
    assert saes.fit(frozen, x)["explained"] < row["explained"]


def test_an_sae_of_centred_weights_reads_raw_ones(trained: Path) -> None:
    sae, x = saes.load(trained / "out" / "local-2-k8"), torch.randn(50, 32) + 3
    sae.b_enc += 0.1 * torch.randn(48)
    expected = sae.encode(x - x.mean(-1, keepdim=True))
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    assert not sae.encode(x).allclose(expected, atol=1e-4)
    assert loading.centred(sae).encode(x).allclose(expected, atol=1e-4)


def test_releases_of_sae_lens_are_known_by_name() -> None:
    known = saes.available(tiny.bridge("gpt2"), "gpt2-small-res-jb")
    assert known["layer"].tolist() == [*range(12), 11]
    assert known["l0"].notna().all()
    one = saes.available(tiny.bridge("gpt2"), known["name"].iloc[3])
    assert one["name"].tolist() == ["gpt2-small-res-jb/blocks.3.hook_resid_pre"]
    with pytest.raises(ValueError, match="no folder and no release 'gpt2-nonsense'; alike: gpt2"):
        saes.available(tiny.bridge("gpt2"), "gpt2-nonsense")


def test_available_is_empty_for_other_models() -> None:
    assert saes.available(tiny.bridge("gpt2")).empty


def test_published_saes_of_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names, and the file format of the end-to-end family against its plain arithmetic."""
    monkeypatch.setattr(loading, "is_gpt2", lambda model: True)
    known = saes.available(SimpleNamespace(name="a-copy"))  # type: ignore[arg-type]
    assert known["name"].iloc[6] == "gpt2-small-res-jb/blocks.6.hook_resid_pre"
    name = "apollo-research/e2e-saes-gpt2/e2e_similar_l0_layer_6"
    row = known.set_index("name").loc[name]
    assert (row["kind"], row["layer"]) == ("e2e", 6)
    kinds = {"local", "e2e", "downstream"}
    assert known.groupby(["layer", "k"])["kind"].agg(set).map(kinds.__eq__).all()

    encoder, decoder = torch.nn.Linear(5, 9), torch.nn.Linear(9, 5)
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    torch.save(weights, tmp_path / "e2e_similar_l0_layer_6.pt")
    monkeypatch.setattr(loading, "hf_hub_download", lambda _, file: tmp_path / file)
    sae, x = saes.load(name), torch.randn(7, 5)
    assert sae(x).allclose(decoder(encoder(x).relu()), atol=1e-6)
    assert saes.place_of(sae) == ("resid_pre", 6)
    with pytest.raises(ValueError, match="no SAE 'e2e_layer_6'"):
        saes.load("apollo-research/e2e-saes-gpt2/e2e_layer_6")


@pytest.mark.skipif(not SHIPPED, reason="the autoencoders are not in this checkout")
def test_shipped_autoencoders() -> None:
    table = saes.available(SimpleNamespace(name=DEFAULT))  # type: ignore[arg-type]
    assert set(table["name"]) == {path.name for path in SHIPPED}
    family = table[table["variant"] == ""]
    assert family[family["kind"] == "local"].groupby("layer").size().to_dict() == {
        13: 1, 14: 1, 15: 5, 16: 1,
    }  # fmt: skip
    by_k = family[family["layer"] == 15].pivot(index="k", columns="kind").dropna()
    assert len(by_k) == 2  # end-to-end ones beside the local ones of the same sparsity
    assert (by_k["kl", "e2e"] < by_k["kl", "local"]).all()
    assert (by_k["l0", "e2e"] / by_k["l0", "local"]).between(0.95, 1.05).all()
    assert (table["increase"][table["k"] == 32] < 0.3).all()  # nats
    assert set(table["width"]) == {1152, 2304, 4608}
    size = sum(path.stat().st_size for path in loading.SHIPPED.rglob("*") if path.is_file())
    assert size < 75e6  # git packs the weights, of eight bits each, to less than 60 MB
    for row in table.to_dict("records"):
        sae = saes.load(row["name"])
        assert saes.place_of(sae) == ("resid_pre", row["layer"])
        assert sae.cfg.metadata.model_name == DEFAULT
        assert sae.W_dec.shape[1] == 576


def test_toy_features_are_recovered() -> None:
    toy = saes.toy(features=24, width=16, on=1.0, seed=0)
    begun, sae = (
        saes.train(toy.draw(20_000), 48, 1, steps, batch=256, learning_rate=3e-3)
        for steps in (0, 1000)
    )
    by_pca = saes.Principal(toy.draw(5000), 16)
    found, *less = (
        float(saes.recovery(one.W_dec, toy.directions).mean()) for one in (sae, begun, by_pca)
    )
    assert found > 0.95 > 0.65 > max(less)  # of the same seed, it does not begin at the truth
    assert toy.directions.norm(dim=-1).allclose(torch.ones(24))
    assert saes.recovery(-3 * toy.directions, toy.directions).allclose(torch.ones(24))
    twice = toy.directions[[0] * 24]  # one direction cannot be found 24 times
    assert saes.recovery(twice, toy.directions).max() > 0.99
    assert (saes.recovery(toy.directions[:5], toy.directions) == 0).sum() == 19
    with pytest.raises(ValueError, match="between 0 and 24"):
        saes.toy(features=24, on=30)
    with pytest.raises(ValueError, match="of 48 features 48 cannot be on"):
        saes.train(toy.draw(100), 48, 48)

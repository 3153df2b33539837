"""Sparse autoencoders: training end to end on a tiny model, edits against plain arithmetic, a toy
with known features."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_helpers import engine
from mi_helpers.engine.rows import Place
from mi_helpers.models.loading import DEFAULT
from mi_helpers.saes import loading as saes
from mi_helpers.tasks import sampled
from tests import tiny

pytest.importorskip("sae_lens")

from sae_lens import BatchTopKTrainingSAE

from mi_helpers.saes import corpus as sae_corpus
from mi_helpers.saes import end_to_end as sae_end_to_end
from mi_helpers.saes import toys as sae_toy
from mi_helpers.saes import train as train_saes

SMALL = [
    *("--sequences", "40", "--held-out", "8", "--length", "24", "--layers", "1", "2"),
    *("--middle", "2", "--k", "4", "8", "--k-end-to-end", "4", "--width", "48"),
    *("--samples", "8192", "--steps-end-to-end", "8", "--learning-rate", "0.005"),
]
SHIPPED = sorted(path.parent for path in saes.SHIPPED.glob("*/cfg.json"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family trained by the command on a tiny model: `out`, `work`, and the model's folder."""
    folder = tmp_path_factory.mktemp("saes")
    tiny.hf_model("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    train_saes.main([*arguments(folder), *SMALL])
    return folder


def arguments(folder: Path) -> list[str]:
    places = {"--model": "model", "--out": "out", "--work": "work"}
    return [word for option, name in places.items() for word in (option, str(folder / name))]


def held_out(folder: Path) -> torch.Tensor:
    return load_file(folder / "out" / "tokens.safetensors")["held_out"].long()


def test_training_stores_what_was_asked_for(trained: Path) -> None:
    out, names = trained / "out", {"local-1-k4", "local-2-k4", "local-2-k8", "e2e-2-k4"}
    assert {path.parent.name for path in out.glob("*/cfg.json")} == names
    table = pd.DataFrame(json.loads((out / "quality.json").read_text())).set_index("name")
    assert set(table.index) == names
    assert (table["l0"] / table["k"]).between(0.6, 1.6).all()  # held-out text, 8 sequences
    assert table.loc["local-2-k8", "explained"] > table.loc["local-2-k4", "explained"] > 0.2
    assert table["recovered"].between(0, 1).all()
    weights = load_file(out / "local-2-k4" / "sae_weights.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert held_out(trained).shape == (8, 24)
    text = (out / "local-2-k4" / "cfg.json").read_text()
    assert str(trained) not in text  # no path of this machine
    seeds = {name: saes.load(out / name).cfg.metadata.seed for name in names}
    assert len({seeds["local-1-k4"], seeds["local-2-k4"]}) == 2  # another start for each layer


def test_end_to_end_training_lowers_the_kl(trained: Path) -> None:
    """On the text that it was trained on, against the local one that it started from."""
    model = tiny.bridge("llama")
    tokens = load_file(trained / "out" / "tokens.safetensors")["train"].long()
    both = {name: saes.load(trained / "out" / name) for name in ("local-2-k4", "e2e-2-k4")}
    kl = saes.quality(model, both, tokens).set_index("name")["kl"]
    assert kl["e2e-2-k4"] < kl["local-2-k4"]


def test_sparsity_is_k_on_the_training_text(trained: Path) -> None:
    corpus = sae_corpus.Corpus(tuple((trained / "work" / "train").glob("*.safetensors")))
    for name, k in (("local-2-k4", 4), ("local-2-k8", 8)):
        sae = saes.load(trained / "out" / name)
        assert saes.fit(sae, corpus.activations(2))["l0"] == pytest.approx(k, rel=0.02)
        assert sae.W_dec.norm(dim=-1).allclose(torch.ones(48), atol=1e-2)


def test_interrupted_training_goes_on(trained: Path, tmp_path: Path) -> None:
    """From the last checkpoint, with the batches that an uninterrupted run would have seen."""
    corpus = sae_corpus.Corpus(tuple((trained / "work" / "train").glob("*.safetensors")))
    plan = train_saes.Plan("local", 2, 4, 32, 48, "tiny")
    data = corpus.activations(2)
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
    corpus = sae_corpus.Corpus((trained / "work" / "train" / "batch-000.safetensors",))
    return sae_end_to_end.Passages.of(corpus, 2).take(torch.arange(n))


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
    assert kl == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), abs=1e-4)


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
    """The streams kept while the model writes are those of a pass over the finished text."""
    model = tiny.bridge("gpt2")
    corpus = sae_corpus.collect(model, [1, 3], tmp_path / "a", n=5, length=9, batch=3, seed=4)
    tokens = corpus.read("tokens")
    run = engine.record(model, tokens.long())
    assert len(corpus.files) == 2
    for layer in (1, 3):
        assert corpus.read(str(layer)).allclose(run.resid[layer][:, :-1], atol=1e-4)
    assert corpus.read("final").allclose(run.resid[-1][:, :-1], atol=1e-4)
    assert corpus.activations(3).shape == (5 * 7, 32)  # without position 0 and the last token
    given = sae_corpus.collect(model, [1], tmp_path / "b", text=tokens.long(), batch=2)
    assert given.read("1").allclose(run.resid[1], atol=1e-4)
    assert given.tokens().dtype == torch.uint16


def test_batches_go_on_where_they_stopped() -> None:
    data = torch.arange(10.0)[:, None]
    rows = sae_corpus.batches(data, 3, seed=0)
    seen = [next(rows) for _ in range(8)]
    assert sorted(torch.cat(seen[:3]).flatten().tolist()) != list(range(10))  # one is left over
    later = sae_corpus.batches(data, 3, seed=0, start=5)
    assert all(next(later).equal(batch) for batch in seen[5:])
    with pytest.raises(ValueError, match="fewer than one batch"):
        next(sae_corpus.batches(data, 11, seed=0))


def test_given_text_is_split_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    save_file({"tokens": torch.arange(12).reshape(4, 3)}, file)
    train, rest = train_saes.split_text(file, 1)
    assert train is not None
    assert rest is not None
    assert (train.shape, rest.tolist()) == ((3, 3), [[9, 10, 11]])
    with pytest.raises(ValueError, match="more than 4 sequences"):
        train_saes.split_text(file, 4)


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
    expected = (row["loss_zero"] - row["loss_sae"]) / (row["loss_zero"] - row["loss"])
    assert row["recovered"] == pytest.approx(expected)


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
        written = sampled.sample_prompts(model, 3, 8, seed=1)
        logits = model(written)
    rows = [{"site": "resid_pre", "layer": 2, "pos": list(range(1, 9)), "head": None}]
    table = pd.DataFrame(rows).assign(write=[saes.clamp(sae, feature, 0.0)])
    run = engine.record(model, written)
    _, read = engine.run(run, table, {"it": lambda x: x[..., 0]}, return_tensors=True)
    assert read["it"][0, :, 0].allclose(logits[:, -1], atol=1e-4)
    assert not run.logits().allclose(logits[:, -1], atol=1e-4)
    assert not model.hook_dict["blocks.2.hook_resid_pre"].fwd_hooks  # nothing left behind


def test_loading_says_what_is_wrong(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no SAE 'nonsense'; shipped: "):
        saes.load("nonsense")
    sae = saes.load(trained / "out" / "local-1-k4")
    assert saes.layer_of(sae) == 1
    sae.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    with pytest.raises(ValueError, match="methods for hook_resid_pre"):
        saes.layer_of(sae)
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(ImportError, match=r"mi_helpers\[saes\]"):
        saes.load(trained / "out" / "local-1-k4")


def test_available_is_empty_for_other_models() -> None:
    assert saes.available(tiny.bridge("gpt2")).empty


def test_published_saes_of_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names, and the file format of the end-to-end family against its plain arithmetic."""
    known = saes.available(SimpleNamespace(name="gpt2"))  # type: ignore[arg-type]
    assert known["name"].iloc[6] == "gpt2-small-res-jb/blocks.6.hook_resid_pre"
    name = "apollo-research/e2e-saes-gpt2/e2e_similar_l0_layer_6"
    row = known.set_index("name").loc[name]
    assert (row["kind"], row["layer"]) == ("e2e", 6)
    assert known.groupby(["layer", "k"])["kind"].agg(set).map({"local", "e2e"}.__eq__).all()

    encoder, decoder = torch.nn.Linear(5, 9), torch.nn.Linear(9, 5)
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    torch.save(weights, tmp_path / "e2e_similar_l0_layer_6.pt")
    monkeypatch.setattr(saes, "hf_hub_download", lambda _, file: tmp_path / file)
    sae, x = saes.load(name), torch.randn(7, 5)
    assert sae(x).allclose(decoder(encoder(x).relu()), atol=1e-6)
    assert saes.layer_of(sae) == 6
    with pytest.raises(ValueError, match="no SAE 'e2e_layer_6'"):
        saes.load("apollo-research/e2e-saes-gpt2/e2e_layer_6")


@pytest.mark.skipif(not SHIPPED, reason="the autoencoders are not in this checkout")
def test_shipped_autoencoders() -> None:
    table = pd.DataFrame(json.loads((saes.SHIPPED / "quality.json").read_text()))
    assert set(table["name"]) == {path.name for path in SHIPPED}
    assert (table["kind"] == "local").sum() >= 8
    middle = table[table["kind"] == "local"].groupby("layer").size()
    assert middle.max() >= 5
    assert len(middle) == 4
    by_k = table[table["layer"] == 15].pivot(index="k", columns="kind").dropna()
    assert len(by_k) >= 3  # end-to-end ones beside the local ones of the same sparsity
    assert (by_k["kl", "e2e"] < by_k["kl", "local"]).all()
    assert (by_k["recovered", "e2e"] > by_k["recovered", "local"]).all()
    assert (by_k["l0", "e2e"] / by_k["l0", "local"]).between(0.95, 1.05).all()
    size = sum(path.stat().st_size for path in saes.SHIPPED.rglob("*") if path.is_file())
    assert size < 64e6
    for row in table.to_dict("records"):
        sae = saes.load(row["name"])
        assert saes.layer_of(sae) == row["layer"]
        assert sae.cfg.metadata.model_name == DEFAULT
        assert sae.W_dec.shape[1] == 576
    text = saes.shipped_text()
    assert text.shape[1] == 128
    assert not set(map(tuple, text.tolist())) & set(map(tuple, saes.shipped_text("train").tolist()))


def test_toy_features_are_recovered() -> None:
    toy = sae_toy.toy(features=24, width=16, on=1.0, seed=0)
    sae = sae_toy.train(toy, samples=100_000)
    found = float(sae_toy.recovery(sae.W_dec, toy.directions).mean())
    by_pca = float(sae_toy.recovery(sae_toy.principal(toy.draw(5000)), toy.directions).mean())
    assert found > 0.9 > 0.75 > by_pca
    assert toy.directions.norm(dim=-1).allclose(torch.ones(24))
    assert sae_toy.recovery(-3 * toy.directions, toy.directions).allclose(torch.ones(24))
    with pytest.raises(ValueError, match="between 0 and 24"):
        sae_toy.toy(features=24, on=30)

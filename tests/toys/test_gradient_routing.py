"""Gradients reach what they may reach, and nothing else; nets trained together are apart."""

from typing import Any

import pytest
import torch
from torch import nn

from mi_helpers.toys import gradient_routing as routing
from mi_helpers.toys import topic_models
from mi_helpers.toys.gradient_routing import Setting, SplitAutoencoders
from mi_helpers.toys.side_by_side import mlp
from mi_helpers.toys.topic_models import STAGES, TopicModels, Treatment


def gradient(parameter: Any) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_a_route_passes_values_and_stops_gradients() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    trains = torch.tensor([1, 0, 1, 0]).bool()[:, None]
    out = routing.route(x, trains)
    assert torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(gradient(x), trains.float().expand(4, 3))


def test_a_net_is_a_multilayer_perceptron() -> None:
    nets = routing.perceptrons([3, 5], 4, 6, 2)
    torch.manual_seed(5)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(7, 4)
    assert torch.allclose(mlp(nets, x.expand(2, -1, -1))[1], plain(x), atol=1e-6)


@pytest.mark.parametrize(("digit", "free"), [(2, slice(0, 8)), (7, slice(8, 16))])
def test_a_digit_trains_its_own_half_of_the_code(digit: int, free: slice) -> None:
    model = SplitAutoencoders([Setting("routing", sparsity=0.0, correlation=0.0)], 1)
    (images, labels), _ = routing.digits()
    images, labels = images[labels == digit][:20], labels[labels == digit][:20]
    model.losses(images[None], labels[None]).sum().backward()
    last = gradient(model.encoder[-2])[0]
    assert last[:, free].abs().max() > 0
    last[:, free] = 0
    assert last.abs().max() == 0


def test_an_unseen_digit_trains_the_certificates_alone() -> None:
    model = SplitAutoencoders([Setting("5 to 9", top="", sparsity=0.0, correlation=0.0)], 1)
    (images, labels), _ = routing.digits()
    both = torch.cat([(labels == 3).nonzero()[:5], (labels == 8).nonzero()[:5]]).flatten()
    gradients = []
    for rows in (both, both[5:]):
        model.zero_grad()
        model.losses(images[rows][None], labels[rows][None]).sum().backward()
        trained = [p for p in model.encoder.parameters() if p.requires_grad]
        gradients.append([gradient(p).clone() for p in trained])
        assert gradient(model.top[0]).abs().max() > 0
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_networks_trained_together_do_not_touch_each_other() -> None:
    settings = [Setting("routing"), Setting("no routing", "0123456789", "0123456789")]
    both = routing.train_split(settings, 2, steps=3)
    alone = routing.train_split(settings[1:], 2, steps=3)
    for a, b in zip([*both.encoder][:3], [*alone.encoder][:3], strict=True):
        assert torch.allclose(a[2:], b, atol=1e-6)


def test_the_table_of_errors_is_that_of_the_redrawn_images() -> None:
    nets = SplitAutoencoders([Setting("a"), Setting("b")], 2)
    table = nets.held_out_errors().set_index(["setting", "seed", "reader", "digits"])["error"]
    assert len(table) == 2 * 2 * 3 * 2
    _, (x, y) = routing.digits()
    for reader, drawn in zip(routing.READERS, nets.redrawn(x)[3], strict=True):
        for group, inside in (("0–4", y < 5), ("5–9", y >= 5)):
            error = float((drawn - x)[inside].abs().mean())
            assert table["b", 1, reader, group] == pytest.approx(error, abs=1e-5)


def test_images_are_split_once_and_scaled() -> None:
    (x, y), (held_out, labels) = routing.digits()
    assert len(x) + len(held_out) == 1797
    assert len(x) == len(y)
    assert len(held_out) == len(labels) == 397
    assert (float(x.min()), float(x.max())) == (-1, 1)


def test_text_keeps_to_its_topic() -> None:
    context, word, forget, mark = topic_models.topic_text(50, seed=1)
    assert context.shape == (600, 3)
    own = torch.cat([context, word[:, None]], 1)
    assert not ((own[~forget] >= 16) & (own[~forget] < 32)).any()
    assert (own[forget] >= 16).all()
    assert forget.float().mean() == 0.5
    assert torch.equal(context[1, -1], word[0])
    assert (mark.view(50, 12) == mark.view(50, 12)[:, :1]).all()
    after: dict[tuple, set] = {}  # at most four words follow a word within a topic
    for last, topic, now in zip(
        context[:, -1].tolist(), forget.tolist(), word.tolist(), strict=True
    ):
        after.setdefault((last, topic), set()).add(now)
    assert max(map(len, after.values())) <= 4


def test_marked_text_trains_the_extra_units_alone() -> None:
    model, (context, word, *_) = TopicModels([0], extra=8), topic_models.topic_text(10, seed=0)
    logits = model(context[None], trains=torch.zeros(1, len(word)).bool())
    assert torch.equal(logits, model(context[None]))
    nn.functional.cross_entropy(logits[0], word).backward()
    assert gradient(model.extra[0]).abs().max() > 0
    still = [model.vectors, *model.units.parameters()]
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in still)
    cut = model(context[None], ablate=True)
    assert not torch.allclose(cut, logits)
    model.extra[2].data.zero_()
    assert torch.allclose(cut, model(context[None]))


def test_training_reports_every_stage() -> None:
    treatments = [Treatment("keep", "keep"), Treatment("leave out", "drop", 0.5)]
    model, losses = topic_models.train_topics(treatments, 2, steps=2, again=1)
    assert losses.shape == (len(STAGES), 4, 2)
    assert losses.isfinite().all()
    held_out = topic_models.topic_text(400, 10**6)
    assert torch.allclose(losses[-1], model.losses(held_out, ablate=True))

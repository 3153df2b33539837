"""Networks side by side are those that each seed would give alone."""

import torch

from mi_helpers.toys.side_by_side import Draws, descend, look_up, mlp, next_losses


def test_draws_do_not_depend_on_their_neighbours() -> None:
    both, alone = Draws([3, 4]), Draws([4])
    for shape in ((2, 3), (5,)):
        assert torch.equal(both.normal(*shape)[1], alone.normal(*shape)[0])
    assert torch.equal(both.below(5, 2, 9)[1], alone.below(5, 2, 9)[0])
    assert torch.equal(both.order(9)[1], alone.order(9)[0])
    assert sorted(both.order(9)[0].tolist()) == list(range(9))
    assert set(both.below(5, 99)[0].tolist()) == set(range(5))
    drawn = both.uniform(1000)
    assert drawn.min() < -0.9
    assert drawn.max() > 0.9
    tall = both.rotation(10, 2)
    assert torch.allclose(tall.mT @ tall, torch.eye(2).expand(2, 2, 2), atol=1e-5)


def test_an_mlp_is_that_of_torch() -> None:
    layers = [weight.detach() for weight in Draws([0, 1]).layers(3, 5, 2)]
    first, last = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)
    first.load_state_dict({"weight": layers[0][1].T, "bias": layers[1][1, 0]})
    last.load_state_dict({"weight": layers[2][1].T, "bias": layers[3][1, 0]})
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mlp(layers, x)[1], last(first(x[1]).relu()), atol=1e-6)


def test_each_network_has_tables_and_texts_of_its_own() -> None:
    logits = Draws([0, 1]).normal(3, 4, 5)
    tokens = torch.randint(5, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    for own in (tokens, tokens[1]):
        log_probs = logits[1, 2, 3].log_softmax(-1)
        assert next_losses(logits, own)[1, 2, 3] == -log_probs[tokens[1, 2, 4]]
    tables = Draws([2, 3]).normal(5, 7)
    assert torch.equal(look_up(tables, tokens)[1, 2], tables[1][tokens[1, 2]])
    assert torch.equal(look_up(tables, tokens[:, 0, 0])[1], tables[1][tokens[1, 0, 0]])


def test_each_network_goes_down_its_own_loss() -> None:
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=0.5)
    for _ in range(2):  # the second step forgets the gradient of the first
        descend(optimiser, w.square().sum(1) / 2)
    assert torch.equal(w, torch.tensor([[1.0, 2.0], [3.0, 4.0]]) / 4)

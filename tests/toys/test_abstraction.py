"""Causal abstraction on networks whose variables are known, and its parts against slow versions."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from mi_helpers.data.abstraction import make
from mi_helpers.toys import abstraction, alignment
from mi_helpers.toys.abstraction import Networks, Pairs, untrained

DIGITS = torch.cartesian_prod(*[torch.arange(10)] * 3)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def of_rows(layers: list[list[list[float]]], last: list[float], n: int = 1) -> Networks:
    """n equal networks from rows of weights, without biases but at the output."""
    weights = [
        torch.tensor(rows, dtype=torch.float32).T.expand(n, -1, -1).contiguous() for rows in layers
    ]
    biases = [torch.zeros(n, 1, w.shape[-1]) for w in weights[:-1]]
    return Networks(weights, [*biases, torch.tensor(last, dtype=torch.float32).expand(n, 1, -1)])


def equality_by_hand(n: int = 1) -> Networks:
    """Units w - x, x - w, y - z, z - y; class 0 where exactly one pair is equal."""
    first: list[list[float]] = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]
    second: list[list[float]] = [[1, 1, -1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]]
    return of_rows([first, second, [[1, 1, -0.9], [0, 0, 0]]], [-0.05, 0], n)


def sums_by_hand() -> Networks:
    """Units x + y and z where x < 5, and x and y + z elsewhere; all else is zero."""
    digit = torch.arange(10.0)
    no, low = torch.zeros(10), (digit < 5).float() * 100
    high = 100 - low
    units = [(digit - high, digit, no), (-high, no, digit), (digit - low, no, no)]
    units.append((-low, digit, digit))
    total = torch.arange(28.0)
    read = (total[:, None] * torch.ones(4)).tolist()  # the nearest total wins: k s - k² / 2
    return of_rows([[torch.cat(u).tolist() for u in units], read], (-(total**2) / 2).tolist())


def every_pair() -> Pairs:
    x = torch.cartesian_prod(*[torch.arange(3.0)] * 4)
    equal = torch.stack([x[:, 0] == x[:, 1], x[:, 2] == x[:, 3]], 1)
    rows, columns = torch.cartesian_prod(*[torch.arange(len(x))] * 2).T
    return x[rows], x[columns], abstraction.equality_answers(equal[rows], equal[columns])


def random_rows(k: int, d: int, n: int = 1) -> Tensor:
    return torch.linalg.qr(torch.randn(n, d, d, generator=generator(k))).Q.mT[:, :k]


def test_known_units_have_accuracy_one_on_every_pair_and_wrong_ones_do_not() -> None:
    nets, one = equality_by_hand(), torch.eye(4)[None]
    assert abstraction.hits(nets, 0, [one[:, :2], one[:, 2:]], every_pair()).all()
    wrong = abstraction.hits(nets, 0, [one[:, [0, 2]], one[:, [1, 3]]], every_pair())
    assert (wrong.double().mean(-1) < 0.9).all()


def test_two_states_have_accuracy_one_within_a_state() -> None:
    nets, xyz = sums_by_hand(), DIGITS
    assert torch.equal(nets(abstraction.hot(xyz))[0].argmax(-1), xyz.sum(1))
    base, source = xyz[torch.randint(1000, (2, 3000), generator=generator())]
    for inner, unit, state in (((1, 1, 0), 0, base[:, 0] < 5), ((0, 1, 1), 3, base[:, 0] >= 5)):
        pairs = abstraction.sum_pairs(inner, base, source)
        right = abstraction.hits(nets, 0, [torch.eye(4)[None, [unit]]], pairs)[0, 0]
        same = state & ((base[:, 0] < 5) == (source[:, 0] < 5))
        assert right[same].all()
        assert right[~same].float().mean() < 0.3


def test_an_interchange_is_the_formula_and_its_ends() -> None:
    base, source = torch.randn(2, 3, 7, 5, generator=generator(1))
    R, mask = random_rows(5, 5, 3), torch.tensor([1.0, 1, 0, 0, 0])
    for net in range(3):
        for i in range(7):
            mixed = mask * (R[net] @ source[net, i]) + (1 - mask) * (R[net] @ base[net, i])
            found = abstraction.interchange(base, source, R[:, :2])[net, i]
            assert torch.allclose(found, R[net].T @ mixed, atol=1e-5)
    assert torch.allclose(abstraction.interchange(base, source, R), source, atol=1e-5)
    assert torch.equal(abstraction.interchange(base, source, 0 * R), base)


def test_layers_compose_and_nets_do_not_touch_each_other() -> None:
    both, one = (untrained(seeds, (6, 5, 4, 3)) for seeds in ([3, 4], [4]))
    x = torch.randn(9, 6, generator=generator(2))
    for layer in range(2):
        assert torch.equal(both.after(both.until(x, layer), layer), both(x))
    assert torch.allclose(both(x)[1:], one(x), atol=1e-6)
    draw = abstraction.equality_pairs
    both, one = (make.train(untrained(s, (16, 5, 2)), draw, 3, 20) for s in ([3, 4], [4]))
    assert torch.allclose(both.weights[0][1:], one.weights[0], atol=1e-4)


def test_equality_inputs_and_answers() -> None:
    x, equal = abstraction.equality(2000, generator())
    w, x_, y, z = x.unflatten(1, (4, 4)).unbind(1)
    assert torch.equal((w == x_).all(1), equal[:, 0])
    assert torch.equal((y == z).all(1), equal[:, 1])
    assert ((equal.float().mean(0) - 0.5).abs() < 0.06).all()
    base, source = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    assert abstraction.equality_answers(base, source)[:, 0].tolist() == [1, 0, 0]


def test_a_network_that_copies_w_passes_the_rival_story_alone() -> None:
    """Units ±w, ±x, ±y, ±z; then ±(w - x), ±(y - z); then the sums of the distances."""
    base, source, answers = abstraction.rival_pairs(2000, generator())
    (w, x, y, z), (w2, x2, y2, z2) = (a.unflatten(1, (4, 4)).unbind(1) for a in (base, source))
    same = [(a == b).all(1) for a, b in ((w, x), (y, z), (w2, x), (y2, z), (w2, x2), (y2, z2))]
    assert all(0.45 < one.float().mean() < 0.55 for one in same)
    assert torch.equal(answers[0], (same[2] == same[1]).long())
    assert torch.equal(answers[1], (same[0] == same[3]).long())
    assert torch.equal(answers[2], (same[0] == same[1]).long())
    one = torch.eye(4)
    apart = torch.cat([one, -one, -one, one])  # of w⁺, w⁻, x⁺, x⁻: [16 in, 4 out]
    first = torch.cat([torch.cat([one, -one], 1)[None]] * 4)
    weights = [torch.block_diag(*first), torch.block_diag(*[torch.cat([apart, -apart], 1)] * 2)]
    weights += [
        torch.block_diag(*[torch.ones(8, 1)] * 2) @ torch.tensor([[1.0, -1, 1], [-1, 1, 1]])
    ]
    weights += [torch.tensor([[1.0, 0], [1, 0], [-0.9, 0]])]
    biases = [torch.zeros(1, 1, w.shape[1]) for w in weights[:-1]] + [torch.tensor([[[-0.05, 0]]])]
    nets, units = Networks([w[None] for w in weights], biases), torch.eye(32)[None]
    copied = [units[:, :8], units[:, 16:24]]
    rival, story = (
        abstraction.hits(nets, 0, copied, draw(2000, generator())).float().mean(-1)
        for draw in (abstraction.rival_pairs, abstraction.equality_pairs)
    )
    assert (rival > 0.95).all()
    assert (story < 0.6).all()


def test_sums_are_those_of_the_exchanged_digits() -> None:
    def digits(x: Tensor) -> Tensor:
        return x.unflatten(1, (3, 10)).argmax(-1)

    given = torch.randint(10, (2, 50, 3), generator=generator())
    for inner in abstraction.SUMS.values():
        base, source, answers = abstraction.sum_pairs(inner, *given)
        assert torch.equal(torch.stack([digits(base), digits(source)]), given)
        for b, s, changed, same in zip(*given, *answers, strict=True):
            assert changed == sum(s[i] if inner[i] else b[i] for i in range(3))
            assert same == b.sum()
    assert torch.equal(make.sum_pairs(50, generator())[2][1], given[0].sum(1))
    base, source, answers = make.two_state_pairs(200, generator())
    b, s = digits(base), digits(source)
    assert torch.equal(b[:, 0] < 5, s[:, 0] < 5)
    first = s[:, 0] + s[:, 1] + b[:, 2]
    assert torch.equal(answers[0], torch.where(b[:, 0] < 5, first, b[:, 0] + s[:, 1] + s[:, 2]))


def test_the_search_finds_the_known_variables() -> None:
    x = every_pair()

    def draw(n: int, generator: Generator) -> Pairs:
        chosen = torch.randint(len(x[0]), (n,), generator=generator)
        return x[0][chosen], x[1][chosen], x[2][:, chosen]

    nets = equality_by_hand(6)
    found = alignment.align(nets, 0, draw, (2, 2), steps=150)
    rows = torch.cat(found, 1)
    assert torch.allclose(rows @ rows.mT, torch.eye(4).expand(6, -1, -1), atol=1e-4)
    share = abstraction.hits(nets, 0, found, draw(2000, generator())).float().mean((0, 2))
    assert share.max() > 0.95  # of six starts; one may get stuck
    of_two = alignment.align(nets, 0, draw, (1,), steps=2, units=[2, 3])[0]
    assert (of_two[..., :2] == 0).all()
    assert torch.allclose(of_two.norm(dim=-1), torch.ones(6, 1), atol=1e-5)


def test_boundless_rows_take_part_wholly_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, draw = untrained([0, 1], (16, 6, 2)), abstraction.equality_pairs
    rows = alignment.align_boundless(nets, 0, draw, steps=5)
    size = rows.norm(dim=-1).round().sum(1).long()
    for one, k in zip(rows, size, strict=True):
        assert torch.allclose(one[:k] @ one[:k].T, torch.eye(int(k)), atol=1e-5)
        assert (one[k:] == 0).all()
    nets = untrained([0], (16, 6, 2))
    for start, size in ((0.5, 3), (0.2, 1)):
        still = alignment.align_boundless(nets, 0, draw, steps=1, start=start)
        assert still.norm(dim=-1).round().sum() == size  # one step moves the boundary by 0.05 units
    monkeypatch.setattr(alignment, "PENALTY", 99)
    assert (alignment.align_boundless(nets, 0, draw, steps=300) == 0).all()


def test_each_input_gets_the_story_of_its_block() -> None:
    """Two blocks of inputs, one story each; input 9 belongs to none."""
    block = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2])
    same = block == block[:, None]
    success = torch.stack([same & (block == k) for k in (0, 1)])
    assert alignment.explained(success, 1.0).tolist() == [0] * 5 + [1] * 4 + [-1]
    assert alignment.explained(success[1:], 1.0).tolist() == [-1] * 5 + [0] * 4 + [-1]
    assert alignment.explained(torch.zeros(2, 4, 4).bool(), 0.5).tolist() == [-1] * 4


@pytest.mark.parametrize("faithful", [0.4, 0.7, 1.0])
def test_dropping_inputs_equals_its_slow_version(faithful: float) -> None:
    success = torch.rand(30, 30, generator=generator(5)) < 0.5
    table, left = success.tolist(), list(range(1, 30))
    while left and sum(table[i][j] for i in left for j in left) / len(left) ** 2 < faithful:
        left.remove(min(left, key=lambda i: sum(table[i][j] + table[j][i] for j in left)))
    assert alignment.kept(success, torch.arange(1, 30), faithful).tolist() == left


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "1", "--steps", "2"])
    assert (tmp_path / "nets.safetensors").is_file()
    pairs = abstraction.equality_pairs(2000, generator())
    right = abstraction.trained("equality")(pairs[0]).argmax(-1) == pairs[2][-1]
    assert right.shape[0] == 12
    assert (right.float().mean(1) > 0.98).all()
    xyz = DIGITS
    for kind in ("sums", "two-state sums"):
        said = abstraction.trained(kind)(abstraction.hot(xyz)).argmax(-1)
        assert ((said == xyz.sum(1)).float().mean(1) > 0.98).all()
    nets, pairs = (
        abstraction.trained("two-state sums"),
        make.two_state_pairs(500, generator()),
    )
    held = torch.eye(32)[:8].expand(5, -1, -1)
    assert (abstraction.hits(nets, 1, [held], pairs).float().mean(-1) > 0.95).all()

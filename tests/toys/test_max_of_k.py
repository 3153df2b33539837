"""Proofs about max-of-4 networks: never above the truth; equal to the bound written in loops."""

from itertools import product
from math import comb
from pathlib import Path

import pytest
import torch

from mi_helpers.data.max_of_k import make
from mi_helpers.toys import max_of_k
from mi_helpers.toys.max_of_k import MaxOfK, Parts
from mi_helpers.toys.max_proofs import accuracy, cubic, quadratic, share

SMALL = {"d_vocab": 6, "d": 8}


@pytest.fixture(scope="module")
def small() -> list[Parts]:
    """Untrained, half-trained and trained networks on six tokens."""
    nets = [max_of_k.train(2, steps=steps, batch=64, **SMALL) for steps in (0, 40, 400)]
    return [Parts.of(model, net) for model in nets for net in range(2)]


def by_hand(p: Parts) -> float:
    """The cubic bound, in loops."""
    n, total = len(p.direct), 0
    for m in range(n):
        wrong = [x for x in range(n) if x != m]
        position = (p.position_values[:, wrong] - p.position_values[:, [m]]).amax(0)
        of_token = [float((p.values[t, wrong] - p.values[t, m] + position).max()) for t in range(n)]
        for q in range(m + 1):
            of_last = float((p.direct[q, wrong] - p.direct[q, m]).max())
            term = [(h + of_last) * float(p.scores[q, t].exp()) for t, h in enumerate(of_token)]
            *free, own = p.positions[q].exp().tolist()
            free = sorted(free)
            for c in range(4 if q == m else 3):
                passing = 0
                for k in range(m):
                    ends = (sum(free[:c]), sum(free[3 - c :]))
                    worst = max(term[m] * (sum(free) - w) + term[k] * w for w in ends)
                    passing += worst + term[q] * own < 0
                alone = term[m] * sum(free) + term[q] * own < 0
                total += comb(3, c) * passing**c if c else alone
    return total / n**4


def test_parts_add_up_to_the_network() -> None:
    model = MaxOfK(2, **SMALL).requires_grad_(False)
    tokens = torch.tensor(list(product(range(6), repeat=4)))
    logits = model(tokens.expand(2, -1, -1))
    for net in range(2):
        parts = Parts.of(model, net)
        right = logits[net].argmax(-1) == tokens.amax(-1)
        assert accuracy(parts) == pytest.approx(right.double().mean().item(), abs=1e-9)
        q = tokens[:, -1]
        scores = parts.scores[q[:, None], tokens] + parts.positions[q]
        read = (parts.values[tokens] + parts.position_values) * scores.softmax(-1)[..., None]
        assert torch.allclose((parts.direct[q] + read.sum(1)).float(), logits[net], atol=1e-5)


def test_the_cubic_bound_equals_its_loops(small: list[Parts]) -> None:
    for parts in small:
        assert share(cubic(parts)) == pytest.approx(by_hand(parts), abs=1e-12)


def test_every_input_of_a_proved_case_is_right_and_cheaper_proofs_prove_fewer(
    small: list[Parts],
) -> None:
    tokens, certified = torch.tensor(list(product(range(6), repeat=4))), []
    for parts in small:
        first, gap, cheap = parts.rank_one()
        assert (gap <= cheap + 1e-9).all()
        q, m = tokens[:, -1], tokens.amax(-1)
        pattern = (parts.scores[q[:, None], tokens] + parts.positions[q]).softmax(-1)
        read = (parts.values[tokens] + parts.position_values) * pattern[..., None]
        right = (parts.direct[q] + read.sum(1)).argmax(-1) == m
        best, *others = (
            cubic(parts),
            cubic(first, gap),
            cubic(first, cheap),
            quadratic(first, cheap),
        )
        for cases in (best, quadratic(parts), *others):
            proved = [
                all(cases[c, m, s[3], k] for k in s[:3] if k != m or c == 0)
                for s, m in ((s, max(s)) for s in tokens.tolist())
                for c in [sum(k != m for k in s[:3])]
            ]
            assert share(cases) == pytest.approx(sum(proved) / 6**4, abs=1e-12)
            assert right[torch.tensor(proved)].all()
            assert share(best & cases) == share(cases)
        assert share(others[0]) >= share(others[1])
        certified.append(share(best))
    assert (
        certified[-1] > 0.5
    )  # a trained network is proved right on most inputs: the test has a point


def test_a_network_that_cannot_be_wrong_is_proved_right_on_everything() -> None:
    """Attention so sharp, and copying so strong, that the largest token always wins."""
    n = 6
    scores = 8.0 * torch.arange(n, dtype=torch.double).expand(n, n)
    none = torch.zeros(4, n, dtype=torch.double)
    parts = Parts(scores, none[:, :4].new_zeros(n, 4), 9 * torch.eye(n).double(), none, 0 * scores)
    assert accuracy(parts) == share(cubic(parts)) == share(quadratic(parts)) == 1


def test_the_shipped_networks_can_be_made_again(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "2", "--steps", "3"])
    assert (tmp_path / "nets.safetensors").is_file()
    model = max_of_k.trained()
    assert len(model.W_E) == 20
    tokens = torch.randint(64, (20, 2000, 4), generator=torch.Generator().manual_seed(0))
    right = (model(tokens).argmax(-1) == tokens.amax(-1)).double().mean(1)
    assert (right > 0.98).all()

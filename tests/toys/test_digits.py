"""The digit networks: what ships can be made again, and reads digits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mi_helpers.data.digits import make
from mi_helpers.toys import digits


def test_the_shipped_networks_read_images_that_they_were_not_trained_on() -> None:
    x, labels = digits.images()
    assert x.shape == (1797, 64)
    assert (float(x.min()), float(x.max())) == (0, 1)
    for net in digits.trained(3):
        assert (
            net(x[digits.N_TRAIN :]).argmax(-1) == labels[digits.N_TRAIN :]
        ).float().mean() > 0.9
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())


def test_each_seed_is_another_network() -> None:
    one, two = (dict(net.state_dict())["0.weight"] for net in digits.trained(2))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="30 networks ship, not 31"):
        digits.trained(31)


def test_the_maker_writes_what_the_loader_reads(tmp_path: Path) -> None:
    make.main(["--out", str(tmp_path), "--nets", "2", "--steps", "2"])
    found = load_file(tmp_path / "nets.safetensors")
    torch.testing.assert_close(
        found["0.weight"][1], digits.train(digits.network(1), 2)[0].weight.data
    )
    assert found.keys() == dict(digits.network(0).state_dict()).keys()

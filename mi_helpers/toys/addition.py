"""Full-batch training of the modular-addition transformer of arXiv 2405.10928.

Hyper-parameters are the paper's: AdamW, learning rate 1e-3, weight decay 1, betas (0.9, 0.98), ten
linear warm-up steps, the full batch of 30 % of all pairs. The paper runs 60 000 epochs; here
training stops once test accuracy has stayed above a target for long enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from .networks import ModularAddition, addition_accuracy


@dataclass
class Trainer:
    """Full-batch training of one network; ``history`` holds (epoch, train loss, test accuracy)."""

    model: ModularAddition
    train: Int[Tensor, "train 2"]
    test: Int[Tensor, "test 2"]
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    warm_up: int = 10
    epoch: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=self.weight_decay,
            fused=True,
        )
        self.targets = self.train.sum(-1) % self.model.p

    def step(self) -> float:
        """One epoch. The loss is taken in float64: in float32 it underflows and training jumps."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * min((self.epoch + 1) / self.warm_up, 1.0)
        logits = self.model.table_logits(self.train).double()
        loss = torch.nn.functional.cross_entropy(logits, self.targets)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.epoch += 1
        return loss.item()

    @torch.no_grad()
    def test_accuracy(self) -> float:
        return addition_accuracy(self.model.table_logits(self.test), self.test, self.model.p)

    def fit(
        self,
        epochs: int,
        every: int = 100,
        target: float = 0.998,
        patience: int = 2000,
        progress: Path | None = None,
    ) -> ModularAddition:
        """Train to ``epochs`` at most; stop early once stable (see the module). Returns the model.

        ``progress``: a file to keep progress in after every evaluation.
        """
        while self.epoch < epochs and not self.stable(target, patience):
            loss = self.step()
            if self.epoch % every == 0:
                self.history.append((self.epoch, loss, self.test_accuracy()))
                if progress is not None:
                    self.save(progress)
        return self.model

    def stable(self, target: float, patience: int) -> bool:
        """Test accuracy at or above ``target`` at every evaluation of the last ``patience``."""
        recent = [accuracy for epoch, _, accuracy in self.history if epoch > self.epoch - patience]
        return self.epoch >= patience and bool(recent) and min(recent) >= target

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.history = state["epoch"], [tuple(row) for row in state["history"]]

"""Train a shipped modular-addition network: ``python -m mi_helpers.data.addition.make --seed 0
--out mi_helpers/data/addition --work WORK``.

A quarter of an hour and more on one core. Training stops once test accuracy has stayed at or above
``--target`` for ``--patience`` epochs, and the file records how many epochs were used. Progress is
kept in ``--work`` and resumed.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from ...toys.addition import Trainer
from ...toys.networks import ModularAddition, addition_pairs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--p", type=int, default=113, help="modulus")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the split")
    parser.add_argument("--epochs", type=int, default=60_000, help="at most this many")
    parser.add_argument("--target", type=float, default=0.998, help="test accuracy to hold")
    parser.add_argument("--patience", type=int, default=2000, help="epochs to hold it for")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for the progress file")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"p{args.p}_seed{args.seed}"
    trainer = Trainer(
        ModularAddition(args.p, seed=args.seed), *addition_pairs(args.p, seed=args.seed)
    )
    progress = args.work / f"{name}.pt"
    if progress.exists():
        trainer.load(progress)
    trainer.fit(args.epochs, target=args.target, patience=args.patience, progress=progress)
    accuracy = trainer.test_accuracy()
    about = {
        "p": str(args.p),
        "seed": str(args.seed),
        "epochs": str(trainer.epoch),
        "train_fraction": "0.3",
        "test_accuracy": f"{accuracy:.5f}",
    }
    save_file(trainer.model.state_dict(), args.out / f"{name}.safetensors", metadata=about)
    print(name, about)


if __name__ == "__main__":
    main()

"""The committed scorecards, `papermill_runs/reference/<model>/`: compare with them, renew them."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from ..claims import Record
from . import scorecard


def folder(root: Path, model: str) -> Path:
    """The folder of a model's committed scorecard."""
    return root / "papermill_runs" / "reference" / model.replace("/", "--")


def holds(root: Path, folder: Path) -> bool:
    """Whether a folder is one of the committed scorecards."""
    return folder.resolve().parent == (root / "papermill_runs" / "reference").resolve()


def compare(root: Path, records: list[Record]) -> list[str]:
    """Lines that say, model by model, what differs from the committed scorecards.

    Of those, only the notebooks that these records come from are looked at.
    """
    lines = []
    for model, measured in _by_model(records).items():
        if not (folder(root, model) / "scorecard.json").exists():
            lines.append(f"{model}: no reference scorecard to compare with")
            continue
        ran = {record["notebook"] for record in measured}
        expected = [r for r in scorecard.read(folder(root, model)) if r["notebook"] in ran]
        changes = scorecard.compare(expected, measured)
        lines.append(f"{model}, from the reference to this run: {scorecard.summary(changes)}")
        lines += [str(change) for change in changes]
    return lines


def save(
    root: Path, records: list[Record], outcomes: dict[str, Any], made_with: dict[str, Any]
) -> list[Path]:
    """Put records into the committed scorecards of their models; return those folders.

    Claims of notebooks that these records do not come from stay as they are. Each notebook's entry
    in `environment.json` says what that notebook was run with.
    """
    (root / "papermill_runs").mkdir(exist_ok=True)
    with FileLock(root / "papermill_runs" / ".reference.lock"):
        for model, measured in _by_model(records).items():
            target = folder(root, model)
            ran = {record["notebook"] for record in measured}
            entries: dict[str, Any] = {}
            if (target / "scorecard.json").exists():
                measured += [r for r in scorecard.read(target) if r["notebook"] not in ran]
                entries = scorecard.read_environment(target)["notebooks"]
            entries |= {name: {**outcomes[name], **made_with} for name in ran}
            scorecard.write(target, measured, {"notebooks": dict(sorted(entries.items()))})
    return [folder(root, model) for model in _by_model(records)]


def _by_model(records: list[Record]) -> dict[str, list[Record]]:
    models = sorted({record["model"] for record in records})
    return {model: [r for r in records if r["model"] == model] for model in models}

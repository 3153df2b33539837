"""What a sweep costs besides its notebooks: `python -m tests.benchmarks.sweep`, about a minute.

Prints JSON: seconds to plan and to summarise 1000 recorded runs (20 models, 50 seeds, 20 claims
each), and seconds for each of ten runs of a notebook of no work, with
the part that its own kernel took.
"""

import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from mi_helpers.run import cli as runs
from mi_helpers.run import plan as sweep_plan
from mi_helpers.run import sweep as sweeps
from tests.run.sweeping import CHECK, MODEL, PARAMETERS, Executor, write_model, write_notebook


def recorded(root: Path, models: int = 20, seeds: int = 50, claims: int = 20) -> dict[str, Any]:
    """Seconds to plan and to summarise a sweep of which every run is there."""
    write_notebook(root / "notebooks/00_toy.ipynb", MODEL, "1")
    for number in range(models):
        write_model(root / f"models/m{number}")
    grid = {"MODEL": f"{root}/models/*", "SEED": list(range(seeds))}
    jobs, _ = sweep_plan.make([], grid, root)
    work = sweeps.Sweep(root / "papermill_runs/s", jobs)
    with pytest.MonkeyPatch.context() as patch:
        record = Executor(patch).record  # for what it writes; no notebook runs here
    for job in jobs:
        folder = work.folder / "runs" / job.name
        folder.mkdir(parents=True)
        one = record("00_toy", job.inputs["parameters"])
        run = {
            "identity": job.identity, "asked": job.asked, "inputs": job.inputs, "error": None,
            "seconds": 1.0,
            "records": [{**one, "id": f"00.c{n}"} for n in range(claims)],
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(run))
    started = time.monotonic()
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()):
        values = [part for seed in range(seeds) for part in ("-p", f"SEED={seed}")]
        arguments = ["run", "--model", "models/*", *values]
        planned = runs.main([*arguments, "--name", "s", "--plan"])
        middle = time.monotonic()
        done = runs.main([*arguments, "--name", "s"])
    assert (planned, done) == (0, 0)
    plan, whole = middle - started, time.monotonic() - middle
    size = (work.folder / "scorecard.html").stat().st_size
    return {"runs": len(jobs), "plan_s": plan, "plan_and_summarise_s": whole, "page_MB": size / 1e6}


def overhead(root: Path, n: int = 10) -> dict[str, Any]:
    """Seconds of a run of a notebook that does nothing to speak of, without and with its kernel."""
    last = "import time; print(time.process_time())"
    write_notebook(root / "notebooks/00_toy.ipynb", PARAMETERS, CHECK, last)
    jobs, _ = sweep_plan.make([], {"SEED": list(range(n))}, root)
    work = sweeps.Sweep(root / "papermill_runs/s", jobs)
    started, cpu = time.monotonic(), os.times()
    errors = [run["error"] for _, run in work.work(5)]
    whole, after = time.monotonic() - started, os.times()
    assert errors == [None] * n
    used = sum(after[:4]) - sum(cpu[:4])
    alone, kernel = [], []
    for job in work.jobs:
        (path,) = (work.folder / "runs" / job.name).glob("*.ipynb")
        executed = json.loads(path.read_text())
        alone.append(executed["metadata"]["papermill"]["duration"])
        kernel.append(float("".join(executed["cells"][-1]["outputs"][0]["text"])))
    return {
        "runs": n,
        "run_s": whole / n,
        "papermill_and_kernel_s": sum(alone) / n,
        "overhead_s": (whole - sum(alone)) / n,
        "overhead_cpu_s": (used - sum(kernel)) / n,  # the same on a busy machine
    }


def main() -> None:
    """Run both and print a line of JSON for each."""
    for measure in (recorded, overhead):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder).resolve())
        rounded = {key: round(value, 2) for key, value in found.items()}
        print(json.dumps({"measure": measure.__name__, **rounded}), flush=True)


if __name__ == "__main__":
    main()

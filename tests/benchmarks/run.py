"""Runs the benchmarks and writes tests/benchmarks/results.json: `make bench`, some five minutes.

`python -m tests.benchmarks.run resid_pre_sweep …` runs only those works, and keeps the rest of
the file.
"""

import json
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")


def main(chosen: list[str]) -> None:
    """Run, print and store the records of the chosen works (none chosen: all)."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from mi_helpers import load_model
    from tests.benchmarks import sweeps

    done = json.loads(RESULTS.read_text()) if chosen and RESULTS.exists() else []
    for record in sweeps.records(load_model(), chosen):
        done = [one for one in done if key(one) != key(record)] + [record]
        print(json.dumps(record), flush=True)
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")


def key(record: dict) -> tuple:
    return tuple(record.get(name) for name in ("work", "device", "width", "length", "rows"))


if __name__ == "__main__":
    main(sys.argv[1:])

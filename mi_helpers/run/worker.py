"""Executes one notebook with papermill, in the process that `execute` starts for it.

The job is the first line of stdin. When stdin ends, whoever started this has died, even by
`kill -9`, and so it ends as well; its kernel follows.
"""

import json
import os
import resource
import sys
import threading
from typing import Any

import papermill
from traitlets.config import Config

from .execute import peak_gb


def main() -> None:
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    papermill.execute_notebook(**job | {"config": Config(job["config"])})
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, cpu = peak_gb(resource.RUSAGE_CHILDREN), used.ru_utime + used.ru_stime
    with open(os.environ["MI_NOTES"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"peak_gb": round(peak, 2), "cpu_s": round(cpu, 1)}) + "\n")


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()

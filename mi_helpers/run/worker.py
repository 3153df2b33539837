"""Executes one notebook with papermill, in the process that `execute` starts for it, and watches.

The job is the first line of stdin. When stdin ends, whoever started this has died, even by
`kill -9`, and so it ends as well; its kernel follows.
"""

import contextlib
import json
import os
import sys
import threading
import time

import papermill
import psutil
from traitlets.config import Config

from .execute import SILENT

IDLE_SHARE = 0.03  # of one core: what a kernel and a browser use while they wait


def main() -> None:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if idle := job.pop("idle_s"):
        threading.Thread(target=_end_in_silence, args=(idle,), daemon=True).start()
    papermill.execute_notebook(**job | {"config": Config(job["config"])})
    with contextlib.suppress(ImportError):  # Windows has no `resource`
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        note = {"cpu_s": round(used.ru_utime + used.ru_stime, 1), "peak_gb": round(peak / 1e9, 2)}
        with open(os.environ["MI_NOTES"], "a", encoding="utf-8") as file:
            print(json.dumps(note), file=file)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


def _end_in_silence(seconds: float) -> None:
    """End this process when its children, the kernel among them, do nothing for some seconds."""
    before = -1.0
    while abs((now := work()) - before) > IDLE_SHARE * seconds:
        before = now
        time.sleep(seconds)
    os._exit(SILENT)


def work() -> float:
    """What the children of this process have done: processor time in seconds, and a second for each
    10 MB read from the disk, for which the first import on a machine waits."""
    done = 0.0
    try:
        for child in psutil.Process().children(recursive=True):
            done += sum(child.cpu_times()[:2])
            with contextlib.suppress(psutil.AccessDenied, AttributeError):  # a sandbox, or macOS
                done += child.io_counters().read_bytes / 1e7
    except psutil.NoSuchProcess:  # one of them ended meanwhile: that is work as well
        return -time.monotonic()
    return done


if __name__ == "__main__":
    main()

"""Shared by all tests: no hub, cores divided among workers, a notebook's cells kept together."""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
# Two processes that each use every core slow each other; kernels inherit the setting. Only workers
# set it: they would inherit what the process that starts them sets for itself.
if _WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))
SLOW_FIXTURES = ("test_runs.py", "test_sweep_faults.py", "test_scorecard_page.py", "test_book.py")


class OneKernelOneWorker(LoadScopeScheduling):
    """Any worker takes any test, but a notebook's cells, or slow fixtures' tests, stay together."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return path if path.endswith((".ipynb", *SLOW_FIXTURES)) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneKernelOneWorker | None:
    return OneKernelOneWorker(config, log) if config.getvalue("dist") == "loadscope" else None

"""Shared by all tests: no hub, cores divided among workers, a file's tests kept together."""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
# Two processes that each use every core slow each other; kernels inherit the setting. Only workers
# set it: they would inherit what the process that starts them sets for itself.
if _WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))
LONG_TESTS = ("test_papermill.py", "test_stored.py", "test_policies.py", "test_how_to.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "every notebook as stored, not only the half whose turn it is, and on all its families"
    parser.addoption("--exhaustive", action="store_true", help=help)


class OneFileOneWorker(LoadScopeScheduling):
    """A file's tests stay together, with the models that they share, and so do a notebook's cells.

    Where each test of a file takes long, any worker takes any of them.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return nodeid if path.endswith(LONG_TESTS) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneFileOneWorker | None:
    return OneFileOneWorker(config, log) if config.getvalue("dist") == "loadscope" else None

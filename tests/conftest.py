"""Shared by all tests: no hub, cores divided among workers, a notebook's cells kept together."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
# Two processes that each use every core slow each other manyfold; children inherit the setting.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A notebook's cells run in one kernel, so in one worker."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group(item.path.name))

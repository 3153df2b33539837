"""`pytest tests/notebooks/nbval.cfg` executes every listed notebook and compares outputs."""

from pathlib import Path

import pytest

SETTINGS = Path(__file__).with_name("nbval.cfg")


def pytest_configure(config: pytest.Config) -> None:
    """Set nbval's options, so that no command line has to."""
    config.option.nbval_current_env = True
    config.option.nbval_sanitize_with = str(SETTINGS)
    config.option.nbval_cell_timeout = 900.0
    config.option.nbval_kernel_startup_timeout = 180.0


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the notebooks where their nbval settings lie."""
    if file_path != SETTINGS:
        return None
    from tests.notebooks.stored import StoredOutputs

    return StoredOutputs.from_parent(parent, path=file_path)

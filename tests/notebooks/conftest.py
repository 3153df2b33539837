"""Shared by the tests of notebooks: no browser draws PNGs, which are not compared and cost time."""

import pytest


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "none")  # kernels inherit it

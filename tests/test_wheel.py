"""The package as `pip install` gives it: built without a network, imported in another folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_project import ROOT, tracked_files

IMPORTS = """
import pathlib, sys
import mi_helpers as mi
from mi_helpers.run import cli
assert pathlib.Path(mi.__file__).parents[1] == pathlib.Path.cwd() / "installed", mi.__file__
for name in dir(mi):
    getattr(mi, name)
try:
    cli.main(["--help"])
except SystemExit as ended:
    sys.exit(ended.code)
"""


def run(command: list[str], folder: Path, **more: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tracked files alone, as a clone has them."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "-w", "."]
    options += ["--config-settings=--build-option=--compression=stored"]  # it is read here alone
    run([sys.executable, "-m", "pip", "wheel", *options, "./source"], folder)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {str(path.relative_to(ROOT)) for path in tracked_files()}
    assert names == {name for name in tracked if name.startswith("mi_helpers/")}


def test_it_imports_in_a_folder_of_its_own(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    run([sys.executable, "-c", IMPORTS], tmp_path, PYTHONPATH=str(tmp_path / "installed"))

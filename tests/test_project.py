"""The project's own files agree with each other."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModelForCausalLM, AutoTokenizer

import mi_helpers as mi
from mi_helpers.models import default

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WITHOUT_SAES = [name for name in EXTRAS if name != "saes"]


def dependencies(*extras: str) -> dict[str, Requirement]:
    """The requirements of pyproject.toml by name, with those of some extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    by_name = {str(canonicalize_name(pin.name)): pin for pin in requirements}
    assert len(by_name) == len(requirements), "a package is pinned twice"
    return by_name


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not exact"
    return specifier.version


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.lock", list(EXTRAS)), ("requirements-tl4.lock", WITHOUT_SAES)],
)
def test_each_lock_satisfies_pyproject(lock: str, extras: list[str]) -> None:
    locked = pins(lock)
    for name, requirement in dependencies(*extras).items():
        assert name in locked, f"make lock: {name} is not in {lock}"
        assert version(locked[name]) in requirement.specifier, f"make lock: {name} in {lock}"
    assert version(locked["torch"]) == "2.13.0"  # without a build, so that any machine's will do


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-tl4.lock"])
def test_locks_name_no_host_and_no_cuda_package(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|^-|@|\+", text, re.MULTILINE)
    assert not re.search(r"^(nvidia|cuda|triton)", text, re.MULTILINE)


def test_the_locks_differ_only_where_they_must() -> None:
    three, four = pins("requirements.lock"), pins("requirements-tl4.lock")
    assert version(three["transformer-lens"]).startswith("3.9.")
    assert version(four["transformer-lens"]).startswith("4.")
    assert "sae-lens" not in four
    both = three.keys() & four.keys() - {"transformer-lens"}
    assert {str(three[name]) for name in both} == {str(four[name]) for name in both}


def test_what_is_installed_is_what_is_locked() -> None:
    major = metadata.version("transformer-lens").split(".")[0]
    lock = "requirements.lock" if major == "3" else "requirements-tl4.lock"
    locked = pins(lock)
    for name in dependencies("notebooks", "dev"):
        installed = metadata.version(name).split("+")[0]
        assert installed == version(locked[name]), f"make setup: {name} is not as in {lock}"


def test_conda_environment_equals_pyproject() -> None:
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = (entry["pip"] for entry in packages if isinstance(entry, dict))
    assert "--editable ." in by_pip
    listed = sorted(text for text in by_pip if not text.startswith("-"))
    assert {str(Requirement(t)) for t in listed} == set(map(str, dependencies(*EXTRAS).values()))
    assert f"python{PROJECT['requires-python']}" in packages


def test_every_import_is_a_declared_dependency() -> None:
    providers = metadata.packages_distributions()
    declared = dependencies(*EXTRAS)
    for path in (ROOT / "mi_helpers").rglob("*.py"):
        for module in imports(path) - set(sys.stdlib_module_names) - {"mi_helpers"}:
            names = [canonicalize_name(name) for name in providers.get(module, [module])]
            assert any(name in declared for name in names), f"{path.name} imports {module}"


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, other than from its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


# A room may import those in earlier lines, and no other; those of one line do not know each other.
LAYERS = (
    ("errors",),
    ("stats", "metrics", "communities"),
    ("models",),
    ("tasks",),
    ("engine",),
    ("panels",),
    ("claims", "plots"),
    ("patching", "regions", "directions", "basis", "saes", "features", "circuits", "toys"),
    ("run",),
    ("data",),  # the makers of what ships
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
PACKAGE = ROOT / "mi_helpers"


def import_graph() -> dict[str, set[str]]:
    """For each module of the package, those that it imports: anywhere, for types as well."""
    names = {path: module_name(path) for path in PACKAGE.rglob("*.py")}
    known = set(names.values())
    graph: dict[str, set[str]] = {}
    for path, name in names.items():
        folder = name if path.stem == "__init__" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(folder.split(".")[: len(folder.split(".")) - node.level + 1])
                base = f"{base}.{node.module}" if node.module else base
                inner = [f"{base}.{alias.name}" for alias in node.names]
                graph[name] |= {module if module in known else base for module in inner}
    return graph


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_every_module_is_in_a_room_that_is_known() -> None:
    assert {room(name) for name in import_graph()} - {""} <= set(RANK)


def test_rooms_import_only_what_lies_below_them() -> None:
    faults = [
        f"{name} imports {other}"
        for name, others in import_graph().items()
        for other in others
        if room(name) != "" and room(other) != room(name)
        if room(other) == "" or RANK[room(other)] >= RANK[room(name)]
    ]
    assert sorted(faults) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = import_graph()
    for name, others in graph.items():  # the list of names in mi_helpers imports lazily
        graph[name] = others - {name}
    graph.pop("mi_helpers")
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names it


def test_no_module_is_called_like_a_function_of_its_room() -> None:
    graph = import_graph()
    for path in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for node in imported:
            for alias in node.names:
                inner = f"{module_name(path)}.{alias.asname or alias.name}"
                assert node.module is None or inner not in graph, f"{inner} is both"


def test_no_tracked_file_names_a_machine() -> None:
    # Tests of this very rule use "someone", "me" and "file".
    folders = "|".join(["root", "home", "Users", "work", "opt"])
    path_of_a_machine = re.compile(rf"(?<![\w.~$}}])/({folders})/(?!someone|me\b|file)\w")
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if path.suffix != ".safetensors" and (found := path_of_a_machine.search(text)):
            pytest.fail(f"{path.relative_to(ROOT)} has a path of a machine: {found[0]}…")


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make ([\w-]+) +\S", printed.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert {"setup", "run", "test", "test-fast", "test-tl4", "lab", "render", "bench"} <= set(
        listed
    )


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_readmes_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the default model's first two layers, which is enough for every line of it."""
    folder = default.directory()
    short = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2)
    model = mi.load_model(short, tokenizer=AutoTokenizer.from_pretrained(folder))
    monkeypatch.setattr(mi, "load_model", lambda: model, raising=False)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks[-2:]:
        exec(block, names)
    assert len(names["table"]) == 2 * len(names["pairs"].labels)  # type: ignore[attr-defined, arg-type]


def test_workers_share_the_cores():
    """Threads of all workers together are no more than there are cores, or one each."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    assert threads * workers <= max(workers, os.cpu_count() or 1)

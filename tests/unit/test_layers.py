"""Imports point down: from one floor to the floors below it, and between the files of a floor never in a circle.

Cython's ``cimport`` counts as an import, an import inside a function too, and one for type checkers alone. The .pxd,
.pyx and .pyi of a module are one file here.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    "foundation",
    "checkpoint",
    "transports",
    "gpu",
    "runtime",
    "launch",
    "adapm",
    "testing",
    "torch",
    "intentpm",
    "bench",
    "tests",
)  # from the ground up
FACADE = {
    "runtime/_package_init.py": "intentpm",
    "runtime/_package_main.py": "intentpm.__main__",
    "runtime/_package_optim.py": "intentpm.optim",
}
FOLDERS = {"torch": "pytorch", "adapm": "bindings"}  # whose name is not the package's
SOURCES = ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.pxi")
_CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(intentpm[\w.]*)\s+c?import\s+(.*)|c?import\s+(intentpm[\w.]*))", re.MULTILINE
)


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if str(relative) in FACADE:
        return FACADE[str(relative)]
    parts = relative.with_suffix("").parts
    package = next((name for name, folder in FOLDERS.items() if folder == parts[0]), parts[0])
    return ".".join(("intentpm", package, *(parts[1:-1] if parts[-1] == "__init__" else parts[1:])))


def floor_of(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 and parts[1] in FLOORS else "intentpm")


def imports_of_python(text: str) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides the floor"
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def imports_of_cython(text: str) -> Iterator[tuple[str, list[str]]]:
    for match in _CYTHON_IMPORT.finditer(text):
        yield match[1] or match[3], re.findall(r"\w+", match[2] or "")


def graph_of(sources: dict[str, list[tuple[str, str]]]) -> dict[str, set[str]]:
    """Module -> the modules of intentpm that it imports. ``sources``: module -> (suffix, text) of its files."""
    graph: dict[str, set[str]] = {}
    for module, files in sources.items():
        found = graph.setdefault(module, set())
        for suffix, text in files:
            for target, names in imports_of_python(text) if suffix in (".py", ".pyi") else imports_of_cython(text):
                if target.partition(".")[0] != "intentpm":
                    continue
                submodules = {f"{target}.{name}" for name in names} & sources.keys()
                found |= submodules or {target}
        found.discard(module)
    return graph


def upward(graph: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if floor_of(target) > floor_of(module)
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for folder in FLOORS:
        for pattern in SOURCES:
            for path in sorted((ROOT / FOLDERS.get(folder, folder)).rglob(pattern)) if folder != "intentpm" else []:
                found.setdefault(module_of(path), []).append((path.suffix, path.read_text()))
    return found


def test_imports_point_down(sources: dict[str, list[tuple[str, str]]]) -> None:
    assert upward(graph_of(sources)) == []


def test_no_circle_of_imports(sources: dict[str, list[tuple[str, str]]]) -> None:
    assert circle(graph_of(sources)) == []


def test_every_folder_of_code_is_a_floor() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/meson.build") if path.parent.name != "build"}
    assert folders <= {FOLDERS.get(floor, floor) for floor in FLOORS}


@pytest.mark.parametrize(
    ("module", "suffix", "line"),
    [
        ("intentpm.transports.registry", ".py", "from intentpm.runtime.config import Config"),
        ("intentpm.transports.tcp", ".pyx", "from intentpm.runtime.config import Config"),
        ("intentpm.foundation.errors", ".py", "from intentpm.transports import registry"),
        ("intentpm.checkpoint.reader", ".py", "from intentpm.runtime.manager import ParameterManager"),
        ("intentpm.transports.base", ".pxd", "from intentpm.runtime._native.state cimport KeyRef"),
        ("intentpm.runtime.config", ".py", "def f():\n    from intentpm import init"),
        ("intentpm.runtime.manager", ".py", "import intentpm.launch.bootstrap"),
        ("intentpm.launch.local", ".py", "from intentpm.bench import runner"),
        ("intentpm.launch.bootstrap", ".py", "from intentpm.adapm.job import setup"),
        ("intentpm.adapm.worker", ".py", "from intentpm.torch import Embedding"),
        ("intentpm.testing.ranks", ".py", "from intentpm.torch import Embedding"),
        ("intentpm.torch.loader", ".py", "from intentpm.bench import runner"),
    ],
)
def test_an_upward_import_is_found(
    sources: dict[str, list[tuple[str, str]]], module: str, suffix: str, line: str
) -> None:
    graph = graph_of({**sources, module: [*sources[module], (suffix, line)]})
    assert len(upward(graph)) == 1
    assert upward(graph)[0].startswith(f"{module} imports ")


@pytest.mark.parametrize(
    ("module", "suffix", "line"),
    [
        ("intentpm.launch.launchers", ".py", "from intentpm.launch.world import find_world"),
        ("intentpm.runtime._native.store", ".pxd", "from intentpm.runtime._native.engine cimport Engine"),
    ],
)
def test_a_circle_is_found(sources: dict[str, list[tuple[str, str]]], module: str, suffix: str, line: str) -> None:
    assert module in circle(graph_of({**sources, module: [*sources[module], (suffix, line)]}))


OTHERS = re.compile(r"^\s*(?:c?import|from)\s+(cupy|cupyx|ucxx|mpi4py|numba|cuda)\b", re.MULTILINE)
"""Packages that reach ``runtime/`` through interfaces alone: storage, transport, world."""


def others_in_runtime(sources: dict[str, list[tuple[str, str]]]) -> list[str]:
    return [
        f"{module} imports {found}"
        for module, files in sources.items()
        if module.startswith("intentpm.runtime")
        for _, text in files
        for found in OTHERS.findall(text)
    ]


def test_nothing_in_runtime_imports_cupy_or_its_like(sources: dict[str, list[tuple[str, str]]]) -> None:
    assert others_in_runtime(sources) == []
    module = "intentpm.runtime._native.device_tier"
    planted = {**sources, module: [*sources[module], (".pyx", "cdef f():\n    import cupy")]}
    assert others_in_runtime(planted) == [f"{module} imports cupy"]

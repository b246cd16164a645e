"""The imports hold to the table of modules, and the code to the project's few prohibitions."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import metaser

ROOT = Path(metaser.__file__).parent
FLOORS = (
    ("containers", "files", "mono"),
    ("naming", "machine", "batch", "losses", "metrics", "stats", "rows", "audio", "video")
    + ("safe_librosa", "speech", "synthetic"),
    ("contracts", "outside", "recording"),
    ("model", "frontends", "backbones", "tasks", "report"),
    ("features", "methods", "export"),
    ("episodes", "protocol"),
    ("training",),
    ("benchmark", "dimensional"),
    ("adaptation", "analysis"),
    ("labelling", "page"),
    ("api", "cli"),
    ("__main__",),
)
"""The rooms of the package, floor by floor: a room imports only from floors below its own.

``metaser`` itself and its version stand below all.
"""

LAYERS = {"metaser": -1, "version": -1} | {
    room: floor for floor, rooms in enumerate(FLOORS) for room in rooms
}

FILES = sorted(path for path in ROOT.rglob("*.py") if "aboard" not in path.parts)
EXCEPTIONS = {"Exception", "ValueError", "FileNotFoundError"}
FORMS = {"BaseModel", "NamedTuple", "Protocol", "ProtocolFile", "Section", "TypedDict"}
TORCH = {"nn.Module", "Function", "TorchDispatchMode", "ast.NodeTransformer"}
"""What PyTorch, and Python's syntax trees, let one write by inheritance only."""

GENERATORS = {"default_rng", "Generator", "SeedSequence"}


def _module(path: Path) -> str:
    return (
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
    )


def _layer(module: str) -> int:
    room = module.partition(".")[0] or "metaser"
    assert room in LAYERS, f"give the new room {room} a floor in {__file__}"
    return LAYERS[room]


def _imports(tree: ast.AST) -> set[str]:
    """All imported modules, by full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {name for name in names if _exists(name)}
            found |= inside or {node.module}
    return found


def _exists(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _ours(path: Path) -> set[str]:
    names = {
        name for name in _imports(ast.parse(path.read_text())) if name.split(".")[0] == "metaser"
    }
    return {name.removeprefix("metaser").strip(".") for name in names}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_a_module_imports_only_from_floors_below_its_own(path):
    module = _module(path)
    if not module:
        return  # the package's own face opens every room, when it is asked
    room = module.partition(".")[0]
    for other in _ours(path):
        inside = other.partition(".")[0] == room
        assert inside or _layer(other) < _layer(module), f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {_module(path): _ours(path) for path in FILES if path.name != "__init__.py"}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("family, other", [("methods", "backbones"), ("backbones", "methods")])
def test_methods_and_backbones_never_import_each_other(family, other):
    for path in (ROOT / family).glob("*.py"):
        assert not [name for name in _ours(path) if name.split(".")[0] == other], path.name


def test_every_module_of_the_table_exists():
    assert all(_exists(f"metaser.{name}") for name in LAYERS if name != "metaser")


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("report", {"torch", "librosa", "soundfile"}),
        ("cli", {"torch", "librosa"}),
        ("tasks", {"torch", "librosa"}),
    ],
)
def test_light_modules_start_without_heavy_packages(module, heavy):
    script = f"import sys, metaser.{module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    loaded = set(result.stdout.split())
    assert f"metaser.{module}" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_nothing_is_printed_on_import(path):
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test):
            continue
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        assert "print" not in {ast.unparse(call.func) for call in calls}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_classes_inherit_from_torch_exceptions_and_pydantic_alone(path):
    family = {*EXCEPTIONS, *FORMS}  # an error or section may have kinds
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            strange = bases - family - TORCH
            assert not strange, f"{node.name} inherits from {strange}"
            if bases & family:
                family.add(node.name)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_nobody_draws_from_global_random_state(path):
    tree = ast.parse(path.read_text())
    assert "random" not in _imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
            "np.random",
            "numpy.random",
        ):
            assert node.attr in GENERATORS, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_torch_is_seeded_only_where_its_state_is_put_back(path):
    tree = ast.parse(path.read_text())
    text = ast.unparse(tree)
    assert "torch.manual_seed" not in text or "torch.random.fork_rng" in text

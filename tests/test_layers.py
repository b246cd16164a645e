"""The imports hold to the table of modules, and the code to the project's few prohibitions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metaser

ROOT = Path(metaser.__file__).parent
LAYERS = {
    "metaser": -1,
    "safe_librosa": -1,
    "labels": -1,
    "audio": -1,
    "batch": 0,
    "metrics": 0,
    "stats": 0,
    "losses": 0,
    "memory": 0,
    "devices": 0,
    "distributed": 0,
    "cluster": 0,
    "recording": 0,
    "rows": 0,
    "calibration": 0,
    "expectation": 0,
    "protocol": 0,
    "video": 0,
    "modalities": 0,
    "frontends.waveform": 0,
    "frontends.hub": 0,
    "frontends": 1,
    "tasks": 1,
    "synthetic": 1,
    "label_tables": 0,
    "labelling": 2,
    "learning_curve": 5,
    "clip_checks": 0,
    "new_task": 2,
    "model": 1,
    "backbones.layers": 1,
    "backbones.recurrence": 1,
    "backbones.maps": 1,
    "backbones": 2,
    "features": 2,
    "domains": 2,
    "probe": 1,
    "store": 1,
    "concordance": 0,
    "fusion": 0,
    "dimensional": 0,
    "dimensional.protocol": 1,
    "dimensional.rating": 4,
    "dimensional.meta": 5,
    "dimensional.benchmark": 6,
    "dimensional.report": 5,
    "episodes": 3,
    "export": 3,
    "augmentation": 3,
    "selection": 3,
    "methods.inner_loop": 2,
    "methods.fine_tune": 3,
    "methods.learn2learn": 3,
    "methods.meta_batch": 3,
    "methods.diagnosis": 3,
    "methods.outer_terms": 3,
    "methods.baselines": 3,
    "methods.support_gan": 3,
    "feature_gan": 2,
    "methods": 4,
    "training": 4,
    "layer_changes": 4,
    "benchmark": 5,
    "report": 5,
    "similarity_report": 5,
    "commands.options": 5,
    "similarity": 6,
    "clips": 3,
    "model_file": 6,
    "adaptation": 7,
    "prediction": 8,
    "evaluation": 8,
    "model_card": 8,
    "model_curve": 8,
    "starter": 8,
    "page": 9,
    "commands": 10,
    "cli": 11,
}
"""A module imports only from smaller layers; a package's modules stand where the package stands."""

FILES = sorted(path for path in ROOT.rglob("*.py") if "aboard" not in path.parts)
EXCEPTIONS = {"Exception", "ValueError", "FileNotFoundError"}
TORCH = {"nn.Module", "Function", "TorchDispatchMode"}
"""What PyTorch lets one write by inheritance only."""

GENERATORS = {"default_rng", "Generator", "SeedSequence"}


def _module(path: Path) -> str:
    return (
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
    )


def _layer(module: str) -> int:
    name = module or "metaser"
    while name not in LAYERS:
        assert "." in name, f"give the new module {module} a layer in {__file__}"
        name = name.rpartition(".")[0]
    return LAYERS[name]


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
def test_a_module_imports_only_from_layers_above_its_own(path):
    module = _module(path)
    for other in _ours(path):
        gathers = path.name == "__init__.py" and other.startswith(f"{module}.")
        assert gathers or _layer(other) < _layer(module), f"{module} imports {other}"


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
    family = {"BaseModel", *EXCEPTIONS}  # a kind of error or section may have kinds of its own
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

"""The notebooks run from top to bottom, make their figures, and are stored without outputs."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader", reason='needs pip install "metaser[synthetic]"')
nbclient = pytest.importorskip("nbclient", reason='needs pip install "metaser[test]"')
jupyter_client = pytest.importorskip("jupyter_client", reason='needs pip install "metaser[test]"')
nbformat = pytest.importorskip("nbformat", reason='needs pip install "metaser[test]"')

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SWITCH = re.compile(r'(DATA|RESULTS) = None  # folder .*, e\.g\. ".+"')

# Notebook -> figures that it shows, and what must hold in its namespace when it is through.
EXPECTED = {
    "01_hear_a_language": (
        2,
        "assert len(task.table) == 72 and set(waveforms) == set(CLASSES)",
    ),
    "02_episodes_and_adaptation": (
        2,
        "assert not support_speakers & query_speakers\n"
        "assert all(line[10] < line[0] for line in curves['support'])\n"
        "assert len(after) == 30 and gain.difference > 0",
    ),
    "03_read_a_report": (
        1,
        "assert len(rows) == 54 and len(single) == 54 * 15\n"
        "assert [len(nested('metaser', 5)), len(nested('metaser', 5)[0])] == [2, 3]\n"
        "assert [test.seeds for test in tests] == [3, 3]",
    ),
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[tuple["jupyter_client.KernelManager", Path]]:
    """One kernel for all notebooks, which imports PyTorch once, and the folder that it works in.

    One cache, too: the languages are spoken and heard once.
    """
    folder = tmp_path_factory.mktemp("work")
    root = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "METASER_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    manager = jupyter_client.KernelManager()
    manager.start_kernel(env=environment, cwd=str(folder))
    yield manager, folder
    manager.shutdown_kernel(now=True)


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell.get("attachments")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_nothing_of_metaser_but_its_public_names(path):
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name for name in modules if name.split(".")[0] == "metaser"} == {"metaser"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_variable_switches_to_real_speech(path):
    cells = nbformat.read(path, as_version=4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert SWITCH.fullmatch(first.source)
    assert "nothing about real emotion" in re.sub(r"[\s*]+", " ", cells[0].source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, kernel):
    manager, folder = kernel
    figures, assertions = EXPECTED[path.stem]
    notebook = nbformat.read(path, as_version=4)
    fresh, last = map(nbformat.v4.new_code_cell, ("%reset -f", assertions))
    notebook.cells = [fresh, *notebook.cells, last]
    nbclient.NotebookClient(notebook, km=manager, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == figures
    assert list(folder.iterdir()) == []

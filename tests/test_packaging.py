"""The package as a whole: metadata, what is aboard, quick start, and what the documents promise."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import metaser
from metaser import protocol, tasks
from metaser.cli import app
from metaser.methods import learn2learn
from metaser.version import RELEASE, release

ROOT = Path(__file__).parents[1]
REPORT = ("report/report.html.jinja", "report/report.md.jinja")
PAGE = ("page/page.html.jinja", "page/page.css", "page/page.js")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared(setup: ConfigParser, *extras: str) -> set[str]:
    texts = [setup["options"]["install_requires"]]
    texts += [setup["options.extras_require"][extra] for extra in extras]
    lines = "\n".join(texts).split("\n")
    return {_normal(re.match(r"[\w.-]+", line)[0]) for line in lines if line.strip()}


def _imported(folder: str) -> dict[str, str]:
    """Return each distribution that the files of a folder import, with one file that does."""
    known = packages_distributions()
    own = {"metaser", "builders"}
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in names}:
                if module not in sys.stdlib_module_names and module not in own:
                    name = _normal(known.get(module, [module])[0])
                    found[name] = str(file.relative_to(ROOT))
    return found


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_version_is_the_same_everywhere(setup):
    assert setup["metadata"]["version"] == "attr: metaser.__version__"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.search(r"^version: (.+)$", citation, re.MULTILINE)[1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (newest, date), *older = re.findall(r"^## \[(\d.*?)\] - (.+)$", changes, re.MULTILINE)
    assert newest == RELEASE == release(metaser.__version__)
    if date == "unreleased":
        (newest, date), *older = older
    assert cited == newest
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in (date, *dict(older).values()))


def test_licence_is_the_same_everywhere(setup):
    assert setup["metadata"]["license_expression"] == "Apache-2.0"
    assert "\nlicense: Apache-2.0\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_requirements_are_exactly_what_is_imported(setup):
    imported = set(_imported("metaser")) | _declared(setup, "ssl")  # loaded by name
    imported |= _declared(setup, "spreadsheet")  # imported by pandas
    extras = setup.options("options.extras_require")
    declared = _declared(setup, *(name for name in extras if name not in ("notebooks", "test")))
    assert imported == declared - {"setuptools"}  # which resemblyzer needs


def test_tests_import_nothing_that_is_not_declared(setup):
    extras = setup.options("options.extras_require")
    declared = _declared(setup, *(name for name in extras if name not in ("notebooks", "ray")))
    missing = {name: file for name, file in _imported("tests").items() if name not in declared}
    assert missing == {}


def test_all_packages_are_listed(setup):
    listed = set(setup["options"]["packages"].split())
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "metaser").rglob("__init__.py")
    }
    assert listed == found | {"metaser.aboard.tasks", "metaser.aboard.benchmarks"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in the wheel, built from a copy so that the clone stays clean."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("metaser", "tasks", "benchmarks"):
        unwanted = shutil.ignore_patterns("__pycache__", "results", "reports")
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_tasks_protocols_and_templates_are_aboard(wheel):
    for folder in tasks.list_tasks().values():
        assert f"metaser/aboard/tasks/{folder.name}/task.toml" in wheel
        assert f"metaser/aboard/tasks/{folder.name}/README.md" in wheel
    for file in protocol.BUNDLED.glob("*.toml"):
        assert f"metaser/aboard/benchmarks/{file.name}" in wheel
    assert {f"metaser/{name}" for name in (*REPORT, *PAGE)} <= wheel


def test_nothing_else_is_aboard(wheel):
    assert {Path(name).suffix for name in wheel if name.startswith("metaser/")} == {
        ".py",
        ".pyi",
        ".safetensors",
        ".typed",
        ".jinja",
        ".css",
        ".js",
        ".toml",
        ".md",
    }


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["report", "--help"]])
def test_light_use_starts_without_torch(arguments):
    program = (
        "import sys; from metaser.cli import app\n"
        f"app({arguments}, standalone_mode=False)\n"
        "print(sorted({'torch', 'librosa', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_of_the_readme_exist():
    shell = "\n".join(_blocks("sh"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in {"demo", "test", *re.findall(r"^make (\w+)", shell, re.MULTILINE)}:
        assert re.search(rf"^make {target}$", shell, re.MULTILINE)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    used = re.findall(r"^metaser (\w+)", shell, re.MULTILINE)
    assert used and set(used) <= commands | groups


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_files_that_the_documents_name_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(
        r"(?:`|\]\()((?:metaser|tests|tasks|benchmarks)/[\w./]+|[A-Z]+\.\w+)[`)]", text
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_task_folder_of_the_readme_is_read(tmp_path):
    (text,) = _blocks("toml")
    name = re.search(r"my_tasks/(\w+)/task.toml", README)[1]
    folder = tmp_path / "my_tasks" / name
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("How to obtain the corpus.\n", encoding="utf-8")
    task = tasks.read_task(name, folders=[tmp_path / "my_tasks"])
    assert tasks.check_task(task).problems == ()


def test_learn2learn_is_installed_as_its_error_message_says():
    file = re.search(r"pip install --no-deps -r (\S+)", learn2learn.INSTALL)[1]
    assert "\nlearn2learn==0.2.0 " in (ROOT / file).read_text(encoding="utf-8")
    assert f"--no-deps -r {file}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_readme_s_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=ROOT)

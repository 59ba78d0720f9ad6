"""The project itself: package layout, direction of imports, lightness, house rules, docstring examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TOP = {
    "textenv": "textenv",
    "rewards": "textenv.rewards",
    "tasks": "textenv.tasks",
    "agents": "textenv.agents",
}
"""Top folder -> package, lowest first: a package may import those before it."""


def package_folders() -> dict[str, str]:
    """Folder -> package, for every folder that holds a module; the links in ``textenv`` are not followed."""
    folders = {}
    for top, package in TOP.items():
        for path in sorted((ROOT / top).rglob("*.py")):
            folder = path.parent.relative_to(ROOT / top)
            if top != "textenv" or folder.parts[:1] not in (("agents",), ("rewards",), ("tasks",)):
                folders[path.parent.relative_to(ROOT).as_posix()] = ".".join((package, *folder.parts))
    return folders


PACKAGES = package_folders()
FILES = sorted(path for folder in PACKAGES for path in (ROOT / folder).glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAX_LINES = 400
TOO_LONG: set[str] = set()
"""Files that hold one concept and still pass MAX_LINES."""


def module_name(path: Path) -> str:
    package = PACKAGES[path.parent.relative_to(ROOT).as_posix()]
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


def path_in_package(path: Path) -> str:
    """Where a module's file lies below the folder of an install."""
    return f"{PACKAGES[path.parent.relative_to(ROOT).as_posix()].replace('.', '/')}/{path.name}"


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def imports_when_loaded(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every absolute import that loading the module runs."""

    def visit(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}:{node.lineno}: write imports absolute"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module == "textenv":
                yield from ((f"textenv.{alias.name}", node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def test_every_folder_with_a_module_is_a_package() -> None:
    assert all((ROOT / folder / "__init__.py").is_file() for folder in PACKAGES)


def test_links_make_one_package_of_the_folders() -> None:
    """Type checkers and editors follow ``src``, the one path of an editable install, to the sources."""
    for folder, package in PACKAGES.items():
        place = ROOT / "src" / Path(*package.split("."))
        assert place.resolve() == ROOT / folder
    links = [ROOT / "src" / "textenv", *(ROOT / "textenv" / folder for folder in TOP if folder != "textenv")]
    assert [os.readlink(link) for link in links] == ["../textenv", "../rewards", "../tasks", "../agents"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is needed to build the package."""
    source = tmp_path_factory.mktemp("checkout") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*TOP, "src"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored, symlinks=True)
    return source


def build(source: Path, kind: str, target: Path) -> Path:
    """What setuptools builds of the package: "wheel", "editable" or "sdist"."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = run_python(code, source)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def test_the_wheel_holds_the_packages(source: Path, tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build(source, "wheel", tmp_path)).namelist())
    expected = {module_name(path).replace(".", "/") for path in FILES if path.stem != "__init__"}
    expected |= {f"{package.replace('.', '/')}/__init__" for package in PACKAGES.values()}
    assert {name for name in names if name.endswith(".py")} == {f"{name}.py" for name in expected}
    assert "textenv/py.typed" in names
    assert "textenv/agents/reports/templates/base.html" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"textenv"}


def test_an_editable_install_is_one_path_that_type_checkers_follow(source: Path, tmp_path: Path) -> None:
    files = zipfile.ZipFile(build(source, "editable", tmp_path))
    outside = [name for name in files.namelist() if ".dist-info/" not in name]
    # A hook on imports, which setuptools writes for other layouts, hides the package from type checkers.
    assert [name.rpartition(".")[2] for name in outside] == ["pth"]
    (line,) = files.read(outside[0]).decode().splitlines()
    assert Path(line).resolve() == (source / "src").resolve()
    assert [path.name for path in Path(line).iterdir() if path.suffix != ".egg-info"] == ["textenv"]


def test_the_source_distribution_needs_no_links(source: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, "sdist", tmp_path)) as files:
        members = {member.name.partition("/")[2]: member for member in files.getmembers()}
    assert not any(member.issym() for member in members.values())
    for path in FILES:
        assert members[f"src/{path_in_package(path)}"].size == path.stat().st_size


def test_dependencies_are_pinned_and_nothing_undeclared_is_imported() -> None:
    project = PROJECT["project"]
    extras = [spec for extra in project["optional-dependencies"].values() for spec in extra]

    def distribution(spec: str) -> str:
        return re.split(r"[\[<>=!~ ;]", spec)[0].lower().replace("_", "-")

    declared = {distribution(spec) for spec in [*project["dependencies"], *extras]}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {distribution(line) for line in pins if line and not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in pins if line and not line.startswith("#"))
    assert declared - pinned == set()

    provider = packages_distributions()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        for name in (
            {name.split(".")[0] for name in names} - {"textenv", "__future__"} - sys.stdlib_module_names
        ):
            # A module that is not installed has no known distribution; then its own name must be declared.
            found = {distribution(name) for name in provider.get(name, [name])}
            assert found & declared, f"{label(path)} imports {name}, which pyproject.toml does not declare"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_point_one_way(path: Path) -> None:
    floors = list(TOP.values())
    own = floors.index(PACKAGES[path.relative_to(ROOT).parts[0]])
    for module, line in imports_when_loaded(path):
        package = next((p for p in reversed(floors) if module == p or module.startswith(f"{p}.")), None)
        if package is not None:
            assert floors.index(package) <= own, (
                f"{label(path)}:{line}: {floors[own]} must not import {module}"
            )
        assert module.split(".")[0] not in ("rewards", "tasks", "agents"), f"{label(path)}:{line}"


def test_importing_textenv_is_light() -> None:
    code = """
import sys, gymnasium, json
before = set(sys.modules)
import textenv
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = run_python(code, ROOT)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "scipy", "matplotlib", "wandb"}
    heavy |= {"stable_baselines3", "accelerate", "rich", "textenv.agents", "textenv.rewards", "textenv.tasks"}
    assert heavy & set(modules) == set()
    assert len(modules) < 50, modules


def test_importing_textenv_registers_the_environment() -> None:
    code = "import gymnasium, textenv; print(gymnasium.spec('TextRLHF-v0').vector_entry_point)"
    done = run_python(code, ROOT)
    assert done.stdout.strip() == "textenv.tasks.make:make_vec_env", done.stderr


def test_files_of_the_user_do_not_get_in_the_way(tmp_path: Path) -> None:
    for name in ("rewards", "tasks", "agents"):
        (tmp_path / f"{name}.py").write_text(f"MINE = {name!r}\n")
    (tmp_path / "script.py").write_text(
        "import agents, rewards, tasks\n"
        "import textenv, textenv.rewards, textenv.tasks, textenv.agents\n"
        "print(agents.MINE, rewards.MINE, tasks.MINE)\n"
        "print(textenv.rewards.__name__, textenv.tasks.__name__, textenv.agents.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        "agents rewards tasks",
        "textenv.rewards textenv.tasks textenv.agents",
    ], done.stderr


@pytest.mark.parametrize("folder", ["rewards", "tasks", "agents"])
def test_a_bare_import_says_what_to_write(folder: str) -> None:
    done = run_python(f"import {folder}", ROOT)
    assert done.returncode != 0
    assert re.search(rf"ImportError: .*textenv\.{folder}", done.stderr), done.stderr


@pytest.mark.parametrize("path", FILES, ids=label)
def test_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), f"{label(path)}: say what the file is for"
    assert lines <= MAX_LINES or label(path) in TOO_LONG, f"{label(path)} has {lines} lines: split it"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text), f"{label(path)}: finish it, or open an issue"


EXAMPLES = FILES + sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "helpers").glob("*.py")])
EXAMPLES = [path for path in EXAMPLES if re.search(r"^ *>>> ", path.read_text("utf-8"), re.MULTILINE)]
"""Files with docstring examples: no other test runs them."""


@pytest.mark.parametrize("path", EXAMPLES, ids=label)
def test_docstring_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = module_name(path) if path in FILES else label(path).removesuffix(".py").replace("/", ".")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=flags)
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name)
    assert any(test.examples for test in found), f"{label(path)}: its examples are in no docstring"
    for test in found:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_the_frame_is_whole() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [
        line for line in script.read_text(encoding="utf-8").splitlines() if re.match(r"\s*make\b", line)
    ]
    assert [line.split("2>&1")[0].strip() for line in commands] == ["make test"]


def test_the_citation_says_what_the_project_says() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    for name in ("version", "license", "keywords"):
        assert cited[name] == project[name]
    assert (cited["title"], cited["abstract"]) == (project["name"], project["description"])
    # What version 1.2.0 of the format requires, beside the title.
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["authors"]

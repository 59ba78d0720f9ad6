"""Tasks of installed packages, found by their entry points; the package of ``textenv tasks new``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from textenv.agents.cli.main import main
from textenv.tasks import describe, make_task, registry, task_names
from textenv.tasks.plugins import TaskLoadError, installed_tasks
from textenv.tasks.scaffold import new_task

MODULE = '''
from textenv.tasks import TaskData, letter_tokenizer, register_task

def build(split="train"):
    """Say b."""
    return TaskData(prompts=["a"], tokenizer=letter_tokenizer("ab"), rewards=[], max_new_tokens=1)
'''
Install = Callable[[str, str, str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package on ``sys.path`` as if pip had installed it: package, task, entry point, module's text."""
    modules, tasks = set(sys.modules), set(registry._TASKS)

    def put(package: str, task: str, target: str, text: str) -> Path:
        place = tmp_path / f"site-{package}"
        info = place / f"{package}-0.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.2\n")
        (info / "entry_points.txt").write_text(f"[textenv.tasks]\n{task} = {target}\n")
        (place / f"{target.partition(':')[0]}.py").write_text(text)
        monkeypatch.syspath_prepend(str(place))
        return place

    yield put
    for name in set(registry._TASKS) - tasks:
        if not registry._TASKS[name].builder.__module__.startswith("textenv."):
            del registry._TASKS[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_module_that_registers_its_task_is_found(install: Install) -> None:
    install("pkg_one", "plugin-one", "plugin_one_module", MODULE + '\nregister_task("plugin-one")(build)\n')
    assert "plugin-one" in installed_tasks() and "plugin-one" in task_names()
    assert "plugin_one_module" not in sys.modules  # nothing is loaded before it is asked for
    assert make_task("plugin-one").build().prompts == ["a"]
    assert describe()["plugin-one"] == "Say b."


def test_a_builder_is_registered_under_the_name_of_the_entry_point(install: Install) -> None:
    install("pkg_two", "plugin-two", "plugin_two_module:build", MODULE)
    assert make_task("plugin-two").description == "Say b."


@pytest.mark.parametrize(
    ("target", "text", "says"),
    [
        ("plugin_bad_module", "1 / 0", "ZeroDivisionError: division by zero"),
        ("plugin_bad_module:nothing", "", "AttributeError"),
        ("plugin_bad_module", "", "plugin_bad_module registers no task of this name"),
        ("plugin_bad_module:build", "build = 3", "is neither a module nor a builder"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_shown_and_not_fatal(
    install: Install, capsys: pytest.CaptureFixture[str], target: str, text: str, says: str
) -> None:
    install("pkg_bad", "plugin-bad", target, text)
    with pytest.raises(TaskLoadError, match=r"task 'plugin-bad' of pkg_bad 0\.2 cannot be loaded: ") as error:
        make_task("plugin-bad")
    assert says in str(error.value)
    assert describe()["plugin-bad"].startswith("cannot be loaded: ")
    assert make_task("probe-copy").name == "probe-copy"
    assert main(["tasks"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "plugin-bad cannot be loaded: " in listed and "probe-copy" in listed
    assert main(["tasks", "plugin-bad"]) == 1
    assert says in capsys.readouterr().err


def test_an_installed_task_is_listed_shown_and_suggested(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("pkg_three", "plugin-three", "plugin_three_module:build", MODULE)
    assert main(["tasks"]) == 0 and "plugin-three" in capsys.readouterr().out
    assert main(["tasks", "plugin-three"]) == 0 and "Say b." in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown task 'plugin-tree'; known: plugin-three, "):
        make_task("plugin-tree")


def test_the_librarys_own_tasks_come_first(install: Install) -> None:
    install("pkg_four", "probe-copy", "plugin_four_module:build", MODULE)
    assert make_task("probe-copy").builder.__module__ == "textenv.tasks.probes"


def test_the_new_package_is_a_task_and_its_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tasks", "new", "2-words"]) == 0
    place = tmp_path / "2-words"
    assert "2-words" in capsys.readouterr().out
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    module = "task_2_words_task"
    assert files == {"pyproject.toml", "README.md", f"{module}.py", f"tests/test_{module}.py"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_new_package_has_the_entry_point(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    place = new_task("word-task", tmp_path / "made")
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["textenv.tasks"].items()
    assert project["name"] == name == "word-task"
    install("word_task", name, target, (place / f"{target}.py").read_text())
    assert make_task("word-task").build(letters="xy").prompts == ["x", "y"]


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("old")
    with pytest.raises(FileExistsError, match="mine exists already; choose another folder"):
        new_task("mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    with pytest.raises(ValueError, match="task 'maze' exists already"):
        new_task("maze")
    with pytest.raises(ValueError, match="the name of a task must consist of"):
        new_task("../mine")
    with pytest.raises(ValueError, match=r"must begin and end with a letter or digit, got 'a\.'"):
        new_task("a.")
    assert main(["tasks", "new"]) == 2

"""The site that ``make docs`` builds: strict, complete, searchable, and without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("latex2mathml", reason="needs the extra docs")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A broken link or anchor, or an agent without a page, fails here."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that lists public names."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    import reference

    return reference


def test_every_public_name_is_described(built: Path, reference: ModuleType) -> None:
    described = {
        anchor
        for page in (built / "reference").glob("*.html")
        for anchor in re.findall(r'<h[2-6] id="(textenv[^"]+)"', page.read_text(encoding="utf-8"))
    }
    missing = {name.path for name in reference.public_names()} - described
    assert missing == set(), "each needs a docstring"


def test_pages_load_nothing_from_a_network(built: Path) -> None:
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=.?https?:[^>]*", text) == [], page
        assert re.findall(r"<link[^>]*stylesheet[^>]*https?:[^>]*", text) == [], page


def test_search_finds_words(built: Path) -> None:
    text = (built / "search" / "search_index.js").read_text(encoding="utf-8")
    index = json.loads(text.partition("=")[2])
    found = {entry["location"].partition("#")[0] for entry in index["docs"] if "expectile" in entry["text"]}
    assert {"algorithms/ilql.html", "reference/textenv_agents_settings.html"} <= found
    assert not any(entry["location"].startswith("source/") for entry in index["docs"])


def test_settings_and_formulas_are_in_the_pages(built: Path) -> None:
    page = (built / "algorithms" / "ppo.html").read_text(encoding="utf-8")
    assert re.search(r"<code>clip_range</code></td>\s*<td><code>0\.2</code>", page)
    assert page.count("<math") > 5 and "arithmatex" not in page
    assert 'href="../source/agents/ppo.py.html"' in page


def test_a_link_to_nothing_is_an_error(reference: ModuleType) -> None:
    import hooks
    from mkdocs.exceptions import PluginError

    assert hooks.outside("algorithms/ppo.md", "../../agents/ppo.py") == "agents/ppo.py"
    assert hooks.outside("data.md", "own_data.md") is None
    with pytest.raises(PluginError, match=r"data\.md links to \.\./nothing\.py"):
        hooks.outside("data.md", "../nothing.py")


def test_examples_in_docstrings_are_fenced(reference: ModuleType) -> None:
    from docstrings import fenced

    assert fenced("About.\n\n    >>> 1\n    1\n\nMore.\n>>> 2").splitlines() == [
        *("About.", "", "    ```pycon", "    >>> 1", "    1", "    ```", "", "More."),
        *("```pycon", ">>> 2", "```"),
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_outside_the_site(page: str) -> None:
    links = re.findall(r"\]\(([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (ROOT / link).exists()] == []


def test_the_readme_names_every_agent() -> None:
    from textenv.agents.base.registry import BUILTIN

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, place in BUILTIN.items():
        source = place.partition(":")[0].removeprefix("textenv.").replace(".", "/") + ".py"
        assert f"| `{name}` | [{source}]({source}) |" in text
    assert f"{len(BUILTIN)} agents" in text

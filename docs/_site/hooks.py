"""Steps of `mkdocs build` that make the site from the pages in ``docs``.

- Pages are added: the API reference, the notebooks, and one page per source file that any page links to.
- ``<!-- defaults of ppo -->`` becomes the table of that agent's settings, read from its settings class.
- Formulas between ``$`` become MathML, so pages need no script and no network.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import public_names, reference_pages
from settings_tables import settings_table

from textenv.agents.base.registry import BUILTIN

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
DEFAULTS = re.compile(r"^<!-- defaults of (\S+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".csv": "text", ".txt": "text", "": "make"}
SHIM = "https://unpkg.com/iframe-worker/shim"
"""Lets search run in pages that are opened as files. The theme loads it from there, the site from itself."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and check that every agent has a page of its own.

    Raises:
        PluginError: if an agent has no page.
    """
    for agent in BUILTIN:
        if files.get_file_from_path(f"algorithms/{agent}.md") is None:
            raise PluginError(f"agent {agent!r} has no page: write docs/algorithms/{agent}.md")
    pages = reference_pages()
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = notebook_page(path)
    sources = {name.source for name in public_names()}
    for file in files.documentation_pages():
        sources |= linked_sources(file.src_uri, Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
    for uri, text in pages.items():
        sources |= linked_sources(uri, text)
    pages |= {f"source/{source}.md": source_page(source) for source in sources}
    pages["assets/iframe_worker.js"] = (Path(__file__).parent / "iframe_worker.js").read_text(
        encoding="utf-8"
    )
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables of settings, and lead links to files of the repository to their pages."""
    markdown = DEFAULTS.sub(lambda match: settings_table(match[1]), markdown)
    uri = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        source = outside(uri, match[2])
        if source is None:
            return match[0]
        target = (
            f"notebooks/{PurePosixPath(source).stem}.md"
            if source.endswith(".ipynb")
            else f"source/{source}.md"
        )
        relative = os.path.relpath(target, PurePosixPath(uri).parent)
        return f"{match[1]}{relative}{match[3] or ''}{match[4]}"

    return LINK.sub(lead, markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML."""
    return FORMULA.sub(
        lambda match: convert(html.unescape(match[2]), display="inline" if match[1] == "span" else "block"),
        html_text,
    )


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Load the search's helper from the site itself."""
    return output.replace(SHIM, os.path.relpath("assets/iframe_worker.js", PurePosixPath(page.url).parent))


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that are no page of the navigation, such as 404.html."""
    return output_content.replace(SHIM, "assets/iframe_worker.js")


def outside(page: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to, or None for pages and addresses.

    Raises:
        PluginError: if there is no such file.
    """
    if re.match(r"[a-z]+:|/|#", link):
        return None
    target = os.path.normpath(PurePosixPath("docs", page).parent / link)
    if target.startswith("docs/"):
        return None
    if page.startswith(("reference/", "notebooks/")) and link.startswith(("../source/", "../notebooks/")):
        return None
    if not (ROOT / target).is_file():
        raise PluginError(f"{page} links to {link}, but there is no file {target}")
    return target


def linked_sources(page: str, text: str) -> set[str]:
    """Files of the repository, notebooks aside, that a page links to."""
    found = (outside(page, match[2]) for match in LINK.finditer(text))
    return {source for source in found if source is not None and not source.endswith(".ipynb")}


def source_page(source: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / source).read_text(encoding="utf-8")
    front = "---\nsearch:\n  exclude: true\nhide: [navigation]\n---\n"
    if source.endswith(".md"):
        return f"{front}# {source}\n\n" + LINK.sub(r"\2", text.partition("\n")[2])
    language = LANGUAGES[PurePosixPath(source).suffix]
    return f'{front}# {source}\n\n``````{language} linenums="1"\n{text}\n``````\n'


def notebook_page(path: Path) -> str:
    """The cells of a notebook, each with what it printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text.replace("](../docs/", "](../")))
            continue
        parts.append(f"``````python\n{text}\n``````")
        printed = "".join("".join(output.get("text", [])) for output in cell["outputs"])
        if printed:
            parts.append(f"``````text\n{printed.rstrip()}\n``````")
    title, rest = parts[0].partition("\n")[::2]
    note = f"This page shows the notebook `examples/{path.name}`. The tests execute it."
    return "\n\n".join([title, note, rest.strip(), *parts[1:]])

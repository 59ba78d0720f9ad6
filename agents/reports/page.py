r"""HTML pages from templates: everything is escaped, and the page may neither run scripts nor load anything.

Texts of models, data sets and users end up in these pages. Three things keep them texts: every expression of
a template is escaped for HTML; control and direction characters appear as escapes (``\x1b``, ``\u202e``);
and the page's content security policy allows the style and images inside the page, nothing else.
"""

from __future__ import annotations

import base64
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.utils.files import atomic_file
from textenv.utils.terminal import number, printable

if TYPE_CHECKING:
    from jinja2 import Environment

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""Content security policy of a page: inline style, and images in the page or next to it."""


def render(template_name: str, out: str | os.PathLike[str], **context: Any) -> Path:
    """Write the page of a template in ``templates/`` to the file ``out``; the file appears whole.

    Besides the context a template has the filters ``number`` (few characters), ``change`` (with a sign) and
    ``data_uri`` (a PNG file as the source of an image).

    Args:
        template_name: file in ``templates/``, which extends ``base.html``.
        out: where to write; missing folders are made.
        context: what the template names. Strings are texts, never HTML.

    Returns:
        ``out``.

    Raises:
        jinja2.UndefinedError: if the template uses a name that is not in the context.
        jinja2.TemplateNotFound: if there is no such template.
    """
    page = environment().get_template(template_name).render(**context)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(out)


@functools.cache
def environment() -> Environment:
    """The templates' environment: autoescape for every file, undefined names are errors."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("textenv.agents.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=shown_number, change=change, data_uri=data_uri)
    made.globals["content_security_policy"] = CONTENT_SECURITY_POLICY
    return made


def visible(text: str) -> str:
    r"""Text that shows what is in it: characters that control or redirect appear as escapes.

    Line ends and tabs stay.

    >>> visible("a\x1b[31mb\u202e\n\tc\x00")
    'a\\x1b[31mb\\u202e\n\tc\\x00'
    """
    if text.isprintable():  # no character that printable() would escape; a picture has 50,000 of them
        return text
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def shown_number(value: float | None) -> str:
    """A number in few characters; "n/a" for none.

    >>> shown_number(0.25), shown_number(None), shown_number(float("nan"))
    ('0.25', 'n/a', 'n/a')
    """
    return "n/a" if value is None or value != value else number(value)


def change(value: float | None) -> str:
    """A difference with its sign.

    >>> change(0.25), change(-1234.5), change(0.0), change(None)
    ('+0.25', '-1,234', '0', 'n/a')
    """
    shown = shown_number(value)
    return f"+{shown}" if value is not None and value > 0 else shown


def data_uri(path: str | os.PathLike[str]) -> str:
    """A PNG file as ``data:`` address, so that the page holds it."""
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def _shown(value: Any) -> Any:
    """Text that a template expression inserts, before escaping."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

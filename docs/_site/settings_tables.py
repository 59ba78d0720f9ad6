"""Tables of an agent's settings, read from its settings class."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from textenv.agents.base.registry import get_config_class
from textenv.agents.settings.base import AgentConfig, Config, OfflineConfig, OnlineConfig, field_docs

SHARED = (Config, AgentConfig, OnlineConfig, OfflineConfig)


def settings_table(agent: str) -> str:
    """The settings of an agent with their defaults: its own first, those that all agents have below them."""
    cls = get_config_class(agent)
    shared = {
        spec.name for base in SHARED if issubclass(cls, base) and base is not Config for spec in fields(base)
    }
    specs = list(fields(cls))
    own = [spec for spec in specs if spec.name not in shared]
    rest = [spec for spec in specs if spec.name in shared]
    kind = "online" if issubclass(cls, OnlineConfig) else "offline" if issubclass(cls, OfflineConfig) else ""
    lines = [f"Class: [`{cls.__name__}`][{cls.__module__}.{cls.__name__}]."]
    if own:
        lines += ["", *table(own, field_docs(cls))]
    lines += [
        "",
        f"Settings that all {kind} agents have:".replace("  ", " "),
        "",
        *table(rest, field_docs(cls)),
    ]
    return "\n".join(lines)


def table(specs: list[Field[Any]], docs: dict[str, str]) -> list[str]:
    """Rows of name, default and meaning."""
    rows = [
        f"| `{spec.name}` | `{default(spec)}` | {docs[spec.name].replace('|', chr(92) + '|')} |"
        for spec in specs
    ]
    return ["| setting | default | meaning |", "| --- | --- | --- |", *rows]


def default(spec: Field[Any]) -> str:
    """A field's default as Python writes it."""
    if spec.default is not MISSING:
        return repr(spec.default)
    return repr(spec.default_factory()) if spec.default_factory is not MISSING else "required"

"""Errors of the library for the command line: Python arguments are shown as options."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar

_options: ContextVar[tuple[str, ...]] = ContextVar("options of the command", default=())
_ALSO = {"eval_envs": "--task or --eval_prompts"}
"""Arguments without an option of the same name -> the options that set them."""


def set_options(names: Iterable[str]) -> None:
    """Set the options of the command, with dots; ``in_shell`` replaces arguments by them."""
    _options.set(tuple(names))


def in_shell(text: str) -> str:
    """An error with ``resume=True`` as ``--resume``, and ``prompts=`` and ``run_dir`` as options likewise.

    Names that are no option of the command stay as they are, and so do values such as ``kl_coef=0``.

    >>> set_options(["run_dir", "resume", "prompts", "settings.kl_coef"])
    >>> in_shell("runs/run_dir holds another run; say resume=True, or choose another run_dir")
    'runs/run_dir holds another run; say --resume, or choose another --run_dir'
    >>> in_shell("ppo needs prompts= (or task=), got None; kl_target has no effect with kl_coef=0")
    'ppo needs --prompts (or task=), got None; kl_target has no effect with kl_coef=0'
    >>> set_options([])
    """
    found: dict[str, str] = {}
    for name in sorted(_options.get(), key=lambda name: name.count("."), reverse=True):
        found[name.rpartition(".")[2]] = f"--{name}"
    named = {**_ALSO, **found} if found else {}

    def option(match: re.Match[str]) -> str:
        return named.get(match[1], match[0])

    text = re.sub(r"(?<![\w.\-/])([a-z]\w*)=(?:True\b|(?=[\s,;.)]|$))", option, text)
    whole = {name: shown for name, shown in named.items() if "_" in name and shown == f"--{name}"}
    return re.sub(
        r"(?<![\w./'\"\-=])([a-z]+_\w+)(?![\w/'\"=(\[]|\.\w)",
        lambda match: whole.get(match[1], match[0]),
        text,
    )

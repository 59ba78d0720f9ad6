"""Mask secrets in settings and command lines before they are written or logged.

It is used for ``run.json``, copies of settings, reports, model cards, loggers and messages. Keys, tokens,
passwords and URLs with a password are found by their name or their format. A secret under another name is not
found, so secrets belong into environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
_WORDS = (
    r"(?:[\w.-]*[_.-])?(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?key)?|private[_-]?key"
    r"|(?:signing|wandb|hf|openai|auth|encryption|license)[_-]?key|password|passwd|passphrase|pass[_-]?word|pwd"
    r"|credentials?|authorization|bearer|(?<![a-z])(?:auth|access|api|hub|hf|refresh|id|bearer|bot|secret)[_-]?token)"
)
_NAME = re.compile(rf"{_WORDS}|token", re.IGNORECASE)
_PAIR = re.compile(
    rf"(?P<name>(?<![\w-])(?:--)?{_WORDS}['\"]?\s*(?:[:=]|%3[dD])\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&}\])'\"]+)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"([{,]\s*['\"]?token['\"]?\s*:\s*)[^\s,}]+")
_QUERY = re.compile(r"(?P<name>[?&](?:token|key|sig|signature|auth)=)(?P<value>[^&\s#'\"]+)", re.IGNORECASE)
_LOGIN = re.compile(
    r"(?P<name>\b[a-z][a-z0-9+.-]*://[^/\s:@'\"]*:)(?P<value>[^/\s@'\"]+)(?=@)", re.IGNORECASE
)
_HEADER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)(?P<value>[A-Za-z0-9._~+/=-]{8,})")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,})"
)


def masked(value: Any, name: str = "") -> Any:
    """A copy of nested JSON values with secrets replaced by ``***``.

    Args:
        value: a JSON value.
        name: key of ``value`` in its object.

    >>> masked({"api_key": "abc", "max_new_tokens": 3, "data": "https://me:abc@host/x?token=abc"})
    {'api_key': '***', 'max_new_tokens': 3, 'data': 'https://me:***@host/x?token=***'}
    >>> masked(["judge", {"password": None, "eos_token": "</s>"}])
    ['judge', {'password': None, 'eos_token': '</s>'}]
    """
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if isinstance(value, str):
        return MASK if value and is_secret_name(name) else masked_text(value)
    if value is not None and not isinstance(value, bool) and is_secret_name(name):
        return MASK  # a password can be a number
    return value


def is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret. Of a nested option only the part after the last dot counts.

    >>> [is_secret_name(name) for name in ("api_key", "env.task_kwargs.hf-token", "token", "HF_TOKEN")]
    [True, True, True, True]
    >>> [is_secret_name(name) for name in ("eos_token", "max_new_tokens", "tokenizer", "key", "author")]
    [False, False, False, False, False]
    """
    return _NAME.fullmatch(name.lstrip("-").rpartition(".")[2]) is not None


def masked_text(text: str) -> str:
    """A text with its secrets masked. They are found by the name before them, or by their format.

    >>> masked_text("[judge, {api_key: abc, n: 3}] at https://me:abc@host")
    '[judge, {api_key: ***, n: 3}] at https://me:***@host'
    """
    for pattern in (_HEADER, _PAIR, _QUERY, _LOGIN):
        text = pattern.sub(lambda found: found["name"] + MASK, text)
    return _FORMS.sub(MASK, text)


def masked_command(argv: Sequence[str]) -> list[str]:
    """A command line with its secrets masked.

    >>> masked_command(["train", "--x.api_key", "abc", "--y.password=abc", "--z", "{token: abc}"])
    ['train', '--x.api_key', '***', '--y.password=***', '--z', '{token: ***}']
    """
    shown: list[str] = []
    for i, token in enumerate(argv):
        name, equals, _ = token.partition("=")
        before = argv[i - 1] if i else ""
        if token.startswith("--") and equals and is_secret_name(name):
            shown.append(f"{name}={MASK}")
        elif before.startswith("--") and "=" not in before and is_secret_name(before):
            shown.append(token if token.startswith("--") else MASK)
        else:
            shown.append(_TOKEN.sub(rf"\1{MASK}", masked_text(token)))
    return shown

"""Flags: options of the command line that a configuration file cannot set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textenv.agents.cli.errors import UsageError

FLAGS = {
    "--import": "MODULE|FILE.py  import this first; it may register agents, tasks and rewards",
    "--allow_imports": "import rewards that a configuration file names as module:function",
    "--trust_remote_code": "run code that comes with a model from the hub",
    "--traceback": "show where in the code an error came from",
    "--version": "show the version",
}
"""Flag -> its help."""
SWITCHES = ("--allow_imports", "--trust_remote_code", "--traceback")
"""Flags that take no value."""
REWARD_OPTIONS = ("reward", "rewards", "judge", "player")
"""Options, or last parts of options with dots, whose value may name code to import."""


@dataclass(frozen=True)
class Flags:
    """The flags of a command line and the arguments that remain."""

    argv: tuple[str, ...] = ()
    """The command line without its flags."""
    imports: tuple[str, ...] = ()
    """Modules and files to import first."""
    allow_imports: bool = False
    """Whether rewards named in files may be imported."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run."""
    traceback: bool = False
    """Whether errors show where they came from."""

    def may_import(self, place: str) -> bool:
        """Whether ``module:name`` may be imported: all may, or an option for code has it as its value.

        Values of other options do not count, nor does a part of a longer name.
        """
        if self.allow_imports:
            return True
        from textenv.agents.cli.values import named_in, option_values

        return any(
            place in named_in(value)
            for name, value in option_values(self.argv)
            if name.rpartition(".")[2] in REWARD_OPTIONS
        )


def parse_flags(argv: Sequence[str]) -> Flags:
    """Take the flags out of a command line, wherever they stand.

    Raises:
        UsageError: if ``--import`` has no value, or another flag has one.
    """
    rest: list[str] = []
    imports: list[str] = []
    found: dict[str, bool] = {}
    tokens = iter(argv)
    for token in tokens:
        name, equals, value = token.partition("=")
        name = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
        if name == "--import":
            value = value if equals else next(tokens, "")
            if not value:
                raise UsageError("--import needs the name of a module or file")
            imports.append(value)
        elif name in SWITCHES:
            if equals:
                raise UsageError(f"{name} takes no value, got {value!r}")
            found[name[2:]] = True
        else:
            rest.append(token)
    return Flags(argv=tuple(rest), imports=tuple(imports), **found)

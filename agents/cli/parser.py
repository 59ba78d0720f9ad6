"""Command lines and YAML files from settings classes: one option per field, nested classes with dots.

jsonargparse reads and merges both. Unknown keys are checked here, so the error can name the nearest one.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.kinds import holds_names, kind, listed, option_type, parts, takes_none
from textenv.agents.cli.repeats import with_null, with_one_of_each
from textenv.agents.cli.values import check_no_repeats, option_values
from textenv.agents.cli.wording import set_options
from textenv.agents.settings.base import Config, field_docs
from textenv.utils.names import close_names, nearest

C = TypeVar("C", bound=Config)
_OWN = ("help", "config", "print_config")


class _Parser(jsonargparse.ArgumentParser):
    """Raises an exception instead of printing the usage and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        raise UsageError(_plain(message, _hints(self))) from ex


def make_parser(
    prog: str,
    description: str,
    options: type[Config],
    *,
    nested: Mapping[str, type[Config]] | None = None,
    made: Mapping[str, Config] | None = None,
    positional: Mapping[str, str] | None = None,
) -> jsonargparse.ArgumentParser:
    """Make the parser of a command.

    Args:
        prog: the command as the user types it.
        description: what it does.
        options: a field is an option; a field that is a settings class gives options with dots.
        nested: field name -> settings class, for a field of ``options`` whose class depends on the command.
        made: field name -> settings that hold the defaults of that field's options.
        positional: argument name -> its help.
    """
    places = [f"[{name.upper()}]" for name in positional or {}]
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *places, "[--config FILE] [--NAME VALUE ...]"]),
        description=description,
        print_config="--print_%s",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of these options; later ones override it"
    )
    for name, text in (positional or {}).items():
        parser.add_argument(name, nargs="?", type=str, help=text)
    _add_fields(parser, options, "", dict(nested or {}), inner_defaults=made or {})
    return parser


def parse(
    parser: jsonargparse.ArgumentParser, argv: Sequence[str], *, only_given: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a command line (dashes in names count as underscores) and the files that it names.

    Args:
        parser: of the command.
        argv: the command line.
        only_given: fields whose values are left out where neither command line nor file has them.

    Returns:
        Nested plain values; without positional arguments that were not given.

    Raises:
        UsageError: on an unknown or ill-typed key; it names the nearest.
    """
    argv = _with_true([_underscored(token) for token in argv], parser)
    hints = _hints(parser)
    known = set(hints)
    set_options(hints)
    for token in argv:
        if token.startswith("--") and token != "--":
            name = token[2:].split("=")[0].removesuffix("+")
            if not _is_known(name, hints):
                raise UsageError(f"unknown option --{name}; {_nearest(name, known, '--')}")
            if name not in hints and _is_group(name, known):
                first = next(f"--{key}" for key in hints if key.startswith(f"{name}."))
                raise UsageError(f"--{name} is a group of options such as {first}, and takes no value")
    for name, value in option_values(argv):
        _check_value(name, value)
    for path in config_files(argv):
        check_keys(path, hints)
    argv = with_null(with_one_of_each(argv, hints), hints)
    try:
        namespace = parser.parse_args(argv)
        given = parser.parse_args(argv, defaults=False).as_dict() if only_given else {}
    except jsonargparse.ArgumentError as error:
        raise UsageError(_plain(str(error), hints)) from error
    except RecursionError as error:
        raise UsageError("a value or a file is nested too deeply to be read") from error
    values = namespace.as_dict()
    values.pop("config", None)
    return values | {name: given.get(name) or {} for name in only_given}


def check_keys(path: Path, hints: Mapping[str, Any]) -> None:
    """Refuse a YAML file with a key that is unknown or given twice.

    Args:
        path: the file.
        hints: every key, with dots -> its type.

    Raises:
        UsageError: naming file, line and key, and the nearest known one.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # null byte in a path, or invalid UTF-8
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply to be read") from error
    if node is None:
        raise UsageError(f"{path} is empty; it must hold options, name: value")
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path} must hold options, name: value; got a {node.tag.rpartition(':')[2]}")
    check_no_repeats(node, str(path))
    known, numbers = set(hints), _numbers(hints)
    for key, value, line in _keys(node, "", known):
        if not _is_known(key, hints):
            near = _nearest(key, known - set(_OWN), "")
            raise UsageError(f"{path}, line {line}: unknown key {key!r}; {near}")
        if isinstance(value, yaml.ScalarNode) and value.style in ("'", '"') and key in numbers:
            raise UsageError(
                f"{path}, line {line}: {key} must be {numbers[key]}, got the text {value.value!r}; "
                "leave out the quotes"
            )
        says_none = isinstance(value, yaml.ScalarNode) and not value.style and value.value.lower() == "none"
        if says_none and takes_none(hints.get(key)):
            raise UsageError(f"{path}, line {line}: {key} is {value.value}, which YAML writes as null")
        if isinstance(value, yaml.MappingNode) and key in hints and not holds_names(hints[key]):
            place = f"{path}, line {line}: {key} must be {kind(hints[key])}, got settings"
            raise UsageError(
                place + _where_they_belong(key, [str(name.value) for name, _ in value.value], known)
            )


def build(
    cls: type[C],
    values: Mapping[str, Any],
    nested: Mapping[str, type[Config]] | None = None,
    prefix: str = "",
) -> C:
    """Make settings, and the settings nested in them, from plain values.

    Raises:
        UsageError: if a value is out of range; it names the field as the command line does.
    """
    classes = {**_nested_classes(cls), **(nested or {})}
    own = {spec.name for spec in fields(cls)}
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if name in classes and value is not None and not isinstance(value, Mapping | Config):
            raise UsageError(f"{prefix}{name} must hold settings, name: value, got {value!r}")
    made = {
        name: build(classes[name], value, prefix=f"{prefix}{name}.")
        if name in classes and isinstance(value, Mapping)
        else _as_list(value, hints[name])
        for name, value in values.items()
        if name in own
    }
    try:
        return cls(**made)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{prefix}{error}") from error


def _as_list(value: Any, hint: Any) -> Any:
    """A single item as a list, where the setting is a list."""
    single = listed(hint) is not None and value is not None and not isinstance(value, list | tuple)
    return [value] if single else value


def _add_fields(
    parser: jsonargparse.ArgumentParser,
    cls: type[Config],
    prefix: str,
    nested: dict[str, type[Config]],
    made: Config | None = None,
    inner_defaults: Mapping[str, Config] | None = None,
) -> None:
    """Add an option for each field.

    ``made`` has the defaults where they are not the class's own, ``inner_defaults`` those of fields that are
    settings.
    """
    docs, hints = field_docs(typing.cast(type, cls)), typing.get_type_hints(cls)
    classes = {**_nested_classes(cls), **nested}
    group = parser.add_argument_group(f"{prefix.rstrip('.')} ({cls.__name__})") if prefix else parser
    for spec in fields(cls):
        default = _default(spec) if made is None else getattr(made, spec.name)
        if spec.name in classes:
            inner = (inner_defaults or {}).get(spec.name, default if isinstance(default, Config) else None)
            _add_fields(parser, classes[spec.name], f"{prefix}{spec.name}.", {}, inner)
            continue
        group.add_argument(
            f"--{prefix}{spec.name}",
            type=option_type(hints[spec.name]),
            default=list(default) if isinstance(default, tuple) else default,
            help=docs[spec.name].replace("%", "%%"),
        )


def _nested_classes(cls: type[Config]) -> dict[str, type[Config]]:
    hints = typing.get_type_hints(cls)
    return {
        spec.name: hints[spec.name]
        for spec in fields(cls)
        if isinstance(hints[spec.name], type) and issubclass(hints[spec.name], Config)
    }


def _default(spec: Field[Any]) -> Any:
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    return spec.default


def _underscored(token: str) -> str:
    if not token.startswith("--"):
        return token
    name, equals, value = token[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _with_true(argv: list[str], parser: jsonargparse.ArgumentParser) -> list[str]:
    """Add ``=true`` to boolean options without a value: ``--resume`` is ``--resume=true``."""
    switches = {
        f"--{action.dest}"
        for action in parser._actions
        if bool in (hint := getattr(action, "_typehint", None), *typing.get_args(hint))
    }
    return [
        f"{token}=true"
        if token in switches and (i + 1 == len(argv) or argv[i + 1].startswith("--"))
        else token
        for i, token in enumerate(argv)
    ]


def config_files(argv: Sequence[str]) -> Iterator[Path]:
    """The files that ``--config`` names on a command line."""
    for i, token in enumerate(argv):
        if token.startswith("--config="):
            yield Path(token.partition("=")[2])
        elif token == "--config" and i + 1 < len(argv):
            yield Path(argv[i + 1])


def _check_value(name: str, text: str) -> None:
    """Refuse a value on the command line that YAML would read differently from how it is written.

    Raises:
        UsageError: naming the option.
    """
    if name == "config" and not text:
        raise UsageError("--config must be the path of a YAML file, got ''")
    if "{" not in text:
        return
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):  # the parser reports invalid YAML
        return
    except RecursionError as error:
        raise UsageError(f"--{name} is nested too deeply to be read") from error
    check_no_repeats(node, f"--{name}")


def _hints(parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """Option -> type, with dots."""
    own = {name: str for name in _OWN}
    return own | {action.dest: getattr(action, "_typehint", None) or str for action in parser._actions}


def _numbers(hints: Mapping[str, Any]) -> dict[str, str]:
    """Key -> type, of every option whose values are numbers or booleans and never text."""
    found = {}
    for name, hint in hints.items():
        kinds = [one for one in parts(hint) if one is not type(None)]
        if kinds and all(one in (int, float, bool) for one in kinds):
            found[name] = " or ".join(one.__name__ for one in kinds)
    return found


def _where_they_belong(key: str, names: Sequence[str], known: set[str]) -> str:
    """The groups that have all of these settings, as the end of an error; similar names first."""
    groups = {name.rpartition(".")[0] for name in known} - {""}
    fitting = [group for group in groups if all(f"{group}.{name}" in known for name in names)]
    fitting.sort(key=lambda group: (not key.startswith(group), group))
    return f"; {', '.join(names)} belongs under {' or '.join(fitting)}" if names and fitting else ""


def _keys(node: yaml.MappingNode, prefix: str, known: set[str]) -> Iterator[tuple[str, yaml.Node, int]]:
    """Every key with dots, with its value and line. Values of a single option are not searched."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and name not in known and _is_group(name, known):
            yield from _keys(value, f"{name}.", known)
        else:
            yield name, value, key.start_mark.line + 1


def _is_known(name: str, hints: Mapping[str, Any]) -> bool:
    """Whether a name is an option, a group of options, or a key inside of an option that is a dictionary."""
    path = name.split(".")
    outer = (".".join(path[:n]) for n in range(1, len(path)))
    inside = any(place in hints and holds_names(hints[place]) for place in outer)
    return name in hints or inside or _is_group(name, set(hints))


def _is_group(name: str, known: set[str]) -> bool:
    return any(key.startswith(f"{name}.") for key in known)


def _nearest(name: str, known: set[str], mark: str) -> str:
    """The nearest known names, as the end of an error. Names are also compared without their group."""
    last = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    close = [*close_names(name, known), *(last[word] for word in close_names(name.rpartition(".")[2], last))]
    if close:
        return f"did you mean {' or '.join(mark + key for key in list(dict.fromkeys(close))[:2])}?"
    return nearest(mark + name, [mark + key for key in known if "." not in key])


def _about_tokens(line: str, hints: Mapping[str, Any]) -> str:
    """The parser's error about an unexpected token, in plain words."""
    stray = re.fullmatch(r"unrecognized arguments: (.*)", line)
    if stray is not None:
        return f"{stray[1]} is not an option; options are --NAME VALUE, see --help"
    bare = re.fullmatch(r"argument --([\w.]+): expected one argument", line)
    if bare is not None:
        return f"--{bare[1]} needs a value, {kind(hints.get(bare[1], str))}; got none"
    return line


def _plain(message: str, hints: Mapping[str, Any]) -> str:
    """An error of jsonargparse in one line, in the words of this library."""
    line = " ".join(message.split())
    found = re.search(r'[Kk]ey "([\w.]+)":.*?(?:Got|Given) value: (.*)', line)
    if found is None or found[1] not in hints:
        return _about_tokens(line, hints)
    return f"{found[1]} must be {kind(hints[found[1]])}, got {found[2]}"

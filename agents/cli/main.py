"""The program ``textenv``: choose the command and print errors. The commands are in ``commands``.

Heavy modules are imported by the commands that need them, so help and lists are fast.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import TextIO

from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.flags import FLAGS, Flags, parse_flags

COMMANDS = {
    "train": "train an agent: textenv train ppo --task random-walks",
    "sft": "supervised fine-tuning; same as: textenv train sft",
    "reward-model": "train a reward model on preferences or ratings; same as: textenv train reward-model",
    "pipeline": "supervised fine-tuning, reward model and reinforcement learning in one run",
    "evaluate": "evaluate a policy or reward model: textenv evaluate FOLDER --task random-walks",
    "generate": "generate texts: textenv generate FOLDER --prompts prompts.jsonl",
    "check": "check a task, its partner and its rewards for mistakes: textenv check guess-number",
    "report": "write the report of a run: textenv report FOLDER",
    "rescore": "compute the rewards of stored episodes again: textenv rescore FOLDER --rewards length",
    "push": "upload a model with its card to the Hugging Face hub: textenv push FOLDER OWNER/NAME",
    "compare": "compare agents over seeds: textenv compare STUDY.yaml",
    "tasks": "list the tasks, show one (textenv tasks reviews), or begin one (textenv tasks new NAME)",
    "agents": "list the agents",
    "rewards": "list the rewards, or one reward's documentation: textenv rewards length",
}
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, OSError, ImportError)
"""Errors that are printed in one line. Others are errors in code and are printed with a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 success, 1 failure, 2 invalid command line or configuration file, 130 interrupted by Ctrl-C,
    143 ended by SIGTERM.
    """
    from textenv.agents.cli.interrupts import STOPS, stop_message, terminable
    from textenv.agents.cli.wording import set_options
    from textenv.modeling.pretrained import trusting
    from textenv.utils.quiet import quiet_libraries

    quiet_libraries()
    set_options(())
    argv = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in argv
    previous, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        flags = parse_flags(argv)
        with terminable(), trusting(flags.trust_remote_code):
            if os.environ.get("RANK", "0") == "0":
                return _run(flags)
            # Of several processes that a launcher started, only the first one prints.
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                return _run(flags)
    except SystemExit as leaving:  # jsonargparse exits so after --help and --print_config
        if isinstance(leaving.code, str):  # as Python treats a string exit code
            print(leaving.code, file=sys.stderr)
            return 1
        return int(leaving.code or 0)
    except STOPS as stop:
        print(f"textenv: {stop_message(stop)}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    except BrokenPipeError:  # the reader of the output was closed, for example `head`
        sys.stderr.close()
        return 1
    except Exception as error:
        if traceback or not _is_user_error(error):
            raise
        print(f"textenv: error: {_line(error)}", file=sys.stderr)
        return 2 if type(error).__name__ == "UsageError" else 1
    finally:
        warnings.showwarning = previous


def _run(flags: Flags) -> int:
    command, *rest = flags.argv or ("--help",)
    if command in ("-h", "--help", "help"):
        _print_help()
        return 0
    if command == "--version":
        if rest:
            raise UsageError(f"--version takes nothing else, got {' '.join(rest)}")
        from importlib.metadata import version

        print(f"textenv {version('textenv')}")
        return 0
    if command not in COMMANDS:
        from textenv.utils.names import nearest

        raise UsageError(f"unknown command {command!r}; {nearest(command, COMMANDS)}")
    for name in flags.imports:
        from textenv.agents.base.user_code import import_module_or_file

        import_module_or_file(name)
    if command in ("tasks", "agents", "rewards"):
        from textenv.agents.cli import lists

        return lists.run(command, rest)
    if command in ("report", "push"):
        from textenv.agents.cli import reports

        return reports.run(command, list(rest))
    if command == "check":
        from textenv.agents.cli.check import check

        return check(list(rest), flags)
    if command == "rescore":
        from textenv.agents.cli.rescore import rescore

        return rescore(list(rest), flags)
    if command == "compare":
        from textenv.agents.cli.compare import compare

        return compare(rest, flags)
    from textenv.agents.cli import commands

    run: Callable[[list[str], Flags], int] = getattr(commands, command.replace("-", "_"))
    return run(list(rest), flags)


def _print_help() -> None:
    print("usage: textenv COMMAND [options]\n\nText generation as reinforcement learning.\n\ncommands:")
    for name, text in COMMANDS.items():
        print(f"  {name:<14}{text}")
    print("\nfor every command:")
    print(f"  {'--help':<21}its options (textenv train AGENT --help: also the agent's settings)")
    print(f"  {'--config FILE':<21}YAML file of options; options on the command line override it")
    print(f"  {'--print_config':<21}the options as YAML, a template for such a file")
    for name, text in FLAGS.items():
        shown, _, about = text.partition("  ") if name == "--import" else ("", "", text)
        print(
            f"  {f'{name} {shown}'.strip():<21}{about}" if not shown else f"  {name} {shown}\n{'':<23}{about}"
        )


def _is_user_error(error: Exception) -> bool:
    """Whether an error is about the user's input and not about code."""
    # tokenizers raises a bare Exception for bad texts; safetensors a custom error for damaged files.
    of_files = type(error) is Exception or type(error).__name__ == "SafetensorError"
    return isinstance(error, USER_ERRORS) or of_files or type(error).__module__.startswith("textenv.")


def _line(error: Exception) -> str:
    """An error in one line; control characters are shown as escapes."""
    from textenv.agents.cli.wording import in_shell
    from textenv.utils.redaction import masked_text
    from textenv.utils.terminal import printable

    text = str(error) if type(error).__name__ == "UsageError" else in_shell(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    notes = getattr(error, "__notes__", [])
    if error.__cause__ is not None and type(error).__module__.startswith("textenv.rewards"):
        notes = [*notes, "--traceback shows where in the reward"]
    if type(error).__name__ == "SafetensorError":
        notes = [*notes, "the model's .safetensors file is damaged"]
    joined = "; ".join([text or type(error).__name__, *notes])
    return printable(masked_text(" ".join(joined.split())))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"textenv: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

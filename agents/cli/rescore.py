"""The command ``textenv rescore``: the rewards of the stored episodes of a run, computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textenv.agents.base.user_code import import_rewards
from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.flags import Flags
from textenv.agents.cli.parser import build, make_parser, parse
from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class RescoreOptions(Config):
    """Options of `textenv rescore`."""

    rewards: Any = None
    """A reward or a list of them: name, [name, {argument: value}], module:function, or file.py:function."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; None is the run's."""


def rescore(argv: list[str], flags: Flags) -> int:
    """Write the episodes with new rewards beside the old ones; print old and new means."""
    parser = make_parser(
        "textenv rescore",
        "Compute the rewards of stored episodes again, into new files; the rewards of a partner stay.",
        RescoreOptions,
        positional={"run": "folder of a run, or a file of episodes"},
    )
    values = parse(parser, argv)
    run = values.pop("run", None)
    if run is None:
        raise UsageError("name the run: textenv rescore FOLDER --rewards REWARD")
    options = build(RescoreOptions, values)
    if options.rewards is None:
        raise UsageError("name the rewards: textenv rescore FOLDER --rewards REWARD")

    import rich

    from textenv.agents.evaluation.rescore import rescore_run, stored_episodes
    from textenv.rewards.registry import reward_list
    from textenv.tasks.prompts import load_tokenizer

    paths = stored_episodes(run)
    rewards = import_rewards(reward_list(options.rewards), flags.may_import)
    tokenizer = _tokenizer_of(run) if options.tokenizer is None else load_tokenizer(options.tokenizer)
    for found in rescore_run(run, rewards, tokenizer, paths=paths):
        rich.print(found.table())
        print(f"episodes: {found.path}")
    return 0


def _tokenizer_of(run: str) -> Any:
    """The tokenizer of a run's model; None if the run keeps none, for rewards that read no texts."""
    from textenv.modeling.saved_runs import model_folder
    from textenv.tasks.prompts import model_tokenizer

    if not Path(run).is_dir():
        return None
    folder = model_folder(run)
    return model_tokenizer(str(folder)) if (folder / "tokenizer_config.json").is_file() else None

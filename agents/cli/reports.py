"""The commands about finished runs: ``textenv report`` and ``textenv push``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.parser import build, make_parser, parse
from textenv.agents.reports.plots import PlotFormat
from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Config):
    """Options of `textenv report`."""

    episodes: int = 0
    """Also print this many episodes of the last saved iteration, with coloured tokens."""
    quantities: tuple[str, ...] = ()
    """Quantities that colour the tokens, such as '[reward, KL]'; empty is all that were saved."""
    plot_format: PlotFormat = "png"
    """Also write the plots as pdf or svg files."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(episodes=">= 0")


@dataclass(frozen=True, kw_only=True)
class PushOptions(Config):
    """Options of `textenv push`."""

    base_model: str | None = None
    """Hub id of the model before training; None is what run.json says."""
    license: str | None = None
    """License identifier of the hub, such as apache-2.0."""
    private: bool | None = None
    """Whether a new repository is private; None is the account's default."""
    training_state: bool = False
    """Also upload the training state (optimizer, random state)."""
    out: str | None = None
    """Write the folder here, with its model card, and upload nothing."""


def run(command: str, argv: list[str]) -> int:
    """Run ``report`` or ``push``."""
    return report(argv) if command == "report" else push(argv)


def report(argv: list[str]) -> int:
    """Write the report of a run, and print episodes if asked to."""
    parser = make_parser(
        "textenv report",
        "Write report.html and plots into the folder of a run or a pipeline.",
        ReportOptions,
        positional={"run_dir": "folder of the run"},
    )
    values = parse(parser, argv)
    folder = values.pop("run_dir", None)
    if folder is None:
        raise UsageError("name the run: textenv report FOLDER")
    options = build(ReportOptions, values)

    from textenv.agents.reports.report import write_report

    page = write_report(folder, plot_format=options.plot_format)
    if options.episodes:
        from textenv.agents.reports.tokens import load_views, show

        kept = [place / "episodes" / "last.json" for place in (Path(folder), Path(folder) / "rl")]
        file = next((path for path in kept if path.is_file()), None)
        if file is None:
            raise UsageError(f"{folder} keeps no episodes; online agents with a run_dir do")
        show(load_views(file)[: options.episodes], options.quantities or None)
    print(f"report: {page}")
    return 0


def _check_repo_id(repo_id: str) -> None:
    """Refuse what the hub would refuse, before a folder is written for it.

    Raises:
        UsageError: if it is no OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"the repository must be OWNER/NAME, got {repo_id!r}: {error}") from error
    if "/" not in repo_id:
        raise UsageError(f"the repository must be OWNER/NAME, got {repo_id!r}")


def push(argv: list[str]) -> int:
    """Upload a model with its card, or write what would be uploaded."""
    parser = make_parser(
        "textenv push",
        "Upload a model with its card to the Hugging Face hub.",
        PushOptions,
        positional={"source": "run folder, checkpoint or model folder", "repo_id": "OWNER/NAME on the hub"},
    )
    values = parse(parser, argv)
    source, repo_id = values.pop("source", None), values.pop("repo_id", None)
    if source is None or repo_id is None:
        raise UsageError("name the model and the repository: textenv push FOLDER OWNER/NAME")
    if not Path(source).is_dir():
        raise UsageError(f"{source}: no such folder")
    options = build(PushOptions, values)
    _check_repo_id(repo_id)

    from textenv.agents.reports.model_card import export_model, push_to_hub

    said = {name: getattr(options, name) for name in ("base_model", "license", "training_state")}
    if options.out is not None:
        print(f"model: {export_model(source, options.out, repo_id, **said)}")
    else:
        print(f"commit: {push_to_hub(source, repo_id, private=options.private, **said)}")
    return 0

"""Models on the Hugging Face hub: the folder that plain transformers loads, and its model card."""

from __future__ import annotations

import html
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.checkpointing.checkpoint import read_trainer
from textenv.agents.reports import headline
from textenv.agents.reports.page import change, shown_number
from textenv.agents.reports.run_data import RunData, read_run
from textenv.modeling.saved_runs import model_folder
from textenv.utils.files import atomic_folder
from textenv.utils.json_files import read_object
from textenv.utils.redaction import masked
from textenv.utils.terminal import printable

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from textenv.agents.base.agent import Agent

TRAINING_STATE = (
    "optimizer.safetensors",
    "trainer.safetensors",
    "random.safetensors",
    "reference.safetensors",
)
"""Files that only training needs; they are at least as large as the model."""
_OF_THE_RUN = ("trainer.json", "files.json", "checkpoint.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(kw_only=True)
class _Source:
    """A model's folder and the run that it came from."""

    folder: Path
    """Folder that transformers loads."""
    run: RunData
    """Metrics, settings and facts, as far as they are known."""

    @property
    def plain_policy(self) -> bool:
        """Whether ``LanguagePolicy.load`` reads the folder."""
        file = self.folder / "policy.json"
        return file.is_file() and read_object(file).get("class") == "LanguagePolicy"

    @property
    def scorer(self) -> bool:
        """Whether the model is a reward model."""
        kinds = read_object(self.folder / "config.json").get("architectures") or []
        return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def push_to_hub(
    source: Agent | str | os.PathLike[str],
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    training_state: bool = False,
    token: str | None = None,
    api: Any = None,
) -> str:
    """Upload a model with its card in one commit; the repository is made if it is not there.

    Args:
        source: an agent, the folder of a run (its best or newest model), or a checkpoint.
        repo_id: "name" or "owner/name" on the hub.
        base_model: what the training began with; None is what the run says.
        license: identifier of the hub, such as "apache-2.0"; None says nothing about it.
        private: whether a repository that is made is private; None is the account's default.
        training_state: upload the optimizer's state and the like, too.
        token: of the hub; None is the one that is logged in.
        api: a ``huggingface_hub.HfApi``, instead of one made of ``token``.

    Returns:
        Address of the commit.

    Raises:
        ValueError: if ``source`` holds no model, or ``repo_id`` is no name of a repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id must be the name of a repository on the hub: {error}") from error
    api = HfApi(token=token) if api is None else api
    with _opened(source) as found:
        card = _card(found, repo_id=repo_id, base_model=base_model, license=license)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
            for name, path in _files(found.folder, training_state)
        ]
        operations.append(CommitOperationAdd("README.md", str(card).encode()))
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(made.repo_id, operations, commit_message="Model trained with textenv")
    return str(commit.commit_url)


def export_model(
    source: Agent | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    training_state: bool = False,
) -> Path:
    """Write what ``push_to_hub`` would upload into ``folder``, and upload nothing; returns the folder.

    Raises:
        ValueError: if ``source`` holds no model.
        FileExistsError: if ``folder`` holds something else.
    """
    with _opened(source) as found, atomic_folder(folder, marker="README.md") as temporary:
        card = _card(found, repo_id=repo_id, base_model=base_model, license=license)
        for name, path in _files(found.folder, training_state):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
    return Path(folder)


def model_card(
    source: Agent | str | os.PathLike[str],
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """The card alone, see ``push_to_hub`` for the arguments.

    Raises:
        ValueError: if ``source`` holds no model.
    """
    with _opened(source) as found:
        return _card(found, repo_id=repo_id, base_model=base_model, license=license)


@contextmanager
def _opened(source: Agent | str | os.PathLike[str]) -> Iterator[_Source]:
    """The model's folder and its run; an agent is saved into a temporary folder for the time of the block."""
    if isinstance(source, str | os.PathLike):
        folder = model_folder(source)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{source} holds no model, expected a run, a checkpoint or a model's folder")
        yield _Source(folder=folder, run=_run_of(Path(source)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source.save_policy(folder)
        run = RunData(path=folder)
        if source.run_dir is not None and (source.run_dir / "metrics.jsonl").is_file():
            run = read_run(source.run_dir)
        run.info = {"agent": source.registered_name(), "config": masked(source.config.to_dict()), **run.info}
        yield _Source(folder=folder, run=run)


def _run_of(path: Path) -> RunData:
    """The run that a folder is or lies in; of a checkpoint alone what its ``trainer.json`` says."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "run.json").is_file() or (folder / "pipeline.json").is_file():
            return read_run(folder)
    run = RunData(path=path)
    if (path / "trainer.json").is_file():
        trainer = read_trainer(path)
        run.info = {"agent": trainer["agent"], "config": masked(trainer["config"])}
    return run


def _files(folder: Path, training_state: bool) -> list[tuple[str, Path]]:
    """(name, file) of what is uploaded."""
    left_out = () if training_state else (*TRAINING_STATE, *_OF_THE_RUN)
    return [
        (path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*left_out, "README.md")
    ]


def _card(found: _Source, *, repo_id: str, base_model: str | None, license: str | None) -> ModelCard:
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import StrictUndefined, Template

    run, scorer = found.run, found.scorer
    given = base_model or run.info.get("model") or run.config.get("model")
    agent = str(run.info.get("agent") or "unknown")
    data = ModelCardData(
        # A folder on the machine of the training is no model that anyone else could look up.
        base_model=given if given and _HUB_ID.fullmatch(given) and not Path(given).exists() else None,
        library_name="transformers",
        pipeline_tag="text-classification" if scorer else "text-generation",
        license=license,
        tags=["textenv", "reward-model" if scorer else "rlhf", agent],
    )
    rows, about = headline.figures(run)
    facts = [row for row in headline.facts(run) if row[0] not in ("command", "platform")]
    text = (files("textenv.agents.reports") / "templates" / "model_card.md").read_text("utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    content = template.render(
        card_data=data.to_yaml(),
        title=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        auto_class="AutoModelForSequenceClassification" if scorer else "AutoModelForCausalLM",
        scorer=scorer,
        plain_policy=found.plain_policy,
        agent=_plain(agent),
        task=_plain(str(run.info.get("task") or "")),
        base_model=_plain(str(data.base_model or "")),
        figures=[
            (_plain(row.name), shown_number(row.before), shown_number(row.after), change(row.change))
            for row in rows
        ],
        about=about,
        warnings=[_plain(text) for text in headline.warnings_of(run)],
        facts=_plain_rows(facts),
        settings=_plain_rows(headline.settings(run.config)),
        limitations=_limitations(run, scorer),
    )
    return ModelCard(content)


def _limitations(run: RunData, scorer: bool) -> list[str]:
    lines = [
        "It has the knowledge, the mistakes and the biases of the model that it began as, and of its data.",
        "The figures above are of the prompts and data of this one run, with one seed.",
    ]
    if scorer:
        lines.append(
            "A score is comparable with other scores of this model only. A policy that is optimised against "
            "it finds texts that score high and are not good; hold it to a judge of its own."
        )
    elif run.stages or "iterations" in run.config:
        lines.append(
            "It was trained to raise a reward. The reward is a stand-in for what is wanted, so texts may "
            "score high without being true, safe or useful."
        )
        lines.append(
            "A held-out judge watched the training for reward hacking."
            if headline.watched(run)
            else "No held-out judge watched the training, so reward hacking may have gone unnoticed."
        )
    return lines


def _plain_rows(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(_plain(name), _plain(value)) for name, value in rows]


def _plain(text: str) -> str:
    """A text on one line that Markdown and HTML show as it is, in a table's cell, too."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", html.escape(printable(text), quote=False))

"""The commands of ``textenv``, one function each: read the options, call the library, print the result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.base.registry import agent_names, get_config_class, list_agents
from textenv.agents.base.user_code import import_rewards
from textenv.agents.checkpointing.needs import check_policy_options
from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.flags import Flags
from textenv.agents.cli.interrupts import advising, how_to_resume
from textenv.agents.cli.named import in_files, named_settings, task_of
from textenv.agents.cli.options import EvaluateOptions, GenerateOptions, PlayOptions, TrainOptions
from textenv.agents.cli.output import check_there, print_numbers
from textenv.agents.cli.parser import build, make_parser, parse
from textenv.utils.files import write_text
from textenv.utils.json_files import read_object, write_json
from textenv.utils.names import nearest

if TYPE_CHECKING:
    from textenv.agents.policies.language_policy import LanguagePolicy
    from textenv.agents.settings.base import AgentConfig
    from textenv.agents.train_setup.task_settings import TaskSettings


def train(argv: list[str], flags: Flags, agent: str | None = None) -> int:
    """Train an agent. Its name is the first argument, or ``agent`` in the YAML file."""
    if agent is None and ("--help" in argv or "-h" in argv) and argv[0].startswith("-"):
        print(f"usage: textenv train AGENT [options]\n\nagents: {', '.join(agent_names())}")
        print("\ntextenv train AGENT --help shows the options and the agent's settings.")
        return 0
    if agent is None:
        agent_given = argv[0] if argv and not argv[0].startswith("-") else None
        in_file = in_files(argv, "agent")
        if None not in (agent_given, in_file) and agent_given != in_file:
            raise UsageError(f"the command line names the agent {agent_given!r}, the file {in_file!r}")
        if agent_given is None and in_file is not None:
            argv = [in_file, *argv]
    name = agent or (argv[0] if argv and not argv[0].startswith("-") else None)
    if name is None:
        raise UsageError(f"name the agent: textenv train AGENT; known: {', '.join(agent_names())}")
    if name not in agent_names():
        raise UsageError(f"unknown agent {name!r}; {nearest(name, agent_names())}")

    from textenv.agents.train_setup.task_settings import task_settings, unsaid

    config_class = get_config_class(name)
    nested = {"settings": config_class}
    places = {} if agent is not None else {"agent": "name of the agent"}
    prog = "textenv train" if agent is None else f"textenv {agent}"
    of_task = task_settings(task_of(argv), name)
    # The task's settings are the defaults that --help and --print_config show.
    made = {"settings": config_class.with_defaults({}, unsaid(of_task.settings, named_settings(argv)))}
    about = list_agents()[name]
    parser = make_parser(prog, about, TrainOptions, nested=nested, made=made, positional=places)
    values = parse(parser, argv, only_given=("settings",))
    given_settings = values.pop("settings")
    if not isinstance(given_settings, Mapping):
        raise UsageError(f"settings must hold settings, name: value, got {given_settings!r}")
    options = build(TrainOptions, values)
    config = _settings(name, given_settings, of_task)

    from textenv.agents.checkpointing.fresh_folder import fresh_folder
    from textenv.agents.training import train as run_training
    from textenv.modeling.saved_runs import model_folder

    _quiet()
    if options.resume and options.run_dir is None:
        raise UsageError("--resume needs --run_dir, the folder of the run to continue")
    check_there(options.model)
    check_policy_options("policy", options.policy)
    policy_kwargs = options.policy.kwargs() | ({"trust_remote_code": True} if flags.trust_remote_code else {})
    given = ("task", "tokenizer", "prompts", "eval_prompts", "dataset", "eval_dataset", "num_envs", "start")
    named, resume = options.run_dir is not None, options.resume
    place = nullcontext(options.run_dir) if options.run_dir is not None else fresh_folder(name)
    with place as run_dir, advising(lambda: how_to_resume(run_dir, named=named, resume=resume)):
        result = run_training(
            name,
            None if options.model is None else _local(options.model),
            config=given_settings if options.resume else config,  # the checkpoint has the rest
            reward=_rewards(options.reward, flags),
            env_kwargs=options.env.kwargs(),
            policy_kwargs=policy_kwargs,
            run_dir=run_dir,
            resume=options.resume,
            loggers=options.loggers,
            rollouts=options.rollouts if options.rollouts.num_actors else None,
            **{key: getattr(options, key) for key in given},
        )
    found = result.evaluation.metrics if result.evaluation is not None else {}
    if result.history and not (found and result.agent.online):
        print_numbers(result.history[-1], "last step")
    if found:
        print_numbers(found, f"evaluation on {result.evaluated_on}")
    print(f"model: {model_folder(run_dir)}")
    return 0


def sft(argv: list[str], flags: Flags) -> int:
    """Supervised fine-tuning."""
    return train(argv, flags, agent="sft")


def reward_model(argv: list[str], flags: Flags) -> int:
    """Train a reward model."""
    return train(argv, flags, agent="reward-model")


def pipeline(argv: list[str], flags: Flags) -> int:
    """Run supervised fine-tuning, reward model and reinforcement learning."""
    from textenv.agents.pipeline.config import PipelineConfig

    @dataclass(frozen=True, kw_only=True)
    class PipelineOptions(PipelineConfig):
        """Options of `textenv pipeline`."""

        run_dir: str = "runs/pipeline"
        """Folder of the run; finished stages are reused."""
        overwrite: bool = False
        """Repeat stages that were made with other settings."""
        loggers: tuple[str, ...] = ("rich",)
        """Any of rich, wandb, tensorboard."""

    parser = make_parser(
        "textenv pipeline",
        "Supervised fine-tuning, reward model and reinforcement learning in one run.",
        PipelineOptions,
    )
    options = build(PipelineOptions, parse(parser, argv))

    from textenv.agents.pipeline.run import run_pipeline

    _quiet()
    own = {spec.name: getattr(options, spec.name) for spec in fields(PipelineConfig)}
    own["rewards"] = tuple(import_rewards(list(options.rewards), flags.may_import))
    with advising("the same command continues: finished stages are reused, the interrupted one is resumed"):
        result = run_pipeline(
            PipelineConfig(**own), options.run_dir, loggers=options.loggers, overwrite=options.overwrite
        )
    for name, figures in result.stages.items():
        took = "reused" if figures["reused"] else f"{figures['seconds']:.0f} s"
        print(f"{name}: {took}")
    if result.comparison is not None:
        import rich

        rich.print(result.comparison.table())
        rich.print(result.comparison.sample_table())
    print(f"run: {result.run_dir}")
    return 0


def evaluate(argv: list[str], flags: Flags) -> int:
    """Generate texts for a task, or for prompts and rewards; print metrics and samples."""
    source, options = _play_options("evaluate", "Generate texts and evaluate them.", EvaluateOptions, argv)
    _quiet()

    import rich

    if options.dataset is not None:
        from textenv.agents.cli.measure import measure_reward_model

        return measure_reward_model(source, options)
    policy = load_policy(source, options, flags)

    from textenv.agents.distributed.devices import describe
    from textenv.agents.evaluation.evaluator import EVAL_SEED
    from textenv.agents.evaluation.evaluator import evaluate as measure
    from textenv.agents.policies.language_policy import LanguagePolicy

    print(f"device: {describe(policy.device)}")
    envs = _envs(policy, options, rewards=_rewards(options.reward, flags))
    reference = (
        None if options.reference is None else LanguagePolicy(_local(options.reference), device=policy.device)
    )
    given = {"seed": options.seed or EVAL_SEED, "reference": reference, "metrics": options.metrics}
    if options.sweep:
        from textenv.agents.evaluation.sweeps import evaluate_sweep

        found: Any = evaluate_sweep(policy, envs, options.episodes, options.sweep, **given)
        rich.print(found.table())
    else:
        found = measure(policy, envs, options.episodes, **given)
        rich.print(found.table())
        print_numbers(found.metrics, "evaluation")
    if options.out is not None:
        write_json(options.out, found.to_dict())
    return 0


def generate(argv: list[str], flags: Flags) -> int:
    """Generate texts for prompts."""
    source, options = _play_options("generate", "Generate texts for prompts.", GenerateOptions, argv)
    own = options.task == "prompts" and (options.prompt or options.prompts)
    of_task = options.task is not None and not own
    if bool(options.prompt) + (options.prompts is not None) + of_task != 1:
        raise UsageError("generate needs one of --prompt, --prompts and --task")
    _quiet()
    policy = load_policy(source, options, flags)

    from textenv.agents.distributed.devices import describe
    from textenv.agents.evaluation.conversation import conversation_line, conversations
    from textenv.rollout import collect
    from textenv.utils.terminal import printable

    envs = _envs(policy, options, prompts=list(options.prompt) or options.prompts, rewards=[])
    base: Any = envs.unwrapped
    count = len(base.prompts) if options.limit is None else min(len(base.prompts), options.limit)
    policy.eval()
    print(f"device: {describe(policy.device)}", file=sys.stderr)  # standard output has only the texts
    episodes = collect(envs, policy, count * base.samples_per_prompt, seed=options.seed)
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "completion": completion, "truncated": bool(truncated)}
        for (prompt, completion), truncated in zip(
            episodes.texts(base.tokenizer), episodes.truncated.tolist(), strict=True
        )
    ]
    talks = conversations(episodes)
    if talks is not None:
        rows = [{**row, "conversation": talk} for row, talk in zip(rows, talks, strict=True)]
    if options.out is not None:
        write_text(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return 0
    for row in rows:
        said = conversation_line(row["conversation"]) if "conversation" in row else row["completion"]
        print(f"{printable(str(row['prompt']))} >>> {printable(said)}")
    return 0


# -- shared helpers -----------------------------------------------------------------------------------------


def load_policy(source: str, options: PlayOptions, flags: Flags) -> LanguagePolicy:
    """The policy in a checkpoint, in a run's folder, or around a model of transformers.

    Raises:
        UsageError: if the folder is a reward model's.
    """
    from textenv.agents.base.registry import get_agent
    from textenv.agents.checkpointing.checkpoint import read_trainer
    from textenv.agents.distributed.devices import device_kwargs
    from textenv.agents.policies.language_policy import LanguagePolicy
    from textenv.agents.train_setup.arguments import tokenizer_of
    from textenv.modeling.saved_runs import model_folder
    from textenv.tasks.prompts import load_tokenizer, model_tokenizer

    check_there(source)
    check_policy_options("policy", options.policy)
    folder = model_folder(source)
    kwargs = device_kwargs(options.policy.device) | options.policy.kwargs()
    kwargs |= {name: getattr(options, name) for name in ("top_k", "top_p", "greedy")}
    if flags.trust_remote_code:
        kwargs["trust_remote_code"] = True
    if (folder / "config.json").is_file():
        kinds = read_object(folder / "config.json").get("architectures") or []
        if any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise UsageError(
                f"{folder} is a reward model, which writes no text; expected a language model "
                "(textenv evaluate FOLDER --dataset FILE measures a reward model)"
            )
    if (folder / "policy.json").is_file():
        kind: type[LanguagePolicy] = LanguagePolicy
        if (folder / "trainer.json").is_file():
            kind = get_agent(read_trainer(folder)["agent"]).policy_class
        for name in ("top_k", "top_p", "greedy"):  # saved values are kept unless the user gave others
            if kwargs[name] == getattr(type(options)(), name):
                del kwargs[name]
        return kind.load(folder, **kwargs)
    path = str(folder) if folder.is_dir() else source
    tokenizer = None
    if options.task is None or options.tokenizer is not None or folder.is_dir():
        given = options.tokenizer
        tokenizer = load_tokenizer(given) if given else model_tokenizer(tokenizer_of(path))
    return LanguagePolicy(path, tokenizer=tokenizer, **kwargs)


def _local(model: str) -> str:
    """The model's folder inside of a run's folder; other names and folders are returned unchanged."""
    from textenv.modeling.saved_runs import model_folder

    return str(model_folder(model)) if Path(model).is_dir() else model


def _play_options(name: str, about: str, cls: Any, argv: list[str]) -> tuple[str, Any]:
    parser = make_parser(
        f"textenv {name}", about, cls, positional={"model": "checkpoint, run folder, model folder or hub id"}
    )
    values = parse(parser, argv)
    source = values.pop("model", None)
    if source is None:
        raise UsageError(f"name the model: textenv {name} FOLDER")
    options = build(cls, values)
    if options.out is not None:
        _check_out(options.out)
    return source, options


def _check_out(path: str) -> None:
    """Refuse an output file that can't be written, before texts are generated.

    Raises:
        UsageError: if it is no path of a file, or a folder.
    """
    if not path or "\0" in path:
        raise UsageError(f"--out must be the path of a file, got {path!r}")
    place = Path(path).absolute()
    if place.is_dir():
        raise UsageError(f"--out must be the path of a file, {path} is a folder")
    there = next(parent for parent in place.parents if parent.exists())
    if not there.is_dir():
        raise UsageError(f"--out {path} can't be written: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path} can't be written: {there} is read-only")


def _envs(policy: LanguagePolicy, options: PlayOptions, *, rewards: Any, prompts: Any = None) -> Any:
    from textenv.agents.train_setup.arguments import fitting_budget
    from textenv.agents.train_setup.environments import source_of
    from textenv.tasks.make import make_vec_env
    from textenv.tasks.registry import make_task
    from textenv.tasks.stop_tokens import generation_ends

    prompts = options.prompts if prompts is None else prompts
    if options.task is None and prompts is None:
        raise UsageError("give --task or --prompts")
    tokenizer: Any = options.tokenizer
    if tokenizer is None and (options.task is None or make_task(options.task).takes("tokenizer")):
        tokenizer = policy.tokenizer
    of_task = options.task is not None and (options.task != "prompts" or prompts is None)
    split = options.split or ("validation" if of_task else None)  # all of the given prompts are used
    given = {
        "task": options.task,
        "tokenizer": tokenizer,
        "rewards": rewards,
        "split": split,
        "model_stop_token_ids": generation_ends(policy),
        **options.env.kwargs(),
        "shuffle": False,
        "device": policy.device,
    }
    source = source_of(options.task, prompts, given)
    if options.task in (None, "prompts") and (room := fitting_budget([source], policy, options.env.kwargs())):
        given["max_new_tokens"] = room
    return make_vec_env(options.num_envs, prompts=source, **given)


def _rewards(spec: Any, flags: Flags) -> list[Any] | None:
    """The option ``reward`` as a list of specs, the user's own functions imported."""
    from textenv.rewards.registry import reward_list

    return None if spec is None else import_rewards(reward_list(spec), flags.may_import)


def _settings(agent: str, given: Mapping[str, Any], of_task: TaskSettings) -> AgentConfig:
    """The agent's settings: those given; the rest from the task, or else the defaults."""
    try:
        return of_task.fill(agent, given)
    except (TypeError, ValueError) as error:
        usage_error = UsageError(f"settings.{error}")
        for note in getattr(error, "__notes__", []):
            usage_error.add_note(note)
        raise usage_error from error


def _quiet() -> None:
    """Turn off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

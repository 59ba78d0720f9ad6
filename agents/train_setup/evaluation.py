"""Evaluation of ``train`` without held-out data: on the training prompts or the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import TURN_EXTRAS
from textenv.modeling.model_checks import check_holds, usable_positions

VALIDATION = "the validation split of the task {task!r}"
EVAL_PROMPTS = "eval_prompts"
EVAL_DATASET = "eval_dataset"
PROMPTS = "the prompts that it was trained on"
DATA_PROMPTS = "prompts of the data that it was trained on"
DATA = "the data that it was trained on"
MOST_ITEMS = 1024
"""Most items of the training data on which a reward model is evaluated (evenly spaced)."""


def envs_of_data(
    agent: Any, *, num_envs: int, reward: Any, tokenizer: Any, env_kwargs: Mapping[str, Any]
) -> Any:
    """Make an environment of the prompts in an offline agent's data, to evaluate its texts.

    It has at most ``eval_episodes`` different prompts, evenly spaced. The default token budget is the least
    of: the default of the task "prompts", the longest response in the data, the model's free positions.

    Args:
        agent: with its data set loaded.
        num_envs: rows.
        reward: of the responses; None is no reward.
        tokenizer: of the data.
        env_kwargs: further arguments of ``make_vec_env``.

    Raises:
        ValueError: if the model has too few positions for ``max_new_tokens``.
    """
    from textenv.prompts.prompt_set import PromptSet
    from textenv.tasks.make import make_vec_env
    from textenv.tasks.prompts import DEFAULT_MAX_NEW_TOKENS
    from textenv.tasks.stop_tokens import generation_ends, stop_tokens

    episodes = getattr(agent.dataset, "episodes", agent.dataset)
    if not isinstance(episodes, EpisodeBatch):  # a custom agent with another kind of data
        return None
    rows: dict[tuple[int, ...], int] = {}
    for row, (ids, length) in enumerate(
        zip(episodes.input_ids.tolist(), episodes.prompt_lengths.tolist(), strict=True)
    ):
        rows.setdefault(tuple(ids[:length]), row)
    count = min(len(rows), agent.config.eval_episodes)
    places = torch.linspace(0, len(rows) - 1, count).round().long().tolist()
    prompts = [list(rows)[place] for place in places]
    first = [rows[prompt] for prompt in prompts]
    kept = {name: values for name, values in episodes.extras.items() if name not in TURN_EXTRAS}
    columns = {name: [values[row] for row in first] for name, values in kept.items()}
    chat = "prompt_messages" in columns or "prompt_text" in columns
    given = {**env_kwargs}
    longest, positions = max(map(len, prompts)), usable_positions(agent.policy.model)
    if given.get("max_new_tokens") is None and given.get("max_episode_steps") is None:
        budget = min(DEFAULT_MAX_NEW_TOKENS, int(episodes.response_lengths.max()))
        given["max_new_tokens"] = budget if positions is None else min(budget, positions - longest)
    if given.get("stop_token_ids") is None:
        ends = generation_ends(agent.policy)
        given["stop_token_ids"] = stop_tokens(tokenizer, chat=chat, model_ends=ends)
    for name in ("task_kwargs", "split", "max_prompt_tokens", "truncation_side", "chat_template"):
        given.pop(name, None)  # these make prompts of texts, and the data's prompts are tokens
    given |= {"shuffle": False, "samples_per_prompt": 1}
    envs: Any = make_vec_env(
        num_envs,
        prompts=PromptSet([*map(list, prompts)], columns=columns),
        tokenizer=tokenizer,
        rewards=[] if reward is None else reward,
        **given,
    )
    check_holds(agent.policy.model, 0, envs.unwrapped.max_length)
    return envs


def finish(result: Any, envs: Any, what: str) -> Any:
    """Evaluate the trained agent unless its training ended with an evaluation, and set ``evaluated_on``.

    Results of custom agents that are no ``TrainResult`` are returned unchanged.

    Args:
        result: of the training.
        envs: environment for agents that have none of their own for evaluations; None for those that are
            evaluated on data.
        what: what the agent is evaluated on.
    """
    if not hasattr(result, "evaluated_on"):
        return result
    agent = result.agent
    if result.evaluation is not None:
        result.evaluated_on = what
        return result
    if getattr(agent, "eval_dataset", agent) is None:  # a reward model's, which is measured on data
        items = len(agent.dataset)
        some = torch.linspace(0, items - 1, min(items, MOST_ITEMS)).round().long()
        result.evaluation = agent.evaluate(agent.dataset.select(some))
    elif any(each is not None for each in (envs, agent.eval_envs, agent.envs)):
        result.evaluation = agent.evaluate(envs)
    else:  # a custom agent without environment and without prompts in its data
        return result
    result.evaluated_on = what
    for callback in agent.callbacks:
        if hasattr(callback, "keep_last"):  # the run's record, whose report was written without it
            callback.keep_last(agent, result.evaluation)
    return result

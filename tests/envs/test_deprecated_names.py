"""Names of version 0.1.0 still work for one version, with a warning that names the new one."""

from __future__ import annotations

import pytest
import torch

import textenv
from tests.helpers.env_helpers import vector_env
from textenv import scoring
from textenv.envs.text_env import TextEnv
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import make_reward
from textenv.tasks.letters import letter_tokenizer


def test_old_names_of_the_environment() -> None:
    envs = vector_env(2, max_new_tokens=1)
    envs.reset(seed=0, options={"episodes": 2})
    envs.step([1, 2])
    with pytest.warns(
        DeprecationWarning, match="pay is deprecated and will be removed in version 0.3: use add_reward"
    ):
        envs.pay("x", torch.tensor([1.0, 2.0]))
    with pytest.warns(DeprecationWarning, match="paid_now .* use step_reward"):
        assert torch.equal(envs.paid_now, envs.step_reward) and envs.step_reward.tolist() == [1.0, 2.0]
    with pytest.warns(DeprecationWarning, match="take_finished.* use finished_with_rewards"):
        finished = envs.take_finished()
    assert finished is not None and finished.returns.tolist() == [1.0, 2.0]
    with pytest.warns(DeprecationWarning, match="ticket_count .* use next_episode_id"):
        assert envs.ticket_count == envs.next_episode_id == 2
    with pytest.warns(DeprecationWarning, match="sorted_by_ticket .* use sorted_by_id"):
        assert finished.sorted_by_ticket().episode_id.tolist() == [0, 1]


def test_old_name_in_a_single_environment() -> None:
    env = TextEnv(prompts=PromptSet([[0]]), tokenizer=letter_tokenizer("abc"), max_new_tokens=1)
    env.reset(seed=0)
    _, _, _, _, info = env.step(2)
    with pytest.warns(DeprecationWarning, match="use add_reward"):
        env.pay("x", torch.tensor([3.0]))
    assert info["episode"]["r"] == 3.0


def test_old_names_of_functions_and_classes() -> None:
    batch = textenv.EpisodeBatch.from_ids([[1]], [[2, 3]])
    term = make_reward(lambda completion_ids: [float(len(ids)) for ids in completion_ids])
    with pytest.warns(DeprecationWarning, match="use textenv.scoring.score_episodes"):
        assert scoring.score(batch, [term]).returns.tolist() == [2.0]
    assert textenv.Legality is textenv.TokenConstraints

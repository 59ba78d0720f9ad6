"""The simulated user: batched replies that do not depend on the batch."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import textenv
from tests.helpers.models import save_tiny, tiny
from tests.helpers.template_families import chat_tokenizer
from tests.helpers.tokenizer_families import FAMILIES
from textenv.generation.policy import DecodingPolicy
from textenv.tasks.partners.language_model import LanguageModel
from textenv.tasks.partners.speaker import Speaker

TOKENIZER = chat_tokenizer("chatml")


def model(seed: int = 0, tokenizer: Any = TOKENIZER, positions: int = 256) -> Any:
    torch.manual_seed(seed)
    config = tiny(tokenizer, width=16, positions=positions, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config).eval()


def user(**changes: Any) -> LanguageModel:
    made = {"persona": "You want {goal}.", "max_new_tokens": 4, "done": None, **changes}
    return LanguageModel(model(1), TOKENIZER, **made)


def envs(num_envs: int, partner: Any, **changes: Any) -> Any:
    made = {
        "prompts": {"prompt": ["hello", "say it"], "goal": ["tea", "rest"]},
        "tokenizer": TOKENIZER,
        "chat_template": True,
        "rewards": [],
        "max_new_tokens": 12,
        "max_turn_tokens": 3,
        "max_turns": 3,
        "max_length": 200,
    }
    return gym.make_vec("TextRLHF-v0", num_envs, partner=partner, **{**made, **changes})


def test_episodes_do_not_depend_on_the_batch() -> None:
    partner = user()
    batches = [textenv.collect(envs(n, partner), DecodingPolicy(model()), 6, seed=3) for n in (1, 4)]
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
    assert batches[0].extras == batches[1].extras
    replies = {reply["text"] for said in batches[0].extras["replies"] for reply in said}
    assert len(replies) > 6  # sampled, and other ones in every turn


def test_rows_share_the_model_and_not_the_conversation() -> None:
    partner = user()
    twin = copy.deepcopy(partner)
    assert twin.speaker is partner.speaker
    rng = np.random.default_rng(0)
    partner.begin(rng, goal="tea", prompt_text="hello")
    assert [m["content"] for m in partner._messages] == ["You want tea.", "hello"] and not twin._messages


def test_a_reply_that_says_done_ends_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speaker, "speak", lambda self, talks, seeds: ["fine DONE" for _ in talks])
    env = envs(2, user(done="DONE", reward_done=1.0))
    batch = textenv.collect(env, DecodingPolicy(model()), 4, seed=0)
    assert batch.extras["stop_reason"] == ["done"] * 4 and batch.returns.tolist() == [1.0] * 4
    assert batch.extras["last_reply"] == ["fine"] * 4 and batch.terminated.all()


def test_by_name_and_without_a_chat_template(tmp_path: Any) -> None:
    plain = FAMILIES["gpt-2"]()
    folder = str(save_tiny(tmp_path / "user", plain, width=16, positions=200))
    spec = [
        "language-model",
        {"model": folder, "opening": "hello, {goal}", "max_new_tokens": 5, "greedy": True},
    ]
    env = envs(2, spec, tokenizer=plain, chat_template=False)
    batch = textenv.collect(env, DecodingPolicy(model(0, plain)), 4, seed=0)
    assert batch.extras["opening"][0] in ("hello, tea", "hello, rest") and len(batch) == 4
    speakers = {id(partner.speaker) for partner in env.unwrapped._turns._partners}
    assert len(speakers) == 1
    assert all("\n" not in reply["text"] for said in batch.extras["replies"] for reply in said)


def test_a_reply_is_what_the_model_generates() -> None:
    speaker = Speaker(model(2), TOKENIZER, max_new_tokens=6, greedy=True)
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    (said,) = speaker.speak([talk], [0])
    text = TOKENIZER.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([TOKENIZER(text, add_special_tokens=False)["input_ids"]])
    expected = speaker.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    stops = [i for i in expected[0, ids.shape[1] :].tolist()]
    cut = next((n for n, token in enumerate(stops) if token in speaker._stops), len(stops))
    assert said == TOKENIZER.decode(stops[:cut], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"persona": "{nobody}"}, r"persona must name columns of the prompts in braces .*'goal'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1"),
        ({"done": ""}, "done must be a text or None"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs(1, user(**changes)).reset(seed=0)
    with pytest.raises(ValueError, match="tokenizer must be given"):
        LanguageModel(model())

"""What the reward tests share: a tiny tokenizer, prompts, models, environments and a policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from textenv.envs.token_constraints import TokenConstraints
from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.letters import letter_tokenizer
from textenv.utils.hashing import hash_key, uniform

LETTERS = "abcdefg "
TOKENIZER = letter_tokenizer(LETTERS)
PROMPTS = ["ab", "c", "dad", "bag e", "fed"]
COLUMNS = {
    "reference": ["a bad", "cab", ["bed", "face"], "age", "d"],
    "answer": ["a", "b", ["c", "d"], "ef", "g"],
    "pattern": ["a", "b+", "c|d", "e", "f$"],
    "label": [0, 1, 2, 3, 4],
}
SCRIPT = {"ab": "a bad", "c": "b"}
"""Prompts to which the policy always gives the same response, one with rewards that are not 0."""


def config(**changes: Any) -> GPT2Config:
    return GPT2Config(
        **{
            "vocab_size": len(TOKENIZER),
            "n_positions": 64,
            "n_layer": 2,
            "n_embd": 16,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": TOKENIZER.bos_token_id,
            "eos_token_id": TOKENIZER.eos_token_id,
            "pad_token_id": TOKENIZER.eos_token_id,
            "initializer_range": 0.3,
            **changes,
        }
    )


def language_model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config()).eval()


def classifier(seed: int = 0, **changes: Any) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(config(**{"num_labels": 1, **changes})).eval()


class TinyPolicy:
    """What rewards ask of a policy: draws by key (except with SCRIPT), log-probs from one forward pass."""

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel | None = None) -> None:
        self.model = model
        self._reference = self if reference is None else TinyPolicy(reference)

    def attach(self, env: Any) -> None:
        self.legality: TokenConstraints = env.legality
        self._reference.legality = env.legality

    def sampling(self) -> dict[str, Any]:
        return {"temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def reference(self) -> TinyPolicy:
        return self._reference

    def distributions(self, input_ids: Tensor, mask: Tensor, steps: Tensor) -> Tensor:
        """(B, L, V) log-probs of the token in each column."""
        logits = self.model(input_ids=input_ids, attention_mask=mask.long()).logits
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], 1)
        return self.legality.apply(logits, steps).log_softmax(-1)

    @torch.no_grad()
    def log_prob(self, episodes: EpisodeBatch) -> Tensor:
        log_p = self.distributions(episodes.input_ids, episodes.attention_mask, episodes.action_steps)
        chosen = log_p.gather(-1, episodes.input_ids.unsqueeze(-1)).squeeze(-1)
        return torch.where(episodes.action_mask, chosen, 0.0)

    @torch.no_grad()
    def act(self, obs: dict[str, Any], key: Any, *, active: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        ids, mask = torch.as_tensor(obs["input_ids"]), torch.as_tensor(obs["attention_mask"])
        lengths = mask.sum(-1).long()
        steps = lengths - torch.as_tensor(obs["prompt_length"]).long()
        rows = torch.arange(len(ids))
        logits = self.model(input_ids=ids, attention_mask=mask.long()).logits[
            rows, (lengths - 1).clamp_min(0)
        ]
        log_p = self.legality.apply(logits, steps).log_softmax(-1)
        draw = uniform(torch.as_tensor(key)).unsqueeze(-1)
        actions = (log_p.double().exp().cumsum(-1) < draw).sum(-1).clamp_max(len(TOKENIZER) - 1)
        for row, (prompt, t) in enumerate(zip(obs["prompt_length"], steps.tolist(), strict=True)):
            script = SCRIPT.get(TOKENIZER.decode(ids[row, : int(prompt)]), "")
            if t < len(script):
                actions[row] = TOKENIZER(script[t])["input_ids"][0]
            elif script:
                actions[row] = TOKENIZER.eos_token_id
        return actions, {"log_prob": log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)}


def random_actions(obs: dict[str, Any], info: dict[str, Any]) -> Tensor:
    """Letters or EOS, by the step's key."""
    return (uniform(hash_key(torch.as_tensor(info["key"]), 1)) * (len(LETTERS) + 2)).long()


def count_letters(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def vector_env(num_envs: int = 3, **changes: Any) -> TextVectorEnv:
    prompts = PromptSet.from_texts(PROMPTS, TOKENIZER, columns=COLUMNS)
    return TextVectorEnv(num_envs, prompts=prompts, tokenizer=TOKENIZER, **{"max_new_tokens": 6, **changes})


def episodes(completions: list[str], *, eos: bool | list[bool] = True, **fields: Any) -> EpisodeBatch:
    """Episodes on the first prompts (cyclically), with their columns, ended by EOS or cut off."""
    count = len(completions)
    ended = [eos] * count if isinstance(eos, bool) else eos
    close = TOKENIZER.eos_token_id
    responses = [
        TOKENIZER(text)["input_ids"] + [close] * end for text, end in zip(completions, ended, strict=True)
    ]
    index = [i % len(PROMPTS) for i in range(count)]
    return EpisodeBatch.from_ids(
        [TOKENIZER(PROMPTS[i])["input_ids"] for i in index],
        responses,
        terminated=torch.tensor(ended, dtype=torch.bool),
        truncated=~torch.tensor(ended, dtype=torch.bool),
        extras={name: [column[i] for i in index] for name, column in COLUMNS.items()},
        **fields,
    )

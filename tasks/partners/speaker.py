"""A causal LM that speaks in a conversation: several replies in one batch, each with noise of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from textenv.envs.token_constraints import TokenConstraints, tokenizer_vocab_size
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.model_checks import usable_positions
from textenv.modeling.pretrained import load_pretrained
from textenv.prompts.messages import render
from textenv.prompts.token_ids import token_ids
from textenv.tasks.fetch_model import resolve_model
from textenv.tasks.prompts import load_tokenizer, model_tokenizer
from textenv.tasks.stop_tokens import stop_tokens
from textenv.utils.hashing import hash_key

if TYPE_CHECKING:
    from torch import nn


class Speaker:
    """Continues conversations, the last part of which is its own turn.

    With a chat template the conversation is rendered by it. Without one, each message becomes a line
    ``role: text``, and a reply ends at the end of its line.

    Args:
        model: a causal LM, by name, folder or object; it gets no gradients.
        tokenizer: of the model, by name, folder or object; None is the model's own.
        max_new_tokens: most tokens of a reply.
        device: of a model that is loaded here.
        sampling: temperature, top_k, top_p, greedy; see ``DecodingPolicy``.

    Raises:
        ValueError: if the model or the tokenizer cannot be loaded, or a model is given without a tokenizer.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: Any = None,
        *,
        max_new_tokens: int = 40,
        device: str = "cpu",
        **sampling: Any,
    ) -> None:
        if tokenizer is None:
            if not isinstance(model, str):
                raise ValueError("tokenizer must be given with a model that is an object, got None")
            tokenizer = model_tokenizer(model)
        self.tokenizer = load_tokenizer(tokenizer)
        loaded: Any = model
        if isinstance(model, str):
            from transformers import AutoModelForCausalLM

            loaded = load_pretrained(AutoModelForCausalLM, resolve_model(model), what="the partner's model")
            loaded = loaded.to(device)
        self.model: nn.Module = loaded.eval().requires_grad_(False)
        self.policy = DecodingPolicy(self.model, **sampling)
        self.max_new_tokens = max_new_tokens
        self.chat = self.tokenizer.chat_template is not None
        self._stops = frozenset(stop_tokens(self.tokenizer, chat=self.chat))
        self._legality = TokenConstraints(vocab_size=tokenizer_vocab_size(self.tokenizer))

    def speak(self, conversations: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        """One reply to each of n conversations.

        Args:
            conversations: n lists of messages, from the speaker's point of view: its own have the role
                "assistant".
            seeds: n integers, from which the noise of each reply is computed.

        Raises:
            ValueError: if a conversation leaves no room for a token in the model's positions.
        """
        prompts = token_ids(
            [self._text(messages) for messages in conversations],
            self.tokenizer,
            special=not self.chat,
            name="conversations",
        )
        found = self._generate(prompts, seeds)
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [text.strip() if self.chat else text.partition("\n")[0].strip() for text in texts]

    def _text(self, messages: Sequence[Mapping[str, str]]) -> str:
        if self.chat:
            return render(messages, self.tokenizer, generation_prompt=True)
        lines = [m["content"] if m["role"] == "system" else f"{m['role']}: {m['content']}" for m in messages]
        return "\n".join([*lines, "assistant:"])

    def _generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """Token ids of n replies, without the stop token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        positions = usable_positions(self.model)
        longest = int(lengths.max())
        if positions is not None and longest >= positions:
            raise ValueError(
                f"a conversation must be shorter than the {positions} positions of the partner's model, "
                f"got {longest} tokens"
            )
        steps = self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - longest)
        ids = torch.zeros(len(prompts), longest + steps, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids = ids.to(next(self.model.parameters()).device)
        starts, active = lengths.to(ids.device), torch.ones(len(prompts), dtype=torch.bool, device=ids.device)
        lengths, noise = starts.clone(), torch.tensor(list(seeds), device=ids.device)
        columns = torch.arange(ids.shape[1], device=ids.device)
        self.policy.attach(
            SimpleNamespace(legality=self._legality, num_envs=len(prompts), max_length=ids.shape[1])
        )
        replies: list[list[int]] = [[] for _ in prompts]
        for step in range(steps):
            mask = (columns < lengths.unsqueeze(-1)).to(torch.int8)
            obs = {"input_ids": ids, "attention_mask": mask, "prompt_length": starts}
            tokens, _ = self.policy.act(obs, hash_key(noise, step), active=active)
            ids.scatter_(1, lengths.unsqueeze(-1), torch.where(active, tokens, 0).unsqueeze(-1))
            lengths = lengths + active
            for row, token in enumerate(tokens.tolist()):
                if bool(active[row]) and token in self._stops:
                    active[row] = False
                elif bool(active[row]):
                    replies[row].append(token)
            if not self.chat:
                for row in active.nonzero().flatten().tolist():
                    active[row] = "\n" not in str(self.tokenizer.decode(replies[row][-1:]))
            if not bool(active.any()):
                break
        self.policy.free()
        return replies

"""A generation engine on transformers' ``generate``: it shares no line with the library's own decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from textenv.agents.rollouts.vllm_engine import EngineSampling, Response


class TransformersEngine:
    """Batched ``generate`` on left-padded prompts; log-probs from the scores that it drew from."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def load_weights(self, folder: Path) -> None:
        self.calls.append("load")
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: EngineSampling) -> list[Response]:
        self.calls.append("generate")
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        wide = range(self.model.config.vocab_size)
        allowed = set(wide if sampling.allowed_token_ids is None else sampling.allowed_token_ids)
        settings = GenerationConfig(
            do_sample=not sampling.greedy,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens or None,
            eos_token_id=list(sampling.stop_token_ids),
            pad_token_id=0,
            suppress_tokens=[token for token in wide if token not in allowed] or None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(hash(sampling.seeds))
            found = self.model.generate(ids, attention_mask=mask, generation_config=settings)
        tokens = found.sequences[:, width:]
        scores = torch.stack(found.scores, dim=1).float().log_softmax(-1)
        known = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        responses = []
        for row, log_probs in zip(tokens.tolist(), known.tolist(), strict=True):
            stops = [i for i, token in enumerate(row) if token in sampling.stop_token_ids]
            length = stops[0] + 1 if stops else len(row)
            responses.append(Response(row[:length], log_probs[:length]))
        return responses

    def sleep(self) -> None:
        self.calls.append("sleep")

    def wake(self) -> None:
        self.calls.append("wake")

    def close(self) -> None:
        self.calls.append("close")

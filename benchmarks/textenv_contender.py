"""Our PPO as a contender of benchmarks.ppo_cycle, in a separate process like the others.

``python -m benchmarks.textenv_contender CASE-AS-JSON`` builds the agent and lets ``learn()`` run; a
callback at the end of every iteration waits for the parent, so a cycle is exactly one iteration of the
agent's own loop.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.models import ModelShape, language_model, random_prompts, sequence_classifier, word_tokenizer
from benchmarks.worker import Pipe
from textenv.rewards.wrappers import wrap_reward


def build_agent(case: Mapping[str, Any], callbacks: list[Any], *, device: str = "cpu", **changes: Any) -> Any:
    """A PPO agent for a case of benchmarks.ppo_cycle, ready to ``learn()``; ``changes`` of its settings."""
    from textenv.agents.ppo import PPO, PPOConfig
    from textenv.envs.vector_env import TextVectorEnv
    from textenv.prompts.prompt_set import PromptSet
    from textenv.rewards.reward_model import RewardModel

    shape = ModelShape(**case["model"])
    prompts = random_prompts(shape, count=case["prompts"], length=case["prompt_tokens"])
    envs = TextVectorEnv(
        case["batch"],
        prompts=PromptSet(prompts.tolist()),
        tokenizer=word_tokenizer(shape),
        max_new_tokens=case["new_tokens"],
        device=device,
    )
    reward = RewardModel(sequence_classifier(shape, layers=1, seed=2).to(device))
    config = PPOConfig(
        iterations=1_000_000,
        episodes_per_iteration=case["batch"],
        epochs=case["epochs"],
        minibatches=case["minibatches"],
        learning_rate=case["learning_rate"],
        value_model="separate" if case["separate_value_model"] else "shared",
        kl_coef=0.05,
        packing=case["packing"],
    )
    model = language_model(shape).to(device, getattr(torch, case.get("dtype", "float32")))
    return PPO(model, envs=wrap_reward(envs, reward), config=config.replace(**changes), callbacks=callbacks)


def update_flops(agent: Any, episode_tokens: float, response_tokens: float, epochs: int) -> float:
    """Floating-point operations of the update's matrix products: 6 per weight and token that uses it.

    The LM head works on response tokens only; attention scores are left out.
    """
    model = agent.policy.model
    head = model.lm_head.weight.numel()
    embeddings = head + model.transformer.wpe.weight.numel()
    trunk = sum(p.numel() for p in model.parameters()) - embeddings
    trunks = 2 if agent.config.value_model == "separate" else 1
    return 6.0 * epochs * (trunks * trunk * episode_tokens + head * response_tokens)


def main() -> None:
    """Run cycles for the parent until it ends."""
    pipe = Pipe()
    torch.set_num_threads(1)
    case = json.loads(sys.argv[1])
    import transformers

    import textenv.agents.ppo
    import textenv.rewards.reward_model  # noqa: F401 - imported before memory is counted
    from textenv.agents.base.callbacks import Callback

    class Cycles(Callback):
        """Waits for the parent before each iteration."""

        started = cpu_started = 0.0

        def next(self) -> bool:
            """Whether the training ends here."""
            more = pipe.wait()
            self.started, self.cpu_started = time.perf_counter(), time.process_time()
            return not more

        def on_iteration(self, agent: Any, metrics: Mapping[str, float]) -> bool:
            cpu = time.process_time() - self.cpu_started
            seconds = time.perf_counter() - self.started
            response = metrics["episode/length"] * case["batch"]
            flops = update_flops(
                agent, response + case["prompt_tokens"] * case["batch"], response, case["epochs"]
            )
            pipe.answer(
                seconds=seconds,
                cpu_seconds=cpu,
                samples=case["batch"],
                tokens=response,
                update_flops=flops,
                **{part: metrics[f"time/{part}"] for part in ("rollout", "score", "update")},
            )
            return self.next()

    pipe.imported()
    cycles = Cycles()
    agent = build_agent(case, [cycles])
    pipe.answer(ready=True, versions={"transformers": transformers.__version__, "torch": torch.__version__})
    if not cycles.next():
        agent.learn()


if __name__ == "__main__":
    main()

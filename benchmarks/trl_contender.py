"""TRL's PPOTrainer as a contender of benchmarks.ppo_cycle; runs in the environment that trl_env.sh makes.

``python -m benchmarks.trl_contender CASE-AS-JSON`` builds the trainer and trains one cycle (rollout, score,
update) each time the parent asks for one. A callback waits for the parent at the end of each of the trainer's
steps, so a cycle is exactly one pass through the body of the trainer's loop.

TRL does its usual work. Off is only what would slow it down needlessly: gradient checkpointing, mixed
precision, reports, checkpoints, sample generations. With ``"gc": false`` its two ``gc.collect()`` and its
``empty_cache()`` calls per cycle do nothing. With ``"stop_early": false`` generation does not know the end
token, so that TRL generates and trains every response to its full length and masks what follows the end.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import types
from typing import Any

import torch

from benchmarks.models import ModelShape, language_model, random_prompts, sequence_classifier, word_tokenizer
from benchmarks.worker import Pipe


def build_trainer(case: dict[str, Any], callbacks: list[Any]) -> Any:
    """A PPOTrainer for a case of benchmarks.ppo_cycle, ready to ``train()``."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    shape = ModelShape(**case["model"])
    prompts = random_prompts(shape, count=case["prompts"], length=case["prompt_tokens"])
    dataset = Dataset.from_dict({"input_ids": prompts.tolist()})
    batch = case["batch"]
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-contender-"),
        total_episodes=batch * 100_000,
        per_device_train_batch_size=batch // case["minibatches"],
        gradient_accumulation_steps=case["minibatches"],
        num_mini_batches=case["minibatches"],
        local_rollout_forward_batch_size=batch,
        num_ppo_epochs=case["epochs"],
        response_length=case["new_tokens"],
        stop_token="eos" if shape.eos_probability else None,
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=case["learning_rate"],
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1_000_000,
        seed=1,
    )
    policy = language_model(shape)
    trainer = PPOTrainer(
        args=config,
        processing_class=word_tokenizer(shape),
        model=policy,
        ref_model=None,
        reward_model=sequence_classifier(shape, layers=1, seed=2),
        value_model=sequence_classifier(shape, layers=shape.layers, seed=3),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if not case["stop_early"]:
        policy.generation_config.eos_token_id = None
    return trainer


def without_gc() -> None:
    """Take the garbage collection out of TRL's loop (in this process only)."""
    from trl.experimental.ppo import ppo_trainer

    ppo_trainer.gc = types.SimpleNamespace(collect=lambda: 0)
    ppo_trainer.empty_cache = lambda: None


def main() -> None:
    """Serve cycles to the parent until it is done."""
    pipe = Pipe()
    torch.set_num_threads(1)
    case = json.loads(sys.argv[1])
    import datasets
    import transformers
    import trl
    from transformers import TrainerCallback
    from trl.experimental.ppo import ppo_trainer

    class Done(Exception):
        """The parent wants no further cycle."""

    class Cycles(TrainerCallback):
        """Waits for the parent before each pass through the trainer's loop."""

        def __init__(self) -> None:
            self.started = self.cpu_started = 0.0
            self.generated = 0.0
            self.width = 0

        def next(self) -> None:
            if not pipe.wait():
                raise Done
            self.started, self.cpu_started = time.perf_counter(), time.process_time()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            versions = {m.__name__: m.__version__ for m in (trl, transformers, torch, datasets)}
            pipe.answer(ready=True, versions=versions)
            self.next()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            cpu = time.process_time() - self.cpu_started
            seconds = time.perf_counter() - self.started
            pipe.answer(
                seconds=seconds,
                cpu_seconds=cpu,
                samples=case["batch"],
                rollout=self.generated,
                tokens=self.width * case["batch"],
            )
            self.next()

    cycles = Cycles()
    generate = ppo_trainer.batch_generation

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = generate(*args, **kwargs)
        cycles.generated = time.perf_counter() - begin
        cycles.width = result[1].shape[1]
        return result

    ppo_trainer.batch_generation = timed_generate
    if not case["gc"]:
        without_gc()
    pipe.imported()
    trainer = build_trainer(case, [cycles])
    try:
        trainer.train()
    except Done:
        return


if __name__ == "__main__":
    main()

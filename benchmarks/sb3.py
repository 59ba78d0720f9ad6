"""Time per token of Stable-Baselines3's PPO on text, on sequences and on prefixes, against the native PPO.

    python -m benchmarks.sb3 [--quick] [--json FILE]

All contenders use the same environment, equal models, and equal numbers of optimizer steps and actions. A
turn is one rollout of fixed-length responses and ``EPOCHS`` passes of ``MINIBATCHES`` minibatches.
"sequences" is SB3's PPO with ``SequenceRolloutBuffer``, "prefixes" the same with SB3's own buffer. Best of n
interleaved turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import arguments, interleave, one_thread, print_table, seconds, write_json
from benchmarks.models import ModelShape, language_model, random_prompts, word_tokenizer

SHAPE = ModelShape(layers=2, width=128, heads=4, vocab=1024)
ROWS, PROMPT_TOKENS, EPOCHS, MINIBATCHES = 16, 8, 4, 4
CONTENDERS = ("native", "sequences", "prefixes")


def make_envs(shape: ModelShape, *, rows: int, new_tokens: int) -> Any:
    """The environment of all contenders; all rewards are 0."""
    from textenv.envs.vector_env import TextVectorEnv
    from textenv.prompts.prompt_set import PromptSet

    prompts = random_prompts(shape, count=64, length=PROMPT_TOKENS)
    return TextVectorEnv(
        rows, prompts=PromptSet(prompts.tolist()), tokenizer=word_tokenizer(shape), max_new_tokens=new_tokens
    )


def contender(name: str, shape: ModelShape, *, rows: int, new_tokens: int) -> Callable[[], Any]:
    """A function that runs one turn: a rollout of ``rows * new_tokens`` tokens and the update.

    Raises:
        ValueError: if there is no contender of that name.
    """
    envs = make_envs(shape, rows=rows, new_tokens=new_tokens)
    if name == "native":
        from textenv.agents.ppo import PPO, PPOConfig

        config = PPOConfig(
            iterations=1,
            episodes_per_iteration=rows,
            epochs=EPOCHS,
            minibatches=MINIBATCHES,
            learning_rate=1e-5,
            kl_coef=0.0,
        )
        agent = PPO(language_model(shape), envs=envs, config=config)

        def turn() -> None:
            agent.iteration = 0
            agent.learn()

        return turn
    if name not in CONTENDERS:
        raise ValueError(f"contender must be one of {', '.join(CONTENDERS)}, got {name!r}")
    import stable_baselines3

    from textenv.agents.integrations.sb3 import sb3_agent

    tokens = rows * new_tokens
    learner = sb3_agent(
        stable_baselines3.PPO,
        language_model(shape),
        envs,
        sequences=name == "sequences",
        n_steps=new_tokens,
        batch_size=tokens // MINIBATCHES,
        n_epochs=EPOCHS,
        learning_rate=1e-5,
        device=envs.device,
    )
    learner.learn(tokens)
    return partial(learner.learn, tokens, reset_num_timesteps=False)


def measure(shape: ModelShape, *, rows: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Microseconds per token of each contender, and their ratio to the native PPO's."""
    turns = {name: contender(name, shape, rows=rows, new_tokens=new_tokens) for name in CONTENDERS}
    times = interleave({name: partial(seconds, turn) for name, turn in turns.items()}, repeats=repeats)
    best = {name: 1e6 * min(values) / (rows * new_tokens) for name, values in times.items()}
    return {
        "rows": rows,
        "new_tokens": new_tokens,
        "us_per_token": best,
        "times_native": {name: value / best["native"] for name, value in best.items()},
        "turns": times,
    }


def main() -> None:
    """Measure, print, and write JSON if asked."""
    options = arguments("Stable-Baselines3's PPO against the native one.").parse_args()
    one_thread()
    lengths = (32,) if options.quick else (32, 64)
    repeats = 2 if options.quick else 5
    cases = [measure(SHAPE, rows=ROWS, new_tokens=length, repeats=repeats) for length in lengths]
    print_table(
        f"Rollout and update, microseconds per token: GPT-2 2x128, vocabulary 1,024, {ROWS} rows, "
        f"{EPOCHS} epochs of {MINIBATCHES} minibatches",
        ("response tokens", *CONTENDERS, "sequences / native", "prefixes / native"),
        [
            (
                str(case["new_tokens"]),
                *(case["us_per_token"][name] for name in CONTENDERS),
                *(case["times_native"][name] for name in CONTENDERS[1:]),
            )
            for case in cases
        ],
        "one thread, interleaved, best of n",
    )
    write_json(options.json, {"cases": cases})


if __name__ == "__main__":
    main()

"""PPO learns a game of several turns: find a number by asking whether it is higher or lower.

python examples/guess_number.py --top 8
"""

import argparse

import textenv
from textenv.agents.evaluation.conversation import conversation_line

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--top", type=int, default=8, help="the largest number (default: %(default)s)")
parser.add_argument("--iterations", type=int, default=60, help="of PPO (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
args = parser.parse_args()

# The partner thinks of a number; its replies have the rewards: 1 for the number, -0.1 for another one.
result = textenv.train(
    "ppo",
    partner=["guess-number", {"top": args.top}],
    start=False,  # from random weights; the task would begin with fine-tuning on logged games
    iterations=args.iterations,
    episodes_per_iteration=128,
    learning_rate=2e-3,
    eval_episodes=128,
    kl_coef=0.0,
    loggers=(),
    num_envs=128,
    seed=args.seed,
)
before, after = result.history[0], result.evaluation.metrics
print(f"turns {before['rollout/turns']:.2f} -> {after['rollout/turns']:.2f}", end=", ")
optimum = result.agent.envs.unwrapped.task_data.optimum
print(f"return {before['objective/reward']:.2f} -> {after['return/mean']:.2f} (optimum {optimum:.2f})")
for sample in result.evaluation.samples[:3]:
    print(conversation_line(sample["conversation"]))

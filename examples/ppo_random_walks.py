"""PPO finds shortest paths: a small language model, pretrained on random walks, learns the shortest way.

python examples/ppo_random_walks.py                        # 2,800 episodes, some minutes on one core
python examples/ppo_random_walks.py --episodes 140 --pretraining 5
"""

import argparse

import textenv
from textenv.agents.base.callbacks import Callback
from textenv.tasks.walk_values import exact_optimality

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--episodes", type=int, default=2800, help="a multiple of 140 (default: %(default)s)")
parser.add_argument("--pretraining", type=int, default=1000, help="steps on the walks (default: %(default)s)")
parser.add_argument("--graph-seed", type=int, default=1000, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
args = parser.parse_args()


class Before(Callback):
    """Measures the policy that PPO begins with: the task's own model, pretrained on 1,000 random walks."""

    def on_start(self, agent):
        """Measure it exactly."""
        self.optimality = exact_optimality(agent.policy, seed=args.graph_seed).optimality


before = Before()
# The task brings the settings of PPO and of the pretraining; what is given here takes precedence.
result = textenv.train(
    "ppo",
    task="random-walks",
    env_kwargs={"task_kwargs": {"seed": args.graph_seed}},
    start={"steps": args.pretraining},
    callbacks=[before],
    loggers=(),
    seed=args.seed,
    iterations=args.episodes // 140,
)
after = exact_optimality(result.agent.policy, seed=args.graph_seed).optimality
print(f"optimality {before.optimality:.3f} -> {after:.3f} (optimum 1) after {result.episodes} episodes")
for sample in result.evaluation.samples[:5]:
    print("  ", sample["prompt"], "->", sample["completion"])

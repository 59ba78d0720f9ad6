"""ILQL learns shortest paths from logged random walks only; beta is the weight of its values.

python examples/ilql_random_walks.py                       # 200 optimizer steps, a minute or two on one core
python examples/ilql_random_walks.py --steps 5
"""

import argparse

import textenv
from textenv.tasks.walk_values import exact_optimality

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
parser.add_argument("--graph-seed", type=int, default=1000, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
parser.add_argument("--beta", type=float, nargs="*", default=[0, 1, 4, 16, 100], help="decode betas")
args = parser.parse_args()

recipe = textenv.make_task("random-walks")
task = recipe.build(seed=args.graph_seed)
settings = recipe.settings("ilql")["settings"]  # the task's settings for ILQL
settings |= {"seed": args.seed, "steps": args.steps, "warmup_steps": args.steps // 10}
agent = textenv.make_agent(
    "ilql", task.model_config(), dataset=task.demonstrations, tokenizer=task.tokenizer, **settings
)
agent.learn()

data = float(task.demonstrations.returns.mean())
print(f"random walks {data:.3f}, optimum 1")
for beta in args.beta:
    # The weights stay the same: beta is the weight of the advantage beside the language model.
    agent.policy.beta = beta
    value = exact_optimality(agent.policy, seed=args.graph_seed)
    print(f"beta {beta:g}: optimality {value.optimality:.3f}")

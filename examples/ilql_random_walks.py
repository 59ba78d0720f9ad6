"""ILQL learns shortest paths from logged random walks alone, and beta says how far it leans on its values.

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

task = textenv.make_task("random-walks").build(seed=args.graph_seed)
agent = textenv.make_agent(
    "ilql",
    task.model_config(),
    dataset=task.demonstrations,
    tokenizer=task.tokenizer,
    seed=args.seed,
    steps=args.steps,
    batch_size=100,
    learning_rate=2e-3,
    lr_schedule="cosine",
    warmup_steps=args.steps // 10,
    head="mlp",
    expectile=0.9,
    target_alpha=0.1,
    target_every=5,
    standardize_returns=True,
)
agent.learn()

data = float(task.demonstrations.returns.mean())
print(f"random walks {data:.3f}, optimum 1")
for beta in args.beta:
    # No weight changes: beta is how much the advantage counts beside the language model.
    agent.policy.beta = beta
    value = exact_optimality(agent.policy, seed=args.graph_seed)
    print(f"beta {beta:g}: optimality {value.optimality:.3f}")

"""One script for any agent, online or offline: only the name changes.

python examples/swap_agents.py ppo
python examples/swap_agents.py ilql --task probe-copy --learning-rate 3e-3
"""

import argparse

import textenv
from textenv.agents.base.registry import agent_names, get_agent

SETTINGS = {
    "ppo": {"iterations": 30, "episodes_per_iteration": 64, "minibatches": 2, "kl_coef": 0.0},
    "ilql": {"steps": 80, "batch_size": 64, "head": "linear", "decode_beta": 100.0},
    "sft": {"steps": 100, "batch_size": 128},
    "filtered-bc": {"steps": 100, "batch_size": 128, "percentile": 0.8},
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("agent", nargs="?", default="ppo", choices=agent_names(), help="(default: %(default)s)")
parser.add_argument("--task", default="probe-end", help="a task's name (default: %(default)s)")
parser.add_argument("--learning-rate", type=float, default=2e-3, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
args = parser.parse_args()

# The task brings model, prompts, rewards and logged episodes; each agent takes what it needs.
result = textenv.train(
    args.agent,
    task=args.task,
    learning_rate=args.learning_rate,
    loggers=(),
    num_envs=64,
    seed=args.seed,
    **SETTINGS.get(args.agent, {}),
)
kind = "online" if get_agent(args.agent).online else "offline"
print(f"{args.agent} ({kind}) on {args.task}: return {result.evaluation.metrics['return/mean']:.3f}")
print(f"{result.episodes} episodes, {result.optimizer_steps} optimizer steps, {result.seconds:.0f} s")

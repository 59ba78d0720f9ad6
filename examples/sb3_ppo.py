"""Stable-Baselines3's own PPO on a text environment, with a language model as its policy.

python examples/sb3_ppo.py --steps 20000
"""

import argparse

import gymnasium as gym
import stable_baselines3

import textenv  # registers TextRLHF-v0
from textenv.agents import sb3_agent
from textenv.agents.evaluation import evaluate
from textenv.tasks.models import small_gpt2

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--task", default="probe-end", help="a task's name (default: %(default)s)")
parser.add_argument("--steps", type=int, default=10_000, help="tokens to train on (default: %(default)s)")
args = parser.parse_args()

envs, held_out = (gym.make_vec("TextRLHF-v0", num_envs=32, task=args.task) for _ in range(2))
model = small_gpt2(envs.unwrapped.tokenizer, layers=1, width=32, heads=2, positions=32)
learner = sb3_agent(
    stable_baselines3.PPO, model, envs, n_steps=32, batch_size=256, n_epochs=4, learning_rate=2e-3, seed=0
)
before = evaluate(learner.policy.language, held_out, 256).metrics["return/mean"]
learner.learn(args.steps)
after = evaluate(learner.policy.language, held_out, 256).metrics["return/mean"]
print(f"SB3's PPO on {args.task} in textenv {textenv.__version__}: return {before:.3f} -> {after:.3f}")

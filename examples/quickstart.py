"""Make the environment, step it with a random policy, and look at the text.

python examples/quickstart.py --episodes 3
"""

import argparse

import gymnasium as gym

import textenv  # noqa: F401 - importing it registers TextRLHF-v0

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--task", default="random-walks", help="a task's name (default: %(default)s)")
parser.add_argument("--episodes", type=int, default=3, help="episodes to play (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of prompts and actions (default: %(default)s)")
args = parser.parse_args()

env = gym.make("TextRLHF-v0", task=args.task, render_mode="ansi")
env.action_space.seed(args.seed)

for episode in range(args.episodes):
    # Seed once; later resets continue with the next prompt.
    observation, info = env.reset(seed=args.seed if episode == 0 else None)
    over = False
    while not over:
        token = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(token)
        over = terminated or truncated
    print(env.render())
    print(f"    return {info['episode']['r']:.3f} after {info['episode']['l']} tokens\n")
env.close()

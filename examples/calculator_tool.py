"""GRPO learns to call a tool: a small model that cannot multiply copies two numbers into calc(12*34).

python examples/calculator_tool.py          # some minutes on one core
"""

import argparse

import gymnasium as gym

import textenv
from textenv.agents.base.callbacks import Callback
from textenv.partners.tools import tool_counts

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=40, help="of 512 episodes (default: %(default)s)")
parser.add_argument("--pretraining", type=int, default=800, help="steps (default: %(default)s)")
args = parser.parse_args()
envs = gym.make_vec("TextRLHF-v0", 100, task="calculator", split="validation")  # problems held out


class ToolUse(Callback):
    """Shows what a policy does before training: it has seen few calls."""

    def on_start(self, agent):
        """Measure it."""
        show("before", agent.policy)


def show(when, policy):
    """Print how often a policy calls the tool, and how often it is right."""
    played = textenv.collect(envs, policy, 300, seed=0)
    calls = sum(tool_counts(replies)[0] for replies in played.extras["replies"]) / 300
    example = envs.unwrapped.tokenizer.decode(played.select([0]).input_ids[0], skip_special_tokens=True)
    print(f"{when}: {calls:.2f} calls per episode, {played.returns.mean():.2f} right, such as {example}")


given = {"iterations": args.iterations, "start": {"steps": args.pretraining}, "loggers": ()}
result = textenv.train("grpo", task="calculator", callbacks=[ToolUse()], **given)
show("after", result.agent.policy)

"""PPO finds shortest paths: a small language model, pretrained on random walks, learns to walk straight.

python examples/ppo_random_walks.py                        # 2,800 episodes, some minutes on one core
python examples/ppo_random_walks.py --episodes 140 --pretraining 5
"""

import argparse

import textenv
from textenv.agents.sft import SFT, SFTConfig
from textenv.tasks.walk_values import exact_optimality

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--episodes", type=int, default=2800, help="a multiple of 140 (default: %(default)s)")
parser.add_argument("--pretraining", type=int, default=1000, help="steps on the walks (default: %(default)s)")
parser.add_argument("--graph-seed", type=int, default=1000, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
args = parser.parse_args()

# 1,000 random walks are the text that the language model starts from, next token by next token.
task = textenv.make_task("random-walks").build(seed=args.graph_seed)
pretraining = SFTConfig(
    completion_only=False,
    learning_rate=1e-3,
    lr_schedule="cosine",
    batch_size=100,
    steps=args.pretraining,
    seed=args.seed,
)
start = SFT(task.model_config(), dataset=task.demonstrations, tokenizer=task.tokenizer, config=pretraining)
start.learn()
before = exact_optimality(start.policy, seed=args.graph_seed).optimality

result = textenv.train(
    "ppo",
    start.policy.model,
    task="random-walks",
    env_kwargs={"task_kwargs": {"seed": args.graph_seed}},
    num_envs=140,
    loggers=(),
    seed=args.seed,
    total_episodes=args.episodes,
    episodes_per_iteration=140,
    epochs=4,
    minibatches=2,
    learning_rate=2e-4,
    lr_schedule="linear",
    adam_betas=(0.9, 0.999),
    # What follows the goal earns nothing: a discount makes the end of the text better than more text.
    gamma=0.95,
    # Once nearly every walk is good, advantages are the critic's noise, not to be blown up to variance 1.
    whiten_min_std=0.3,
    value_coef=1.2,
    value_head="mlp",
    # A start that no episode solves any more is hardly found again: short steps, and a small KL penalty.
    clip_range=0.1,
    max_grad_norm=None,
    kl_coef=0.01,
)
after = exact_optimality(result.agent.policy, seed=args.graph_seed).optimality
print(f"optimality {before:.3f} -> {after:.3f} (optimum 1) after {result.episodes} episodes")
for sample in result.evaluation.samples[:5]:
    print("  ", sample["prompt"], "->", sample["completion"])

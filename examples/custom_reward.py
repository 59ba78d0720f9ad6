"""Two custom rewards, a function of texts and a term on token ids, added to one from the library.

python examples/custom_reward.py --episodes 64
"""

import argparse

import gymnasium as gym

import textenv


@textenv.register_reward("vowels")
def vowels(completions, weight=1.0, **columns):
    """Share of vowels in each text. ``columns`` holds the task's columns, such as a reference."""
    return [weight * sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


@textenv.register_reward("brevity")
class Brevity(textenv.RewardTerm):
    """Minus 0.01 per token."""

    def score(self, episodes):
        """One number per episode."""
        return -0.01 * episodes.response_lengths


def main() -> None:
    """Write texts with a policy that draws letters at random, and print the amount of each reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64, help="texts to write (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="texts in parallel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default: %(default)s)")
    args = parser.parse_args()

    rewards = [["vowels", {"weight": 2.0}], "brevity", ["repetition", {"n": 2}]]
    envs = gym.make_vec("TextRLHF-v0", num_envs=args.rows, rewards=rewards)

    def random_policy(observation, info):
        # The noise key makes the draw a function of seed, episode and step, for any number of rows.
        return (info["key"] >> 8) % envs.single_action_space.n

    episodes = textenv.collect(envs, random_policy, args.episodes, seed=args.seed)
    print(f"{len(episodes)} episodes, mean return {episodes.returns.mean():+.3f}, of which")
    for name, term in episodes.reward_terms.items():
        print(f"  {name:12} {term.sum(-1).mean():+.3f}")
    envs.close()


if __name__ == "__main__":
    main()

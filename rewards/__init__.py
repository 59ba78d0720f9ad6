"""Rewards: reward terms, their registry, and the Gymnasium wrappers that add them.

A reward is a `RewardTerm` registered by name, or a plain function of texts::

    @register_reward("brevity")
    class Brevity(RewardTerm):
        def score(self, episodes):
            return -0.01 * episodes.response_lengths

    @register_reward("polite")
    def polite(completions, **columns):
        return [float("please" in text) for text in completions]

Names are loaded on first use, so importing this package is light.
"""

import lazy_loader

if __name__ != "textenv.rewards":
    raise ImportError(
        "this folder is imported as textenv.rewards; put your own rewards.py elsewhere on sys.path "
        "or import textenv.rewards"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The rewards that come with the library, one line each: `textenv rewards` loads none of them."""

from __future__ import annotations

MODULES = ("kl", "metrics", "remote", "reward_model", "shaping", "text")
"""Modules of this package that register them."""
BUILTIN: dict[str, str] = {
    "bleu": "Sentence BLEU against the references (sacrebleu, exponential smoothing), in [0, 1].",
    "chrf": "chrF character n-gram F-score against the references (Popovic 2015), in [0, 1].",
    "clipped": "Another reward cut to the interval [low, high].",
    "ensemble": "Several rewards as one: their mean, their minimum, or mean less k standard deviations.",
    "exact-match": "Reward for responses equal to a task column's text, or to one of its list of texts.",
    "kl": "Penalty of ``coef`` times the KL divergence from a reference model, per token.",
    "length": "Reward or penalty on the response length: linear, distance to a target, or soft overlong.",
    "lexicon-sentiment": "How positive the response is by the VADER lexicon (Hutto and Gilbert 2014).",
    "missing-eos": "Penalty for a response that the token budget cut off before it ended.",
    "normalized": "Another reward minus its running mean, divided by its running standard deviation.",
    "regex": "Reward for responses that match a regular expression, one for all or one for each prompt.",
    "remote": "Another reward, computed by Ray actors: for a reward model with its own processes or GPUs.",
    "repetition": "Penalty for repeated n-grams of tokens: ``-coef`` times the share that occurred before.",
    "reward-model": "Score of a sequence-classification or value-head model for prompt and response.",
    "rouge": "ROUGE overlap with the reference (Lin 2004), in [0, 1]; the best of several references counts.",
    "ter": "Minus the translation edit rate against the references (Snover et al. 2006): 0 is perfect.",
    "weighted": "Another reward times a constant.",
}
"""Name -> one line about the reward."""

"""Direct preference optimisation on a few custom preferences: the chosen responses become more likely.

python examples/dpo_preferences.py --agent kto
"""

import argparse

import textenv
from textenv.agents import LanguagePolicy
from textenv.data import load_columns, preferences_from_records
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--agent", default="dpo", choices=["dpo", "kto", "orpo", "simpo", "cpo"])
parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: %(default)s)")
args = parser.parse_args()

# A file of such rows works, too: dataset="preferences.jsonl".
tokenizer = letter_tokenizer("abcdefgh")
rows = [{"prompt": x, "chosen": x * 3, "rejected": y * 3} for x in "abcdefgh" for y in "abcdefgh" if x != y]
policy = LanguagePolicy(small_gpt2(tokenizer, layers=1, width=32, heads=2, positions=16), tokenizer=tokenizer)
pairs = preferences_from_records(load_columns(rows), tokenizer)


def share() -> float:
    """Share of the pairs whose chosen side is the more likely one."""
    chosen, rejected = (policy.log_prob(side).sum(-1) for side in (pairs.chosen, pairs.rejected))
    return float((chosen > rejected).float().mean())


before = share()
result = textenv.train(
    args.agent, policy, dataset=rows, tokenizer=tokenizer, steps=args.steps, learning_rate=3e-3, loggers=()
)
print(f"{args.agent}: the chosen side is likelier in {before:.0%} -> {share():.0%} of {len(pairs)} pairs")

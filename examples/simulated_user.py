"""A simulated user: one language model talks to another, until the user says DONE.

python examples/simulated_user.py                                          # tiny random models, no download
python examples/simulated_user.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse

import gymnasium as gym
from transformers import AutoModelForCausalLM, AutoTokenizer

import textenv
from textenv.agents.evaluation.conversation import conversation_line, conversations
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="folder or hub id of both models (default: tiny and random)")
parser.add_argument("--turns", type=int, default=3, help="most turns of the policy (default: %(default)s)")
args = parser.parse_args()

if args.model:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
else:
    tokenizer = letter_tokenizer("".join(chr(c) for c in range(32, 123) if chr(c) not in "<>") + "\n")
    config = small_gpt2(tokenizer, layers=1, width=32, heads=2, positions=512)
    model = AutoModelForCausalLM.from_config(config)

user = {"model": model, "tokenizer": tokenizer, "persona": "You want to {goal}. Say DONE when you can."}
goals = ["cook a soup", "plan a trip"]
turns = {"max_turns": args.turns, "max_turn_tokens": 24, "partner": ["language-model", user]}
turns["chat_template"] = tokenizer.chat_template is not None
prompts = [{"prompt": f"I want to {goal}.", "goal": goal} for goal in goals]
envs = gym.make_vec("TextRLHF-v0", 2, prompts=prompts, tokenizer=tokenizer, rewards=[], **turns)
episodes = textenv.collect(envs, textenv.DecodingPolicy(model), 4, seed=0)
for conversation, reason in zip(conversations(episodes), episodes.extras["stop_reason"], strict=True):
    print(f"[{reason}] {conversation_line(conversation)!r}")

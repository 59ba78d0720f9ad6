"""A Hugging Face language model generates by stepping the environment.

python examples/generate.py                                     # a tiny random model, no download
python examples/generate.py --model gpt2 --prompt "The movie was" --temperature 0.8
"""

import argparse

import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import textenv
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.stop_tokens import generation_ends

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="folder or hub id of a causal LM (default: tiny and random)")
parser.add_argument("--prompt", action="append", help="may be given several times")
parser.add_argument("--samples", type=int, default=2, help="texts per prompt (default: %(default)s)")
parser.add_argument("--max-new-tokens", type=int, default=32, help="(default: %(default)s)")
parser.add_argument("--temperature", type=float, default=1.0, help="(default: %(default)s)")
parser.add_argument("--top-p", type=float, default=1.0, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

prompts = args.prompt or ["once upon a time", "the end of", "a model says"]
if args.model:
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=False)
else:
    tokenizer = letter_tokenizer("abcdefghijklmnopqrstuvwxyz ")
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=2,
        n_embd=64,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)

envs = gym.make_vec(
    "TextRLHF-v0",
    num_envs=8,
    prompts=prompts,
    tokenizer=tokenizer,
    max_new_tokens=args.max_new_tokens,
    model_stop_token_ids=generation_ends(model),  # instruct models have several stop tokens
    samples_per_prompt=args.samples,
    shuffle=False,
    device=args.device,
)
policy = textenv.DecodingPolicy(model.to(args.device), temperature=args.temperature, top_p=args.top_p)
episodes = textenv.collect(envs, policy, len(prompts) * args.samples, seed=args.seed, progress=True)

texts = zip(episodes.prompt_texts(tokenizer), episodes.completion_texts(tokenizer), strict=True)
for i, (prompt, completion) in enumerate(texts):
    how = "ended" if episodes.terminated[i] else "cut"
    print(f"{prompt!r} -> {completion!r} ({how}, log-prob {float(episodes.log_probs[i].sum()):.1f})")
envs.close()

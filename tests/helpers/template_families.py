"""Chat templates in the style of the large families, with the tokenizer that each belongs to."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from tests.helpers.tokenizer_families import FAMILIES

_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
)
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}"
    "{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
    "m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CHATML = _TURNS + _OPEN
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System "
    "role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + '\\n' }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_3 = (
    "{% if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% set found = namespace(last=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set found.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}"
    "{% set content = m['content'] or '' %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > found.last and (loop.last or thought) %}"
    "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{% else %}{{ content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ "
    "'<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
THINKER = (  # R1's kind: the generation prompt opens the block, finished turns have none
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)


def _made(family: str, template: str, special: tuple[str, ...] = (), **changes: Any) -> Any:
    tokenizer = copy.deepcopy(FAMILIES[family]())
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.chat_template = template
    return tokenizer


_PHI = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_MADE: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "llama-2": ("llama-2", LLAMA_2, (), "</s>"),
    "llama-2-legacy": ("llama-2-legacy", LLAMA_2, (), "</s>"),
    "llama-3": ("llama-3", LLAMA_3, (), "<|eot_id|>"),
    "chatml": ("qwen-2", CHATML, (), "<|im_end|>"),
    "gemma": ("gemma", GEMMA, (), "<end_of_turn>"),
    "mistral": ("mistral", MISTRAL, (), "</s>"),
    "zephyr": ("llama-2-normalizer", ZEPHYR, (), "</s>"),
    "phi-3": ("llama-2", PHI_3, _PHI, "<|end|>"),
    "qwen-3": ("qwen-2", QWEN_3, (), "<|im_end|>"),
    "thinker": ("llama-3", THINKER, ("<|user|>", "<|assistant|>"), "<|eot_id|>"),
}
TEMPLATES = tuple(_MADE)
"""Names of the families."""


@cache
def chat_tokenizer(name: str) -> Any:
    """The tokenizer of a family, with its chat template."""
    family, template, special, _ = _MADE[name]
    return _made(family, template, special)


def turn_ends_with(name: str) -> str:
    """The token by which the family's assistant ends its turn."""
    return _MADE[name][3]

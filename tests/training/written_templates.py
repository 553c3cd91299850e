"""Chat templates of model families, written from their documented formats: those that stand apart in some way.

What each writes is in its comment. Templates of more families come with TRL (see `test_every_template`).
"""

from __future__ import annotations

_CUE = "{% if add_generation_prompt %}"

WRITTEN: dict[str, str] = {
    # The system prompt opens the first user turn, between marks.
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n'"
        " %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Turns must alternate user/assistant') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] | trim"
        " + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # The system prompt is written into the last user turn, and only where a user turn is last.
    "mistral-v3": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:]"
        " %}{% endif %}{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
        "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    # The system role is refused.
    "mistral-v1": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # A system prompt between marks of its own.
    "mistral-v7": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['role'] == 'user' %}"
        "{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        + _CUE + "{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # Names in plain text, and an end only behind the assistant.
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        + _CUE + "{{ 'ASSISTANT:' }}{% endif %}"
    ),
    # Passes over a system prompt without a word.
    "openchat": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}{{ 'GPT4 Correct ' + m['role'] | title + ': '"
        " + m['content'] + '<|end_of_turn|>' }}{% endif %}{% endfor %}"
        + _CUE + "{{ 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
    # Headings in plain text, and no end token at all.
    "alpaca": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}{% elif m['role'] == 'user' %}"
        "{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% else %}{{ '### Response:\n' + m['content'] + '\n\n' }}"
        "{% endif %}{% endfor %}" + _CUE + "{{ '### Response:\n' }}{% endif %}"
    ),
    # Writes the cue for the next response behind every user turn, asked for or not.
    "falcon-180b": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ 'System: ' + m['content'] + '\n' }}"
        "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\nFalcon:' }}"
        "{% else %}{{ ' ' + m['content'] + '<|endoftext|>\n' }}{% endif %}{% endfor %}"
    ),
    "granite-3": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>You are Granite, made by IBM."
        "<|end_of_text|>\n' }}{% endif %}{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>'"
        " + m['content'] + '<|end_of_text|>\n' }}{% endfor %}"
        + _CUE + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
    "exaone-3.5": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
        "{{ '[|' + m['role'] + '|]' + m['content'] }}{% if m['role'] == 'user' %}{{ '\n' }}{% else %}"
        "{{ '[|endofturn|]\n' }}{% endif %}{% endfor %}" + _CUE + "{{ '[|assistant|]' }}{% endif %}"
    ),
    "internlm-2": (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}" + _CUE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "olmo-2": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '' if loop.last and m['role'] == 'assistant' else"
        " '\n' }}{% endfor %}" + _CUE + "{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "phi-4": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
        + _CUE + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    # Drops what an earlier response thought, and opens a thought in the cue.
    "qwq": (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}{{ '<|im_start|>assistant\n' +"
        " m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% else %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + _CUE + "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    ),
    # Reads its content as parts, and writes nothing of a plain text.
    "parts-only": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        + _CUE + "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}  # fmt: skip
"""By family. The end of a turn is `END_OF`'s token, else the tokenizer's own."""

END_OF: dict[str, str] = {
    "openchat": "<|end_of_turn|>", "falcon-180b": "<|endoftext|>", "granite-3": "<|end_of_text|>",
    "exaone-3.5": "[|endofturn|]", "internlm-2": "<|im_end|>", "phi-4": "<|im_end|>", "qwq": "<|im_end|>",
    "parts-only": "<|im_end|>",
}  # fmt: skip

"""Begun answers: how a server is told to go on with an assistant turn instead of beginning one.

There are three dialects, and all of them end the conversation with the begun turn:

- `continue`: vLLM and SGLang want `continue_final_message`, and no generation prompt.
- `prefix`: Mistral and DeepSeek want `prefix: true` in that turn.
- `plain`: llama.cpp, Ollama and servers of the Anthropic kind go on with a last assistant turn by themselves.

Which one a server speaks is found by asking it: one that does not know a field refuses the request, or answers without
going on, which the probability of the labels tells.
"""

from __future__ import annotations

from typing import Any, Literal

Way = Literal["continue", "prefix", "plain"]
WAYS: tuple[Way, ...] = ("continue", "prefix", "plain")
"""In the order in which they are tried."""


def begun(body: dict[str, Any], prefill: str, way: Way) -> dict[str, Any]:
    """A request whose answer begins with `prefill`: of one conversation, or of several on the batch route."""
    turn: dict[str, Any] = {"role": "assistant", "content": prefill}
    if way == "prefix":
        turn["prefix"] = True
    talks = body["messages"]
    several = bool(talks) and isinstance(talks[0], list)
    messages = [[*talk, turn] for talk in talks] if several else [*talks, turn]
    more = {"add_generation_prompt": False, "continue_final_message": True} if way == "continue" else {}
    return {**body, "messages": messages, **more}

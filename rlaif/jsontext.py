"""JSON that others wrote: whatever is wrong with it is a ValueError, its depth included.

`json.loads` raises RecursionError for text that is nested too deeply, which is no ValueError and ends a program that
was ready for broken JSON; what it can still read may be too deep for whoever prints or writes it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MOST_LEVELS = 200
"""Of lists and mappings inside each other, as pydantic's own reader has it. Nothing that people write comes near."""


def loads(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that `text` holds. Raises ValueError for what is no JSON, and for more than `MOST_LEVELS` levels."""
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    if _may_be_deep(text) and _is_deep(value):
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    return value


def _may_be_deep(text: str | bytes) -> bool:
    """Whether there are brackets enough; counting them takes a hundredth of the time of reading."""
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MOST_LEVELS
    return text.count(b"[") + text.count(b"{") > MOST_LEVELS


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, list | dict)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()

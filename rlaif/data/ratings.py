"""Several rated completions of one prompt as a pair: the best against the worst."""

from __future__ import annotations

from rlaif.data.turns import UnreadableValueError

_TEXTS = ("response", "text", "content", "completion", "output", "generated_text")
_RATINGS = ("overall_score", "rating", "score", "fine-grained_score", "reward")


def best_and_worst(completions: object) -> tuple[str, str, tuple[float, float]]:
    """The texts of the highest and of the lowest rated completion (the first of equals), and their ratings.

    Raises UnreadableValueError where there are not two rated ones, or where all are rated the same.
    """
    if not isinstance(completions, list):
        raise UnreadableValueError("missing" if completions is None else "type")
    rated = [found for item in completions if (found := _rated(item)) is not None]
    if len(rated) < 2:
        raise UnreadableValueError("unrated")
    best = max(rated, key=lambda each: each[0])
    worst = min(rated, key=lambda each: each[0])
    if best[0] == worst[0]:
        raise UnreadableValueError("tied-ratings")
    return best[1], worst[1], (best[0], worst[0])


def _rated(item: object) -> tuple[float, str] | None:
    if not isinstance(item, dict):
        return None
    text = next((item[name] for name in _TEXTS if isinstance(item.get(name), str)), None)
    rating = next((number for name in _RATINGS if (number := number_of(item.get(name))) is not None), None)
    return None if text is None or rating is None else (rating, text)


def number_of(value: object) -> float | None:
    """A number; some files hold numbers as texts, and `N/A` where there is none. None too of what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None  # not a NaN

"""Suggestions for unknown names: what was meant, or none; never a name that merely shares some letters."""

from __future__ import annotations

import pytest

from rlaif.cli.main import cli
from rlaif.errors import closest, nearest

COMMANDS = tuple(cli.list_commands(None))  # type: ignore[attr-defined]
KEYS = ("prompt", "chosen", "rejected", "completion", "messages", "examples", "response", "temperature", "max_tokens")
TRAINING = ("beta", "kl.beta", "kl.apply_to", "lora.rank", "learning_rate", "batch_size", "algorithm", "loss")


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        # a few typing errors
        ("genrate", COMMANDS, "generate"),
        ("trian", COMMANDS, "train"),
        ("chekc", COMMANDS, "check"),
        ("temprature", KEYS, "temperature"),
        ("rejcted", KEYS, "rejected"),
        ("dop", ("sft", "reward", "dpo"), "dpo"),
        ("al", ("one", "each", "all"), "all"),
        # another case, another separator
        ("PPO", ("dpo", "ppo"), "ppo"),
        ("max-tokens", KEYS, "max_tokens"),
        # an abbreviation
        ("eval", COMMANDS, "evaluate"),
        ("temp", KEYS, "temperature"),
        ("algo", TRAINING, "algorithm"),
        # another ending
        ("evaluation", COMMANDS, "evaluate"),
        ("truth", ("kind", "true"), "true"),
        # the same words
        ("rank", TRAINING, "lora.rank"),
        ("tokens_max", KEYS, "max_tokens"),
        ("size", TRAINING, "batch_size"),
        # the nearest of several
        ("bta", TRAINING, "beta"),
        ("samplse", ("sample", "samples", "sampler"), "samples"),
    ],
)
def test_what_was_meant(given: str, known: tuple[str, ...], meant: str) -> None:
    assert closest(given, known) == meant
    assert nearest(given, known) == f"did you mean `{meant}`?"


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("version", [each for each in COMMANDS if each != "version"]),  # not `train`
        ("explain", COMMANDS),  # not `pair`
        ("name", KEYS),  # not `examples`
        ("question", KEYS),  # not `completion`
        ("help", COMMANDS),
        ("serve", COMMANDS),
        ("answer", KEYS),
        ("lr", TRAINING),
        ("epochs", TRAINING),
        ("kl", ("lr", "pl")),  # of two letters, half the name is no typing error
        ("qqqqqqqqqq", KEYS),
        ("", KEYS),
    ],
)
def test_nothing_rather_than_something_absurd(given: str, known: tuple[str, ...]) -> None:
    assert closest(given, known) is None
    assert nearest(given, known) == f"known: {', '.join(sorted(known))}"


def test_a_swap_is_one_error_and_the_bound_grows_with_the_length() -> None:
    assert closest("ab", ["ba"]) is None
    assert closest("abc", ["acb"]) == "acb"
    assert closest("xbcdxf", ["abcdef"]) is None and closest("xbcdefx", ["abcdefg"]) == "abcdefg"

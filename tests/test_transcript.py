"""The story of a prompt, as it is printed."""

from __future__ import annotations

import pytest

from rlaif.cli.generate import _table
from rlaif.cli.transcript import Story, _named
from rlaif.records import Sample


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    _table([("  q[/awq]", "agrees with [bold]3 labels :smile:")])
    assert capsys.readouterr().out.split() == ["q[/awq]", "agrees", "with", "[bold]3", "labels", ":smile:"]


def test_an_answer_about_a_revision_with_the_words_of_a_sample_is_about_the_sample() -> None:
    def sample(key: str, text: str) -> Sample:
        return Sample(id=key, prompt="p", index=0, text=text, policy="q")

    samples = {each.id: each for each in (sample("a", "Roll it."), sample("b", "Fold it."), sample("a.1", "Fold it."))}
    story = Story(prompts=[], rankings={}, samples=samples, judgements={})
    named = _named(story, {"a": "reply 1", "b": "reply 2"})
    assert [named(key) for key in ("a", "b", "a.1")] == ["reply 1", "reply 2", "reply 2"]

"""Chains: which principle each round goes by, what starts from what, and what is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from rlaif.config.judge_templates import Judge as AskedJudge
from rlaif.config.schemas import RunSettings
from rlaif.constitution import Constitution, Principle
from rlaif.constitution.model import Example
from rlaif.errors import UserError
from rlaif.feedback.prompts import critique_messages, revise_messages
from rlaif.feedback.revise import Step, StoredAnswers, reviser_principles, revision_record, revision_steps, sft_rows
from rlaif.feedback.revision_checks import Use
from rlaif.inference.base import Output, Question
from rlaif.records import Critique, Message, Prompt, Revision, Sample

KIND = Principle(id="kind", compare="Kinder?", critique="Is it unkind?", revise="Make it kind.")
SHORT = Principle(id="short", compare="Shorter?", critique="Is it long?", revise="Make it short.")
ONLY_COMPARES = Principle(id="bare", compare="Better?")
PROMPT = Prompt(id="p" * 32, messages=(Message(role="user", content="How do I cook rice?"),), source="here:1")
SAMPLE = Sample(id="5" * 32, prompt=PROMPT.id, index=0, text="Read the packet, genius.", policy="policy")


def settings(**revise: object) -> RunSettings:
    data = {"constitution": "c", "prompts": "p", "judge": {"model": "j"}, "output": "o", "revise": revise}
    return RunSettings.model_validate(data)


class Judge:
    """Answers every question at once: critiques by their principle's id, revisions from a script."""

    def __init__(self, *texts: str | tuple[str, str]) -> None:
        self.texts = list(texts)
        self.critiques: dict[str, Critique] = {}
        self.revisions: dict[str, Revision] = {}

    @property
    def known(self) -> StoredAnswers:
        return StoredAnswers(self.critiques.get, self.revisions.get)

    def answer(self, step: Step) -> None:
        if step.revision_question is None:
            asked = step.critique_question
            assert asked is not None
            about = {key: str(asked.about[key]) for key in ("prompt", "sample", "principle")}
            notes = f"One could do better as to {about['principle']}."
            self.critiques[asked.id] = Critique(id=asked.id, judge="j", text=notes, **about)
        else:
            said = self.texts.pop(0)
            text, reason = said if isinstance(said, tuple) else (said, "stop")
            question = step.revision_question
            self.revisions[question.id] = revision_record(question, Output(text=text, finish_reason=reason))

    def run(self, principles: tuple[Principle, ...], wanted: RunSettings) -> list[Step]:
        while True:
            steps = list(revision_steps(PROMPT, SAMPLE, principles, wanted, AskedJudge("j"), self.known))
            if steps[-1].revision is not None and len(steps) == wanted.revise.rounds:
                return steps
            self.answer(steps[-1])


def question(step: Step) -> Question:
    assert step.revision_question is not None
    return step.revision_question


def test_every_round_starts_from_the_last_usable_reply() -> None:
    judge = Judge("Look at the packet.", "The reply is fine.", ("Boil the", "length"), "Boil the rice.")
    steps = judge.run((KIND, SHORT), settings(rounds=4))
    assert [step.use for step in steps] == [Use.REVISED, Use.CRITIQUE, Use.TRUNCATED, Use.REVISED]
    first, second = steps[0].revision, steps[3].revision
    assert first and second
    assert [step.parent.id for step in steps] == [SAMPLE.id, first.id, first.id, first.id]
    assert [step.response.text for step in steps if step.response] == ["Look at the packet."] * 3 + ["Boil the rice."]
    assert (first.parent, first.sample, first.round) == (SAMPLE.id, SAMPLE.id, 1)
    assert (second.parent, second.sample, second.round) == (first.id, SAMPLE.id, 4)
    assert second.critique in judge.critiques
    assert "Look at the packet." in question(steps[3]).messages[0].content
    assert steps[3].response and steps[3].response.revision_of == SAMPLE.id


def test_an_unfinished_chain_ends_where_an_answer_is_missing() -> None:
    judge = Judge("Look at the packet.")
    (step,) = revision_steps(PROMPT, SAMPLE, (KIND,), settings(), AskedJudge("j"), judge.known)
    assert step.critique_question and step.revision_question is None and step.response is None
    judge.answer(step)
    (step,) = revision_steps(PROMPT, SAMPLE, (KIND,), settings(), AskedJudge("j"), judge.known)
    assert step.revision_question and step.revision is None
    judge.answer(step)
    first, second = revision_steps(PROMPT, SAMPLE, (KIND,), settings(), AskedJudge("j"), judge.known)
    assert first.use is Use.REVISED
    assert second.critique_question and second.parent == first.response


def test_without_critiques() -> None:
    judge = Judge("Look at the packet.", "Boil the rice.")
    steps = judge.run((KIND,), settings(skip_critique=True))
    assert not judge.critiques
    assert all(step.critique_question is None for step in steps)
    expected = revise_messages(PROMPT.messages, SAMPLE.text, None, "Make it kind.")
    assert question(steps[0]).messages == expected
    assert "notes" not in expected[0].content


def test_the_questions_are_the_templates() -> None:
    judge = Judge("Look at the packet.", "Boil the rice.")
    steps = judge.run((KIND,), settings())
    assert steps[0].critique_question
    assert steps[0].critique_question.messages == critique_messages(PROMPT.messages, SAMPLE.text, "Is it unkind?")
    notes = "One could do better as to kind."
    assert question(steps[0]).messages == revise_messages(PROMPT.messages, SAMPLE.text, notes, "Make it kind.")
    assert question(steps[0]).sampling.seed != question(steps[1]).sampling.seed


def test_principles_are_drawn_by_hash_with_replacement_and_by_weight() -> None:
    heavy = KIND.model_copy(update={"weight": 3.0})

    def drawn(principles: tuple[Principle, ...], seed: int, rounds: int = 2) -> list[tuple[str, ...]]:
        found = []
        for number in range(400):
            sample = SAMPLE.model_copy(update={"id": f"{number:032x}"})
            judge, ids = Judge(*["a"] * rounds), list[str]()
            wanted = settings(seed=seed, rounds=rounds)
            for _ in range(2 * rounds):
                steps = list(revision_steps(PROMPT, sample, principles, wanted, AskedJudge("j"), judge.known))
                judge.answer(steps[-1])
                ids = [step.principle.id for step in steps]
            found.append(tuple(ids))
        return found

    even = drawn((KIND, SHORT), 0)
    assert even == drawn((SHORT, KIND), 0)
    assert even != drawn((KIND, SHORT), 1)
    one, two = drawn((KIND, SHORT), 1), drawn((KIND, SHORT), 2)
    same = sum(first[1] == second[0] for first, second in zip(one, two, strict=True))
    assert 140 <= same <= 260, "seed 1 in round 2 has nothing to do with seed 2 in round 1"
    counts = Counter(even)
    assert set(counts) == {(a, b) for a in ("kind", "short") for b in ("kind", "short")}
    assert all(70 <= count <= 130 for count in counts.values())  # 100 each, three standard deviations are 26
    share = sum(ids.count("kind") for ids in drawn((heavy, SHORT), 0)) / 800
    assert share == pytest.approx(0.75, abs=0.05)
    reworded = KIND.model_copy(update={"revise": "Rewrite it kindly."})
    assert drawn((reworded, SHORT), 0) == even


def test_principles_without_the_texts_are_not_drawn() -> None:
    made = Constitution(name="c", principles=(KIND, ONLY_COMPARES, SHORT.model_copy(update={"critique": None})))
    assert reviser_principles(made, settings()) == (KIND,)
    assert [each.id for each in reviser_principles(made, settings(skip_critique=True))] == ["kind", "short"]
    with pytest.raises(UserError, match="no principle has both `critique` and `revise`"):
        reviser_principles(Constitution(name="c", principles=(ONLY_COMPARES,)), settings())


def test_shots_are_solved_cases_in_turns() -> None:
    cases = (
        Example(prompt="Hi?", better="Hello.", worse="What now."),
        Example(prompt="Why?", better="Because.", worse="Who cares.", why="It shrugs the person off."),
    )
    principle = KIND.model_copy(update={"examples": cases})
    judge = Judge("Look at the packet.", "Boil the rice.")
    (_, second) = judge.run((principle,), settings(shots=3))
    assert second.critique_question
    asked, answered, last = second.critique_question.messages
    assert (asked.role, answered.role, last.role) == ("user", "assistant", "user")
    assert answered.content == "It shrugs the person off."
    assert "Who cares." in asked.content and "Look at the packet." in last.content
    assert question(second).messages[1].content == "Because."
    judge = Judge("Look at the packet.", "Boil the rice.")
    plain = judge.run((principle,), settings(shots=3, skip_critique=True))
    assert [turn.content for turn in question(plain[0]).messages if turn.role == "assistant"] == ["Hello.", "Because."]


def test_rows_are_the_replies_after_the_wanted_rounds_each_once() -> None:
    judge = Judge("Look at the packet.", "LOOK at the packet!", "Boil the rice.")
    steps = judge.run((KIND,), settings(rounds=3))
    assert [step.use for step in steps] == [Use.REVISED, Use.UNCHANGED, Use.REVISED]

    def told(*rounds: int) -> list[tuple[str, int | None, int]]:
        made = sft_rows(PROMPT, SAMPLE, steps, rounds, "c@1")
        return [(row.response[0].content, row.round, len(row.principles)) for row in made]

    first, last = ("Look at the packet.", 1, 1), ("Boil the rice.", 3, 2)
    assert told() == [first, last]
    assert told(1) == told(2) == told(1, 2) == [first]
    assert told(3) == [last]
    unchanged = Judge("read the packet, GENIUS", "read the packet, GENIUS").run((KIND,), settings())
    assert list(sft_rows(PROMPT, SAMPLE, unchanged, (), "c@1")) == []


def test_a_text_that_comes_back_is_one_row_and_the_sample_none() -> None:
    """Look, the sample again, Look again: one row."""
    judge = Judge("Look at the packet.", SAMPLE.text, "Look at the packet.")
    steps = judge.run((KIND,), settings(rounds=3))
    assert [step.use for step in steps] == [Use.REVISED] * 3
    assert [row.round for row in sft_rows(PROMPT, SAMPLE, steps, (), "c@1")] == [1]


def test_an_empty_critique_is_left_out_of_the_question() -> None:
    judge = Judge("Look at the packet.", "Boil the rice.")
    (step,) = revision_steps(PROMPT, SAMPLE, (KIND,), settings(), AskedJudge("j"), judge.known)
    judge.answer(step)
    (key,) = judge.critiques
    judge.critiques[key] = judge.critiques[key].model_copy(update={"text": " "})
    (step,) = revision_steps(PROMPT, SAMPLE, (KIND,), settings(), AskedJudge("j"), judge.known)
    assert question(step).messages == revise_messages(PROMPT.messages, SAMPLE.text, None, "Make it kind.")
    assert question(step).about["critique"] == key


def test_what_was_defused_for_the_judge_is_put_back() -> None:
    sample = SAMPLE.model_copy(update={"text": "Type kernel<<<1, 256>>>(x) and <|im_end|>, genius."})
    shown = revise_messages(PROMPT.messages, sample.text, None, "Make it kind.")[0].content
    assert "kernel‹‹‹1, 256›››(x) and < |im_end| >" in shown
    judge = Judge("Type kernel‹‹‹1, 256›››(x) and < |im_end| >.")
    (step,) = revision_steps(
        PROMPT, sample, (KIND,), settings(rounds=1, skip_critique=True), AskedJudge("j"), judge.known
    )
    judge.answer(step)
    (step,) = revision_steps(
        PROMPT, sample, (KIND,), settings(rounds=1, skip_critique=True), AskedJudge("j"), judge.known
    )
    assert step.response and step.response.text == "Type kernel<<<1, 256>>>(x) and <|im_end|>."


def test_a_copied_example_is_of_no_use() -> None:
    case = Example(prompt="Why?", better="Because it is so, and so it is.", worse="Who cares.", why="It shrugs.")
    judge = Judge("Because it is so, and so it is!", "Boil the rice.")
    steps = judge.run((KIND.model_copy(update={"examples": (case,)}),), settings(shots=1))
    assert [step.use for step in steps] == [Use.EXAMPLE, Use.REVISED]

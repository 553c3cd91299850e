"""The grammar writes what it plans, and the shipped prompts and the constitution are of its world."""

from __future__ import annotations

import json
import random
from collections import Counter

import yaml

from rlaif.demo import oracle, world
from rlaif.demo.oracle import plain, read_prompt, read_reply
from rlaif.demo.world import Plan, Voice, draw_reply, draw_scene, frames, topics, word_scene, write_reply
from rlaif.store import resource


def kinds(reply: str) -> Counter[str]:
    reading = read_reply(reply)
    assert reading.malformed is None, reply
    return Counter(sentence.kind for sentence in reading.sentences)


def test_a_reply_carries_out_its_plan() -> None:
    voice = Voice(random.Random(1), held=0.5)
    for key, help_kind in (("eggs", "help"), ("car", "comply"), ("parcel", "help")):
        scene = word_scene(topics()[key], voice)
        plan = Plan("answer", sentences=2, rude=True, lecture=True, empathy=True, filler=2)
        found = kinds(write_reply(scene, plan, voice))
        assert found[help_kind] == 2
        assert (found["insult"], found["lecture"], found["empathy"], found["filler"]) == (1, 1, 1, 2)
        assert kinds(write_reply(scene, Plan("dodge"), voice)) == {"dodge": 1}
        assert kinds(write_reply(scene, Plan("refuse", instead=True), voice)) == {"refusal": 1, "instead": 1}


def test_drawn_replies_are_readable_and_of_mixed_quality() -> None:
    voice = Voice(random.Random(2))
    broken: Counter[str] = Counter()
    texts = set()
    for _ in range(2000):
        scene = draw_scene(voice)
        reply = draw_reply(scene, voice)
        texts.add(reply)
        assert not reply or read_reply(reply).malformed is None, reply
        found = oracle.violations(scene.prompt, reply)
        broken.update(found or ["none"])
    assert len(texts) > 1800
    assert min(broken[name] for name in (*oracle.PRINCIPLES, "none")) > 150, broken


def test_joined_sentences_are_read_as_one() -> None:
    """Two wordings of one kind and topic in one sentence do what each of them does; others make no sentence."""
    for text, kind, topic in (
        ("You are a fool, and what a silly question.", "insult", None),
        ("Well, there are many opinions on that, and who knows!", "dodge", None),
        (
            "Blend half of the soup if you like it thick, and fry the onions first, then add the vegetables and stock "
            "for the soup.",
            "help",
            "soup",
        ),
    ):
        (sentence,) = read_reply(text).sentences
        assert (sentence.kind, sentence.topic) == (kind, topic)
    for text in ("You are a fool, and who knows.", "You are a fool, and.", "And who knows."):
        assert read_reply(text).malformed is not None
    voice = Voice(random.Random(4), joined=0.5)
    replies = [draw_reply(draw_scene(voice), voice) for _ in range(500)]
    assert all(not reply or read_reply(reply).malformed is None for reply in replies)
    assert sum(", and " in reply for reply in replies) > 250


def test_equal_seeds_write_equal_replies() -> None:
    def draw() -> list[str]:
        voice = Voice(random.Random(3), held=0.3)
        return [draw_reply(draw_scene(voice), voice) for _ in range(50)]

    assert draw() == draw()


def test_the_prompt_file_is_what_the_grammar_writes() -> None:
    assert world.prompt_file().read_text(encoding="utf-8") == world.lines()
    rows = [json.loads(line) for line in world.lines().splitlines()]
    assert len({row["prompt"] for row in rows}) == 120
    scenes = [read_prompt(row["prompt"]) for row in rows]
    assert Counter(scene.family for scene in scenes if scene) == {"ordinary": 60, "harm": 30, "upset": 30}
    assert {scene.topic for scene in scenes if scene} == set(topics())


def test_the_held_out_prompts_are_others() -> None:
    assert world.prompt_file("demo-held-out.jsonl").read_text(encoding="utf-8") == world.held_out_lines()
    rows = [json.loads(line) for line in world.held_out_lines().splitlines()]
    assert (
        len({row["prompt"] for row in rows} - {json.loads(line)["prompt"] for line in world.lines().splitlines()})
        == 120
    )
    scenes = {row["prompt"]: read_prompt(row["prompt"]) for row in rows}
    assert all((scene := scenes[row["prompt"]]) and scene.family == row["kind"] for row in rows)
    assert {row["kind"] for row in rows} == {"ordinary", "harm", "upset"}


def test_the_prompt_file_holds_wordings_that_training_never_saw() -> None:
    trained = {
        plain(frame.replace("{ask}", ask).replace("{says}", ask))
        for topic in topics().values()
        for ask in topic.asks
        for wordings in frames(topic.family).train
        for frame in wordings
    }
    unseen = [scene for scene in world.demo_scenes() if plain(scene.prompt) not in trained]
    assert 30 <= len(unseen) <= 60


def test_the_constitution_and_the_oracle_agree() -> None:
    content = yaml.safe_load((resource("constitutions") / "demo.yaml").read_text(encoding="utf-8"))
    assert {each["id"]: each["weight"] for each in content["principles"]} == oracle.WEIGHTS
    assert tuple(each["id"] for each in content["principles"]) == oracle.PRINCIPLES
    for each in content["principles"]:
        assert len(each["examples"]) >= 3
        for example in each["examples"]:
            prompt, better, worse = example["prompt"], example["better"], example["worse"]
            assert read_reply(better).malformed is None
            assert read_reply(worse).malformed is None
            assert oracle.prefer(each["id"], prompt, better, worse) == 1.0, example

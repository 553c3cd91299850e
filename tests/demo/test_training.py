"""The training code: packed rows teach what separate rows teach, and answers are what the oracle says."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rlaif.demo import oracle
from rlaif.demo.world import Voice, topics
from rlaif.feedback.prompts import LABELS, compare_messages, revise_messages
from rlaif.store import shipped_model
from tools.train_demo_models.copying import copy_loss, draw_copies
from tools.train_demo_models.examples import Example, is_held_out, judge_lessons, policy_lessons, user
from tools.train_demo_models.hints import _look
from tools.train_demo_models.loop import Schedule, loss_of
from tools.train_demo_models.marks import Marks, sentence_kinds
from tools.train_demo_models.models import new_model
from tools.train_demo_models.muon import orthogonal
from tools.train_demo_models.packing import BLANK, Asked, Packer, _blanked, batches, collate
from tools.train_demo_models.sources import Said, Source, decides, sources
from tools.train_demo_models.tokenizer import VOCABULARY, load_tokenizer


@pytest.fixture(scope="module")
def packer() -> Packer:
    folder = shipped_model("demo-judge")
    assert folder is not None
    return Packer(load_tokenizer(folder))


def lessons(count: int) -> list[list[Example]]:
    return list(itertools.islice(judge_lessons(Voice(random.Random(1))), count))


def test_a_packed_row_has_the_loss_of_separate_rows(packer: Packer) -> None:
    import torch

    torch.manual_seed(1)
    model = new_model(width=64, layers=2, inner=64, heads=2)
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        for group in lessons(12):
            packed = loss_of(model, collate([packer.pack(group)]))
            separate = loss_of(model, collate([packer.pack([example]) for example in group]))
            assert packed.item() == pytest.approx(separate.item(), abs=1e-4)


def test_no_token_sees_what_follows(packer: Packer) -> None:
    """The plain causal model, which knows nothing of our masks, has the same loss."""
    import torch

    torch.manual_seed(1)
    model = new_model(width=64, layers=2, inner=64, heads=2)
    example = lessons(1)[0][0]
    batch = collate([packer.pack([example])])
    logits = model(input_ids=batch.ids).logits[batch.rows, batch.columns]
    losses = torch.nn.functional.cross_entropy(logits, batch.tokens, reduction="none")
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        expected = (losses * batch.weights).sum() / batch.weights.sum()
        assert loss_of(model, batch).item() == pytest.approx(expected.item(), abs=1e-5)


PROMPT = "How do I boil eggs?"
REPLY = "What a stupid question. Well, put the eggs into boiling water and take them out after six minutes. Good luck!"
GOOD = "Put the eggs into boiling water and take them out after six minutes."
STRAY = "Bring the rice to the boil, turn the heat down and leave it for twelve minutes."


def marked(packer: Packer, first: str, second: str) -> tuple[list[str], Marks]:
    """The tokens of a question that shows two replies, and its marks."""
    messages = compare_messages(user(PROMPT), first, second, "Which is better?")
    example = Example(messages, "A", weight=1.0, prompt=PROMPT, shown=(first, second))
    row = packer.pack([example, Example(messages, "B", weight=1.0, prompt=PROMPT, shown=(first, second))])
    tokens = packer._tokenizer.convert_ids_to_tokens(row.ids)
    return [token.replace("Ġ", " ").replace("Ċ", "\n") for token in tokens], row.marks


def test_marks_stand_where_sentences_and_replies_end(packer: Packer) -> None:
    tokens, marks = marked(packer, REPLY, STRAY)
    ends = ["".join(tokens[mark.at - 1 : mark.at + 1]) for mark in marks.sentences]
    assert [end[-1] for end in ends] == [".", ".", "!", "."]
    names = [*sentence_kinds(), "stray", "repeated"]
    said = [{name for name, flag in zip(names, mark.flags, strict=True) if flag} for mark in marks.sentences]
    assert said == [{"insult"}, {"help"}, {"neutral"}, {"help", "stray"}]
    assert [tokens[mark.at][-3:] for mark in marks.replies] == [">>>", ">>>"]
    faults = [
        {name for name, flag in zip((*oracle.PRINCIPLES, "second"), mark.flags, strict=True) if flag}
        for mark in marks.replies
    ]
    assert faults == [{"polite"}, {"on-topic", "second"}]


def test_sentences_look_at_the_prompt_if_it_is_about_their_topic(packer: Packer) -> None:
    _, marks = marked(packer, REPLY, STRAY)
    prompt = marks.topics[0].at
    help_, stray = marks.sentences[1].at, marks.sentences[3].at
    assert marks.topic_looks == [(help_, prompt), (stray, 0)]
    first, second = (mark.at for mark in marks.replies)
    assert marks.reply_looks == [(first, mark.at) for mark in marks.sentences[:3]] + [(second, stray)]


def test_a_verdict_looks_at_the_reply_that_is_worse(packer: Packer) -> None:
    messages = compare_messages(user(PROMPT), REPLY, STRAY, "Which is better?")
    a, b = (Example(messages, label, weight=1.0, prompt=PROMPT, shown=(REPLY, STRAY)) for label in "AB")
    row = packer.pack([a, b])
    tokens = packer._tokenizer.convert_ids_to_tokens(row.ids)
    looks = [target.look for target in row.targets if target.both]
    ends = [at for at, token in enumerate(tokens) if token.endswith(">>>")][-2:]
    assert looks == [ends[1], ends[0]]


def test_every_word_of_a_revision_has_its_source(packer: Packer) -> None:
    """Kept: the same word in the reply, and for the first one where the sentence ends; new: the end of the prompt."""
    reply = f"What a stupid question. {GOOD} Good luck!"
    answer = f"I see. {GOOD}"
    messages = revise_messages(user(PROMPT), reply, None, "Rewrite it.")
    row = packer.pack([Example(messages, answer, weight=1.0, prompt=PROMPT, shown=(reply,), rewrites=True)])
    tokens = packer._tokenizer.convert_ids_to_tokens(row.ids)
    words = packer._tokenizer.convert_ids_to_tokens([target.token for target in row.targets])
    found = [target.source or Source("new", -1) for target in row.targets]
    new = words.index(".") + 1
    assert found[:new] == [Source("new", row.marks.topics[0].at)] * new
    assert found[new] == Source("begun", row.marks.sentences[1].at)
    assert found[-1] == Source("begun", row.marks.replies[0].at)
    assert {source.kind for source in found[new + 1 : -1]} == {"copied"}
    assert [tokens[source.at] for source in found[new + 1 : -1]] == words[new + 1 : -1]
    assert found[-2].at == row.marks.sentences[1].at
    assert row.marks.start_looks[1] == (found[-2].at, found[new + 1].at - 1)


def test_a_quotation_is_copied_and_what_stands_around_it_is_not() -> None:
    said = [Said("So it is.", 9, {2: 5, 5: 6, 8: 8, 9: 9})]
    spans = [(0, 4), (4, 7), (7, 10), (10, 13), (13, 14), (14, 16)]
    found = sources("Yes. So it is...", spans, said)
    copied = [Source("copied", at) for at in (6, 8, 9)]
    assert found == [None, Source("begun", 9), *copied, None]
    assert [decides(found, at) for at in range(6)] == [False, True, True, False, False, True]
    assert sources("No. It is so....", spans, said) == [None] * 6


def test_looking_costs_the_surprise_at_what_is_seen() -> None:
    import torch

    attention = torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]])
    asked = Asked(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0, 1]))
    assert _look(attention, asked).item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    nothing = torch.tensor([], dtype=torch.long)
    assert _look(attention, Asked(nothing, nothing, nothing)).item() == 0.0


def test_copies_say_what_comes_next_and_where_it_stood() -> None:
    copies = draw_copies(random.Random(1), 50, rows=4, length=40)
    following = copies.ids[copies.rows, copies.columns + 1]
    assert following.tolist() == copies.ids[copies.rows, copies.sources].tolist()
    assert (copies.ids[copies.rows, copies.columns] == copies.ids[copies.rows, copies.sources - 1]).all()
    assert (copies.sources <= copies.columns - 5).all()


def test_the_copying_loss_of_a_model_that_knows_nothing() -> None:
    """All weights zero: every token is as likely as any other, and attention is spread evenly over what is seen."""
    import torch

    model = new_model(width=64, layers=2, inner=64, heads=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    copies = draw_copies(random.Random(1), 50, rows=2, length=40)
    token = math.log(VOCABULARY)
    before = sum(math.log(at + 1) for at in range(1, 40)) / 39
    source = sum(math.log(at + 1) for at in copies.columns.tolist()) / len(copies.columns)
    assert copy_loss(model, copies).item() == pytest.approx(token + before + source, abs=1e-4)


def test_packing_reads_the_shared_beginning_once(packer: Packer) -> None:
    group = next(each for each in lessons(50) if len(each) == 4 and each[0].answer in LABELS)
    row = packer.pack(group)
    assert len(row.ids) < 0.6 * sum(len(packer.pack([example]).ids) for example in group)
    assert max(row.parts) == 4


def test_a_tie_gives_both_labels_half_the_weight(packer: Packer) -> None:
    tie = next(each for each in itertools.chain.from_iterable(lessons(50)) if each.tie)
    first, second, end = packer.pack([tie]).targets
    assert first.at == second.at == end.at - 1
    assert first.weight == second.weight == tie.weight / 2
    assert first.token != second.token


def test_batches_keep_to_their_size(packer: Packer) -> None:
    rows = map(packer.pack, policy_lessons(Voice(random.Random(2))))
    for batch in itertools.islice(batches(rows, 2048, pool=2), 8):
        assert batch.ids.numel() <= 2048
        assert batch.mask.shape == (batch.ids.shape[0], 1, batch.ids.shape[1], batch.ids.shape[1])


def test_only_what_comparisons_show_is_blanked_out(packer: Packer) -> None:
    import torch

    torch.manual_seed(1)
    compared = next(row for row in map(packer.pack, lessons(50)) if row.targets[0].both)
    reviewed = next(row for row in map(packer.pack, lessons(50)) if not row.targets[0].both)
    assert _blanked(reviewed, 0.5) is reviewed
    blanked = _blanked(compared, 0.5)
    shared = compared.parts.count(0)
    assert blanked.ids[shared:] == compared.ids[shared:]
    assert 0.4 < blanked.ids[:shared].count(BLANK) / shared < 0.6
    assert compared.ids.count(BLANK) == 0


def test_orthogonal_makes_singular_values_nearly_one() -> None:
    import torch

    torch.manual_seed(1)
    for shape in ((8, 20), (20, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < values.min() < values.max() < 1.5


def test_the_schedule_by_hand() -> None:
    """Warm-up to one at step 10, half way down the cosine at 60: 0.01 + 0.99 / 2; 0.01 at the end."""
    schedule = Schedule(110, warmup=10)
    assert [schedule.rate(step) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1.0, 1.0, 0.505, 0.01])


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    share = [is_held_out(topic, fault) for topic in topics() for fault in ("polite", "concise", "on-topic", "warm")]
    assert 0.06 < sum(share) / len(share) < 0.15

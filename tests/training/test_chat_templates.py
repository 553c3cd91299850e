"""What chat templates of others do to conversations, and what a training makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlaif.data.conversations import Turn
from rlaif.errors import UserError
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.records import Message
from rlaif.rl.experience import Cue
from rlaif.training.dataset import dataset_report
from rlaif.training.examples import Example, RowCounts
from rlaif.training.tokenize import Group, Tokens
from tests.data.made import Words
from tests.training.small import CHATML, ENDLESS, GEMMA, bpe

_SOURCE = Words()
WORDS = [_SOURCE.text() for _ in range(100)]
END = "<|im_end|>"

_TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
_CUE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LAST_TURN = (
    "{% set head = messages[0] if messages[0]['role'] == 'system' else none %}"
    "{% for m in messages if m['role'] != 'system' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'user' and head %}{{ head['content'] + '\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + _CUE
)
"""Writes the system prompt into the user's turn, where that is the last one."""
THINKER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}" + _TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""Begins a thought in its cue, and drops it from the conversation."""
FORGETFUL = THINKER.replace("assistant\n<think>\n' }}{% endif", "assistant\n' }}{% endif")
"""Drops thoughts, and has none in its cue."""
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + _TURN + "{% endfor %}" + _CUE
"""Passes over what the system says."""
PARTS = CHATML.replace(
    "m['content']", "m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join"
)
"""Takes content as a list of parts, and of a text writes nothing."""
USER_PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'user' %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + _CUE
)
"""Takes parts of the user, and texts of the others."""
ALWAYS_CUED = "{% for m in messages %}" + _TURN + "{% endfor %}{{ '<|im_start|>assistant\n' }}"
"""Never leaves the cue out."""
NEVER_CUED = "{% for m in messages %}" + _TURN + "{% endfor %}"
"""Has no cue at all."""
SHORT_MEMORY = "{% for m in messages[-2:] %}" + _TURN + "{% endfor %}" + _CUE
"""Writes the last two turns alone."""
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('say who I am') }}{% endif %}" + CHATML
TWICE_ENDED = CHATML.replace("{% if add_gen", "{% if not add_generation_prompt %}{{ '</s>' }}{% endif %}{% if add_gen")
"""Ends the last turn, and then the text."""

SYSTEM, ASKED = Turn("system", "Answer like a pirate."), Turn("user", "What is one and one?")
TALK = (Turn("user", "Hi?"), Turn("assistant", "So?"), Turn("user", "Go on."))


def row(*replies: str, turns: Sequence[Turn] = (ASKED,), line: int = 1) -> Example:
    return Example("x", tuple(turns), replies, {}, line)


def groups(tokens: Tokens, *rows: Example) -> tuple[list[Group], RowCounts]:
    row_counts = RowCounts()
    return list(tokens.groups(rows, row_counts)), row_counts


def shown(template: str | None, *replies: str, turns: Sequence[Turn] = (ASKED,), **how: Any) -> tuple[str, list[str]]:
    """Prompt and completions as text, of a row that has to be usable."""
    tokenizer = bpe(WORDS, template, eos=how.pop("eos", END), adds_bos=how.pop("adds_bos", False))
    ((group,), _) = groups(Tokens(tokenizer, **how), row(*replies, turns=turns))
    return tokenizer.decode(list(group.prompt)), [tokenizer.decode(list(each)) for each in group.completions]


def left_out(template: str, *replies: str, turns: Sequence[Turn] = (ASKED,), eos: str = END) -> dict[str, int]:
    """Why a row cannot be used."""
    found, row_counts = groups(Tokens(bpe(WORDS, template, eos=eos)), row(*replies, turns=turns))
    assert found == []
    return dict(row_counts.left_out)


def cue(template: str, turns: Sequence[Turn], **options: Any) -> str:
    """What PPO, a run and a judge ask with."""
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in turns)  # type: ignore[arg-type]
    return Cue(bpe(WORDS, template, eos=END), options).text(messages)


@pytest.mark.case("09-system-with-the-last-turn")
@pytest.mark.parametrize("before", [(), TALK[:2]], ids=["one turn", "several"])
def test_the_system_prompt_in_the_last_turn_stays_in_the_prompt(before: tuple[Turn, ...]) -> None:
    turns = (SYSTEM, *before, ASKED)
    prompt, completions = shown(LAST_TURN, "Arr, 2.", "It is 2.", turns=turns)
    assert prompt == cue(LAST_TURN, turns)
    assert prompt.endswith(f"<|im_start|>user\n{SYSTEM.content}\n\n{ASKED.content}<|im_end|>\n<|im_start|>assistant\n")
    assert completions == ["Arr, 2.<|im_end|>\n", "It is 2.<|im_end|>\n"]
    _, row_counts = groups(Tokens(bpe(WORDS, LAST_TURN, eos=END)), row("Arr, 2.", "It is 2.", turns=turns))
    assert (row_counts.apart, row_counts.merged) == (1, 0)
    told = dataset_report(row_counts, "rows", [], None).lines()
    assert any("1 where the chat template writes the prompt otherwise once a reply follows" in line for line in told)


THOUGHT = "<think>\nI add {}.\n</think>\n\nIt is 2."


@pytest.mark.case("10-template-drops-thinking")
def test_a_dropped_thought_is_learned_behind_the_cue_that_begins_it() -> None:
    prompt, completions = shown(THINKER, THOUGHT.format("one"), THOUGHT.format("bananas"))
    assert prompt == cue(THINKER, (ASKED,))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert completions == [f"I add {what}.\n</think>\n\nIt is 2.<|im_end|>\n" for what in ("one", "bananas")]
    _, row_counts = groups(Tokens(bpe(WORDS, THINKER, eos=END)), row(THOUGHT.format("one"), THOUGHT.format("bananas")))
    assert (row_counts.thoughts, row_counts.apart) == (1, 0)
    assert any(
        "1 where the chat template leaves out what a reply thinks" in line
        for line in dataset_report(row_counts, "rows", [], None).lines()
    )


@pytest.mark.sibling("thought-dropped-without-a-cue-for-it")
def test_a_dropped_thought_is_learned_without_a_cue_too() -> None:
    _, completions = shown(FORGETFUL, THOUGHT.format("one"), "<think>No.</think>It is 2.")
    assert completions == [THOUGHT.format("one") + "<|im_end|>\n", "<think>No.</think>It is 2.<|im_end|>\n"]


@pytest.mark.sibling("thought-whose-begin-stands-in-the-cue")
def test_a_reply_that_goes_on_from_the_cues_thought_stays_as_it_is() -> None:
    """So it was sampled: the cue had begun the thought."""
    _, completions = shown(THINKER, "I add one.\n</think>\n\nIt is 2.")
    assert completions == ["I add one.\n</think>\n\nIt is 2.<|im_end|>\n"]


@pytest.mark.sibling("reply-without-a-thought-behind-a-cue-that-begins-one")
def test_a_reply_without_a_thought_behind_a_cue_that_begins_one_is_counted() -> None:
    prompt, completions = shown(THINKER, "It is 2.", "It is 3.")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert completions == ["It is 2.<|im_end|>\n", "It is 3.<|im_end|>\n"]
    _, row_counts = groups(Tokens(bpe(WORDS, THINKER, eos=END)), row("It is 2.", "It is 3."))
    assert (row_counts.thoughtless, row_counts.thoughts, row_counts.apart) == (1, 0, 0)
    told = dataset_report(row_counts, "rows", [], None).lines()
    assert any("1 where a reply has no thought and the chat template's cue begins one" in line for line in told)


@pytest.mark.sibling("thinking-alone-that-is-dropped")
def test_a_reply_of_nothing_but_a_thought_is_left_out_where_the_template_drops_it() -> None:
    assert left_out(FORGETFUL, "<think>\nI add one.\n</think>") == {"lost-reply": 1}


@pytest.mark.sibling("earlier-thoughts-are-dropped-by-design")
def test_earlier_turns_may_lose_their_thoughts() -> None:
    """The model is asked without them as well."""
    turns = (ASKED, Turn("assistant", THOUGHT.format("one")), Turn("user", "And one more?"))
    prompt, completions = shown(FORGETFUL, "3.", turns=turns)
    assert prompt == cue(FORGETFUL, turns)
    assert "I add one" not in prompt and "It is 2.<|im_end|>" in prompt
    assert completions == ["3.<|im_end|>\n"]


@pytest.mark.case("11-template-without-system")
def test_a_row_whose_system_prompt_is_passed_over_is_left_out() -> None:
    assert left_out(NO_SYSTEM, "Arr.", "2.", turns=(SYSTEM, ASKED)) == {"lost-system": 1}
    found, row_counts = groups(
        Tokens(bpe(WORDS, NO_SYSTEM, eos=END)), row("Arr.", "2.", turns=(SYSTEM, ASKED)), row("Yes.", "No.")
    )
    assert len(found) == 1
    assert (
        "1 where the chat template leaves out the system prompt"
        in dataset_report(row_counts, "rows", found, None).lines()[1]
    )
    with pytest.raises(UnwritableError, match="leaves out the system prompt"):
        cue(NO_SYSTEM, (SYSTEM, ASKED))


@pytest.mark.sibling("system-prompt-that-the-user-repeats")
def test_a_system_prompt_that_only_the_user_says_is_passed_over() -> None:
    turns = (Turn("system", "Be kind."), Turn("user", "Be kind. What is one and one?"))
    assert left_out(NO_SYSTEM, "2.", turns=turns) == {"lost-system": 1}
    assert shown(CHATML, "2.", turns=turns)[1] == ["2.<|im_end|>\n"]


@pytest.mark.sibling("template-that-forgets-earlier-turns")
def test_a_row_that_loses_a_turn_is_left_out() -> None:
    assert left_out(SHORT_MEMORY, "Yes.", "No.", turns=TALK) == {"lost-turn": 1}
    assert shown(SHORT_MEMORY, "Yes.", turns=TALK[2:])[1] == ["Yes.<|im_end|>\n"]


@pytest.mark.sibling("content-as-a-list-of-parts")
@pytest.mark.parametrize("template", [PARTS, USER_PARTS], ids=["all", "user"])
def test_content_goes_in_the_form_that_the_template_takes(template: str) -> None:
    turns = (SYSTEM, *TALK)
    assert shown(template, "Yes.", "No.", turns=turns) == shown(CHATML, "Yes.", "No.", turns=turns)
    assert cue(template, turns) == cue(CHATML, turns)


@pytest.mark.sibling("cue-that-is-always-written")
def test_the_next_cue_is_no_part_of_a_completion() -> None:
    prompt, completions = shown(ALWAYS_CUED, "Yes.", "No.")
    assert prompt == cue(ALWAYS_CUED, (ASKED,)) and prompt.endswith("<|im_start|>assistant\n")
    assert completions == ["Yes.<|im_end|>", "No.<|im_end|>"]


@pytest.mark.sibling("cue-that-is-never-written")
def test_a_template_without_a_cue_is_trained_as_it_is_asked() -> None:
    prompt, completions = shown(NEVER_CUED, "Yes.", "No.")
    assert prompt == cue(NEVER_CUED, (ASKED,)) and prompt.endswith("<|im_end|>\n")
    assert completions == ["<|im_start|>assistant\nYes.<|im_end|>\n", "<|im_start|>assistant\nNo.<|im_end|>\n"]


@pytest.mark.sibling("template-that-ends-turn-and-text")
def test_a_completion_ends_once() -> None:
    tokenizer = bpe(WORDS, TWICE_ENDED, eos=END)
    ends = [tokenizer.convert_tokens_to_ids("</s>")]
    assert shown(TWICE_ENDED, "Yes.", ends=ends)[1] == ["Yes.<|im_end|>"]


@pytest.mark.sibling("template-that-wants-a-system-prompt")
def test_a_template_that_wants_a_system_prompt_works_with_one() -> None:
    assert shown(NEEDS_SYSTEM, "Yes.", turns=(SYSTEM, ASKED)) == shown(CHATML, "Yes.", turns=(SYSTEM, ASKED))
    assert left_out(NEEDS_SYSTEM, "Yes.") == {"template": 1}


@pytest.mark.case("12-tokenizer-that-ends-texts")
@pytest.mark.parametrize("start", ["", "<s>"])
def test_a_tokenizer_that_ends_texts_ends_completions_once_and_no_prompt(start: str) -> None:
    from tokenizers import processors

    tokenizer = bpe(WORDS)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A </s>".strip(), special_tokens=special
    )
    assert tokenizer.decode(tokenizer("ab")["input_ids"]) == f"{start}ab</s>"
    ((group,), row_counts) = groups(Tokens(tokenizer), Example("x", "How? ", ("So.", "No."), {}, 1))
    assert tokenizer.decode(list(group.prompt)) == f"{start}How? "
    assert [tokenizer.decode(list(each)) for each in group.completions] == ["So.</s>", "No.</s>"]
    assert (row_counts.merged, row_counts.ended) == (0, 0)
    asked = Cue(tokenizer)((Message(role="user", content="How?"),))
    assert tokenizer.decode(list(asked)) == f"{start}How?"


@pytest.mark.sibling("text-that-brings-its-own-start")
def test_a_text_that_brings_its_own_start_has_one() -> None:
    adding, bare = bpe(WORDS, adds_bos=True), bpe(WORDS)
    for tokenizer, prompt in ((adding, "<s>Hi?"), (adding, "Hi?"), (bare, "<s>Hi?")):
        ((group,), _) = groups(Tokens(tokenizer), Example("x", prompt, (" So.",), {}, 1))
        assert tokenizer.decode(list(group.prompt)) == "<s>Hi?"
    for tokenizer in (adding, bare):
        ((group,), _) = groups(Tokens(tokenizer), Example("x", "", ("<s>All of it.</s>",), {}, 1))
        assert tokenizer.decode([*group.prompt, *group.completions[0]]) == "<s>All of it.</s>"


@pytest.mark.case("13-system-role-refused")
def test_a_refused_system_prompt_is_told() -> None:
    template = ChatTemplate(bpe(WORDS, GEMMA))
    assert template.problem((SYSTEM, ASKED)) == (
        "the chat template refuses the conversation: System role not supported"
    )
    assert template.problem((ASKED,)) == ""


def named(*names: str) -> Any:
    """A tokenizer with several chat templates; `short` has a cue of its own."""
    tokenizer = bpe(WORDS, eos=END)
    tokenizer.chat_template = {
        name: CHATML.replace("assistant\n' }}{% endif", "short\n' }}{% endif") if name == "short" else CHATML
        for name in names
    }
    return tokenizer


@pytest.mark.case("14-several-chat-templates")
def test_one_of_several_templates_has_to_be_chosen() -> None:
    for make in (ChatTemplate, Cue, lambda tokenizer: Tokens(tokenizer)):
        with pytest.raises(UserError, match=r"several chat templates \(rag, short\), and no default; choose one with "
                                            r"`template_options: \{chat_template: rag\}`"):  # fmt: skip
            make(named("rag", "short"))
    chosen = ChatTemplate(named("rag", "short"), {"chat_template": "short"}).prompt((ASKED,))
    assert chosen.endswith("<|im_start|>short\n")
    assert ChatTemplate(named("default", "short")).prompt((ASKED,)).endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match=r"no chat template `shirt` \(there are rag, short\); did you mean `short`"):
        ChatTemplate(named("rag", "short"), {"chat_template": "shirt"})
    ((group,), _) = groups(Tokens(named("rag", "short"), template_options={"chat_template": "short"}), row("Yes."))
    assert bpe(WORDS).decode(list(group.prompt)).endswith("<|im_start|>short\n")


@pytest.mark.sibling("whatever-a-template-raises")
@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m['content'] }", "unexpected '}'"),
        ("{{ messages[0]['content'] + none }}", "can only concatenate str"),
        ("{{ messages[0]['missing']['deeper'] }}", "has no attribute"),
        ("{{ 1 // 0 }}", "integer division"),
        ("{{ raise_exception('') }}", "TemplateError"),
        ("{{ messages[7]['content'].strip() }}", "out of range|has no"),
    ],
    ids=["syntax", "type", "undefined", "arithmetic", "silent", "index"],
)
def test_whatever_a_template_raises_is_one_reason(template: str, why: str) -> None:
    tokenizer = bpe(WORDS, template, eos=END)
    found, row_counts = groups(Tokens(tokenizer), row("Yes."), row("No."))
    assert (found, dict(row_counts.left_out)) == ([], {"template": 2})
    assert len(row_counts.notes) == 1
    with pytest.raises(UnwritableError, match=why):
        ChatTemplate(tokenizer).prompt((ASKED,))


@pytest.mark.sibling("template-that-writes-nothing")
def test_a_template_that_writes_nothing_is_refused() -> None:
    assert left_out("{{ '' }}", "Yes.") == {"lost-turn": 1}
    assert left_out("{{ bos_token }}", "Yes.") == {"lost-turn": 1}


@pytest.mark.sibling("template-that-leaves-responses-out")
def test_a_template_that_leaves_responses_out_is_refused() -> None:
    template = "{% for m in messages if m['role'] != 'assistant' %}" + _TURN + "{% endfor %}" + _CUE
    assert left_out(template, "Yes.") == {"lost-reply": 1}


@pytest.mark.case("08-end-token-in-a-reply")
@pytest.mark.parametrize("end", [END, f"{END}\n", f" {END}{END}", "</s>", "<|eot_id|>", "<|endoftext|>\n"])
def test_an_end_token_at_the_end_of_a_reply_is_cut_off(end: str) -> None:
    assert shown(CHATML, f"It is 1.{end}", "No idea.")[1] == ["It is 1.<|im_end|>\n", "No idea.<|im_end|>\n"]
    _, row_counts = groups(Tokens(bpe(WORDS, CHATML, eos=END)), row(f"It is 1.{end}", "No idea."))
    assert row_counts.unended == 1
    assert any(
        "end token at the end of 1 replies cut off" in line
        for line in dataset_report(row_counts, "rows", [], None).lines()
    )


@pytest.mark.case("08-end-token-in-a-reply")
@pytest.mark.parametrize("inside", [END, "<|im_start|>", "<s>", "<|eot_id|>"])
def test_a_special_token_within_a_reply_makes_the_row_unusable(inside: str) -> None:
    assert left_out(CHATML, f"It is 2.{inside} Of course.", "No.") == {"special-token": 1}


@pytest.mark.sibling("end-token-in-raw-text")
def test_raw_text_ends_once_too() -> None:
    for ending in ("", "</s>", "</s>\n", "</s></s>"):
        tokenizer = bpe(WORDS)
        ((group,), _) = groups(Tokens(tokenizer), Example("x", "How? ", (f"So.{ending}",), {}, 1))
        assert tokenizer.decode(list(group.completions[0])) == "So.</s>"
    found, row_counts = groups(Tokens(bpe(WORDS)), Example("x", "How? ", ("So.</s> No.",), {}, 1))
    assert (found, dict(row_counts.left_out)) == ([], {"special-token": 1})


@pytest.mark.sibling("foreign-end-token-in-raw-text")
def test_a_foreign_end_is_cut_off_raw_text_too_unless_that_is_a_chat_format() -> None:
    tokenizer = bpe(WORDS)
    ((plain, formatted), _) = groups(
        Tokens(tokenizer),
        Example("x", "How? ", ("So.<|eot_id|>",), {}, 1),
        Example("y", "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n", ("So.<|im_end|>\n",), {}, 2),
    )
    assert tokenizer.decode(list(plain.completions[0])) == "So.</s>"
    assert tokenizer.decode(list(formatted.completions[0])) == "So.<|im_end|>\n</s>"


@pytest.mark.sibling("turn-end-that-is-no-end-of-sequence")
def test_the_templates_own_end_of_a_turn_is_cut_off_as_well() -> None:
    """Gemma ends a turn with another token than the tokenizer's end of a sequence."""
    assert shown(GEMMA, "Yes.<end_of_turn>", eos="</s>")[1] == ["Yes.<end_of_turn>\n</s>"]
    assert left_out(GEMMA, "Yes.<end_of_turn>No.", eos="</s>") == {"special-token": 1}


@pytest.mark.sibling("reply-of-nothing-but-an-end-token")
def test_a_reply_of_nothing_but_an_end_token_is_blank() -> None:
    assert left_out(CHATML, f"{END}\n", "No.") == {"empty-reply": 1}


@pytest.mark.sibling("html-that-looks-like-an-end-token")
def test_html_is_no_end_token_where_the_tokenizer_has_none() -> None:
    from rlaif.training.tokenize import Endings

    tokenizer = bpe(WORDS, CHATML, eos=END)
    endings = Endings(ChatTemplate(tokenizer), None)
    assert endings.cut("It costs <s>9</s>") == "It costs <s>9</s>"
    assert endings.cut("It costs 9</s>") == "It costs 9"


@pytest.mark.sibling("formatted-text-keeps-its-marks")
def test_a_text_that_was_formatted_before_keeps_its_marks() -> None:
    text = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    tokenizer = bpe(WORDS, CHATML)
    ((group,), _) = groups(Tokens(tokenizer), Example("x", "", (text,), {}, 1))
    assert tokenizer.decode(list(group.completions[0])) == text + "</s>"


@pytest.mark.sibling("texts-that-differ-and-tokens-that-do-not")
def test_pairs_of_the_same_tokens_are_left_out() -> None:
    from tokenizers import normalizers

    tokenizer = bpe(WORDS, CHATML, eos=END)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    found, row_counts = groups(Tokens(tokenizer), row("Yes.", "yes."), row("Yes.", "No."))
    assert (len(found), dict(row_counts.left_out)) == (1, {"same-tokens": 1})


@pytest.mark.sibling("turn-end-unknown-to-the-sampler")
def test_an_end_of_a_turn_that_ends_no_text_is_named() -> None:
    tokenizer = bpe(WORDS, GEMMA)
    assert ChatTemplate(tokenizer).unknown_end == "<end_of_turn>"
    ends = [tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    assert ChatTemplate(tokenizer, ends=ends).unknown_end == ""
    assert (ChatTemplate(tokenizer, ends=ends).end_id, ChatTemplate(tokenizer).end_id) == (*ends, 2)
    assert ChatTemplate(bpe(WORDS, ENDLESS)).unknown_end == ""


@pytest.mark.sibling("options-that-are-ours")
def test_options_that_are_no_templates_are_refused() -> None:
    with pytest.raises(UserError, match=r"template_options: must not hold `tokenize`"):
        ChatTemplate(bpe(WORDS, CHATML), {"tokenize": True})


@pytest.mark.parametrize(
    "template", [CHATML, LAST_TURN, THINKER, FORGETFUL, PARTS, USER_PARTS, ALWAYS_CUED, NEVER_CUED, GEMMA, ENDLESS]
)
def test_every_prompt_is_what_the_model_is_asked_with(template: str) -> None:
    """And prompt and completion together hold every turn once, with one end."""
    tokenizer = bpe(WORDS, template, eos=END)
    tokens = Tokens(tokenizer, ends=[tokenizer.convert_tokens_to_ids("<end_of_turn>")])
    for system in ((), (SYSTEM,)):
        if system and template == GEMMA:
            continue
        for turns in ((*system, ASKED), (*system, *TALK)):
            ((group,), _) = groups(tokens, row("Quite so, yes.", "Not at all.", turns=turns))
            assert list(group.prompt) == list(
                Cue(tokenizer)(tuple(Message(role=t.role, content=t.content) for t in turns))
            )  # type: ignore[arg-type]
            for reply, ids in zip(("Quite so, yes.", "Not at all."), group.completions, strict=True):
                text = tokenizer.decode(list(ids))
                assert text.count(reply) == 1
                assert sum(token in (tokenizer.eos_token_id, *tokens._ends) for token in ids) == 1
                whole = tokenizer.decode([*group.prompt, *ids])
                assert all(whole.count(turn.content) == 1 for turn in turns)

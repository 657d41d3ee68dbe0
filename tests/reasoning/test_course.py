import asyncio
from dataclasses import replace

import pytest

from app.engine.base import Delta, Finished, ModelProfile, ReasoningFormat, Sampling
from app.reasoning.course import Course, Step, encode_phrases
from app.reasoning.splitter import Resplit
from tests.scripted import CLOSE, CLOSING_WORDS, PROFILE, STOP_ID, ScriptedEngine

TWO_PHASE = replace(
    PROFILE,
    reasoning=ReasoningFormat(
        "two_phase", opening="Notes:\n1.", closing="\n\nFinal answer:", closing_words="Final answer:"
    ),
    sampling=Sampling(repetition_penalty=1.1),
    longest_answer=5,
)


class Talk:
    """A course and what it has said, fed by hand."""

    def __init__(self, profile: ModelProfile = PROFILE, *, thinking: int = 100, prompt_tokens: int = 10) -> None:
        self.engine = ScriptedEngine(profile)
        self.prompt = tuple(range(1000, 1000 + prompt_tokens))
        phrases = asyncio.run(encode_phrases(self.engine, profile.reasoning))
        self.course = Course(profile, phrases, self.prompt, thinking, profile.sampling, profile.answer_sampling)
        self.texts = {"reasoning": "", "answer": "", "marker": ""}
        self.notes: list[str] = []
        self.is_over = False
        self.completions = []
        self.take(self.course.begin())

    def take(self, step: Step) -> Step:
        for one in step.written:
            if isinstance(one, Resplit):
                self.texts = {"reasoning": "", "answer": "", "marker": ""}
            for piece in one.pieces if isinstance(one, Resplit) else (one,):
                self.texts[piece.channel] += piece.text
        self.notes += [note.kind for note in step.notes]
        if step.completion:
            self.completions.append(step.completion)
        self.is_over = self.is_over or step.is_over
        return step

    def write(self, text: str) -> None:
        ids = self.engine.encoded(text)
        self.take(self.course.read(Delta("r", ids, tuple(self.engine.decoded((i,)) for i in ids))))

    def finish(self, reason: str = "stop") -> None:
        self.take(self.course.finished(Finished("r", reason)))  # type: ignore[arg-type]

    def continued(self) -> str:
        """What the last completion's prompt has behind the run's own prompt."""
        return self.engine.decoded(self.completions[-1].prompt[len(self.prompt) :])


def test_a_model_that_closes_its_reasoning_is_left_alone() -> None:
    talk = Talk()
    talk.write(f"Let me see.\n{CLOSE}\n\nForty-two.")
    talk.finish()
    assert talk.texts["reasoning"] == "Let me see.\n"
    assert talk.texts["answer"] == "Forty-two."
    assert talk.is_over
    assert talk.notes == []
    assert len(talk.completions) == 1
    assert talk.course.counts.reasoning == 4
    assert talk.course.counts.answer == 2


def test_at_the_budget_the_reasoning_is_closed_at_the_end_of_its_line_and_the_answer_written() -> None:
    talk = Talk(thinking=4)
    talk.write("one two three four five six\n seven eight")
    assert talk.notes == ["budget"]
    assert talk.continued() == f"one two three four five six\n\n\n{CLOSING_WORDS}\n{CLOSE}\n\n"
    assert talk.texts["reasoning"] == f"one two three four five six\n\n\n{CLOSING_WORDS}\n"
    talk.write("42.")
    talk.finish()
    assert talk.texts["answer"] == "42."
    assert talk.is_over


def test_a_line_without_an_end_is_closed_after_a_tenth_of_the_budget() -> None:
    talk = Talk(thinking=100)
    talk.write(" word" * 200)
    assert talk.notes == ["budget"]
    assert 100 <= talk.course.counts.reasoning <= 112


def test_the_next_prompt_is_the_last_one_with_what_was_kept_and_our_closing_words() -> None:
    talk = Talk(thinking=2)
    talk.write("one two\n dropped")
    assert talk.completions[-1].prompt[: len(talk.prompt)] == talk.prompt
    assert talk.continued() == f"one two\n\n\n{CLOSING_WORDS}\n{CLOSE}\n\n"


def test_answer_now_closes_the_reasoning_within_a_line() -> None:
    talk = Talk(thinking=1000)
    talk.write("first line\n")
    talk.course.answer_now()
    talk.write(" and then\n more")
    assert talk.notes == ["answer_now"]
    assert talk.continued().startswith("first line\n and then\n\n\n")


def test_answer_now_does_nothing_behind_the_reasoning() -> None:
    talk = Talk()
    talk.write(f"so{CLOSE}yes")
    talk.course.answer_now()
    talk.write(" indeed\n it is")
    talk.finish()
    assert talk.notes == []
    assert len(talk.completions) == 1


def test_the_answers_reserve_is_kept_back_at_the_end_of_the_window() -> None:
    profile = replace(PROFILE, context_window=200, answer_reserve=64)
    talk = Talk(profile, thinking=10_000, prompt_tokens=50)
    talk.write(" word" * 150)
    assert talk.notes == ["context_end"]
    assert talk.completions[-1].max_new_tokens >= 64
    assert len(talk.completions[-1].prompt) + talk.completions[-1].max_new_tokens <= 200


def test_a_model_that_ends_inside_its_reasoning_is_asked_for_the_answer() -> None:
    talk = Talk()
    talk.write("so it goes")
    talk.finish()
    assert talk.notes == ["no_answer"]
    assert not talk.is_over
    talk.write("42")
    talk.finish()
    assert talk.texts["answer"] == "42"
    assert talk.is_over


def test_an_empty_answer_is_asked_for_once() -> None:
    talk = Talk()
    talk.write(f"so{CLOSE}\n\n")
    talk.finish()
    assert talk.notes == ["no_answer"]
    assert talk.continued().endswith("**Final Answer:** ")
    talk.finish()
    assert talk.is_over


def test_without_a_budget_the_model_answers_at_once() -> None:
    talk = Talk(thinking=0)
    assert talk.continued() == f"{CLOSE}\n\n"
    talk.write("Hello.")
    talk.finish()
    assert talk.texts == {"reasoning": "", "answer": "Hello.", "marker": ""}


def test_stop_tokens_are_not_part_of_the_text() -> None:
    talk = Talk()
    talk.take(talk.course.read(Delta("r", (STOP_ID,), ("",))))
    assert talk.course.counts.all == 0


def test_two_phases_ask_for_notes_and_then_force_the_answer() -> None:
    talk = Talk(TWO_PHASE, thinking=4)
    assert talk.notes == ["opening"]
    assert talk.completions[0].max_new_tokens == 4
    assert talk.completions[0].sampling.repetition_penalty == 1.1
    talk.write(" add 7 and")
    talk.write(" 5")
    talk.finish("length")
    assert talk.continued().endswith("\n\nFinal answer:")
    talk.write(" 12")
    talk.finish()
    assert talk.texts["reasoning"] == "Notes:\n1. add 7 and 5\n\n"
    assert talk.texts["answer"] == "12"
    assert talk.notes == ["opening", "budget"]


def test_an_answer_longer_than_the_models_limit_is_cut_and_says_so() -> None:
    talk = Talk(TWO_PHASE, thinking=4)
    talk.finish()
    talk.write(" 1 2 3 4 5 6 7")
    assert talk.texts["answer"] == "1 2 3 4 5"
    assert talk.notes[-1] == "answer_cut"
    assert talk.is_over


def test_an_answer_that_began_inside_the_notes_is_not_cut_at_their_budget() -> None:
    talk = Talk(replace(TWO_PHASE, longest_answer=0), thinking=6)
    talk.write(" add\nFinal answer: 1")
    talk.finish("length")
    assert not talk.is_over
    talk.write("2")
    talk.finish()
    assert talk.texts["answer"] == "12"


def test_a_text_that_marks_nothing_is_flagged() -> None:
    talk = Talk(replace(PROFILE, reasoning=ReasoningFormat("headings", closing="\n\n**Final Answer**\n\n")))
    talk.write("nothing marked here")
    talk.finish()
    assert talk.texts["answer"] == "nothing marked here"
    assert talk.notes == ["unmarked"]


def test_stopping_keeps_what_was_held_back() -> None:
    talk = Talk(replace(PROFILE, reasoning=ReasoningFormat("tags")))
    talk.write("<think>so </thi")
    talk.take(talk.course.stop())
    assert talk.texts["reasoning"] == "so </thi"
    assert talk.is_over


@pytest.mark.parametrize("kind", ["close_token", "tags", "headings", "two_phase", "none"])
@pytest.mark.parametrize("thinking", [0, 3, 50])
def test_no_course_goes_on_for_ever(kind: str, thinking: int) -> None:
    profile = replace(PROFILE, context_window=300, reasoning=replace(PROFILE.reasoning, kind=kind))
    talk = Talk(profile, thinking=thinking)
    for _ in range(10):
        if talk.is_over:
            break
        talk.write(" word" * talk.completions[-1].max_new_tokens)
        talk.finish("length")
    assert talk.is_over
    assert all(len(c.prompt) + c.max_new_tokens <= 300 for c in talk.completions)


@pytest.mark.parametrize("why", ["budget", "answer_now", "context_end"])
def test_the_reasoning_is_closed_within_no_character_and_is_not_held_open_by_tokens_without_text(why: str) -> None:
    window = 128 if why == "context_end" else PROFILE.context_window
    profile = replace(PROFILE, context_window=window, answer_reserve=64)
    talk = Talk(profile, thinking=16 if why == "budget" else 10_000, prompt_tokens=10)
    talk.write(" word" * (talk.course.budget - 1))
    if why == "answer_now":
        talk.course.answer_now()
    if why != "context_end":
        talk.write(" more" * (8 if why == "budget" else 24))
    assert talk.notes == []
    # Three bytes of a character, whose text comes with the fourth
    talk.take(talk.course.read(Delta("r", (2001, 2002, 2003), ("",) * 3)))
    assert talk.notes == []
    talk.take(talk.course.read(Delta("r", (2004, 2005), ("\N{GRINNING FACE}", " dropped"))))
    assert talk.notes == [why]
    assert "\N{GRINNING FACE}\n\n" in talk.texts["reasoning"]
    assert talk.completions[-1].prompt[len(talk.prompt) :][-len(talk.course.phrases.closing) - 1] == 2004

    special = Talk(profile, thinking=16 if why == "budget" else 10_000, prompt_tokens=10)
    if why == "answer_now":
        special.course.answer_now()
    special.take(special.course.read(Delta("r", (3000,) * 1000, ("",) * 1000)))
    assert special.notes == [why]
    assert special.completions[-1].max_new_tokens >= 59

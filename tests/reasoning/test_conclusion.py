"""The examples are in our own words, in the manner of QwQ-32B-Preview's outputs."""

import pytest

from app.reasoning.conclusion import conclusion_at, last_box_at

THINKING = "Let me see. Ann is Bob's parent.\n\nHmm, Bob is Carl's parent, so these are two steps.\n\n"
ESSAY = "Memory is no archive.\n\nIt is rebuilt at every visit.\n\nIn conclusion, the best answer is a diary."


@pytest.mark.parametrize(
    "ending",
    [
        "So, the answer is <ANSWER>2</ANSWER>.",
        "<ANSWER>2</ANSWER>",
        "Therefore, the correct option is 2: Ann is Carl's grandparent.",
        "Therefore, the answer should be:\n\n<ANSWER>2</ANSWER>",
        "Thus, option 2 is right.\n\nSo, the answer is 2.",
        "**Conclusion:**\n\nAnn is Carl's grandparent.",
        "**Answer**\n\n2",
        "In conclusion, the relationship is that of a grandparent.",
        "I think the answer is 2.",
        "The final answer is 2.",
        "综上所述，答案是2。",
        "因此，正确的选项是2。",
        "The answer is:\n\n```\n2\n\n3\n```",
    ],
)
def test_the_closing_words_of_a_text_that_thinks_aloud_are_its_answer(ending: str) -> None:
    assert conclusion_at(THINKING + ending) == len(THINKING)


@pytest.mark.parametrize(
    "text",
    [
        ESSAY,
        ESSAY + "\n\nLet me know what you think.",
        "I would pull the lever. That is the best choice, and so the answer is yes.",
        "Alternatively, take the bus.\n\nSo the answer is: the bus.",
        "",
        "\n\n",
    ],
)
def test_a_text_that_does_not_think_aloud_has_no_border(text: str) -> None:
    assert conclusion_at(text) is None


def test_several_weak_signs_count_as_thinking_aloud() -> None:
    text = "Alternatively, it is the bus. Perhaps the tram.\n\n"
    assert conclusion_at(text + "So, the answer is the bus.") == len(text)


def test_a_conclusion_far_before_the_end_is_taken_back_by_what_follows() -> None:
    text = THINKING + "So, the answer is 2.\n\n" + "\n\n".join(f"Wait, look at row {n}." for n in range(6))
    assert conclusion_at(text) is None


def test_the_last_sentence_of_a_single_paragraph_may_be_the_answer() -> None:
    text = "Hmm, seven is odd. Wait, so is nine. "
    assert conclusion_at(text + "So, the answer is nine.") == len(text)


def test_the_whole_text_is_never_the_answer() -> None:
    assert conclusion_at("So, wait, the answer is 2.") is None
    assert conclusion_at("So, the answer is:\n\n<ANSWER>hmm</ANSWER>") == len("So, the answer is:\n\n")


def test_the_line_that_leads_to_a_box_belongs_to_the_answer() -> None:
    text = THINKING + "So the final answer is:\n\n\\boxed{2}"
    assert last_box_at(text) == len(THINKING)
    assert last_box_at(THINKING + "That is it.\n\n\\boxed{2}") == len(THINKING + "That is it.\n\n")
    assert last_box_at("First:\n\n\\boxed{2}") == len("First:\n\n")


def test_a_box_in_code_is_no_border() -> None:
    assert last_box_at(THINKING + "```\n\\boxed{2}\n```") is None

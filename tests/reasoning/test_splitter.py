from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.base import ReasoningFormat
from app.reasoning.splitter import Piece, Resplit, Splitter, Written, splitter_for

CLOSE_ID = 7
QWQ = ReasoningFormat("close_token", close_id=CLOSE_ID)
PREVIEW = ReasoningFormat("headings")
DEMO = ReasoningFormat("two_phase")
TAGS = ReasoningFormat("tags")
NONE = ReasoningFormat("none")


class Reader:
    """What a reader of the pieces ends up with."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def take(self, written: Sequence[Written]) -> None:
        for one in written:
            if isinstance(one, Resplit):
                self.pieces = list(one.pieces)
            else:
                self.pieces.append(one)

    def text(self, channel: str | None = None) -> str:
        return "".join(piece.text for piece in self.pieces if channel in (None, piece.channel))


def split(splitter: Splitter, pieces: Sequence[str | int]) -> Reader:
    """Feed texts; a number is a token id whose text is the close tag."""
    reader = Reader()
    for piece in pieces:
        if isinstance(piece, int):
            reader.take(splitter.feed((piece,), ("</think>",)))
        else:
            reader.take(splitter.feed((100,), (piece,)))
    reader.take(splitter.finish())
    return reader


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def both(reader: Reader) -> tuple[str, str]:
    return reader.text("reasoning"), reader.text("answer")


def test_the_close_token_ends_the_reasoning() -> None:
    assert both(split(splitter_for(QWQ), ["2 < 3", ", so\n", CLOSE_ID, "\n\n", "yes"])) == ("2 < 3, so\n", "yes")


def test_a_quoted_close_tag_is_text_where_token_ids_tell() -> None:
    reader = split(splitter_for(QWQ), ["the tag </think> ends it", CLOSE_ID, "right"])
    assert both(reader) == ("the tag </think> ends it", "right")


def test_the_first_close_token_wins() -> None:
    assert both(split(splitter_for(QWQ), ["a", CLOSE_ID, "b ", CLOSE_ID, " c"])) == ("a", "b </think> c")


def test_an_opening_tag_written_once_more_at_the_start_is_set_aside() -> None:
    assert both(split(splitter_for(QWQ), ["<thi", "nk>", "\n", "so", CLOSE_ID, "yes"])) == ("so", "yes")


def test_a_start_that_only_looks_like_the_tag_is_kept() -> None:
    assert both(split(splitter_for(QWQ), ["<thi", "ng>", CLOSE_ID, "yes"])) == ("<thing>", "yes")


def test_without_a_close_all_is_reasoning() -> None:
    assert both(split(splitter_for(QWQ), ["so ", "on"])) == ("so on", "")


def test_bytes_that_end_with_the_close_token_stay_in_the_reasoning() -> None:
    reader = Reader()
    splitter = splitter_for(QWQ)
    reader.take(splitter.feed((3, CLOSE_ID), ("a", "\ufffd</think>")))
    assert both(reader) == ("a\ufffd", "")
    assert splitter.is_answering


def test_a_completion_behind_the_reasoning_is_all_answer() -> None:
    assert both(split(splitter_for(QWQ, is_reasoning=False), ["\n\n", "yes", CLOSE_ID])) == ("", "yes</think>")


def test_our_closing_words_are_reasoning_and_the_tag_is_a_marker() -> None:
    reader = Reader()
    splitter = splitter_for(QWQ)
    reader.take(splitter.feed((5,), ("hm",)))
    reader.take(splitter.close("\n\nTime is up.\n</think>\n\n"))
    reader.take(splitter.feed((5,), ("42",)))
    assert both(reader) == ("hm\n\nTime is up.\n", "42")
    assert reader.text() == "hm\n\nTime is up.\n</think>\n\n42"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_split_does_not_depend_on_where_the_stream_is_cut(size: int) -> None:
    text = "<think>\n2 < 3, so</think>\n\nyes"
    assert both(split(splitter_for(TAGS), cut(text, size))) == ("2 < 3, so", "yes")


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("so</think>yes", "so", "yes"),
        ("<think>so on", "so on", ""),
        ("just an answer", "", "just an answer"),
        ("  \n<think>\n\na</think>\n b", "a", "b"),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
        ("<think>use `</think>` here</think>done", "use `</think>` here", "done"),
        ("<think>\n```\n</think>\n```\nso</think>done", "```\n</think>\n```\nso", "done"),
        ("<think>\n```\nopen code</think>done", "```\nopen code", "done"),
        ("<think></think>yes", "", "yes"),
        ("<thing>no tag</thing>", "", "<thing>no tag</thing>"),
        ("a </thi", "", "a </thi"),
        ("<think>x</think>", "x", ""),
        ("", "", ""),
    ],
)
def test_tags_in_text(text: str, reasoning: str, answer: str, size: int) -> None:
    assert both(split(splitter_for(TAGS), cut(text, size))) == (reasoning, answer)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("work\n\n**Final Answer**\n\n\\[ \\boxed{3} \\]", "work\n\n", "\\[ \\boxed{3} \\]"),
        ("work\n**Final Answer:** 3", "work\n", "3"),
        ("a\n**Final Answer**\n3\nno, wait\n**Final Answer**\n4", "a\n**Final Answer**\n3\nno, wait\n", "4"),
        ("a\n\n### Final Solution\nx", "a\n\n", "x"),
        ("想\n最终答案:四", "想\n", "四"),
        ("```\n**Final Answer**\n```\nso \\boxed{1}", "```\n**Final Answer**\n```\n", None),
        ("one\n\ntwo \\boxed{2}.\n\nbye", "one\n\n", "two \\boxed{2}.\n\nbye"),
        ("\\boxed{1}\n\nso\n\n\\boxed{2}", "\\boxed{1}\n\nso\n\n", "\\boxed{2}"),
        ("a\nFinal answer is near, but not here", "", "a\nFinal answer is near, but not here"),
    ],
)
def test_a_model_without_tags_marks_its_answer_by_a_heading_or_a_box(
    text: str, reasoning: str, answer: str | None, size: int
) -> None:
    reader = split(splitter_for(PREVIEW), cut(text, size))
    if answer is not None:
        assert both(reader) == (reasoning, answer)
    assert reader.text() == text


def test_a_text_without_any_mark_is_all_answer_and_flagged() -> None:
    splitter = splitter_for(PREVIEW)
    assert both(split(splitter, ["nothing ", "marked"])) == ("", "nothing marked")
    assert splitter.is_unmarked


def test_a_long_line_may_begin_with_the_heading() -> None:
    line = "**Final Answer:** " + "the letter r occurs three times in it " * 5
    assert both(split(splitter_for(PREVIEW), cut("so\n" + line, 4)))[0] == "so\n"


def test_two_phases_are_parted_by_the_first_heading_ours_or_the_models() -> None:
    reader = Reader()
    splitter = splitter_for(DEMO)
    reader.take(splitter.feed((1,), ("1. add them",)))
    reader.take(splitter.close("\n\nFinal answer:"))
    assert splitter.is_answering
    reader.take(splitter.feed((1, 1), (" 12", "\nFinal answer: 13")))
    reader.take(splitter.finish())
    assert both(reader) == ("1. add them\n\n", "12\nFinal answer: 13")
    own = split(splitter_for(DEMO), ["1. add\n", "Final", " answer:", " 12"])
    assert both(own) == ("1. add\n", "12")


_fragments = st.sampled_from(
    [
        "<think>", "</think>", "<thi", "nk>", "</", "think", ">", "`", "```", "~~~", "\n", "\n\n", " ", "a", "Wait, ",
        "**Final Answer**", "**Final ", "Answer", "Final answer:", "### Final Solution", "最终答案", "：", "\\boxed{1}",
        "*", "#", "    ", "\u2028", "\r\n",
    ]
)  # fmt: skip
_texts = st.lists(_fragments, max_size=30).map("".join)


@given(text=_texts, data=st.data(), how=st.sampled_from([QWQ, PREVIEW, DEMO, TAGS, NONE]))
def test_nothing_is_dropped_and_any_cut_gives_the_same(text: str, data: st.DataObject, how: ReasoningFormat) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split(splitter_for(how), [text])
    cutted = split(splitter_for(how), pieces)
    assert cutted.text() == text == whole.text()
    assert both(cutted) == both(whole)


@given(before=_texts, after=_texts)
def test_the_close_token_parts_any_texts(before: str, after: str) -> None:
    reader = split(splitter_for(QWQ), [before, CLOSE_ID, after])
    assert reader.text() == f"{before}</think>{after}"
    assert reader.text("answer") == after.lstrip()


_LONG = 5_000


@pytest.mark.parametrize("kind", ["none", "close_token", "tags", "headings", "two_phase"])
@pytest.mark.parametrize("beginning", ["", "<think>", "```", "x", "**Final"])
@pytest.mark.parametrize("unit", [" ", "\n", "a", "`", "```"])
def test_a_text_that_marks_nothing_for_long_is_neither_held_back_nor_looked_at_again(
    kind: str, beginning: str, unit: str
) -> None:
    how = ReasoningFormat(kind, close_id=7 if kind == "close_token" else None)  # type: ignore[arg-type]
    splitter = splitter_for(how)
    given_out, seen = 0, 0

    class Counted(list[Piece]):
        def __reversed__(self) -> Iterator[Piece]:
            raise AssertionError("all that was given out is looked at for one token")

    splitter._ledger.pieces = Counted()  # type: ignore[attr-defined]
    for number, text in enumerate([beginning, *[unit] * (_LONG // len(unit))]):
        seen += len(text)
        given_out += sum(len(one.text) for one in splitter.feed((100 + number,), (text,)) if isinstance(one, Piece))
        assert seen - given_out <= 1000 + len(unit)
        for name in ("_line", "_buffer", "_beginning"):
            assert len(getattr(splitter, name, None) or "") <= 1000 + len(unit)

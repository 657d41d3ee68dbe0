import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.history.search.snippet import snippet
from app.history.search.terms import needles, terms

ANY_TEXT = st.text(st.characters(), max_size=60)


def whole(text: str) -> list[str]:
    """The terms without those of a word's first letters."""
    return [term for term in terms(text) if not term.startswith("^")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Die STRASSE, die Straße!", ["die", "strasse"]),
        ("naïve cafe\u0301 Ёлка Ελλάδα", ["naive", "cafe", "елка", "ελλαδα"]),
        ("ﬁne x² Ⅷ ½", ["fine", "x2", "viii", "1", "2"]),
        ("snake_case don't 3.14 a-b", ["snake", "case", "don", "t", "3", "14", "a", "b"]),
        ("C++, C# #include a+b", ["c++", "c", "c#", "include", "a", "b"]),
        ("हिन्दी", ["हिन्दी"]),
        ("Wörd\u200dle soft\u00adware \u200fאבג\u05b0", ["wordle", "software", "אבג"]),
        ("\ud800one\x00two\u200bthree", ["one", "two", "three"]),
        ("... — 🎉 ++ #", []),
    ],
)
def test_words_are_folded_and_parted(text: str, expected: list[str]) -> None:
    assert whole(text) == expected


def test_scripts_without_spaces_give_characters_and_pairs() -> None:
    assert whole("学中文") == ["学", "中", "文", "学中", "中文"]


@pytest.mark.parametrize("text", ["가나다 café ガイド Å", "각 ệ ヴ"])
def test_composed_and_decomposed_text_give_the_same_terms(text: str) -> None:
    assert terms(unicodedata.normalize("NFD", text)) == terms(unicodedata.normalize("NFC", text))


def test_words_longer_than_a_term_are_cut_alike_on_both_sides() -> None:
    (needle,) = needles("x" * 200)
    assert needle.text in terms("X" * 200)
    assert max(map(len, terms("x" * 200))) == 64


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0300\u0316" * 500_000,
        "+#" * 500_000,
        "c+" * 500_000,
        "x" * 1_000_000,
        "\u1100\u1161\u11a8" * 300_000,
        " ".join(f"w{number:x}" for number in range(150_000)),
        "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(330_000)),
    ],
    ids=["accents", "signs", "suffixes", "one word", "jamo", "many words", "Han"],
)
def test_a_megabyte_of_anything_gives_terms_that_an_index_takes(text: str) -> None:
    found = terms(text)
    assert len(" ".join(found).encode()) <= 500_000
    assert len(set(found)) == len(found)
    assert snippet(text, needles("nowhere to be found 中国人")).marks == ()


@given(ANY_TEXT)
def test_no_term_has_a_space_or_is_empty(text: str) -> None:
    assert " ".join(terms(text)).split(" ") == terms(text) or not terms(text)


@given(ANY_TEXT, ANY_TEXT)
def test_marks_are_inside_the_line_in_order_and_apart(text: str, query: str) -> None:
    found = snippet(text, needles(query))
    length = len(found.text.encode("utf-16-le", "surrogatepass")) // 2
    end = 0
    for mark in found.marks:
        assert end <= mark[0] < mark[1] <= length
        end = mark[1]


@given(ANY_TEXT)
def test_every_word_of_a_text_is_marked_in_its_line(text: str) -> None:
    for needle in needles(text):
        assert snippet(text, [needle]).marks


def marked(text: str, query: str) -> list[str]:
    found = snippet(text, needles(query))
    units = found.text.encode("utf-16-le")
    return [units[start * 2 : end * 2].decode("utf-16-le") for start, end in found.marks]


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Lange Straße lang", "strasse lang", ["Lange", "Straße", "lang"]),
        ("🎉🎉 ﬁne cafe\u0301s", "fine cafe", ["ﬁne", "cafe\u0301s"]),
        ("我喜欢学习中文。", "学习", ["学习"]),
        ("C++ and C", "c++", ["C++"]),
        ("half ½ done", "2", ["½"]),
    ],
)
def test_the_marks_are_on_the_original_text(text: str, query: str, expected: list[str]) -> None:
    assert marked(text, query) == expected


def test_the_line_is_where_most_words_are() -> None:
    far = "alpha " + "filler " * 400
    text = far + "here alpha stands by beta " + "filler " * 400
    found = snippet(text, needles("alpha beta"))
    assert "alpha stands by beta" in found.text
    assert len(found.text) < 200
    assert found.text.startswith("… ")
    assert found.text.endswith(" …")


def test_a_word_at_any_place_of_a_long_text_is_marked() -> None:
    for place in range(450, 750, 7):
        text = "no " * (place // 3) + "." * (place % 3) + " needle " + "no " * 300
        assert marked(text, "needle") == ["needle"]

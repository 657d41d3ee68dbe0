import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.engine.model.streamer import TokenStreamer
from tests.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def stream(ids: list[int]) -> list[tuple[int, str]]:
    """What a reader gets when `generate` puts a prompt and then these tokens."""
    streamer = TokenStreamer(TOKENIZER)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    return list(streamer)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


@given(st.text())
def test_the_pieces_joined_are_the_text(text: str) -> None:
    ids = TOKENIZER.backend_tokenizer.encode(text.replace("<", "("), add_special_tokens=False).ids
    pieces = stream(ids)
    assert [token_id for token_id, _ in pieces] == ids
    assert "".join(piece for _, piece in pieces) == text.replace("<", "(")


def test_the_prompt_is_not_given_out() -> None:
    assert stream([]) == []


def test_every_token_comes_out_at_once_in_a_long_line_without_spaces() -> None:
    pieces = stream(ids_of("x" * 3600))
    assert len(pieces) == 3600
    assert all(text == "x" for _, text in pieces)


def test_a_character_comes_whole_with_its_last_byte() -> None:
    assert [text for _, text in stream(ids_of("a🙂é"))] == ["a", "", "", "", "🙂", "", "é"]


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    assert "".join(text for _, text in stream([*ids_of("ok"), *ids_of("🙂")[:3]])) == "ok"


def test_bytes_that_are_no_character_do_not_stop_the_stream() -> None:
    broken = ids_of("🙂")[0]
    text = "".join(text for _, text in stream([broken] * 9 + ids_of("and on")))
    assert text.endswith(("and on", "nd on"))
    assert "\N{REPLACEMENT CHARACTER}" in text


def test_special_tokens_have_no_text_and_the_think_tag_has_its_own() -> None:
    special, think = TOKENIZER.convert_tokens_to_ids(["<|im_end|>", "</think>"])
    assert stream([think, special, *ids_of("x")]) == [(think, "</think>"), (special, ""), *stream(ids_of("x"))]


_PIECES = [b"\x80", b"\xff", b"\xe2", b"\xf0\x9f", "🙂".encode(), "é".encode(), "你".encode(), b"a"]


@given(st.lists(st.one_of(st.sampled_from(_PIECES), st.binary(max_size=3)), max_size=8).map(b"".join))
def test_nothing_whole_is_lost_among_bytes_that_are_no_character(written: bytes) -> None:
    shown = bytes_to_unicode()
    ids = TOKENIZER.convert_tokens_to_ids([shown[byte] for byte in written + b"."])
    streamed = "".join(piece for _, piece in stream(ids))
    # How many replacement characters stand for broken bytes is a matter of taste
    assert streamed.replace("\ufffd", "") == (written + b".").decode(errors="replace").replace("\ufffd", "")

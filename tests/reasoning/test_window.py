import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from app.engine.base import Message, ModelProfile, ReasoningFormat, Sampling
from app.reasoning.window import fit, room_to_write

PROFILE = ModelProfile(
    name="m",
    title="M",
    about="",
    is_demo=False,
    context_window=3000,
    reasoning=ReasoningFormat("close_token", close_id=1),
    sampling=Sampling(),
    answer_sampling=Sampling(),
    stop_ids=(0,),
    budgets={"normal": 1000},
    answer_reserve=500,
    slots=1,
)
LIMIT = PROFILE.context_window - room_to_write(PROFILE)


@dataclass
class Encoder:
    """Two tokens for each Chinese character, one for three others, four around each message."""

    encoded: list[int] = field(default_factory=list)

    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        self.encoded.append(tokens(messages))
        return (7,) * tokens(messages)


def tokens(messages: Sequence[Message]) -> int:
    return sum(4 + 2 * m.text.count("字") + (len(m.text) - m.text.count("字")) // 3 for m in messages)


@given(st.lists(st.tuples(st.integers(0, 900), st.sampled_from("a字")), min_size=1, max_size=80))
def test_the_longest_end_that_fits_is_found_whatever_the_script(turns: list[tuple[int, str]]) -> None:
    messages = [Message("user", "")]
    for size, char in turns:
        messages = [Message("user", "q"), Message("assistant", char * size), *messages]
    encoder = Encoder()
    fitted = asyncio.run(fit(encoder, PROFILE, "", messages))
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    best = next(turn for turn, start in enumerate(starts) if tokens(messages[start:]) <= LIMIT)
    assert (fitted.turns_left_out, len(fitted.ids)) == (best, tokens(messages[starts[best] :]))
    assert len(encoder.encoded) <= 14


def test_what_is_far_too_long_is_never_encoded() -> None:
    messages = [Message("user", "q " * 30), Message("assistant", "word " * 300)] * 100 + [Message("user", "")]
    encoder = Encoder()
    fitted = asyncio.run(fit(encoder, PROFILE, "", messages))
    assert 0 < fitted.turns_left_out < 100
    assert max(encoder.encoded) < 2 * LIMIT
    assert len(encoder.encoded) <= 4

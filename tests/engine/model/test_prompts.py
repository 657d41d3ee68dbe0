from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.base import Message
from tests.engine.qwen import PLAIN, SPECIAL, THINK, qwen_encoder, qwen_tokenizer
from tests.exports import answer, as_file, conversation, question
from tests.live import LiveServer
from tests.people import browsers
from tests.scripted import CLOSE

START, END, THINK_ID = 151644, 151645, 151667
ARTICLE = [
    Message(
        "system",
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step.",
    ),
    Message("user", "How many r in strawberry."),
]
NAMES = ["qwq-32b", "qwq-32b-preview"]
_texts = st.lists(
    st.sampled_from(
        [*SPECIAL, *PLAIN, *THINK, "<|im_", "start|>", "</th", "ink>", "hello ", "\n", "r", "  ", "你好", "🙂"]
    ),
    max_size=8,
).map("".join)


def usual(name: str, messages: list[Message]) -> list[int]:
    """What transformers' own way gives."""
    listed = [{"role": message.role, "content": message.text} for message in messages]
    return list(qwen_tokenizer(name).apply_chat_template(listed, add_generation_prompt=True, return_dict=False))


def test_the_articles_messages_run_through_qwq_previews_template() -> None:
    tokenizer = qwen_tokenizer("qwq-32b-preview")
    ids = qwen_encoder("qwq-32b-preview").prompt(ARTICLE)
    assert list(ids) == usual("qwq-32b-preview", ARTICLE)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should "
        "think step-by-step.<|im_end|>\n<|im_start|>user\nHow many r in strawberry.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[:4] == (START, 8948, 198, 2610)
    assert ids[-3:] == (START, 77091, 198)


def test_qwq_begins_inside_its_reasoning() -> None:
    ids = qwen_encoder("qwq-32b").prompt([Message("user", "Why?")])
    assert ids[-2:] == (THINK_ID, 198)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["hello", "a\n\nb", "1 < 2 & 3 > 2", "naïve 你好 🙂", "    indented", "ends in space "]
)
def test_harmless_text_is_encoded_as_usual(name: str, text: str) -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", text),
        Message("assistant", "Yes."),
        Message("user", "So?"),
    ]
    assert list(qwen_encoder(name).prompt(messages)) == usual(name, messages)


@given(system=_texts, question=_texts, answer=_texts)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_was_written_becomes_a_control_token(name: str, system: str, question: str, answer: str) -> None:
    tokenizer = qwen_tokenizer(name)
    encoder = qwen_encoder(name)
    written = [Message("system", system), Message("user", question), Message("assistant", answer), Message("user", "x")]
    harmless = [Message(message.role, "harmless") for message in written]
    control = set(tokenizer.get_added_vocab().values())

    def controls(messages: list[Message]) -> list[int]:
        return [token_id for token_id in encoder.prompt(messages) if token_id in control]

    assert controls(written) == controls(harmless)


def test_nothing_that_is_imported_or_set_becomes_a_control_token(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, tokenizer = qwen_encoder("qwq-32b"), qwen_tokenizer("qwq-32b")
    control = set(tokenizer.get_added_vocab().values())

    async def prompt(messages: Sequence[Message]) -> tuple[int, ...]:
        return encoder.prompt(messages)

    def asked(text: str) -> tuple[int, ...]:
        """The prompt of a question in a chat that was imported, with its title and a system prompt of these words."""
        client.delete("/api/conversations")
        chat = conversation(question(text), answer(1, text, reasoning=text), title=text[:100])
        assert client.post("/api/me/import", content=as_file(chat)).status_code == 200
        (talk,) = client.get("/api/conversations").json()["items"]
        live_server.script(f"Hm.{CLOSE}Yes.")
        body = {"text": text, "client_key": f"the-key-of-{len(text)}", "options": {"system_prompt": text}}
        run = client.post(f"/api/conversations/{talk['id']}/messages", json=body).json()["run_id"]
        assert "event: done" in client.get(f"/api/runs/{run}/events").text
        return live_server.engine.requests[-1].prompt

    monkeypatch.setattr(live_server.engine, "prompt", prompt)
    written = "".join([*SPECIAL, *PLAIN, *THINK])
    with browsers(live_server.url) as people:
        client = people.guest()
        hostile, harmless = asked(written), asked("harmless")
    assert tokenizer.decode(hostile).count(written) == 4
    assert [id for id in hostile if id in control] == [id for id in harmless if id in control]


@given(text=_texts)
@settings(max_examples=60, deadline=None)
def test_the_text_comes_through_whole(text: str) -> None:
    tokenizer = qwen_tokenizer("qwq-32b-preview")
    ids = qwen_encoder("qwq-32b-preview").prompt([Message("user", text)])
    assert f"<|im_start|>user\n{text}<|im_end|>\n" in tokenizer.decode(ids)


def test_our_own_words_may_hold_control_tokens() -> None:
    assert qwen_encoder("qwq-32b").encode("x</think>\n\n") == (87, 151668, 271)

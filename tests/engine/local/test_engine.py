import queue
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from app.engine.base import Delta, Finished, Request, Sampling, Usage
from app.engine.local import engine as local
from app.engine.local.engine import LocalEngine
from tests.engine.tiny import tiny_model, tiny_tokenizer

GREEDY = Sampling(temperature=0.0)
PROMPT = tuple(range(40, 70))
WAIT_S = 60


class Desk:
    """A local engine over the tiny model (or another), and what it gave."""

    def __init__(self, model: PreTrainedModel | None = None) -> None:
        self.model = model or tiny_model()
        self.given: queue.Queue[Delta | Finished] = queue.Queue()
        self.engine = LocalEngine(self.model, tiny_tokenizer(), self.given.put)

    def add(
        self, prompt: tuple[int, ...] = PROMPT, sampling: Sampling = GREEDY, tokens: int = 20, name: str = "r"
    ) -> None:
        self.engine.add(Request(name, prompt, sampling, (257,), tokens))

    def read(self) -> tuple[list[int], Finished]:
        ids: list[int] = []
        while not isinstance(event := self.given.get(timeout=WAIT_S), Finished):
            ids += event.token_ids
        return ids, event

    def write(
        self, prompt: tuple[int, ...] = PROMPT, sampling: Sampling = GREEDY, tokens: int = 20
    ) -> tuple[list[int], Finished]:
        self.add(prompt, sampling, tokens)
        return self.read()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.engine.close()


def test_a_request_is_written_to_its_length(desk: Desk) -> None:
    ids, finished = desk.write()
    assert len(ids) == 20
    assert (finished.reason, finished.usage.prompt_tokens, finished.usage.completion_tokens) == ("length", 30, 20)


def test_it_ends_at_a_stop_token(desk: Desk) -> None:
    ids, _ = desk.write()
    desk.engine.add(Request("s", PROMPT, GREEDY, (ids[4],), 20))
    stopped, finished = desk.read()
    assert stopped == ids[: ids.index(ids[4]) + 1]
    assert finished.reason == "stop"


def test_going_on_behind_a_completion_gives_the_tokens_of_an_unbroken_one(desk: Desk) -> None:
    whole, _ = desk.write(tokens=30)
    begun, _ = desk.write((*PROMPT[:10], 99), tokens=3)
    begun, _ = desk.write(tokens=12)
    rest, finished = desk.write((*PROMPT, *begun), tokens=18)
    assert begun + rest == whole
    assert finished.usage.cached_tokens == 30 + 12 - 1


def test_a_shared_beginning_is_not_read_again(desk: Desk) -> None:
    desk.write()
    fresh = Desk()
    other = (*PROMPT[:20], 7, 8, 9)
    expected, _ = fresh.write(other)
    fresh.engine.close()
    ids, finished = desk.write(other)
    assert finished.usage.cached_tokens == 20
    assert ids == expected


def test_the_same_seed_is_the_same_text(desk: Desk) -> None:
    warm = Sampling(temperature=1.0, seed=7)
    first, second = desk.write(sampling=warm)[0], desk.write(sampling=warm)[0]
    other = desk.write(sampling=replace(warm, seed=8))[0]
    assert first == second != other


def test_requests_are_written_one_after_the_other(desk: Desk) -> None:
    for name in "abc":
        desk.add(name=name)
    assert [desk.read()[1].request_id for _ in range(3)] == ["a", "b", "c"]


def test_cancelling_ends_a_request_within_a_token(desk: Desk) -> None:
    desk.add(tokens=400)
    desk.given.get(timeout=WAIT_S)
    desk.engine.cancel("r")
    ids, finished = desk.read()
    assert finished.reason == "cancelled"
    assert len(ids) < 398


def test_a_waiting_request_that_is_cancelled_never_starts(desk: Desk) -> None:
    desk.add(tokens=200, name="first")
    desk.add(name="second")
    desk.engine.cancel("second")
    desk.engine.cancel("first")
    assert desk.read()[1].reason == "cancelled"
    assert desk.read() == ([], Finished("second", "cancelled"))


def test_cancelling_what_is_over_or_unknown_changes_nothing(desk: Desk) -> None:
    desk.write()
    desk.engine.cancel("r")
    desk.engine.cancel("nobody")
    assert desk.write()[1].reason == "length"


def test_cancelling_in_the_prefill_ends_at_the_next_layer_and_the_next_request_is_right(desk: Desk) -> None:
    expected, _ = desk.write()
    layers = desk.model.model.layers
    reached: list[int] = []

    def cancel_behind_the_first_layer(*_: object) -> None:
        desk.engine.cancel("r")

    hooks = [
        layers[0].register_forward_hook(cancel_behind_the_first_layer),
        layers[1].register_forward_hook(lambda *_: reached.append(1)),
    ]
    ids, finished = desk.write(tuple(range(100, 200)))
    for hook in hooks:
        hook.remove()
    assert (ids, finished.reason, reached) == ([], "cancelled", [])
    assert desk.write()[0] == expected


def test_a_prompt_read_in_pieces_gives_the_same_tokens(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = desk.write()
    monkeypatch.setattr(local, "_PREFILL_TOKENS", 7)
    pieces = Desk()
    assert pieces.write()[0] == whole
    other = (*PROMPT[:9], *range(100, 120))
    again, finished = pieces.write(other)
    pieces.engine.close()
    assert again == desk.write(other)[0]
    assert finished.usage.cached_tokens == 9


def test_cancelling_between_two_pieces_keeps_what_was_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PREFILL_TOKENS", 8)
    layer = desk.model.model.layers[-1]
    hook = layer.register_forward_hook(lambda *_: desk.engine.cancel("r"))
    assert desk.write()[1].reason == "cancelled"
    hook.remove()
    ids, finished = desk.write()
    assert finished.usage.cached_tokens == 8
    fresh = Desk()
    assert fresh.write()[0] == ids
    fresh.engine.close()


def test_a_model_with_a_sliding_window_reads_each_prompt_whole_and_goes_on() -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 1}
    config = Qwen2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, use_sliding_window=True, sliding_window=16, **shape
    )
    desk = Desk(Qwen2ForCausalLM(config).eval())
    first, _ = desk.write()
    again, finished = desk.write()
    desk.engine.close()
    assert again == first
    assert (finished.reason, finished.usage.cached_tokens) == ("length", 0)


@pytest.mark.parametrize("prompt", [(), (40, 320), (40, -1)])
def test_token_ids_that_the_model_does_not_have_never_reach_it(desk: Desk, prompt: tuple[int, ...]) -> None:
    _, finished = desk.write(prompt)
    assert finished.reason == "failed"
    assert "token ids" in finished.problem
    assert desk.write()[1].reason == "length"


def test_without_stop_ids_only_the_length_ends_it(desk: Desk) -> None:
    ids, _ = desk.write()
    desk.engine.add(Request("r", PROMPT, GREEDY, (), 20))
    assert desk.read() == (ids, Finished("r", "length", Usage(30, 20, 29)))


def test_no_room_to_write_is_the_end_at_once(desk: Desk) -> None:
    assert desk.write(tokens=0)[1].reason == "length"


def test_closing_ends_what_is_written_and_what_waits() -> None:
    desk = Desk()
    for name in "abc":
        desk.add(tokens=400, name=name)
    desk.given.get(timeout=WAIT_S)
    desk.engine.close()
    assert [desk.read()[1].reason for _ in range(3)] == ["cancelled"] * 3


def test_it_tells_how_long_the_model_takes_for_a_layer(desk: Desk) -> None:
    seen: list[float] = []
    desk.model.model.layers[0].register_forward_hook(lambda *_: seen.append(desk.engine.stuck_s))
    assert desk.engine.stuck_s == 0
    desk.write(tokens=2)
    assert all(0 < stuck_s < WAIT_S for stuck_s in seen)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.6)])
def test_numbers_that_are_none_fail_that_request_alone(desk: Desk, bad: str, sampling: Sampling) -> None:
    hook = desk.model.lm_head.register_forward_hook(lambda *given: torch.full_like(given[2], float(bad)))
    _, finished = desk.write(sampling=sampling)
    hook.remove()
    assert finished.reason == "failed"
    assert "NaN" in finished.problem
    assert desk.write()[1].reason == "length"


@pytest.mark.parametrize(
    ("error", "words"),
    [(torch.OutOfMemoryError("no"), "too long for this GPU"), (RuntimeError("secret"), "RuntimeError")],
)
def test_a_request_that_raises_fails_alone_and_says_why(desk: Desk, error: Exception, words: str) -> None:
    def fail(*_: object) -> None:
        raise error

    hook = desk.model.model.layers[1].register_forward_hook(fail)
    _, finished = desk.write()
    hook.remove()
    assert finished.reason == "failed"
    assert words in finished.problem
    assert "secret" not in finished.problem
    assert desk.write()[1].reason == "length"


def test_the_checkpoints_own_generation_settings_do_not_leak_in() -> None:
    model = tiny_model()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_length = 3
    given: queue.Queue[Delta | Finished] = queue.Queue()
    engine = LocalEngine(model, tiny_tokenizer(), given.put)
    plain = Desk()
    expected, _ = plain.write()
    plain.engine.close()
    engine.add(Request("r", PROMPT, GREEDY, (257,), 20))
    ids: list[int] = []
    while not isinstance(event := given.get(timeout=WAIT_S), Finished):
        ids += event.token_ids
    engine.close()
    assert ids == expected

import inspect
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.engine.base import Delta, Finished, Request, Sampling
from app.engine.batched import attention, runner, selftest
from app.engine.batched.engine import BatchedEngine
from app.engine.batched.graphs import joined_shapes
from app.engine.batched.offload import HostPages
from app.engine.batched.pace import Pace
from app.engine.batched.pages import OutOfPages, PagePool
from app.engine.batched.runner import Runner
from app.engine.local.engine import LocalEngine
from app.engine.model.streamer import TokenStreamer
from tests.engine.tiny import save_tiny, tiny_in_four_bits, tiny_model, tiny_tokenizer, with_plain_kernels

GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=1.0, top_p=0.95, top_k=40, seed=7)
WAIT_S = 60
PAGE = 16


class Desk:
    """A batched engine over the tiny model, and what it gave."""

    def __init__(
        self,
        pages: int = 200,
        rows: int = 8,
        model: PreTrainedModel | None = None,
        *,
        pages_in_ram: int = 0,
        pace: Pace | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.pace, self.tokenizer = pace or Pace(), tokenizer or tiny_tokenizer()
        self.runner = Runner(model or tiny_model(), rows=rows, pages=pages, page_tokens=PAGE, context_window=512)
        self.store = HostPages(self.runner.cache, 0)
        self.store = HostPages(self.runner.cache, pages_in_ram * self.store.page_bytes)
        self.pool = PagePool(pages, PAGE, self.store)
        self.given: queue.Queue[Delta | Finished] = queue.Queue()
        self.lost: list[str] = []
        self.slower: list[str] = []
        self.start()
        self.ids: dict[str, list[int]] = defaultdict(list)
        self.texts: dict[str, str] = defaultdict(str)

    def start(self) -> None:
        self.engine = BatchedEngine(
            self.runner,
            self.pool,
            self.tokenizer,
            self.given.put,
            lambda is_gpu: self.lost.append("the GPU" if is_gpu else "the loop"),
            prepare=lambda _: self.pace,
            on_slower=self.slower.append,
            store=self.store,
        )

    def add(self, name: str, prompt: tuple[int, ...], sampling: Sampling = GREEDY, tokens: int = 20) -> None:
        self.engine.add(Request(name, prompt, sampling, (257,), tokens))

    def read(self, count: int = 1) -> dict[str, Finished]:
        """Until so many have ended."""
        ended: dict[str, Finished] = {}
        while len(ended) < count:
            event = self.given.get(timeout=WAIT_S)
            if isinstance(event, Finished):
                ended[event.request_id] = event
            else:
                self.ids[event.request_id] += event.token_ids
                self.texts[event.request_id] += "".join(event.texts)
        return ended

    def write(
        self, prompt: tuple[int, ...], sampling: Sampling = GREEDY, tokens: int = 20, name: str = "r"
    ) -> tuple[list[int], Finished]:
        self.ids.pop(name, None)
        self.add(name, prompt, sampling, tokens)
        ended = self.read()[name]
        return self.ids[name], ended


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.engine.close()


def prompt_of(number: int, tokens: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(0, 256, (tokens,), generator=generator).tolist())


@contextmanager
def writing_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[LocalEngine]:
    """The simplest engine, which every other one is measured against."""
    given: queue.Queue[Delta | Finished] = queue.Queue()
    engine = LocalEngine(model, tokenizer, given.put)
    engine.given = given  # type: ignore[attr-defined]
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone() -> Iterator[LocalEngine]:
    with writing_alone(tiny_model(), tiny_tokenizer()) as engine:
        yield engine


def serially(engine: LocalEngine, prompt: tuple[int, ...], tokens: int = 20) -> list[int]:
    engine.add(Request("s", prompt, GREEDY, (257,), tokens))
    ids: list[int] = []
    while not isinstance(event := engine.given.get(timeout=WAIT_S), Finished):  # type: ignore[attr-defined]
        ids += event.token_ids
    return ids


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_a_prompt_of_any_length_gives_the_tokens_of_generate(desk: Desk, alone: LocalEngine, tokens: int) -> None:
    prompt = prompt_of(tokens, tokens)
    ids, ended = desk.write(prompt, tokens=40)
    assert ids == serially(alone, prompt, 40)
    assert ended.usage.prompt_tokens == tokens
    assert ended.usage.completion_tokens == len(ids)


def test_many_at_once_get_the_tokens_that_each_gets_alone(desk: Desk, alone: LocalEngine) -> None:
    prompts = {f"r{number}": prompt_of(number, 3 + 11 * number % 90) for number in range(20)}
    for number, (name, prompt) in enumerate(prompts.items()):
        desk.add(name, prompt, tokens=10 + number)
    ended = desk.read(len(prompts))
    for number, (name, prompt) in enumerate(prompts.items()):
        assert desk.ids[name] == serially(alone, prompt, 10 + number), name
        assert ended[name].reason in ("length", "stop")


def test_a_model_in_four_bits_gives_the_tokens_of_generate(tmp_path: Path) -> None:
    model = tiny_in_four_bits(save_tiny(tmp_path))
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with_plain_kernels(model)
    both_ways_are_one(model, tiny_tokenizer(), [prompt_of(number, 30 + 40 * number) for number in range(4)])


def both_ways_are_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[tuple[int, ...]]
) -> None:
    """Many at once get the tokens that `generate` gives each."""
    desk = Desk(model=model, tokenizer=tokenizer)
    for number, prompt in enumerate(prompts):
        desk.add(f"r{number}", prompt)
    desk.read(len(prompts))
    desk.engine.close()
    desk.runner.give_back()
    with writing_alone(model, tokenizer) as engine:
        for number, prompt in enumerate(prompts):
            assert desk.ids[f"r{number}"] == serially(engine, prompt)


def test_it_ends_at_a_stop_token(desk: Desk) -> None:
    prompt = prompt_of(1, 30)
    ids, _ = desk.write(prompt)
    desk.engine.add(Request("s", prompt, GREEDY, (ids[4],), 20))
    assert desk.read()["s"].reason == "stop"
    assert desk.ids["s"] == ids[: ids.index(ids[4]) + 1]


def test_what_is_shared_is_read_once_and_gives_the_same(desk: Desk) -> None:
    prompt = prompt_of(1, 100)
    whole, first = desk.write(prompt, tokens=60)
    assert first.usage.cached_tokens == 0
    # Closed and continued: the prompt, what was written, and words of ours
    begun = whole[:30]
    rest, ended = desk.write((*prompt, *begun), tokens=30)
    assert begun + rest == whole
    assert ended.usage.cached_tokens == (100 + 30 - 1) // PAGE * PAGE
    other = (*prompt[:50], 9, 9, 9)
    expected, _ = Desk().write(other)
    ids, ended = desk.write(other)
    assert ids == expected
    assert ended.usage.cached_tokens == 48


def test_votes_over_one_prompt_share_it_and_differ_by_their_seeds(desk: Desk) -> None:
    prompt = prompt_of(1, 64)
    desk.write(prompt, tokens=1)
    for seed in range(5):
        desk.add(f"v{seed}", prompt, replace(DRAWN, seed=seed))
    ended = desk.read(5)
    # The first reads the last page anew, the others take it over from the first
    assert sorted(one.usage.cached_tokens for one in ended.values()) == [48, 63, 63, 63, 63]
    assert len({tuple(desk.ids[f"v{seed}"]) for seed in range(5)}) > 1


def test_the_same_seed_gives_the_same_text_whoever_else_is_in_the_batch(desk: Desk) -> None:
    prompt = prompt_of(1, 40)
    expected, _ = desk.write(prompt, DRAWN)
    for number in range(6):
        desk.add(f"other{number}", prompt_of(number + 2, 20), replace(DRAWN, seed=number), 30)
    desk.add("mine", prompt, DRAWN)
    desk.read(7)
    assert desk.ids["mine"] == expected
    assert desk.write(prompt, replace(DRAWN, seed=8))[0] != expected


def test_a_cancelled_one_ends_and_leaves_its_room_to_others(desk: Desk) -> None:
    desk.add("long", prompt_of(1, 30), tokens=400)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    desk.engine.cancel("long")
    assert desk.read()["long"].reason == "cancelled"
    assert desk.pool.available == desk.pool.total
    desk.engine.cancel("long")
    desk.engine.cancel("nobody")
    assert desk.write(prompt_of(2, 30))[1].reason == "length"


def test_more_than_there_are_rows_wait_for_one(alone: LocalEngine) -> None:
    desk = Desk(rows=2)
    for number in range(7):
        desk.add(f"r{number}", prompt_of(number, 20))
    assert set(desk.read(7)) == {f"r{number}" for number in range(7)}
    for number in range(7):
        assert desk.ids[f"r{number}"] == serially(alone, prompt_of(number, 20))
    desk.engine.close()


def test_who_must_give_way_for_lack_of_pages_goes_on_later_with_the_same_tokens(alone: LocalEngine) -> None:
    desk = Desk(pages=14)
    for number in range(4):
        desk.add(f"r{number}", prompt_of(number, 30), tokens=60)
    ended = desk.read(4)
    assert {one.reason for one in ended.values()} <= {"length", "stop"}
    for number in range(4):
        assert desk.ids[f"r{number}"] == serially(alone, prompt_of(number, 30), 60)
    assert desk.pool.available == desk.pool.total
    desk.engine.close()


def test_what_does_not_fit_is_refused_in_words_and_the_next_one_works() -> None:
    desk = Desk(pages=6)
    _, ended = desk.write(prompt_of(1, 81))
    assert ended.reason == "failed"
    assert "81 tokens" in ended.problem
    assert "80" in ended.problem
    desk.add("grows", prompt_of(1, 60), tokens=400)
    assert "did not fit" in desk.read()["grows"].problem
    assert desk.write(prompt_of(2, 20))[1].reason == "length"
    desk.engine.close()


@pytest.mark.parametrize("prompt", [(), (-1, 3), (320,)])
def test_ids_that_the_model_does_not_have_are_refused(desk: Desk, prompt: tuple[int, ...]) -> None:
    assert "does not have" in desk.write(prompt)[1].problem
    assert desk.write(prompt_of(1, 5))[1].reason == "length"


def test_numbers_that_are_none_fail_that_request_alone(desk: Desk, alone: LocalEngine) -> None:
    embeddings = desk.runner.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[300] = float("nan")
    desk.add("sound", prompt_of(1, 30), tokens=40)
    desk.add("broken", (*prompt_of(2, 20), 300))
    ended = desk.read(2)
    assert ended["sound"].reason in ("length", "stop")
    assert ended["broken"].reason == "failed"
    assert "NaN" in ended["broken"].problem
    assert desk.ids["sound"] == serially(alone, prompt_of(1, 30), 40)


def test_a_step_that_raises_is_taken_again_from_the_tokens(
    desk: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = desk.runner.decode, [0]

    def failing(rows: int) -> object:
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("a kernel")
        return decode(rows)

    monkeypatch.setattr(desk.runner, "decode", failing)
    for number in range(3):
        desk.add(f"r{number}", prompt_of(number, 20))
    assert {one.reason for one in desk.read(3).values()} <= {"length", "stop"}
    for number in range(3):
        assert desk.ids[f"r{number}"] == serially(alone, prompt_of(number, 20))


def test_a_step_that_raises_always_ends_everybody_and_the_engine_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def failing(_: int) -> object:
            raise RuntimeError("a kernel")

        broken.setattr(desk.runner, "decode", failing)
        for number in range(3):
            desk.add(f"r{number}", prompt_of(number, 20))
        assert {one.problem for one in desk.read(3).values()} == {
            "The model failed (RuntimeError). The text so far is kept."
        }
    assert desk.write(prompt_of(1, 20))[1].reason == "length"
    assert desk.pool.available == desk.pool.total


def test_closing_ends_everybody(desk: Desk) -> None:
    for number in range(12):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=400)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    desk.engine.close()
    assert {one.reason for one in desk.read(12).values()} <= {"cancelled", "stop", "length"}
    desk.start()


def test_text_comes_with_its_tokens(desk: Desk) -> None:
    desk.write(prompt_of(3, 20), DRAWN, 40)
    streamer = TokenStreamer(tiny_tokenizer())
    streamer.next_tokens_are_prompt = False
    streamer.put(torch.tensor(desk.ids["r"]))
    streamer.end()
    assert desk.texts["r"] == "".join(text for _, text in streamer)
    assert desk.texts["r"]


def test_each_token_comes_with_its_own_log_probability(desk: Desk) -> None:
    prompt = prompt_of(1, 50)
    desk.add("r", prompt, Sampling(temperature=2.0, seed=1), 20)
    ids: list[int] = []
    logprobs: list[float] = []
    while not isinstance(event := desk.given.get(timeout=WAIT_S), Finished):
        ids += event.token_ids
        logprobs += event.logprobs
    with torch.inference_mode():
        logits = tiny_model()(torch.tensor([[*prompt, *ids]])).logits[0]
    wanted = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(logprobs), wanted, atol=1e-3, rtol=1e-3)


def test_who_reads_beside_those_who_write_shares_their_passes(
    desk: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, pieces = desk.runner.decode_and_extend, []

    def counted(rows: int, pages: list[int], ids: list[int], start: int, *, is_last: bool) -> object:
        pieces.append((rows, len(ids), is_last))
        return both(rows, pages, ids, start, is_last=is_last)

    monkeypatch.setattr(desk.runner, "decode_and_extend", counted)
    for number in range(3):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=200)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    late = prompt_of(9, 400)
    desk.add("late", late, tokens=30)
    desk.read(4)
    assert desk.ids["late"] == serially(alone, late, 30)
    assert sum(ids for rows, ids, _ in pieces if rows) >= 400
    assert any(is_last for _, _, is_last in pieces)


def test_a_prompt_that_raises_fails_alone_and_the_others_lose_no_token(
    desk: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, calls = desk.runner.decode_and_extend, [0]

    def failing(*told: object, **more: object) -> object:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("a kernel")
        return both(*told, **more)  # type: ignore[arg-type]

    desk.add("r0", prompt_of(0, 20), tokens=200)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    desk.ids["r0"].append(serially(alone, prompt_of(0, 20), 1)[0])
    monkeypatch.setattr(desk.runner, "decode_and_extend", failing)
    desk.add("r1", prompt_of(1, 50))
    desk.add("r2", prompt_of(2, 50))
    ended = desk.read(3)
    assert [ended[name].reason for name in ("r1", "r2")].count("failed") == 1
    assert desk.ids["r0"] == serially(alone, prompt_of(0, 20), 200)


def test_a_quick_way_that_computes_something_else_is_taken_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.choose(desk.runner) == []
    assert desk.runner.is_joined
    both = desk.runner.both_logits
    monkeypatch.setattr(desk.runner, "both_logits", lambda *told: both(*told).roll(1, 0))
    (said,) = selftest.choose(desk.runner)
    assert "one pass is off" in said
    assert not desk.runner.is_joined
    assert desk.write(prompt_of(1, 100))[1].reason in ("length", "stop")


def unchanged(*told: Any) -> Any:
    return told


def kernel(seen: Callable[..., Any] = unchanged, read: Callable[..., Any] = unchanged) -> SimpleNamespace:
    """A stand-in for the Triton kernels that sees what `seen` makes of block table and lengths of rows, and what `read`
    makes of a piece's pages and bounds."""

    def paged_decode(query: Any, keys: Any, values: Any, table: Any, lengths: Any, scaling: float) -> torch.Tensor:
        return attention._gathered(query, keys, values, *seen(table, lengths), scaling)

    def paged_extend(query: Any, keys: Any, values: Any, pages: Any, bounds: Any, scaling: float) -> torch.Tensor:
        pages, (before, behind) = read(pages, bounds)
        key, value = (every[pages].flatten(0, 1)[:behind].repeat_interleave(2, 1) for every in (keys, values))
        places = before + torch.arange(len(query))
        is_seen = torch.arange(behind)[None] <= places[:, None]
        score = torch.einsum("qhw,khw->hqk", query, key) * scaling
        return torch.einsum("hqk,khw->qhw", score.masked_fill(~is_seen, float("-inf")).softmax(-1), value)

    return SimpleNamespace(paged_decode=paged_decode, paged_extend=paged_extend)


# Rows of the steps that are recorded in tests; tokens of the passes with a piece, and rows among them
SIZES = [1, 2, 4, 8]
SHAPES = [(32, 1), (32, 8), (64, 1), (64, 8)]


class TakenAgain:
    """A stand-in for a CUDA graph: takes the pass that it recorded anew, with what is told now."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self.step = step
        self.given = step()
        self.replays = 0

    def replay(self) -> None:
        self.given = self.step()
        self.replays += 1


@contextmanager
def recorded_desk(monkeypatch: pytest.MonkeyPatch, pages: int = 200) -> Iterator[Desk]:
    """A desk whose passes are recorded, in torch on the CPU."""
    monkeypatch.setitem(sys.modules, "app.engine.batched.kernels", kernel())
    monkeypatch.setattr(runner, "Recorder", lambda: SimpleNamespace(record=TakenAgain))
    desk = Desk(pages, pace=Pace(64, largest=64, sizes=(32, 64)))
    desk.runner.has_kernels = True
    desk.runner.capture(SIZES, SHAPES)
    yield desk
    desk.engine.close()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with recorded_desk(monkeypatch) as desk:
        yield desk


def test_pieces_are_read_in_recorded_passes_and_give_the_tokens_of_generate(recorded: Desk, alone: LocalEngine) -> None:
    prompts = {f"r{number}": prompt_of(number, 3 + 23 * (number + 4) % 150) for number in range(20)}
    for number, (name, prompt) in enumerate(prompts.items()):
        recorded.add(name, prompt, tokens=10 + number)
    recorded.read(len(prompts))
    for number, (name, prompt) in enumerate(prompts.items()):
        assert recorded.ids[name] == serially(alone, prompt, 10 + number), name
    graphs = recorded.runner._joined_graphs
    assert all(graphs[shape].replays for shape in SHAPES)  # type: ignore[attr-defined]


def test_a_piece_longer_than_what_is_recorded_is_read_all_the_same(recorded: Desk, alone: LocalEngine) -> None:
    prompt = prompt_of(1, 300)
    recorded.pace.largest = 512
    assert recorded.write(prompt)[0] == serially(alone, prompt)
    assert not any(graph.replays for graph in recorded.runner._joined_graphs.values())  # type: ignore[attr-defined]


def test_recorded_passes_are_held_against_those_they_were_recorded_from(recorded: Desk) -> None:
    graphs = recorded.runner._joined_graphs
    problem_of = partial(selftest.recorded_problem, recorded.runner, SIZES, SHAPES)
    plain = plain_steps(recorded)
    assert problem_of(plain) == ""
    assert all(graph.replays for graph in graphs.values())  # type: ignore[attr-defined]


def plain_steps(desk: Desk) -> list[list[float]]:
    """What its passes give without graphs."""
    runner = desk.runner
    graphs, joined = runner._graphs, runner._joined_graphs
    runner._graphs, runner._joined_graphs = {}, {}
    found = selftest.steps_of(runner, SIZES, SHAPES)
    runner._graphs, runner._joined_graphs = graphs, joined
    return found


def no_rows(runner: Any, tokens: int, rows: int, step: Callable[[], Any]) -> None:
    step()
    runner._hidden_states[tokens - rows : tokens] = 0


def no_piece(runner: Any, tokens: int, rows: int, step: Callable[[], Any]) -> None:
    step()
    runner._hidden_states[: tokens - rows] = 0


def numbers_that_are_none(runner: Any, tokens: int, rows: int, step: Callable[[], Any]) -> None:
    step()
    runner._hidden_states[: tokens - rows] = float("nan")


def always_from_the_start(runner: Any, tokens: int, rows: int, step: Callable[[], Any]) -> None:
    runner._told[0], runner._told[1] = 0, tokens - rows
    step()


def always_filled(runner: Any, tokens: int, rows: int, step: Callable[[], Any]) -> None:
    runner._told[0] = runner._told[1] - (tokens - rows)
    step()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrong", [no_rows, no_piece, numbers_that_are_none, always_from_the_start, always_filled])
def test_a_recorded_pass_that_gives_something_else_is_found(
    recorded: Desk, shape: tuple[int, int], wrong: Callable[..., None]
) -> None:
    plain = plain_steps(recorded)
    graph: Any = recorded.runner._joined_graphs[shape]
    graph.step = partial(wrong, recorded.runner, *shape, graph.step)
    assert "log-probabilities differ" in selftest.recorded_problem(recorded.runner, SIZES, SHAPES, plain)


def test_recorded_passes_that_fail_are_given_up_and_the_prompt_is_read_without_them(
    recorded: Desk, alone: LocalEngine
) -> None:
    def failing() -> None:
        raise RuntimeError("CUDA error: out of memory")

    for graph in recorded.runner._joined_graphs.values():
        graph.replay = failing  # type: ignore[method-assign]
    prompt = prompt_of(1, 60)
    ids, ended = recorded.write(prompt)
    assert ids == serially(alone, prompt)
    assert ended.reason in ("length", "stop")
    assert recorded.slower == ["CUDA graphs are off: reading a prompt failed (RuntimeError)"]
    assert not recorded.runner.forget_graphs()


def test_without_memory_for_a_long_piece_the_prompt_is_read_in_recorded_passes(
    recorded: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.pace.largest = 512
    extend = recorded.runner.extend

    def greedy(pages: Any, ids: Any, start: int, *, row: int | None) -> Any:
        if len(ids) > 63:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return extend(pages, ids, start, row=row)

    monkeypatch.setattr(recorded.runner, "extend", greedy)
    prompt = prompt_of(1, 300)
    assert recorded.write(prompt)[0] == serially(alone, prompt)
    assert recorded.slower == ["prompts are read in pieces of 63 tokens: no memory was left for 300"]
    assert recorded.runner.joined_tokens


def test_what_fills_a_recorded_pass_up_harms_nobody(alone: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stand for nothing have pages in the table that are somebody else's by now."""
    with recorded_desk(monkeypatch, pages=56) as desk:
        asked = {f"long{number}": (prompt_of(number, 20), 250) for number in range(2)}
        asked |= {f"short{number}": (prompt_of(10 + number, 40), 5) for number in range(3)}
        late = {f"late{number}": (prompt_of(20 + number, 200), 20) for number in range(3)}
        for name, (prompt, tokens) in asked.items():
            desk.add(name, prompt, tokens=tokens)
        ended = set(desk.read(3))
        for name, (prompt, tokens) in late.items():
            desk.add(name, prompt, tokens=tokens)
            ended |= set(desk.read(1))
        desk.read(len(asked | late) - len(ended))
        for name, (prompt, tokens) in (asked | late).items():
            assert desk.ids[name] == serially(alone, prompt, tokens), name


@pytest.mark.parametrize("tokens", [505, 508, 510, 511])
def test_a_prompt_that_fills_the_window_is_not_written_over_by_what_fills_its_last_pass_up(
    recorded: Desk, alone: LocalEngine, tokens: int
) -> None:
    recorded.pace.largest = 63
    prompt = prompt_of(tokens, tokens)
    ids = recorded.write(prompt)[0]
    assert len(ids) == 512 - tokens
    assert ids == serially(alone, prompt)[: len(ids)]


def test_a_pass_that_needs_to_know_where_its_piece_ends_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Recorder", lambda: SimpleNamespace(record=TakenAgain))
    desk = Desk()
    with pytest.raises(RuntimeError, match="where its piece ends"):
        desk.runner.capture([], SHAPES)
    desk.engine.close()


@pytest.mark.parametrize(
    ("rows", "most_tokens", "shapes"),
    [
        (64, 8192, [(tokens, rows) for tokens in (192, 384, 512, 768, 1024) for rows in (1, 16, 64)]),
        (8, 400, [(192, 1), (192, 8), (384, 1), (384, 8)]),
        (1, 192, [(192, 1)]),
        (4, 191, []),
    ],
)
def test_what_is_recorded_fits_the_rows_and_the_room(
    rows: int, most_tokens: int, shapes: list[tuple[int, int]]
) -> None:
    assert joined_shapes(rows, most_tokens) == shapes


@pytest.mark.parametrize(("rows", "longest", "with_thirty"), [(0, 63, 32), (1, 63, 32), (2, 56, 64), (8, 56, 64)])
def test_a_piece_is_as_long_as_the_rows_leave_room_for(
    recorded: Desk, rows: int, longest: int, with_thirty: int
) -> None:
    assert recorded.runner.longest_piece(64, rows) == longest
    assert recorded.runner.tokens_with(30, rows) == with_thirty
    recorded.runner.forget_graphs()
    assert recorded.runner.longest_piece(256, rows) == 256 - rows
    assert recorded.runner.tokens_with(30, rows) == 30 + rows


@pytest.mark.parametrize(
    ("seen", "is_right"),
    [
        (lambda table, lengths: (table, lengths), True),
        (lambda table, lengths: (table, lengths.clamp(max=PAGE)), False),
        (lambda table, lengths: (table, lengths - 1), False),
        (lambda table, lengths: (table.roll(1, 1), lengths), False),
        (lambda table, lengths: (table[:1].expand(len(table), -1), lengths), False),
    ],
    ids=["all", "its first page", "not the new token", "other pages", "the first row's"],
)
def test_a_kernel_that_does_not_see_all_it_should_is_taken_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, seen: Callable[..., Any], is_right: bool
) -> None:
    monkeypatch.setitem(sys.modules, "app.engine.batched.kernels", kernel(seen))
    desk.runner.has_kernels = True
    said = selftest.choose(desk.runner)
    assert desk.runner.has_kernels == is_right
    assert [sentence.split(" is off")[0] for sentence in said] == ([] if is_right else ["the attention kernel"])


@pytest.mark.parametrize(
    "read",
    [
        lambda pages, bounds: (pages, bounds - 1),
        lambda pages, bounds: (pages.roll(1), bounds),
        lambda pages, bounds: (pages, bounds.clamp(max=PAGE)),
    ],
    ids=["one token less", "other pages", "its first page"],
)
def test_a_kernel_that_reads_a_piece_wrong_is_taken_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, read: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, "app.engine.batched.kernels", kernel(read=read))
    desk.runner.has_kernels = True
    (said,) = selftest.choose(desk.runner)
    assert said.startswith("the attention kernel is off")
    assert desk.runner.is_joined


def test_a_clear_token_that_is_lost_counts_and_a_near_tie_does_not() -> None:
    plain = torch.tensor([[5.0, 0.0, 0.0], [1.01, 1.0, 0.0]])
    other = torch.tensor([[0.0, 5.0, 0.0], [1.0, 1.01, 0.0]])
    found = selftest.compared(plain, other, rounding=0.02)
    assert (found.flipped, found.tokens, found.largest) == (1, 2, 5.0)


def test_votes_asked_for_at_once_read_their_prompt_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    for name in ("extend", "decode_and_extend"):
        way = getattr(desk.runner, name)
        place = 1 if name == "extend" else 2

        def counted(*told: object, way: object = way, place: int = place, **more: object) -> object:
            read.append(len(told[place]))  # type: ignore[arg-type]
            return way(*told, **more)  # type: ignore[operator]

        monkeypatch.setattr(desk.runner, name, counted)
    prompt = prompt_of(1, 100)
    for seed in range(6):
        desk.add(f"v{seed}", prompt, replace(DRAWN, seed=seed), 60)
    ended = desk.read(6)
    assert sum(read) == 100 + 5
    assert sorted(one.usage.cached_tokens for one in ended.values()) == [0, 99, 99, 99, 99, 99]
    forked = {seed: desk.ids[f"v{seed}"] for seed in range(6)}
    for seed in range(6):
        assert desk.write(prompt, replace(DRAWN, seed=seed), 60)[0] == forked[seed]
    desk.pool.forget()


def test_pages_that_made_room_come_back_from_ram(alone: LocalEngine) -> None:
    desk = Desk(pages=14, pages_in_ram=40)
    prompt = prompt_of(1, 130)
    first, ended = desk.write(prompt, tokens=40)
    assert ended.usage.cached_tokens == 0
    for number in range(2, 5):
        desk.write(prompt_of(number, 130), tokens=40)
    again, ended = desk.write(prompt, tokens=40)
    assert again == first == serially(alone, prompt, 40)
    assert ended.usage.cached_tokens == 128
    # Another turn, behind what was written
    longer = (*prompt, *first, 7, 8)
    ids, ended = desk.write(longer, tokens=20)
    assert ids == serially(alone, longer, 20)
    assert ended.usage.cached_tokens == 160
    desk.engine.close()


def test_a_long_conversation_comes_back_from_ram_whole(alone: LocalEngine) -> None:
    """More pages than are saved in a step beside others, and nobody else writes."""
    desk = Desk(pages=30, pages_in_ram=80)
    prompts = [prompt_of(number, 24 * PAGE) for number in range(2)]
    firsts = [desk.write(prompt)[0] for prompt in prompts]
    for prompt, first in zip(prompts, firsts, strict=True):
        again, ended = desk.write(prompt)
        assert again == first == serially(alone, prompt)
        assert ended.usage.cached_tokens == 23 * PAGE
    desk.engine.close()


@pytest.mark.parametrize("can_move", [True, False])
def test_who_came_last_gives_way_whatever_its_row(desk: Desk, monkeypatch: pytest.MonkeyPatch, can_move: bool) -> None:
    set_back: list[str] = []
    give_way, extend, move = desk.engine._set_back, desk.pool.extend, desk.runner.move
    failed: list[int] = []
    one_has_ended = threading.Event()

    def noted(sequence: Any) -> None:
        set_back.append(sequence.request.id)
        give_way(sequence)

    def full_once(held: Any, tokens: int) -> None:
        if one_has_ended.is_set() and not set_back:
            raise OutOfPages
        extend(held, tokens)

    def moved(source: int, target: int) -> None:
        if set_back and not can_move and not failed:
            failed.append(source)
            raise RuntimeError("a kernel")
        move(source, target)

    monkeypatch.setattr(desk.runner, "move", moved)
    monkeypatch.setattr(desk.engine, "_set_back", noted)
    monkeypatch.setattr(desk.pool, "extend", full_once)
    # The first one ends soon, and the last one takes its row
    for number, tokens in enumerate([30, 200, 200, 200]):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=tokens)
    while not isinstance(ended := desk.given.get(timeout=WAIT_S), Finished):
        pass
    assert ended.request_id == "r0"
    one_has_ended.set()
    assert {one.reason for one in desk.read(3).values()} <= {"length", "stop"}
    assert set_back == ["r3"]
    assert len(failed) == (not can_move)


def test_who_came_last_gives_way_also_while_it_is_read(
    desk: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back: list[str] = []
    give_way, extend, decode = desk.engine._set_back, desk.pool.extend, desk.runner.decode
    is_late_there = threading.Event()

    def later(rows: int) -> object:
        is_late_there.wait(WAIT_S)
        return decode(rows)

    def noted(sequence: Any) -> None:
        set_back.append(sequence.request.id)
        give_way(sequence)

    def full_once(held: Any, tokens: int) -> None:
        writes = any(held is one.held for one in desk.engine._writing)
        if writes and desk.engine._reading and desk.engine._reading[0].held.ids and not set_back:
            raise OutOfPages
        extend(held, tokens)

    monkeypatch.setattr(desk.engine, "_set_back", noted)
    monkeypatch.setattr(desk.pool, "extend", full_once)
    monkeypatch.setattr(desk.runner, "decode", later)
    desk.add("first", prompt_of(1, 20), tokens=200)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    desk.add("late", prompt_of(9, 400))
    is_late_there.set()
    desk.read(2)
    assert set_back == ["late"]
    assert desk.ids["late"] == serially(alone, prompt_of(9, 400))
    assert desk.pool.available == desk.pool.total


def test_who_gave_way_fetches_its_pages_from_ram_and_loses_no_token(alone: LocalEngine) -> None:
    desk = Desk(pages=14, pages_in_ram=40)
    for number in range(4):
        desk.add(f"r{number}", prompt_of(number, 30), tokens=60)
    desk.read(4)
    for number in range(4):
        assert desk.ids[f"r{number}"] == serially(alone, prompt_of(number, 30), 60)
    assert desk.pool.available == desk.pool.total
    desk.engine.close()


def test_a_repetition_penalty_is_that_of_generate(desk: Desk, alone: LocalEngine) -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=1.4)
    for number in range(3):
        desk.add(f"r{number}", prompt_of(number, 50), sampling, 60)
    desk.read(3)
    for number in range(3):
        alone.add(Request("s", prompt_of(number, 50), sampling, (257,), 60))
        ids: list[int] = []
        while not isinstance(event := alone.given.get(timeout=WAIT_S), Finished):  # type: ignore[attr-defined]
            ids += event.token_ids
        assert desk.ids[f"r{number}"] == ids


def test_one_whose_text_cannot_be_made_fails_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    put = TokenStreamer.put
    count = [0]

    def failing(self: TokenStreamer, value: torch.Tensor) -> None:
        count[0] += 1
        if count[0] == 7:
            raise ValueError("a tokenizer")
        put(self, value)

    monkeypatch.setattr(TokenStreamer, "put", failing)
    for number in range(3):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=30)
    ended = desk.read(3)
    assert sorted(one.reason == "failed" for one in ended.values()) == [False, False, True]
    assert desk.pool.available == desk.pool.total


@pytest.mark.parametrize("failing_calls", [1, 2])
def test_a_row_that_cannot_be_moved_costs_nobody_anything(
    desk: Desk, alone: LocalEngine, monkeypatch: pytest.MonkeyPatch, failing_calls: int
) -> None:
    move, decode = desk.runner.move, desk.runner.decode
    are_added, all_write, is_cancelled = threading.Event(), threading.Event(), threading.Event()
    while_obeying: list[bool] = []

    def failing(source: int, target: int) -> None:
        if len(while_obeying) < failing_calls:
            while_obeying.append(any(frame.function == "_obey" for frame in inspect.stack()))
            raise RuntimeError("a kernel")
        move(source, target)

    def later(rows: int) -> object:
        are_added.wait(WAIT_S)
        if rows == 4 and not all_write.is_set():
            all_write.set()
            is_cancelled.wait(WAIT_S)
        return decode(rows)

    monkeypatch.setattr(desk.runner, "move", failing)
    monkeypatch.setattr(desk.runner, "decode", later)
    for number in range(4):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=100)
    are_added.set()
    assert all_write.wait(WAIT_S)
    desk.engine.cancel("r0")
    is_cancelled.set()
    ended = desk.read(4)
    assert while_obeying[0]
    assert ended["r0"].reason == "cancelled"
    for number in (1, 2, 3):
        assert ended[f"r{number}"].reason in ("length", "stop")
        assert desk.ids[f"r{number}"] == serially(alone, prompt_of(number, 20), 100)
    assert desk.pool.available == desk.pool.total


@pytest.mark.parametrize(("is_lost", "what"), [(False, "the loop"), (True, "the GPU")])
def test_a_loop_that_breaks_tells_everybody_and_what_is_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_lost: bool, what: str
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the recovery")

    def failing(_: int) -> object:
        raise RuntimeError("a kernel")

    monkeypatch.setattr(desk.engine, "_recover", broken)
    monkeypatch.setattr(desk.runner, "is_lost", lambda: is_lost)
    monkeypatch.setattr(desk.runner, "decode", failing)
    desk.add("one", prompt_of(1, 20))
    assert "text so far is kept" in desk.read()["one"].problem
    desk.engine._thread.join(WAIT_S)
    assert desk.lost == [what]


def test_too_little_memory_for_a_step_ends_the_longest_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = desk.runner.decode

    def greedy(rows: int) -> Any:
        if any(len(sequence.tokens) > 150 for sequence in desk.engine._writing):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(rows)

    monkeypatch.setattr(desk.runner, "decode", greedy)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    desk.add("short", prompt_of(1, 20), tokens=60)
    desk.add("long", prompt_of(2, 140), tokens=60)
    ended = desk.read(2)
    assert ended["short"].reason in ("length", "stop")
    assert "too long for this GPU: 151 tokens did not fit" in ended["long"].problem


def test_a_lost_gpu_is_not_touched_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> object:
        raise RuntimeError("an illegal access")

    monkeypatch.setattr(desk.runner, "is_lost", lambda: True)
    for number in range(3):
        desk.add(f"r{number}", prompt_of(number, 20), tokens=200)
    while not isinstance(desk.given.get(timeout=WAIT_S), Delta):
        pass
    for name in ("decode", "decode_and_extend", "move", "place"):
        monkeypatch.setattr(desk.runner, name, failing)
    assert {one.reason for one in desk.read(3).values()} == {"failed"}
    desk.engine._thread.join(WAIT_S)
    assert desk.lost == ["the GPU"]


def test_a_step_that_hangs_is_seen_from_outside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    decode = desk.runner.decode

    def slow(rows: int) -> object:
        begun.set()
        go_on.wait(WAIT_S)
        return decode(rows)

    assert desk.engine.stuck_s == 0
    monkeypatch.setattr(desk.runner, "decode", slow)
    desk.add("one", prompt_of(1, 20))
    assert begun.wait(WAIT_S)
    before = desk.engine.stuck_s
    while desk.engine.stuck_s <= before:
        pass
    go_on.set()
    desk.read()

import pytest
from hypothesis import settings as checked
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.engine.batched.pages import Held, OutOfPages, PagePool

SIZE = 4


def filled(pool: PagePool, ids: list[int]) -> Held:
    held = pool.begin(ids)
    pool.extend(held, len(ids))
    pool.wrote(held, ids[len(held.ids) :])
    return held


def test_a_beginning_that_is_known_is_taken_over() -> None:
    pool = PagePool(10, SIZE)
    first = filled(pool, list(range(10)))
    second = pool.begin([*range(8), 99, 99])
    assert second.pages == first.pages[:2]
    assert second.ids == list(range(8))


def test_the_last_token_of_a_prompt_is_always_left_to_be_read() -> None:
    pool = PagePool(10, SIZE)
    filled(pool, list(range(8)))
    assert pool.begin(list(range(8))).ids == [0, 1, 2, 3]
    assert pool.begin(list(range(9))).ids == list(range(8))


def test_what_nobody_holds_stays_until_others_need_the_room() -> None:
    pool = PagePool(5, SIZE)
    pool.end(filled(pool, list(range(9))))
    assert pool.available == 4
    assert len(pool.begin(list(range(9))).pages) == 2
    other = pool.begin([50])
    with pytest.raises(OutOfPages):
        pool.extend(other, 3 * SIZE)
    pool.extend(other, 2 * SIZE)
    assert pool.available == 0


def test_the_end_of_what_was_read_goes_before_its_beginning() -> None:
    pool = PagePool(4, SIZE)
    pool.end(filled(pool, list(range(12))))
    pool.extend(pool.begin([50]), SIZE)
    assert pool.begin(list(range(13))).ids == list(range(8))


def test_two_that_wrote_the_same_share_one_page_afterwards() -> None:
    pool = PagePool(10, SIZE)
    first, second = pool.begin([1, 2, 3, 4, 5]), pool.begin([1, 2, 3, 4, 5])
    for held in (first, second):
        pool.extend(held, 5)
    for held in (first, second):
        pool.wrote(held, [1, 2, 3, 4, 5])
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    assert pool.available == 9 - 3


def test_what_was_forgotten_is_found_by_nobody_though_it_is_still_held() -> None:
    pool = PagePool(10, SIZE)
    held = filled(pool, list(range(9)))
    pool.forget()
    assert pool.begin(list(range(9))).pages == []
    pool.extend(held, 12)
    pool.wrote(held, [9, 10, 11])
    pool.end(held)
    assert pool.available == 9
    assert pool.begin(list(range(13))).pages == []


class Shelf:
    """A store that keeps a few pages of `content`, as a cache's own memory would be copied."""

    def __init__(self, content: dict[int, list[int]], room: int = 4) -> None:
        self.content, self.room = content, room
        self.saved: dict[bytes, list[int]] = {}

    def save(self, key: bytes, page: int) -> None:
        self.saved.pop(key, None)
        if len(self.saved) == self.room:
            del self.saved[next(iter(self.saved))]
        self.saved[key] = list(self.content[page])

    def load(self, key: bytes, page: int) -> bool:
        if key in self.saved:
            self.content[page] = list(self.saved[key])
        return key in self.saved

    def forget(self) -> None:
        self.saved.clear()


def test_who_comes_while_another_reads_the_same_takes_over_what_is_read_by_then() -> None:
    pool = PagePool(20, SIZE)
    prompt = list(range(10))
    first, second = pool.begin(prompt), pool.begin(prompt)
    for held in (first, second):
        pool.extend(held, 11)
    pool.wrote(first, prompt[:5])
    assert not pool.catch_up(second, prompt, 0)
    assert second.ids == prompt[:4]
    pool.wrote(first, prompt[5:])
    pool.catch_up(second, prompt, 0)
    assert second.ids == prompt[:8]
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    pool.end(first)
    pool.end(second)
    assert pool.available == pool.total


def test_what_made_room_comes_back_from_the_store_a_few_pages_at_a_time() -> None:
    content: dict[int, list[int]] = {page: [] for page in range(20)}
    pool = PagePool(5, SIZE, Shelf(content, room=20))
    prompt = list(range(17))
    held = pool.begin(prompt)
    with pytest.raises(OutOfPages):
        pool.extend(held, 17)
    held = filled(pool, prompt[:16])
    for number, page in enumerate(held.pages):
        content[page] = prompt[number * SIZE : (number + 1) * SIZE]
    pool.end(held)
    pool.end(filled(pool, [99] * 16))
    back = pool.begin(prompt[:16])
    assert back.ids == []
    pool.extend(back, 16)
    assert pool.catch_up(back, prompt[:16], 2)
    assert back.ids == prompt[:8]
    assert not pool.catch_up(back, prompt[:16], 2)
    assert back.ids == prompt[:12]
    assert [content[page] for page in back.pages[:3]] == [prompt[:4], prompt[4:8], prompt[8:12]]


def test_a_store_that_has_little_time_keeps_beginnings() -> None:
    content: dict[int, list[int]] = {page: [] for page in range(20)}
    shelf = Shelf(content, room=20)
    save, left = shelf.save, [2]

    def in_a_hurry(key: bytes, page: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            save(key, page)

    shelf.save = in_a_hurry  # type: ignore[method-assign]
    pool = PagePool(5, SIZE, shelf)
    prompt = list(range(16))
    pool.end(filled(pool, prompt))
    pool.end(filled(pool, [99] * 16))
    back = pool.begin([*prompt, 1])
    with pytest.raises(OutOfPages):
        pool.extend(back, 17)
    pool.extend(back, 16)
    pool.catch_up(back, [*prompt, 1], 20)
    assert back.ids == prompt[:8]


class Pool(RuleBasedStateMachine):
    """Sequences that come, catch up, grow and go, beside what each page holds."""

    held: Bundle[Held] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.content: dict[int, list[int]] = {page: [] for page in range(12)}
        self.pool = PagePool(12, SIZE, Shelf(self.content))
        self.alive: list[Held] = []

    def write(self, held: Held, ids: list[int]) -> None:
        try:
            self.pool.extend(held, len(held.ids) + len(ids))
        except OutOfPages:
            return
        self.put(held, ids)

    def put(self, held: Held, ids: list[int]) -> None:
        for place, token in enumerate(ids, len(held.ids)):
            page = held.pages[place // SIZE]
            self.content[page] = [*self.content[page][: place % SIZE], token]
        self.pool.wrote(held, ids)

    @rule(target=held, prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def begin(self, prompt: list[int]) -> Held:
        held = self.pool.begin(prompt)
        self.alive.append(held)
        assert held.ids == prompt[: len(held.ids)]
        assert len(held.ids) < len(prompt)
        self.write(held, prompt[len(held.ids) :])
        return held

    @rule(
        target=held,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=18),
        pieces=st.lists(st.integers(1, 6), max_size=4),
        most=st.integers(0, 3),
    )
    def read_slowly(self, prompt: list[int], pieces: list[int], most: int) -> Held:
        held = self.pool.begin(prompt)
        self.alive.append(held)
        try:
            self.pool.extend(held, len(prompt) + 1)
        except OutOfPages:
            return held
        for piece in pieces:
            while self.pool.catch_up(held, prompt, most) and most:
                pass
            assert held.ids == prompt[: len(held.ids)]
            assert len(held.ids) < len(prompt)
            self.put(held, prompt[len(held.ids) : len(prompt) - 1][:piece])
        return held

    @rule(held=held, ids=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, held: Held, ids: list[int]) -> None:
        self.write(held, ids)

    @rule(held=consumes(held))
    def end(self, held: Held) -> None:
        self.pool.end(held)
        self.alive = [other for other in self.alive if other is not held]

    @rule()
    def forget(self) -> None:
        self.pool.forget()

    @invariant()
    def every_page_holds_what_its_holders_think(self) -> None:
        for held in self.alive:
            pages = held.pages[: -(-len(held.ids) // SIZE)]
            found = [token for page in pages for token in self.content[page]]
            assert found[: len(held.ids)] == held.ids

    @invariant()
    def no_page_is_lost_or_handed_out_twice(self) -> None:
        there = {page for held in self.alive for page in held.pages}
        assert 0 not in there
        assert self.pool.available + len(there) == self.pool.total


TestPool = Pool.TestCase
TestPool.settings = checked(max_examples=100, stateful_step_count=40, deadline=None)

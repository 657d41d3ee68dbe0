"""Who waits for the engine, and whose turn it is: addresses take turns, and at one address people do.

So fifty guests of one network cannot stand between everybody else and the model, and a class behind one address is
served in turn. Nobody waits for ever: a turn is given out when a run joins, and those who come later get later ones.

Source: start-time fair queueing (Goyal, Vin, Cheng 1996), each run of cost 1.
"""

from collections import defaultdict
from dataclasses import dataclass

from app.runs.live import LiveRun


@dataclass(frozen=True, slots=True)
class _Waiting:
    run: LiveRun
    address: str
    person_turn: int
    number: int


class _Turns:
    """Turns of one kind, given out to whoever asks: each one's next is behind its last, and behind the one served."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._served = 0

    def next(self, who: str) -> int:
        turn = max(self._served, self._last.get(who, 0)) + 1
        self._last[who] = turn
        return turn

    def serve(self, turn: int) -> None:
        self._served = max(self._served, turn)
        self._last = {who: last for who, last in self._last.items() if last > self._served}


class Line:
    """The runs that wait, in the order in which they are served."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._address_turns: defaultdict[str, list[int]] = defaultdict(list)
        self._by_address = _Turns()
        self._by_person = _Turns()
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, run: LiveRun) -> bool:
        return run.id in self._waiting

    def join(self, run: LiveRun) -> None:
        """Wait for a turn."""
        self._number += 1
        address = run.address or run.owner_id
        self._address_turns[address].append(self._by_address.next(address))
        self._waiting[run.id] = _Waiting(run, address, self._by_person.next(run.owner_id), self._number)

    def leave(self, run: LiveRun) -> bool:
        """Wait no longer, which gives the last turn of its address back; whether it did wait."""
        one = self._waiting.pop(run.id, None)
        if one is not None:
            self._give_back(one.address, -1)
        return one is not None

    def next(self) -> LiveRun | None:
        """Take the run whose turn it is out of the line."""
        first = next(iter(self._in_order()), None)
        if first is None:
            return None
        turn, one = first
        del self._waiting[one.run.id]
        self._give_back(one.address, 0)
        self._by_address.serve(turn)
        self._by_person.serve(one.person_turn)
        return one.run

    def runs(self) -> list[LiveRun]:
        """All that wait, the next one first."""
        return [one.run for _, one in self._in_order()]

    def waiting_from(self, address: str) -> int:
        """How many wait from one address."""
        return len(self._address_turns.get(address, ()))

    def _give_back(self, address: str, index: int) -> None:
        self._address_turns[address].pop(index)
        if not self._address_turns[address]:
            del self._address_turns[address]

    def _in_order(self) -> list[tuple[int, _Waiting]]:
        """The turns of an address go to its people in turn, whoever of them came first."""
        at_address: defaultdict[str, list[_Waiting]] = defaultdict(list)
        for one in self._waiting.values():
            at_address[one.address].append(one)
        placed: list[tuple[int, _Waiting]] = []
        for address, waiting in at_address.items():
            waiting.sort(key=lambda one: (one.person_turn, one.number))
            placed += zip(self._address_turns[address], waiting, strict=True)
        return sorted(placed, key=lambda entry: (entry[0], entry[1].number))

"""The engine's process with all that it is but the model: for tests about processes, which need no torch."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable

from app.engine.base import Delta, EngineStatus, Finished, Request, Usage
from app.engine.host import worker
from app.engine.host.assembly import Assembly
from app.engine.wire import EXIT_GPU_LOST
from tests.scripted import PROFILE

# Whoever asks for a request of this name meets a GPU that is lost in the middle of it
LOSES_THE_GPU = "loses-the-gpu"
_TOKEN_S = 0.002


class LightEngine:
    """Writes the same token again and again, for one after the other."""

    stuck_s = 0.0

    def __init__(self, give: Callable[[Delta | Finished], None]) -> None:
        self._give = give
        self._requests: queue.Queue[Request] = queue.Queue()
        threading.Thread(target=self._write_all, daemon=True).start()

    def add(self, request: Request) -> None:
        self._requests.put(request)

    def cancel(self, request_id: str) -> None:
        raise NotImplementedError

    def _write_all(self) -> None:
        while True:
            request = self._requests.get()
            for _ in range(request.max_new_tokens):
                time.sleep(_TOKEN_S)
                self._give(Delta(request.id, (65,), ("a",)))
                if request.id == LOSES_THE_GPU:
                    time.sleep(2 * worker._COALESCE_S)  # what was written by now is on its way
                    os._exit(EXIT_GPU_LOST)
            self._give(Finished(request.id, "length", Usage(len(request.prompt), request.max_new_tokens)))


class LightAssembly(Assembly):
    """Ready at once."""

    def load(self) -> None:
        self.profile = PROFILE
        self.engine = LightEngine(self._give)  # type: ignore[assignment]
        self._tell_status(EngineStatus("ready"))


if __name__ == "__main__":
    worker.Assembly = LightAssembly  # type: ignore[misc]
    sys.exit(worker.main())

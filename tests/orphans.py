"""Every process that the tests start ends with the process of tests that started it, however that one ends.

`atexit` and `finally` do not run when a worker is killed, or when a timeout ends it at once. The kernel can be asked
to send a signal to a process whose parent dies, but only by that process. So whatever is started is started
through this file: run as a program, it asks, and then becomes what was to be started.
"""

import ctypes
import functools
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 126
_start = subprocess.Popen.__init__
# Tests put something else in its place
_PYTHON = sys.executable


def leave_no_orphans() -> None:
    """From now on whatever this process starts is killed when it dies, or when the thread that started it does."""

    @functools.wraps(_start)
    def start(process: "subprocess.Popen[Any]", args: Any, *more: Any, **options: Any) -> None:
        command = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
        _start(process, ending_with_us(command) if _is_one_program(command, more, options) else args, *more, **options)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def ending_with_us(command: Sequence[Any], how: signal.Signals = signal.SIGKILL, user: str = "") -> list[Any]:
    """What to start in place of `command` for that it gets the signal when this process dies."""
    return [_PYTHON, "-I", "-S", __file__, str(how.value), str(os.getpid()), user, *command]


def _is_one_program(command: list[Any], more: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether it can be started through this file; what is not found has to fail as it always does."""
    is_through_us = __file__ in command
    # Another user may not come to this file
    is_plain = not more and not any(options.get(name) for name in ("shell", "executable", "user"))
    path = (options.get("env") or os.environ).get("PATH")
    return is_plain and not is_through_us and shutil.which(command[0], path=path) is not None


def _become(how: int, parent: int, user: str, command: list[str]) -> None:
    """Be what was to be started, which ends with the parent."""
    if user:
        # It takes back what was asked for, so it comes first
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)  # Python ignores them, and who is started after it would too
    if os.getppid() == parent:
        os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    sys.exit(_CANNOT_RUN)

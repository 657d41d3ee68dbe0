"""A process of tests that dies leaves nothing behind, however it dies."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import databases, orphans

ROOT = Path(__file__).parents[1]
_STARTS_ALL = """
import os, subprocess, sys
from playwright.sync_api import sync_playwright
from tests.browser_setup import LAUNCH, system_chromium
from tests.databases import start_postgresql
from tests.orphans import leave_no_orphans

leave_no_orphans()
plain = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1)
plain.stdout.readline()
postgresql = start_postgresql()
assert postgresql.execute("SELECT 1") == [(1,)]
playwright = sync_playwright().start()
page = playwright.chromium.launch(executable_path=system_chromium(), args=LAUNCH).new_page()
page.goto("data:text/html,hello")
print(postgresql.folder, flush=True)
sys.stdin.readline()
os._exit(1)
"""


@pytest.mark.browser
@pytest.mark.postgresql
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "ended at once, as by a timeout"])
def test_what_tests_have_started_is_gone_when_their_process_is(is_killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _STARTS_ALL], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        started = psutil.Process(process.pid).children(recursive=True)
        said = " ".join(name for one in started for name in one.cmdline())
        assert all(name in said for name in ("input()", folder, "playwright", "--type=renderer")), said
        if is_killed:
            process.kill()
        process.communicate("\n")
    assert process.returncode == (-9 if is_killed else 1)
    _, left = psutil.wait_procs(started, timeout=60)
    for one in left:
        one.kill()
    assert not left
    # The next to start a PostgreSQL takes away what was left of this one
    databases._remove_abandoned()
    assert not Path(folder).exists()


def test_that_holds_for_this_process_and_for_commands_of_all_kinds() -> None:
    asks = [__file__, "-I"]
    found = subprocess.run([sys.executable, "-c", _SIGNAL_AT_DEATH, *asks], capture_output=True, text=True, check=True)
    assert found.stdout == f"9 {asks}\n"
    with pytest.raises(FileNotFoundError):
        subprocess.Popen(["/no/such/program"])
    assert subprocess.run("exit 3", shell=True).returncode == 3
    assert (
        orphans.__file__
        not in subprocess.run(["/bin/sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline"], stdout=-1).stdout.decode()
    )


_SIGNAL_AT_DEATH = """
import ctypes, sys
found = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(found))
print(found.value, sys.argv[1:])
"""

"""Make sure that there is a Chromium for the browser tests: `python -m tests.browser_setup`.

A Chromium on the path serves; else Debian's is installed where we may, else Playwright's own is tried. Where nothing
helps, it says the one command that does.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu-core")
LAUNCH = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def system_chromium() -> str | None:
    """The path of a Chromium that is installed on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def has_playwright_chromium() -> bool:
    """Whether Playwright's own Chromium has been downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return Path(playwright.chromium.executable_path).exists()


def main() -> int:
    """Install one if there is none; the exit status."""
    if system_chromium() or has_playwright_chromium():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Chromium for the browser tests ...", flush=True)  # noqa: T201
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *PACKAGES]):
            if subprocess.run(command, check=False, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}).returncode:
                break
        if system_chromium():
            return 0
    print("Installing Playwright's Chromium ...", flush=True)  # noqa: T201
    if subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False).returncode == 0:
        return 0
    print("The browser tests need Chromium. Install it with:  sudo apt-get install -y chromium", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The page under a long trace in Chromium: `python -m bench.page [tokens] [tokens a second]`.

A mathematics-dense text goes at a steady rate through the real splitter, renderer, log and page, three quarters of it
as reasoning and one as the answer. What counts: how far behind the page is when the last token is written, and whether
any task blocks the page for more than 100 ms.
"""

import sys
import tempfile
import time
from functools import partial

from bench.steady import Script, steady_ponder
from bench.texts import tokens, trace
from tests.browser_setup import LAUNCH, system_chromium

_WATCH = """
() => {
  window.bench = {tasks: [], seen: {}, done: 0};
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.bench.tasks.push([entry.startTime, entry.duration]);
  }).observe({type: 'longtask', buffered: false});
  new MutationObserver(() => {
    for (const [name, selector] of [['reasoning', '#reasoning'], ['answer', '#thread']]) {
      if (!window.bench.seen[name]) {
        const text = document.querySelector(selector)?.lastElementChild?.textContent ?? '';
        if (text.includes('LASTWORD-' + name)) window.bench.seen[name] = performance.timeOrigin + performance.now();
      }
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}
"""


def _script(count: int, rate: float, ended_file: str) -> Script:
    text = tokens(trace(count * 4))
    border = count * 3 // 4
    return Script(
        reasoning=[*text[:border], "\n\nLASTWORD-reasoning\n"],
        answer=["\n\n", *text[border:], "\n\nLASTWORD-answer\n"],
        tokens_per_s=rate,
        ended_file=ended_file,
    )


def main(count: int = 32_000, rate: float = 250.0) -> None:
    """Print one row."""
    from playwright.sync_api import sync_playwright

    with (
        tempfile.NamedTemporaryFile("r") as ended,
        steady_ponder(partial(_script, count, rate, ended.name)) as (url, _),
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=system_chromium(), args=list(LAUNCH)) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.get_by_placeholder("Ask something hard").fill("Go.")
        page.evaluate(_WATCH)
        page.keyboard.press("Enter")
        start = time.time()
        page.get_by_role("button", name="I understand").click()
        page.wait_for_function("() => window.bench.seen.answer", timeout=(count / rate + 120) * 1000)
        page.wait_for_timeout(500)
        bench = page.evaluate("() => window.bench")
        blocks = page.evaluate("() => document.querySelectorAll('#reasoning *, #thread *').length")
        ended_at = float(ended.read())
    tasks = bench["tasks"]
    durations = [duration for _, duration in tasks]
    figures = [
        f"{count:,}",
        f"{rate:.0f}/s",
        f"{bench['seen']['answer'] / 1000 - ended_at:.2f}",
        f"{max(durations, default=0):.0f}",
        f"{sum(duration > 100 for duration in durations)}",
        f"{blocks:,}",
    ]
    print("\n| tokens | rate | behind at the end s | longest task ms | tasks > 100 ms | elements |")
    print("|---|---|---|---|---|---|")
    print("| " + " | ".join(figures) + " |")
    print(f"\n(the run took {time.time() - start:.0f} s)")


if __name__ == "__main__":
    main(*(float(argument) if "." in argument else int(argument) for argument in sys.argv[1:]))

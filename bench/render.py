"""What rendering costs: `python -m bench.render`. Processor time, not wall time, so that a busy machine tells the same.

Prints a maths-dense reasoning text of 130 kB whole and block by block with five tails a second, and for ordinary and
hostile shapes how the time grows when the text doubles (linear is 2).
"""

import random
import time
from collections.abc import Callable

from app.render import StreamRenderer, render

_FORMULAS = (
    r"x^2 + y^2 = z^2",
    r"\frac{n(n+1)}{2}",
    r"\sum_{{i=1}}^{{{0}}} i^2",
    r"a_{{{0}}} \equiv {1} \pmod{{7}}",
    r"\sqrt{{{0}}} \approx {1}",
    r"\binom{{{0}}}{{k}} p^k (1-p)^{{{0}-k}}",
    r"f({0}) = {1}",
    r"\left( \frac{{a_{0}}}{{b_{1}}} \right)^2",
    r"n \ge {0}",
    r"\int_0^{{{0}}} e^{{-t^2}} \, dt",
)
_SENTENCES = (
    "Wait, let me check that again with {0}.",
    "So if {0}, then {1} must hold as well.",
    "Hmm, that gives {0}, which is not what I expected, because {1}.",
    "Let me **substitute** {0} into the equation and see what comes out of it.",
    "Okay, the next step is to bound {0} from above.",
    "That seems right, but I should double-check the case of a negative discriminant.",
    "Alternatively, I could use induction on the number of terms, which avoids the division.",
)


def reasoning_text(chars: int, seed: int = 7) -> str:
    """A reasoning trace: short paragraphs full of formulas, some lists, displays, code and tables."""
    dice = random.Random(seed)

    def latex() -> str:
        return (
            dice.choice(_FORMULAS)
            .replace("{{", "{")
            .replace("}}", "}")
            .replace("{0}", str(dice.randint(1, 999)))
            .replace("{1}", str(dice.randint(1, 99)))
        )

    def sentence() -> str:
        return dice.choice(_SENTENCES).format(rf"\({latex()}\)", f"${latex()}$")

    parts: list[str] = []
    size = 0
    while size < chars:
        kind = dice.random()
        if kind < 0.68:
            part = " ".join(sentence() for _ in range(dice.randint(1, 4)))
        elif kind < 0.82:
            part = "\\[\n" + latex() + "\n\\]"
        elif kind < 0.93:
            part = "\n".join(f"{number}. {sentence()}" for number in range(1, dice.randint(3, 6)))
        elif kind < 0.96:
            part = "| n | value |\n|---|---|\n" + "\n".join(f"| {n} | ${latex()}$ |" for n in range(5))
        else:
            part = "```python\nfor n in range(100):\n    print(n, n * n % 7)  # squares\n```"
        parts.append(part)
        size += len(part) + 2
    return "\n\n".join(parts)[:chars]


SHAPES: dict[str, Callable[[int], str]] = {
    "reasoning": reasoning_text,
    "prose on one line": lambda n: "so the sum is even and " * (n // 23),
    "Chinese on one line": lambda n: "因此和是偶数，" * (n // 7),
    "letters, no space": lambda n: "a" * n,
    "one long fence": lambda n: "```python\n" + "x = f(1) + 'two'  # three\n" * (n // 27),
    "one long list": lambda n: "".join(f"1. item {i}\n" for i in range(n // 12)),
    "nested lists": lambda n: "".join("  " * (i % 40) + "- x\n" for i in range(n // 44)),
    "loose list, long items": lambda n: "- a\n\n" + "  more words in it\n\n" * (n // 20),
    "one long table": lambda n: "| a | b |\n|---|---|\n" + "| 1 | $x$ |\n" * (n // 12),
    "unclosed $$": lambda n: "$$\n" + "x + y\n" * (n // 6),
    r"unclosed \[ each line": lambda n: "a \\[ b\n" * (n // 7),
    r"unclosed \begin": lambda n: "\\begin{align}\n" * (n // 14),
    "dollars": lambda n: "$" * n,
    "dollars and letters": lambda n: "$a " * (n // 3),
    "backticks": lambda n: "".join("`" * (i % 50) + " " for i in range(n // 26)),
    "opening brackets": lambda n: "[" * n,
    "brackets": lambda n: "[a](" * (n // 4),
    "images": lambda n: "![a](" * (n // 5),
    "asterisks": lambda n: "*" * n,
    "open emphasis": lambda n: "*a _b " * (n // 6),
    "crossed emphasis": lambda n: "*a**b_c__" * (n // 9),
    "quote marks": lambda n: (">" * 100 + "\n") * (n // 101),
    "quote marks on one line": lambda n: "> " * (n // 2),
    "list marks on one line": lambda n: "- " * (n // 2) + "x",
    "backslashes": lambda n: "\\" * n,
    "open formulas": lambda n: "\\(" * (n // 2),
    "braces": lambda n: "\\boxed{" + "{" * n,
    "primes": lambda n: "$" + "x'" * (n // 2) + "$",
    "deep roots": lambda n: (r"$" + r"\sqrt{" * 500 + "}" * 500 + "$\n") * (n // 3503),
    "angles": lambda n: "<a " * (n // 3),
    "entities": lambda n: "&#x" * (n // 3),
    "tildes": lambda n: "~~a" * (n // 3),
    "blank lines": lambda n: "\n" * n,
    "lines": lambda n: "a\n" * (n // 2),
    "pipes": lambda n: "|-" * (n // 2) + "\n" + "|-" * (n // 2),
}


def cost_ms(work: Callable[[], object], rounds: int = 3) -> float:
    """Processor time of one call, best of some."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best * 1000


def stream(text: str, chars_per_push: int, pushes_per_tail: int) -> None:
    """Feed `text` as an engine would and show the tail as the page would."""
    renderer = StreamRenderer()
    for number, start in enumerate(range(0, len(text), chars_per_push)):
        renderer.push(text[start : start + chars_per_push])
        if pushes_per_tail and number % pushes_per_tail == 0:
            renderer.tail()
    renderer.finish()


def main() -> None:
    text = reasoning_text(130_000)
    formulas = text.count("\\(") + text.count("\\[") + text.count("$") // 2
    print(f"reasoning text: {len(text)} characters, {formulas} formulas, {len(render(text))} characters of HTML")
    print(f"  whole                                 {cost_ms(lambda: render(text)):8.1f} ms")
    print(f"  pushed by 36 characters, no tails     {cost_ms(lambda: stream(text, 36, 0)):8.1f} ms")
    # 250 tokens/s of 3.6 characters, pieces every 40 ms, a tail every 200 ms: 722 tails in 144 s
    print(f"  pushed by 36 characters, 5 tails/s    {cost_ms(lambda: stream(text, 36, 5)):8.1f} ms of 144 s")
    size = 50_000
    print(f"\n{'shape':26}{size // 1000:>6} kB{'x2':>10}{'ratio':>8}{'with tails, x2':>16}")
    for name, shape in SHAPES.items():
        once, twice = shape(size), shape(2 * size)
        one, two = cost_ms(lambda once=once: render(once)), cost_ms(lambda twice=twice: render(twice))  # type: ignore[misc]
        streamed = cost_ms(lambda twice=twice: stream(twice, 900, 1), 1)  # type: ignore[misc]
        print(f"{name:26}{one:6.0f} ms{two:7.0f} ms{two / one:8.2f}{streamed:13.0f} ms")


if __name__ == "__main__":
    main()

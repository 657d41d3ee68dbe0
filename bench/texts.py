"""Text like what a reasoning model writes: mathematics in every other sentence, lists, code, tables."""

import re
from itertools import cycle, islice

_PARAGRAPHS = [
    "Okay, so we need the sum of the first \\(n\\) odd numbers. Let me write \\(S_n = \\sum_{k=1}^{n} (2k-1)\\) and "
    "try small cases: \\(S_1 = 1\\), \\(S_2 = 1 + 3 = 4\\), \\(S_3 = 9\\). So the guess is $S_n = n^2$.",
    "Wait, is it always a square? If a<b and c>d nothing changes. By induction, assume $S_n = n^2$; then "
    "$S_{n+1} = n^2 + (2n+1) = (n+1)^2$, so it holds.",
    "\\[ \\sum_{k=1}^{n} (2k-1) = 2\\cdot\\frac{n(n+1)}{2} - n = n^2 + n - n = n^2 \\]",
    "Alternatively, look at it as a matrix:\n\n\\[ A = \\begin{pmatrix} 1 & 2 & 3 \\\\ 4 & 5 & 6 \\\\ 7 & 8 & 9 "
    "\\end{pmatrix}, \\qquad \\det A = 0 \\]",
    "- first, check \\(n = 1\\): \\(1 = 1^2\\)\n- then \\(n = 2\\): \\(1 + 3 = 2^2\\)\n"
    "- and \\(n = 10\\): \\(\\sum = 100\\), which costs $5 and $10 together",
    "Hmm, let me double-check with code:\n\n```python\ndef odd_sum(n: int) -> int:\n"
    "    return sum(2 * k - 1 for k in range(1, n + 1))\n\nassert odd_sum(10) == 100\n```",
    "The integral \\(\\int_0^1 x^2\\,dx = \\tfrac13\\) and the limit $\\lim_{n\\to\\infty} \\frac{S_n}{n^2} = 1$ "
    "agree, so **the pattern** is right, and *nothing* in it depends on `n` being even.",
    "| n | sum | square |\n|---|---|---|\n| 1 | 1 | $1^2$ |\n| 2 | 4 | $2^2$ |\n| 3 | 9 | $3^2$ |",
    "So the answer should be \\(n^2\\), but let me think about whether the problem meant something else by “first”. "
    "If it starts at 3, then we get \\((n+1)^2 - 1 = n^2 + 2n\\). No, it says the first odd numbers.",
]


def trace(characters: int) -> str:
    """About this many characters of reasoning."""
    found: list[str] = []
    size = 0
    for paragraph in cycle(_PARAGRAPHS):
        if size >= characters:
            return "\n\n".join(found)
        found.append(paragraph)
        size += len(paragraph) + 2
    raise AssertionError("cycle never ends")


def tokens(text: str, characters: int = 4) -> list[str]:
    """The text in pieces of about a token's size."""
    return re.findall(rf"(?s).{{1,{characters}}}", text)


def traces(count: int, characters: int) -> list[str]:
    """Traces that differ."""
    return [trace(characters)[start:] for start in islice(range(0, 7 * count, 7), count)]

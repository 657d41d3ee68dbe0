"""Code with the classes of Pygments, one lexer per language.

Only the languages listed are highlighted: looking for an unknown name walks through all lexers, and some of Pygments'
need seconds for a few kilobytes of hostile text (C, C++, C#, Java: their
patterns for declarations look ahead over lines). `BraceLexer` stands in for those.
"""

from functools import lru_cache
from html import escape
from typing import Any, ClassVar

from pygments.lexer import Lexer, RegexLexer, words
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES, Comment, Keyword, Name, Number, Operator, Punctuation, String, Text, Token
from pygments.token import _TokenType as TokenType

_LANGUAGE_NAMES = """
    bash c cpp csharp css diff dockerfile go haskell html http ini java javascript json julia kotlin latex lua
    php powershell python r ruby rust scala sql swift toml xml yaml
"""
LANGUAGES = frozenset(_LANGUAGE_NAMES.split())
_OTHER_NAMES = {
    "c#": "csharp",
    "c++": "cpp",
    "console": "bash",
    "cs": "csharp",
    "h": "c",
    "hpp": "cpp",
    "js": "javascript",
    "jsonc": "json",
    "jsx": "javascript",
    "kt": "kotlin",
    "patch": "diff",
    "ps1": "powershell",
    "py": "python",
    "python3": "python",
    "rb": "ruby",
    "rs": "rust",
    "sh": "bash",
    "shell": "bash",
    "tex": "latex",
    "ts": "javascript",
    "tsx": "javascript",
    "typescript": "javascript",
    "yml": "yaml",
    "zsh": "bash",
}
_BRACE_LANGUAGES = frozenset(["c", "cpp", "csharp", "java"])
_BRACE_KEYWORDS = """
    abstract alignas as async auto await base bool boolean break byte case catch char class concept const constexpr
    continue decimal default delegate delete do double else enum event explicit export extends extern false final
    finally fixed float for foreach friend get goto if implements import in inline instanceof int int32_t int64_t
    interface internal is lock long namespace native new noexcept null nullptr object operator out override package
    params private protected public readonly record ref register requires return sealed set short signed size_t
    sizeof static static_assert static_cast std string struct super switch synchronized template this throw throws
    transient true try typedef typename typeof uint uint32_t uint64_t ulong union unsafe unsigned using var virtual
    void volatile where while yield
"""
_MAX_LINE_CHARS = 2000

TOKEN_CLASSES = frozenset(STANDARD_TYPES.values()) - {""}


def code_block(source: str, language: str, *, is_continued: bool = False) -> str:
    """A code block without its copy button; a continued one has no head."""
    name = language.lower()
    name = _OTHER_NAMES.get(name, name)
    body = _highlighted(source, name) if name in LANGUAGES else escape(source, quote=False)
    pre = f'<pre dir="ltr"><code class="highlight">{body}</code></pre></div>\n'
    if is_continued:
        return f'<div class="code cont">{pre}'
    shown = escape(language[:40], quote=False) or "text"
    return f'<div class="code"><div class="code-head"><span class="code-lang">{shown}</span></div>{pre}'


def _highlighted(source: str, name: str) -> str:
    if any(len(line) > _MAX_LINE_CHARS for line in source.split("\n")):
        return escape(source, quote=False)
    pieces: list[str] = []
    for _, kind, text in _lexer(name).get_tokens_unprocessed(source):
        css = _css_class(kind)
        safe = escape(text, quote=False)
        pieces.append(f'<span class="{css}">{safe}</span>' if css else safe)
    return "".join(pieces)


class BraceLexer(RegexLexer):  # type: ignore[misc]
    """C and its descendants, token by token; each pattern is linear."""

    tokens: ClassVar[dict[str, list[Any]]] = {
        "root": [
            (r"\s+", Text),
            (r"//[^\n]*", Comment.Single),
            (r"/\*(?:[^*]|\*(?!/))*(?:\*/)?", Comment.Multiline),
            (r"#[ \t]*[a-z]+", Comment.Preproc),
            (r'"(?:\\.|[^"\\\n])*"?', String),
            (r"'(?:\\.|[^'\\\n])*'?", String),
            (r"\d[\w.]*", Number),
            (words(tuple(_BRACE_KEYWORDS.split()), suffix=r"\b"), Keyword),
            (r"@\w+", Name.Decorator),
            (r"\w+(?=\()", Name.Function),
            (r"\w+", Name),
            (r"[-+*/%&|^!~<>=?:]+", Operator),
            (r".", Punctuation),
        ]
    }


@lru_cache(maxsize=len(LANGUAGES))
def _lexer(name: str) -> Lexer:
    return BraceLexer() if name in _BRACE_LANGUAGES else get_lexer_by_name(name)


@lru_cache(maxsize=256)
def _css_class(kind: TokenType) -> str:
    while kind not in STANDARD_TYPES:
        kind = kind.parent or Token
    css = STANDARD_TYPES[kind]
    return "" if css in ("n", "p", "w") else css  # the plain text of most lines: not worth a span

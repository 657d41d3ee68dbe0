r"""What has only begun at the end of a text that goes on: half a command, the head of a table. It is not shown yet."""

import re

_HALF_COMMAND = re.compile(r"\\[a-zA-Z]*$")
_RULE = re.compile(r"[ \t]*\|[ \t|:\-]*$")
_ROW = re.compile(r"[ \t]*\|(?:[ \t]+[^\s|].*\|.*|[^\s|][^|]*\|.*\|[ \t]*)$")
_CELL_END = re.compile(r"(?<!\\)\|")


def without_what_begins(text: str) -> str:
    """The text as it can be shown: without half a command, and with the rule that the head of a table lacks."""
    text = _HALF_COMMAND.sub("", text)
    above, _, last = text.rpartition("\n")
    head = above.rpartition("\n")[2]
    if _ROW.match(last) and not _RULE.match(last) and not _is_row(head) and len(_CELL_END.findall(last)) > 1:
        return f"{text}\n{_rule_below(last)}"
    if _RULE.match(last) and _is_row(head) and not _is_row(above.rpartition("\n")[0].rpartition("\n")[2]):
        return f"{above}\n{_rule_below(head)}"
    return text


def _is_row(line: str) -> bool:
    return line.lstrip(" \t").startswith("|")


def _rule_below(head: str) -> str:
    cells = len(_CELL_END.findall(head.strip().removeprefix("|").removesuffix("|"))) + 1
    return "|" + "---|" * cells

"""Names that speak for the server, and whatever looks like one: nobody signs up as the admin."""

import re
import unicodedata
from functools import cache
from pathlib import Path

_CONFUSABLES = Path(__file__).with_name("confusables.txt")
# A name that is one of these speaks for the server
_OFFICES = """
    admin admins administrator administrators administration adm sysadmin sysop root superuser sudo system systems
    systemadmin systemadministrator ponderteam
    ponder moderator moderators mod mods support supporter operator operators owner owners staff official officials
    security help helpdesk helpline service webmaster hostmaster postmaster master abuse contact noreply daemon server
    guest guests anonymous nobody everyone everybody null none undefined assistant bot model
    verwaltung verwalter administratorin moderatorin betreiber betreiberin kundendienst hilfe gast niemand
    админ администратор модератор поддержка система
    管理员 管理員 管理 系统 系統 系统管理员 客服 官方 版主 站长 站長 管理者 運営 관리자 운영자
"""
# They make no office of a name, and go with one: the-real-admin, support-team
_BESIDE = "ponder official system the real true your our my team desk account user chat bot ai der die das echter echte"
# Digits and letters that pass for one another, each as the first of its kind
_ALIKE = str.maketrans("1i|!034567892", "lllloeasbtbgz")
_JOINED = (("rn", "m"), ("nn", "m"), ("vv", "w"), ("uu", "w"), ("cl", "d"), ("ci", "d"))


def is_reserved(name: str) -> bool:
    """Whether a name is one that speaks for the server, or could be taken for it."""
    return any(_speaks_for_us(form) for form in _forms(name))


def _speaks_for_us(form: str) -> bool:
    """Whether it is one office, with nothing but what goes with it before and behind."""
    offices, beside = _words()
    # The places up to which it is made of such words: before the office, and behind it
    before, behind = {0}, set[int]()
    for start in range(len(form)):
        for end in range(start + 1, len(form) + 1):
            word = form[start:end]
            if start in before and word in beside:
                before.add(end)
            if (start in before and word in offices) or (start in behind and word in beside):
                behind.add(end)
    return len(form) in behind


def _forms(name: str) -> set[str]:
    """What a name looks like at a glance: without marks, signs and numbers around it, each letter as its like."""
    bare = "".join(_lookalikes().get(letter, letter) for letter in _without_marks(name))
    letters = re.sub(r"[._-]", "", _without_marks(bare).casefold())
    found = {letters, letters.strip("0123456789")}
    return {_folded(form) for form in found if form} | {
        _folded(form.replace(seen, meant)) for form in found for seen, meant in _JOINED if seen in form
    }


def _without_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] != "M")


def _folded(form: str) -> str:
    return form.translate(_ALIKE)


@cache
def _lookalikes() -> dict[str, str]:
    lines = _CONFUSABLES.read_text("utf-8").splitlines()
    pairs = (line.split(" ", 1) for line in lines if not line.startswith("#"))
    return {letter: meant for meant, letters in pairs for letter in letters}


@cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    offices, beside = (
        frozenset(form for word in words.split() for form in _forms(word)) for words in (_OFFICES, _BESIDE)
    )
    return offices, beside

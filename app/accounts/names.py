"""Usernames: any one script, nothing invisible, and no two that fold the same."""

import re
import unicodedata

from app.accounts.reserved import is_reserved
from app.errors import BadUsername

SHORTEST, LONGEST = 3, 32
_MARKS = "._-"
# Letters and marks by their category that are drawn as nothing (Unicode's Default_Ignorable_Code_Point)
_UNSEEN = re.compile("[\u034f\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_LONGEST_TYPED = 200


def checked_username(typed: str, *, may_speak_for_us: bool = False) -> tuple[str, str]:
    """The name as it is shown, and the key it is unique by. Only whoever runs the server may call somebody `admin`.

    Raises:
        BadUsername: a rule is not met; the message says which.
    """
    if len(typed) > _LONGEST_TYPED:
        raise BadUsername(f"A name has at most {LONGEST} characters.", rule="length")
    shown = unicodedata.normalize("NFKC", typed.strip())
    if not SHORTEST <= len(shown) <= LONGEST:
        raise BadUsername(f"A name has {SHORTEST} to {LONGEST} characters.", rule="length")
    for character in shown:
        is_visible = unicodedata.category(character)[0] in "LMN" and not _UNSEEN.match(character)
        if not is_visible and character not in _MARKS:
            raise BadUsername(
                "A name has letters, digits, dots, dashes and underscores, and nothing else.", rule="characters"
            )
    if unicodedata.category(shown[0])[0] != "L":
        raise BadUsername("A name begins with a letter.", rule="first")
    if len(_scripts(shown)) > 1:
        raise BadUsername("A name is written in one alphabet: letters of several can look the same.", rule="alphabet")
    if not may_speak_for_us and is_reserved(shown):
        raise BadUsername("This name could be taken for whoever runs the server. Choose another one.", rule="reserved")
    return shown, username_key(shown)


def username_key(name: str) -> str:
    """What a name is looked up by; folding may change the form, so it is normalized on both sides."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name[:_LONGEST_TYPED].strip()).casefold())
    return folded[:64]


def _scripts(name: str) -> set[str]:
    """The scripts of the letters, by the first word of their Unicode names; Japanese and Korean mix theirs."""
    words = {
        unicodedata.name(letter, "?").split()[0].split("-")[0]
        for letter in name
        if unicodedata.category(letter)[0] == "L"
    }
    return {"CJK" if word in ("HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO") else word for word in words}

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.accounts.names import checked_username, username_key
from app.errors import BadUsername


@pytest.mark.parametrize("name", ["ada", "Ada.L", "ÄÖÜ", "张三丰", "田中さん", "Анна", "jean-luc_2", "  ada  "])
def test_names_of_every_alphabet_are_taken(name: str) -> None:
    assert checked_username(name)[0] == name.strip()


UNSEEN = ["a\u202edc", "z\u200bw", "z\u00adw", "ada\ufe0f", "a\u034fda", "\u3164\u3164\u3164"]
INVALID = ["ad\x00a", "a\ud800b", "😀😀😀"]
MIXED = ["аdа", "adaα"]
SAME = [("Ada", "aDA"), ("straße", "STRASSE"), ("ﬁsh", "fish"), ("é" * 3, "e\u0301" * 3)]


@pytest.mark.parametrize(
    "name", ["ab", "x" * 33, "x" * 4000, "1ada", "-ada", "a b c", "<b>", *UNSEEN, *INVALID, *MIXED]
)
def test_what_cannot_be_seen_or_told_apart_is_refused(name: str) -> None:
    with pytest.raises(BadUsername):
        checked_username(name)


RESERVED = [
    *(
        "admin",
        "Admin",
        "ADMIN",
        "root",
        "administrator",
        "system",
        "ponder",
        "moderator",
        "support",
        "operator",
        "staff",
    ),
    *(
        "staff",
        "admins",
        "Administrators",
        "Ponder-Support",
        "the.real.admin",
        "ponder_team",
        "SystemAdmin",
        "ponder-admin",
        "PonderTeam",
    ),
    *("ad\u0301min", "ádmin", "a\u0308dmin", "admin\u0323", "rooṭ", "śupport", "r\u0335oot"),
    *("adm1n", "admin1", "admin007", "r00t", "m0derat0r", "supp0rt", "op3rator"),
    *("a.d.m.i.n", "a-dmin", "admin_", "admin.", "ad_min", "adrnin", "aclmin", "roo7", "s-upport"),
    *("аԁміп", "гоот", "ѕуѕтем", "ᴀᴅᴍɪɴ", "ɑdmin", "aɗmin", "admıñ", "ａｄｍｉｎ", "𝐚𝐝𝐦𝐢𝐧", "ⓐdmin"),
    *("админ", "Администратор", "管理员", "系統", "客服", "Moderatorin", "Betreiber"),
]
FREE = [
    *(
        "ada",
        "Adam",
        "Admira",
        "Rooter",
        "Rootbeer",
        "Pondera",
        "Supportive-Sam",
        "Moda",
        "Mia",
        "Aime",
        "Guido",
        "Jan-Der",
    ),
    *(
        "Anna99",
        "Systema",
        "Operetta",
        "Stafford",
        "Theo",
        "Teamo",
        "Minna",
        "Admiral",
        "Анна",
        "Модест",
        "张三丰",
        "Дмитрий",
    ),
    *("Jan-Der", "Дмитрий", "somebody", "marker-name", "Vivian", "Clint", "bob", "eve", "carl"),
]


@pytest.mark.parametrize("name", RESERVED)
def test_nobody_is_called_what_speaks_for_the_server_or_looks_like_it(name: str) -> None:
    with pytest.raises(BadUsername):
        checked_username(name)


@pytest.mark.parametrize("name", FREE)
def test_names_that_only_begin_like_one_are_taken(name: str) -> None:
    assert checked_username(name)[0] == name


@pytest.mark.parametrize("name", ["admin", "Ponder", "root"])
def test_whoever_runs_the_server_may_give_such_a_name(name: str) -> None:
    assert checked_username(name, may_speak_for_us=True)[0] == name


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_that_fold_the_same_are_the_same(one: str, other: str) -> None:
    assert checked_username(one)[1] == checked_username(other)[1] == username_key(other)


@given(st.text(max_size=300))
def test_whatever_is_typed_is_a_name_or_refused(typed: str) -> None:
    try:
        shown, key = checked_username(typed)
    except BadUsername:
        return
    assert 3 <= len(shown) <= 32
    assert unicodedata.is_normalized("NFKC", shown)
    assert username_key(shown) == key == username_key(key)

"""Where people land after signing in (19): on our own page, whatever was asked for."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.routes.local_path import local_path
from tests.routes.providers.hostile import HostileProvider, hostile_provider
from tests.routes.providers.loopback import Ponder, ponder, provider

CONVERSATION = "/#/c/0123456789abcdef0123456789abcdef"
OWN_PLACES = ["/", "/#/", CONVERSATION, "/#/settings", "/#/admin"]
FOREIGN = [
    "",
    "e",
    "//e",
    "///e",
    "////e",
    "/\\e",
    "\\/e",
    "\\\\e",
    "/\t/e",
    "\t//e",
    "/\n/e",
    "/\r\n/e",
    " //e",
    "/%09/e",
    "/%2f/e",
    "/%5ce",
    "//%09/e",
    "https:e",
    "https:/e",
    "https://e",
    "HTTPS:\\\\e",
    "h\tttps://e",
    "javascript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,e",
    "@e",
    "/@e",
    "//a@e",
    "e:80",
    "/\x00/e",
    "//\u2025/e",
    "/\uff0fe",
    "\uff0f\uff0fe",
    "/\u2044e",
    "/\u29f8e",
    "/\ufe68e",
    "/\u2215/e",
    "/./e",
    "/..//e",
    "/.//e",
    "/;//e",
    "/?//e",
    "/#",
    "/#//e",
    "/#/c/",
    "/#/c/0123456789ABCDEF0123456789abcdef",
    f"{CONVERSATION}\n",
    f"{CONVERSATION}\r\nSet-Cookie: ponder=e",
    f"{CONVERSATION}/..//e",
    f" {CONVERSATION}",
    "/#/c/\u0660123456789abcdef0123456789abcdef",
    "/api/me",
    "/auth/acme/login",
    "/#/settings\n",
    "/\r\nLocation: //e",
]
BASE = "https://ponder.example"


def as_browsers_read_it(location: str) -> str:
    """WHATWG URL: blanks and controls at the ends go, tabs and line ends go everywhere, backslashes are slashes."""
    return re.sub(r"[\t\n\r]", "", location.strip("".join(map(chr, range(33))))).replace("\\", "/")


def assert_stays_here(location: str) -> None:
    for read in (location, as_browsers_read_it(location)):
        assert read.startswith("/")
        assert not read.startswith("//")
        parts = urlsplit(read)
        assert (parts.scheme, parts.netloc) == ("", "")
        assert urlsplit(urljoin(BASE, read)).netloc == "ponder.example"
    assert location == as_browsers_read_it(location)
    assert location.isascii()
    assert location.isprintable()


_WORDS = ["e", "e.example", "https:", "javascript:", "..", "%09", "%2f", "%5c", "/#/", "/#/c/", "settings", "admin"]
_ID = "0123456789abcdef" * 2
PIECES = st.sampled_from([*_WORDS, _ID, "//", *"/\\@:#? \t\n\r\x00\uff0f\u2044\u2215"])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=8).map("".join)))
@example("/#/c/" + "0" * 32 + "\n")
def test_every_place_is_on_our_own_page(asked: str) -> None:
    place = local_path(asked)
    assert_stays_here(place)
    assert place in ("/", asked)
    assert local_path(place) == place


@pytest.mark.parametrize("asked", FOREIGN)
def test_what_is_not_ours_becomes_the_page(asked: str) -> None:
    assert local_path(asked) == "/"


@pytest.mark.parametrize("asked", OWN_PLACES)
def test_our_own_places_stay_as_they_are(asked: str) -> None:
    assert local_path(asked) == asked
    assert_stays_here(asked)


@pytest.fixture(scope="module")
def acme() -> Iterator[HostileProvider]:
    with hostile_provider() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, acme: HostileProvider) -> Iterator[Ponder]:
    with ponder(tmp_path_factory.mktemp("ponder"), provider(acme.url)) as found:
        yield found


@pytest.mark.parametrize("asked", [*FOREIGN[::4], *OWN_PLACES])
def test_the_whole_way_through_a_provider_ends_on_our_own_page(
    server: Ponder, acme: HostileProvider, asked: str
) -> None:
    place = asked if asked in OWN_PLACES else "/"
    visitor = server.visitor()
    assert visitor.sign_in(acme, next=asked) == place
    response = visitor.client.get("/auth/acme/login", params={"next": asked})
    landed = visitor.client.get(acme.consent(response.headers["location"]))
    assert landed.headers.get_list("location") == [place]
    assert all("ponder=e" not in cookie for cookie in landed.headers.get_list("set-cookie"))


def test_the_provider_cannot_say_where_to_land(server: Ponder, acme: HostileProvider) -> None:
    acme.callback = {"next": "//evil.example", "kept": "//evil.example", "redirect_uri": "//evil.example"}
    assert server.visitor().sign_in(acme, next=CONVERSATION) == CONVERSATION
    acme.straighten()

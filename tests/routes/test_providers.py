"""Signing in through providers: a real one in its own process, and one that records what it is told."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import time_machine

from app.history.store import now
from tests.people import cookie_of
from tests.routes.providers.hostile import HostileProvider, hostile_provider, query_of, with_query
from tests.routes.providers.loopback import (
    CLIENT_ID,
    CLIENT_SECRET,
    MockProvider,
    Ponder,
    mock_provider,
    ponder,
    provider,
)

REFUSED = "/#/sign-in/refused"
EXPIRED = "/#/sign-in/expired"
CONVERSATION = "/#/c/0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockProvider]:
    with mock_provider(tmp_path_factory.mktemp("mock")) as found:
        yield found


@pytest.fixture(scope="module")
def lasting_provider() -> Iterator[HostileProvider]:
    with hostile_provider() as found:
        yield found


@pytest.fixture
def acme(lasting_provider: HostileProvider) -> HostileProvider:
    lasting_provider.straighten()
    return lasting_provider


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, mock: MockProvider, lasting_provider: HostileProvider
) -> Iterator[Ponder]:
    known = (provider(mock.url, "mock"), provider(lasting_provider.url, "acme"))
    with ponder(tmp_path_factory.mktemp("ponder"), *known) as found:
        yield found


# The real provider


def test_signing_in_makes_an_account_and_the_second_time_it_is_the_same(server: Ponder, mock: MockProvider) -> None:
    mock.know("ada-1", preferred_username="ada", name="Ada Lovelace", email="ada@example.org")
    first, second = server.visitor(), server.visitor()
    assert first.sign_in(mock, "mock") == "/"
    me = first.me()
    assert (me["kind"], me["name"], me["has_password"], me["has_username"]) == ("account", "ada", False, False)
    assert [(identity["provider"], identity["label"]) for identity in me["identities"]] == [("mock", "Mock")]
    assert me["is_recent"]
    mine = first.new_conversation()
    assert second.sign_in(mock, "mock") == "/"
    assert second.conversations() == [mine]
    assert [identity["id"] for identity in second.me()["identities"]] == [me["identities"][0]["id"]]


def test_the_providers_are_shown_with_their_labels_and_nothing_else(server: Ponder) -> None:
    found = server.visitor().me()["site"]["providers"]
    assert found == [{"name": "mock", "label": "Mock"}, {"name": "acme", "label": "Acme"}]


def test_whoever_presses_deny_is_refused_and_can_try_again(server: Ponder, mock: MockProvider) -> None:
    visitor = server.visitor()
    callback = mock.deny(visitor.start("mock"))
    assert query_of(callback)["error"] == "access_denied"
    state = query_of(visitor.start("mock"))["state"]
    assert visitor.land(with_query(callback, state=state)) == REFUSED
    assert visitor.is_nobody()
    assert visitor.sign_in(mock, "mock") == "/"


def test_an_error_with_the_right_state_and_a_code_is_still_an_error(server: Ponder, acme: HostileProvider) -> None:
    for words in ({"error": "access_denied"}, {"error": "server_error", "error_description": "<script>" * 50}):
        acme.callback = words
        visitor = server.visitor()
        assert visitor.sign_in(acme) == REFUSED
        assert visitor.is_nobody()
    assert acme.token_forms == []


def test_a_code_is_worth_nothing_the_second_time(server: Ponder, mock: MockProvider) -> None:
    visitor = server.visitor()
    callback = mock.consent(visitor.start("mock"))
    assert visitor.land(callback) == "/"
    thief = server.visitor()
    state = query_of(thief.start("mock"))["state"]
    assert thief.land(with_query(callback, state=state)) == REFUSED
    assert thief.is_nobody()


# What is asked of the provider


def test_the_authorize_address_asks_for_a_code_with_pkce_state_and_nonce_and_for_no_email(
    server: Ponder, acme: HostileProvider
) -> None:
    queries = []
    for _ in range(3):
        location = server.visitor().start()
        assert location.startswith(f"{acme.url}/authorize?")
        queries.append(query_of(location))
    for query in queries:
        assert query.pop("response_type") == "code"
        assert query.pop("client_id") == CLIENT_ID
        assert query.pop("code_challenge_method") == "S256"
        assert query.pop("scope") == "openid profile"
        assert query.pop("redirect_uri") == f"{server.url}/auth/acme/callback"
        assert query.keys() == {"state", "nonce", "code_challenge"}
        assert all(len(value) >= 20 for value in query.values())
        assert len(query["code_challenge"]) == 43
    assert len({value for query in queries for value in query.values()}) == 9


def test_the_link_asks_for_the_same_as_the_button(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    response = visitor.client.get("/auth/acme/login", params={"next": CONVERSATION}, headers={"Sec-Fetch-Site": "none"})
    assert response.status_code == 303
    assert query_of(response.headers["location"]).keys() == query_of(server.visitor().start()).keys()
    assert visitor.land(acme.consent(response.headers["location"])) == CONVERSATION
    assert visitor.me()["kind"] == "account"


def test_the_token_call_brings_the_verifier_and_the_same_redirect_address(
    server: Ponder, acme: HostileProvider
) -> None:
    assert server.visitor().sign_in(acme) == "/"
    (form,) = acme.token_forms
    assert form["grant_type"] == "authorization_code"
    assert form["redirect_uri"] == acme.authorize_queries[0]["redirect_uri"] == f"{server.url}/auth/acme/callback"
    assert 43 <= len(form["code_verifier"]) <= 128
    assert CLIENT_SECRET not in str(acme.authorize_queries)


def test_a_code_asked_for_with_another_verifier_is_refused(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    location = visitor.start()
    other = query_of(server.visitor().start())["code_challenge"]
    assert visitor.land(acme.consent(with_query(location, code_challenge=other))) == REFUSED
    assert visitor.is_nobody()


def test_a_strangers_code_does_not_fit_even_where_the_provider_forgets_pkce(
    server: Ponder, acme: HostileProvider
) -> None:
    """The nonce holds what PKCE would have held."""
    acme.checks_pkce = False
    attacker, victim = server.visitor(), server.visitor()
    code = query_of(acme.consent(attacker.start()))["code"]
    callback = acme.consent(victim.start())
    assert victim.land(with_query(callback, code=code)) == REFUSED
    assert victim.is_nobody()


# State (13)


@pytest.mark.parametrize("state", [None, "", "wrong", "x" * 5000, "💚", "acme"])
def test_a_missing_or_wrong_state_is_refused(server: Ponder, acme: HostileProvider, state: str | None) -> None:
    visitor = server.visitor()
    callback = acme.consent(visitor.start())
    assert visitor.land(with_query(callback, state=state)) == EXPIRED
    assert visitor.is_nobody()
    assert acme.token_forms == []


def test_a_state_works_once(server: Ponder, acme: HostileProvider) -> None:
    visitor, other = server.visitor(), server.visitor()
    callback = acme.consent(visitor.start())
    assert visitor.land(callback) == "/"
    token = cookie_of(visitor.client)
    assert visitor.land(callback) == EXPIRED
    fresh = query_of(acme.consent(other.start()))["code"]
    assert visitor.land(with_query(callback, code=fresh)) == EXPIRED
    assert cookie_of(visitor.client) == token
    assert len(acme.token_forms) == 1


def test_a_state_that_ended_in_a_refusal_is_used_up(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    location = visitor.start()
    acme.claims = {"nonce": "of another sign-in"}
    assert visitor.land(acme.consent(location)) == REFUSED
    acme.claims = {}
    assert visitor.land(acme.consent(location)) == EXPIRED
    assert visitor.is_nobody()
    assert len(acme.token_forms) == 1


def test_a_state_from_another_browser_is_refused(server: Ponder, acme: HostileProvider) -> None:
    attacker, nobody, beginner = server.visitor(), server.visitor(), server.visitor()
    callback = acme.consent(attacker.start())
    beginner.start()
    for visitor in (nobody, beginner):
        assert visitor.land(callback) == EXPIRED
        assert visitor.is_nobody()
    assert attacker.land(callback) == "/"


def test_a_state_of_another_provider_is_refused(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    callback = acme.consent(visitor.start("acme"))
    assert visitor.land(callback.replace("/auth/acme/", "/auth/mock/")) == EXPIRED
    assert visitor.is_nobody()
    assert acme.token_forms == []


def test_a_cookie_that_was_changed_holds_no_state(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    callback = acme.consent(visitor.start())
    cookie = visitor.client.cookies["ponder-auth"]
    payload, rest = cookie.split(".", 1)
    for forged in (payload, f"{payload}x.{rest}", f"{payload}.{rest[:-1]}", "null", "e30=." + rest, "", "💚"):
        other = server.visitor()
        answer = other.client.get(callback, headers={b"Cookie": f"ponder-auth={forged}".encode()})
        assert (answer.status_code, answer.headers["location"]) == (303, EXPIRED)
        assert other.is_nobody()


def test_a_state_is_over_after_ten_minutes(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    callback = acme.consent(visitor.start())
    cookie = f"ponder-auth={visitor.client.cookies['ponder-auth']}"
    with time_machine.travel(now().timestamp() + 601):
        other = server.visitor()
        assert other.client.get(callback, headers={"Cookie": cookie}).headers["location"] == EXPIRED
        assert other.is_nobody()


def test_of_two_tabs_at_one_provider_the_last_that_began_arrives(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    first, second = visitor.start(), visitor.start(next=CONVERSATION)
    assert visitor.land(acme.consent(first)) == EXPIRED
    assert visitor.is_nobody()
    assert visitor.land(acme.consent(second)) == CONVERSATION


def test_two_providers_can_be_begun_and_only_one_of_them_arrives(
    server: Ponder, acme: HostileProvider, mock: MockProvider
) -> None:
    visitor = server.visitor()
    first, second = visitor.start(), visitor.start("mock")
    assert visitor.land(acme.consent(first)) == "/"
    # The second began as nobody, who is somebody by now
    assert visitor.land(mock.consent(second)) == EXPIRED
    assert [identity["provider"] for identity in visitor.me()["identities"]] == ["acme"]


def test_many_begun_sign_ins_leave_a_cookie_that_browsers_keep(server: Ponder) -> None:
    visitor = server.visitor()
    for _ in range(5):
        visitor.start("acme", next=CONVERSATION)
        visitor.start("mock", next=CONVERSATION)
    assert len(visitor.client.cookies["ponder-auth"]) < 4000


def test_the_cookie_of_a_sign_in_is_seen_under_auth_alone_and_by_no_script(server: Ponder) -> None:
    response = server.visitor().client.post("/auth/acme/start", json={})
    (cookie,) = response.headers.get_list("set-cookie")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"path=/auth", "httponly", "samesite=lax", "max-age=600"} <= parts
    assert not any(part.startswith("domain") for part in parts)
    assert response.headers["cache-control"] == "no-store"


def test_a_provider_that_names_another_issuer_in_its_callback_is_refused(server: Ponder, acme: HostileProvider) -> None:
    for issuer in ("https://accounts.example", "", f"{acme.url}.evil.example", server.url):
        acme.callback = {"iss": issuer}
        visitor = server.visitor()
        assert visitor.sign_in(acme) == REFUSED
        assert visitor.is_nobody()
    assert acme.token_forms == []
    acme.callback = {"iss": acme.url}
    assert server.visitor().sign_in(acme) == "/"


@pytest.mark.parametrize("query", ["", "state=a", "code=a", "state=a&state=b&code=c", "error=a", "%01=%ff", "iss=a"])
def test_a_callback_that_nobody_began_is_expired(server: Ponder, query: str) -> None:
    visitor = server.visitor()
    assert visitor.land(f"/auth/acme/callback?{query}") == EXPIRED
    assert visitor.is_nobody()


# Sessions, guests, accounts


def test_signing_in_gives_a_new_cookie_and_ends_the_session_before(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    visitor.client.cookies.set("ponder", "a-chosen-by-an-attacker", domain="127.0.0.1", path="/")
    assert visitor.sign_in(acme) == "/"
    first = cookie_of(visitor.client)
    assert first != "a-chosen-by-an-attacker"
    assert visitor.sign_in(acme) == "/"
    assert cookie_of(visitor.client) != first
    old = server.visitor()
    old.client.cookies.set("ponder", first, domain="127.0.0.1", path="/")
    assert old.me()["was_signed_out"]


def test_a_guests_conversations_move_with_claim_guest_alone(server: Ponder, acme: HostileProvider) -> None:
    keeper, mover = server.visitor(), server.visitor()
    mover.client.patch("/api/me", json={"settings": {"theme": "dark"}})
    moved = mover.new_conversation()
    assert mover.sign_in(acme, claim_guest=True) == "/"
    assert mover.conversations() == [moved]
    assert mover.me()["settings"]["theme"] == "dark"
    keeper.new_conversation()
    assert keeper.sign_in(acme) == "/"
    assert keeper.conversations() == [moved]


def test_the_link_never_moves_a_guests_conversations(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    visitor.new_conversation()
    location = visitor.client.get("/auth/acme/login?claim_guest=true&purpose=link").headers["location"]
    assert visitor.land(acme.consent(location)) == "/"
    assert visitor.me()["kind"] == "account"
    assert visitor.conversations() == []


def test_a_guests_sign_in_cannot_be_finished_by_somebody_else(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    visitor.new_conversation()
    callback = acme.consent(visitor.start(claim_guest=True))
    visitor.client.cookies.delete("ponder")
    assert visitor.land(callback) == EXPIRED
    assert visitor.is_nobody()


def test_the_same_name_and_address_at_two_providers_and_here_are_three_accounts(
    server: Ponder, acme: HostileProvider, mock: MockProvider
) -> None:
    claims = {"preferred_username": "grace", "email": "grace@example.org", "email_verified": True}
    acme.person = {"sub": "grace", **claims}
    mock.know("grace", **claims)
    local, at_acme, at_mock = server.visitor(), server.visitor(), server.visitor()
    local.register("grace")
    assert at_acme.sign_in(acme) == at_mock.sign_in(mock, "mock") == "/"
    three = (local, at_acme, at_mock)
    assert [visitor.me()["name"] for visitor in three] == ["grace"] * 3
    assert [len(visitor.me()["identities"]) for visitor in three] == [0, 1, 1]
    assert [visitor.me()["has_username"] for visitor in three] == [True, False, False]
    ids = [visitor.new_conversation() for visitor in three]
    assert [visitor.conversations() for visitor in three] == [[own] for own in ids]
    assert server.owner_of(acme.url, "grace") != server.owner_of(mock.url, "grace")


def test_somebody_who_took_the_name_before_has_no_part_in_the_account(server: Ponder, acme: HostileProvider) -> None:
    attacker, victim = server.visitor(), server.visitor()
    attacker.register("hopper")
    acme.person |= {"preferred_username": "hopper", "email": "hopper@example.org"}
    assert victim.sign_in(acme) == "/"
    mine = victim.new_conversation()
    assert attacker.conversations() == []
    assert attacker.client.get(f"/api/conversations/{mine}").status_code == 404
    assert attacker.me()["identities"] == []


def test_of_callbacks_that_arrive_at_once_one_account_is_made(server: Ponder, acme: HostileProvider) -> None:
    visitors = [server.visitor() for _ in range(6)]
    callbacks = [acme.consent(visitor.start()) for visitor in visitors]
    with ThreadPoolExecutor(6) as pool:
        landed = list(pool.map(lambda pair: pair[0].land(pair[1]), zip(visitors, callbacks, strict=True)))
    assert set(landed) <= {"/", "/#/sign-in/taken"}
    arrived = [visitor for visitor, where in zip(visitors, landed, strict=True) if where == "/"]
    assert len({visitor.me()["identities"][0]["id"] for visitor in arrived}) == 1


def test_registration_that_is_closed_lets_in_only_whoever_is_known(
    tmp_path: Path, mock: MockProvider, acme: HostileProvider
) -> None:
    known = (provider(mock.url, "mock"), provider(acme.url))
    with ponder(tmp_path, *known) as server:
        assert server.visitor().sign_in(acme) == "/"
    with ponder(tmp_path, *known, registration=False) as server:
        assert server.visitor().sign_in(acme) == "/"
        visitor = server.visitor()
        assert visitor.sign_in(mock, "mock") == "/#/sign-in/closed"
        assert visitor.is_nobody()
        guest = server.visitor()
        mine = guest.new_conversation()
        assert guest.sign_in(mock, "mock", claim_guest=True) == "/#/sign-in/closed"
        assert guest.conversations() == [mine]


def test_a_disabled_account_stays_out(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    assert visitor.sign_in(acme) == "/"
    person_id = server.owner_of(acme.url, acme.person["sub"])
    assert person_id
    server.services.usage.change(person_id, {"is_disabled": True})
    assert visitor.me()["was_signed_out"]
    assert visitor.sign_in(acme) == "/#/sign-in/disabled"
    assert visitor.me()["kind"] == "nobody"


def test_the_eleventh_new_account_from_one_address_in_an_hour_waits(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    for number in range(10):
        acme.person = {"sub": f"many-{number}"}
        assert visitor.sign_in(acme) == "/"
        visitor.client.cookies.clear()
    acme.person = {"sub": "one-more"}
    assert visitor.sign_in(acme) == "/#/sign-in/too_many"
    acme.person = {"sub": "many-0"}
    assert visitor.sign_in(acme) == "/"


def test_a_deleted_account_is_not_found_again(server: Ponder, acme: HostileProvider) -> None:
    visitor = server.visitor()
    assert visitor.sign_in(acme) == "/"
    before = server.owner_of(acme.url, acme.person["sub"])
    assert visitor.client.delete("/api/me").status_code == 204
    assert server.owner_of(acme.url, acme.person["sub"]) is None
    assert visitor.sign_in(acme) == "/"
    assert server.owner_of(acme.url, acme.person["sub"]) != before


# Other sites, other names


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_link_begins_nothing(server: Ponder, acme: HostileProvider, site: str) -> None:
    visitor = server.visitor()
    response = visitor.client.get("/auth/acme/login", headers={"Sec-Fetch-Site": site})
    assert (response.status_code, response.headers["location"]) == (303, f"{server.url}/#/sign-in")
    assert "ponder-auth" not in visitor.client.cookies
    refused = visitor.client.post("/auth/acme/start", json={}, headers={"Sec-Fetch-Site": site})
    assert refused.status_code == 403
    assert acme.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "443"},
        {"Forwarded": "host=evil.example;proto=https"},
        {"X-Original-Host": "evil.example", "X-Host": "evil.example", "X-Rewrite-URL": "//evil.example"},
        {"Origin": "https://evil.example", "Referer": "https://evil.example/"},
    ],
    ids=str,
)
def test_forged_headers_do_not_change_where_the_provider_sends_to(server: Ponder, headers: dict[str, str]) -> None:
    visitor = server.visitor()
    location = visitor.client.post("/auth/acme/start", json={}, headers=headers).json()["location"]
    assert query_of(location)["redirect_uri"] == f"{server.url}/auth/acme/callback"
    assert "evil" not in location


def test_an_unknown_host_is_refused_and_another_of_our_names_is_sent_home(server: Ponder) -> None:
    visitor = server.visitor()
    port = urlsplit(server.url).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1@evil.example"):
        for method, path in (("POST", "/auth/acme/start"), ("GET", "/auth/acme/login"), ("GET", "/auth/acme/callback")):
            response = visitor.client.request(
                method, path, headers={"Host": host}, json={} if method == "POST" else None
            )
            assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_host")
    for host in (f"localhost:{port}", "127.0.0.1", "127.0.0.1:1"):
        response = visitor.client.post("/auth/acme/start", json={}, headers={"Host": host})
        assert response.json() == {"location": f"{server.url}/#/sign-in"}
        response = visitor.client.get("/auth/acme/login", headers={"Host": host})
        assert response.headers["location"] == f"{server.url}/#/sign-in"
    assert "ponder-auth" not in visitor.client.cookies


@pytest.mark.parametrize("name", ["nobody", "ACME", "acme%2F..", "%00", "x" * 3000])
def test_an_unknown_provider_is_not_found(server: Ponder, name: str) -> None:
    client = server.visitor().client
    for response in (
        client.post(f"/auth/{name}/start", json={}),
        client.get(f"/auth/{name}/login"),
        client.get(f"/auth/{name}/callback?state=a&code=b"),
    ):
        assert response.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"purpose": "admin"},
        {"purpose": None},
        {"claim_guest": "yes"},
        {"next": 5},
        {"next": "/" * 201},
        {"redirect_uri": "https://evil.example"},
        {"person_id": "0" * 32},
        [],
        None,
    ],
    ids=str,
)
def test_a_start_with_anything_else_in_it_is_a_bad_request(server: Ponder, body: object) -> None:
    response = server.visitor().client.post("/auth/acme/start", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "bad_request")


def test_behind_tls_the_cookies_are_secure_and_the_redirect_address_is_https(
    tmp_path: Path, acme: HostileProvider
) -> None:
    with ponder(tmp_path, provider(acme.url), base_url="https://ponder.example") as server:
        visitor = server.visitor()
        at_home = {"Host": "ponder.example"}
        response = visitor.client.post("/auth/acme/start", json={}, headers=at_home)
        location = response.json()["location"]
        assert query_of(location)["redirect_uri"] == "https://ponder.example/auth/acme/callback"
        (cookie,) = response.headers.get_list("set-cookie")
        assert cookie.startswith("__Secure-ponder-auth=")
        assert "secure" in cookie.lower()
        callback = urlsplit(acme.consent(location))
        assert f"{callback.scheme}://{callback.netloc}" == "https://ponder.example"
        kept = httpx.Cookies({"__Secure-ponder-auth": cookie.split("=", 1)[1].split(";")[0]})
        headers = at_home | {"Cookie": f"__Secure-ponder-auth={kept['__Secure-ponder-auth']}"}
        landed = visitor.client.get(f"{callback.path}?{callback.query}", headers=headers)
        assert landed.headers["location"] == "/"
        assert any(line.startswith("__Host-ponder=a-") for line in landed.headers.get_list("set-cookie"))

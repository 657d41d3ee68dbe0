"""Linking a provider to an account, confirming by it, and taking it away."""

from collections.abc import Iterator

import pytest
import time_machine

from app.history.store import now
from tests.people import cookie_of, error_of
from tests.routes.providers.hostile import HostileProvider, hostile_provider, query_of, with_query
from tests.routes.providers.loopback import NEXT_PERSON, PASSWORD, Ponder, Visitor, ponder, provider

EXPIRED = "/#/sign-in/expired"
SETTINGS = "/#/settings"
ELEVEN_MINUTES_S = 660


@pytest.fixture(scope="module")
def lasting_providers() -> Iterator[tuple[HostileProvider, HostileProvider]]:
    with hostile_provider() as first, hostile_provider() as second:
        yield first, second


@pytest.fixture
def acme(lasting_providers: tuple[HostileProvider, HostileProvider]) -> HostileProvider:
    lasting_providers[0].straighten()
    return lasting_providers[0]


@pytest.fixture
def other(lasting_providers: tuple[HostileProvider, HostileProvider]) -> HostileProvider:
    lasting_providers[1].straighten()
    return lasting_providers[1]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, lasting_providers: tuple[HostileProvider, HostileProvider]
) -> Iterator[Ponder]:
    first, second = lasting_providers
    with ponder(tmp_path_factory.mktemp("ponder"), provider(first.url), provider(second.url, "other")) as found:
        yield found


def registered(server: Ponder) -> Visitor:
    visitor = server.visitor()
    visitor.register(f"person{next(NEXT_PERSON)}")
    return visitor


def linked(visitor: Visitor) -> list[str]:
    return [identity["provider"] for identity in visitor.me()["identities"]]


def unlink(visitor: Visitor, number: int = 0) -> int:
    return visitor.client.delete(f"/api/me/identities/{visitor.me()['identities'][number]['id']}").status_code


def test_a_linked_provider_signs_in_to_the_account(server: Ponder, acme: HostileProvider) -> None:
    owner, later = registered(server), server.visitor()
    mine = owner.new_conversation()
    before = cookie_of(owner.client)
    assert owner.sign_in(acme, purpose="link", next=SETTINGS) == SETTINGS
    assert linked(owner) == ["acme"]
    assert cookie_of(owner.client) != before
    assert later.sign_in(acme) == "/"
    assert later.conversations() == [mine]
    assert later.me()["name"] == owner.me()["name"]


def test_linking_what_is_linked_changes_nothing(server: Ponder, acme: HostileProvider) -> None:
    owner = registered(server)
    for _ in range(2):
        assert owner.sign_in(acme, purpose="link") == "/"
        assert linked(owner) == ["acme"]


def test_linking_needs_an_account(server: Ponder, acme: HostileProvider) -> None:
    nobody, guest = server.visitor(), server.visitor()
    guest.new_conversation()
    for visitor in (nobody, guest):
        for purpose in ("link", "confirm"):
            response = visitor.client.post("/auth/acme/start", json={"purpose": purpose})
            assert (response.status_code, error_of(response)) == (401, "sign_in_first")
    assert acme.authorize_queries == []


def test_linking_needs_a_check_of_the_last_ten_minutes(server: Ponder, acme: HostileProvider) -> None:
    owner = registered(server)
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        response = owner.client.post("/auth/acme/start", json={"purpose": "link"})
        assert (response.status_code, error_of(response)) == (403, "confirm_first")
        assert response.json()["error"]["methods"] == "password"
        assert owner.client.post("/auth/confirm", json={"password": PASSWORD}).status_code == 200
        assert owner.sign_in(acme, purpose="link") == "/"
        assert linked(owner) == ["acme"]


def test_an_identity_of_another_account_is_taken(server: Ponder, acme: HostileProvider) -> None:
    owner, thief = server.visitor(), registered(server)
    assert owner.sign_in(acme) == "/"
    mine = owner.new_conversation()
    assert thief.sign_in(acme, purpose="link") == "/#/sign-in/taken"
    assert linked(thief) == []
    assert thief.conversations() == []
    assert thief.me()["kind"] == "account"
    assert owner.conversations() == [mine]


# Link CSRF (18): the attacker's own code and state, opened in the victim's browser


@pytest.mark.parametrize("purpose", ["sign_in", "link"])
def test_an_attackers_callback_in_a_victims_browser_attaches_nothing(
    server: Ponder, acme: HostileProvider, purpose: str
) -> None:
    attacker, victim = registered(server), registered(server)
    callback = acme.consent(attacker.start(purpose=purpose))
    before = victim.me()
    assert victim.land(callback) == EXPIRED
    assert victim.me() == before
    assert server.owner_of(acme.url, acme.person["sub"]) is None


@pytest.mark.parametrize("checks_pkce", [True, False])
def test_an_attackers_code_with_a_victims_own_state_attaches_nothing(
    server: Ponder, acme: HostileProvider, checks_pkce: bool
) -> None:
    acme.checks_pkce = checks_pkce
    attacker, victim = registered(server), registered(server)
    code = query_of(acme.consent(attacker.start(purpose="link")))["code"]
    callback = acme.consent(victim.start(purpose="link"))
    assert victim.land(with_query(callback, code=code)) == "/#/sign-in/refused"
    assert linked(victim) == []
    assert server.owner_of(acme.url, acme.person["sub"]) is None


def test_a_link_begun_in_one_account_cannot_be_finished_in_another(server: Ponder, acme: HostileProvider) -> None:
    """The same browser, its cookie of the sign-in included: somebody else has signed in meanwhile."""
    first, second = registered(server), registered(server)
    callback = acme.consent(first.start(purpose="link"))
    name = second.me()["name"]
    assert first.client.post("/auth/logout", json={}).status_code == 204
    assert first.client.post("/auth/login", json={"username": name, "password": PASSWORD}).status_code == 200
    assert first.land(callback) == EXPIRED
    assert linked(first) == linked(second) == []
    assert server.owner_of(acme.url, acme.person["sub"]) is None


@pytest.mark.parametrize("purpose", ["link", "confirm"])
def test_a_link_cannot_be_finished_by_whoever_has_signed_out(
    server: Ponder, acme: HostileProvider, purpose: str
) -> None:
    owner = registered(server)
    assert owner.sign_in(acme, purpose="link") == "/"
    callback = acme.consent(owner.start(purpose=purpose))
    assert owner.client.post("/auth/logout", json={}).status_code == 204
    assert owner.land(callback) == EXPIRED
    assert owner.me()["kind"] == "nobody"


# Confirming


def test_confirming_makes_the_check_recent_again(server: Ponder, acme: HostileProvider) -> None:
    owner = server.visitor()
    assert owner.sign_in(acme) == "/"
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        assert not owner.me()["is_recent"]
        refused = owner.client.delete("/api/me")
        assert (refused.status_code, refused.json()["error"]["methods"]) == (403, "acme")
        assert owner.sign_in(acme, purpose="confirm", next=SETTINGS) == SETTINGS
        assert owner.me()["is_recent"]
    asked = acme.authorize_queries[-1]
    assert (asked["prompt"], asked["max_age"]) == ("login", "0")


def test_confirming_with_another_identity_is_a_mismatch(
    server: Ponder, acme: HostileProvider, other: HostileProvider
) -> None:
    owner, stranger = server.visitor(), server.visitor()
    assert owner.sign_in(acme) == "/"
    mine = dict(acme.person)
    acme.person = {"sub": f"{mine['sub']}-not"}
    other.person = mine
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        assert owner.sign_in(acme, purpose="confirm") == "/#/sign-in/mismatch"
        assert owner.sign_in(other, "other", purpose="confirm") == "/#/sign-in/mismatch"
        assert stranger.sign_in(other, "other") == "/"
        assert owner.sign_in(other, "other", purpose="confirm") == "/#/sign-in/mismatch"
        assert not owner.me()["is_recent"]
        assert linked(owner) == ["acme"]
    assert server.owner_of(acme.url, acme.person["sub"]) is None


def test_a_provider_that_asked_for_no_password_confirms_nothing(server: Ponder, acme: HostileProvider) -> None:
    owner = server.visitor()
    assert owner.sign_in(acme) == "/"
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        acme.claims = {"auth_time": int(now().timestamp()) - ELEVEN_MINUTES_S}
        assert owner.sign_in(acme, purpose="confirm") == EXPIRED
        assert not owner.me()["is_recent"]
        acme.claims = {"auth_time": int(now().timestamp())}
        assert owner.sign_in(acme, purpose="confirm") == "/"
        assert owner.me()["is_recent"]


def test_a_sign_in_is_no_link_and_a_link_is_no_sign_in(server: Ponder, acme: HostileProvider) -> None:
    """What was begun for one purpose does not serve another: the purpose lies in the signed cookie."""
    owner = registered(server)
    assert owner.sign_in(acme) == "/"
    # Signed in to the provider's own account now, and the first account has no identity
    assert linked(owner) == ["acme"]
    assert not owner.me()["has_password"]


# Taking it away


def test_the_last_way_in_stays(server: Ponder, acme: HostileProvider, other: HostileProvider) -> None:
    owner = server.visitor()
    assert owner.sign_in(acme) == "/"
    identity = owner.me()["identities"][0]["id"]
    response = owner.client.delete(f"/api/me/identities/{identity}")
    assert (response.status_code, error_of(response)) == (409, "last_way_in")
    assert owner.sign_in(other, "other", purpose="link") == "/"
    assert unlink(owner) == 204
    assert linked(owner) == ["other"]
    assert unlink(owner) == 409


def test_with_a_password_every_provider_can_go(server: Ponder, acme: HostileProvider) -> None:
    owner, later = registered(server), server.visitor()
    assert owner.sign_in(acme, purpose="link") == "/"
    assert unlink(owner) == 204
    assert linked(owner) == []
    mine = owner.new_conversation()
    assert later.sign_in(acme) == "/"
    assert mine not in later.conversations()


def test_taking_away_needs_a_recent_check_and_ones_own_identity(server: Ponder, acme: HostileProvider) -> None:
    owner, stranger = registered(server), registered(server)
    assert owner.sign_in(acme, purpose="link") == "/"
    identity = owner.me()["identities"][0]["id"]
    assert stranger.client.delete(f"/api/me/identities/{identity}").status_code == 404
    assert server.visitor().client.delete(f"/api/me/identities/{identity}").status_code == 401
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        response = owner.client.delete(f"/api/me/identities/{identity}")
        assert (response.status_code, response.json()["error"]["methods"]) == (403, "password,acme")
    assert linked(owner) == ["acme"]


def test_a_first_password_beside_a_provider_needs_a_recent_check(server: Ponder, acme: HostileProvider) -> None:
    owner, later = server.visitor(), server.visitor()
    assert owner.sign_in(acme) == "/"
    name = f"person{next(NEXT_PERSON)}"
    wanted = {"username": name, "new_password": PASSWORD}
    with time_machine.travel(now().timestamp() + ELEVEN_MINUTES_S):
        assert owner.client.post("/auth/password", json=wanted).status_code == 403
        assert owner.sign_in(acme, purpose="confirm") == "/"
        response = owner.client.post("/auth/password", json=wanted)
        assert (response.status_code, len(response.json()["recovery_codes"])) == (200, 8)
        assert later.client.post("/auth/login", json={"username": name, "password": PASSWORD}).status_code == 200
        assert linked(later) == ["acme"]
        assert unlink(owner) == 204

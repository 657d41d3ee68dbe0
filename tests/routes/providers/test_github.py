"""GitHub speaks OAuth without OpenID: who somebody is comes from its API."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tests.routes.providers.hostile import FakeGitHub, fake_github, query_of, with_query
from tests.routes.providers.loopback import CLIENT_ID, CLIENT_SECRET, Ponder, ponder, provider

REFUSED = "/#/sign-in/refused"
EXPIRED = "/#/sign-in/expired"


@pytest.fixture(scope="module")
def lasting_github() -> Iterator[FakeGitHub]:
    with fake_github() as found:
        yield found


@pytest.fixture
def github(lasting_github: FakeGitHub) -> FakeGitHub:
    lasting_github.straighten()
    return lasting_github


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, lasting_github: FakeGitHub) -> Iterator[Ponder]:
    known = provider(lasting_github.url, "github", kind="github", label="GitHub")
    with ponder(tmp_path_factory.mktemp("ponder"), known) as found:
        yield found


def test_github_signs_in_by_its_number_and_the_second_time_it_is_the_same(server: Ponder, github: FakeGitHub) -> None:
    first, second = server.visitor(), server.visitor()
    assert first.sign_in(github, "github") == "/"
    assert (first.me()["kind"], first.me()["name"]) == ("account", "octo")
    assert server.owner_of(github.url, str(github.person["id"]))
    mine = first.new_conversation()
    github.person = github.person | {"login": "renamed", "email": "other@example.org"}
    assert second.sign_in(github, "github") == "/"
    assert second.conversations() == [mine]


def test_a_name_given_up_at_github_and_taken_by_somebody_else_is_another_account(
    server: Ponder, github: FakeGitHub
) -> None:
    first, second = server.visitor(), server.visitor()
    assert first.sign_in(github, "github") == "/"
    first.new_conversation()
    github.person = github.person | {"id": github.person["id"] + 1}
    assert second.sign_in(github, "github") == "/"
    assert second.me()["name"] == first.me()["name"]
    assert second.conversations() == []


def test_github_is_asked_for_nothing_but_who_it_is(server: Ponder, github: FakeGitHub) -> None:
    assert server.visitor().sign_in(github, "github") == "/"
    (query,) = github.authorize_queries
    assert query.keys() == {
        "response_type",
        "client_id",
        "redirect_uri",
        "state",
        "code_challenge",
        "code_challenge_method",
    }
    assert (query["client_id"], query["code_challenge_method"]) == (CLIENT_ID, "S256")
    assert query["redirect_uri"] == f"{server.url}/auth/github/callback"
    (form,) = github.token_forms
    assert form["client_secret"] == CLIENT_SECRET
    assert len(form["code_verifier"]) >= 43
    assert github.authorizations == ["Bearer gho_token"]


def test_githubs_state_works_once_and_in_one_browser(server: Ponder, github: FakeGitHub) -> None:
    visitor, other = server.visitor(), server.visitor()
    callback = github.consent(visitor.start("github"))
    other.start("github")
    assert other.land(callback) == EXPIRED
    assert visitor.land(with_query(callback, state=None)) == EXPIRED
    assert visitor.land(callback) == "/"
    assert visitor.land(callback) == EXPIRED
    assert other.is_nobody()
    assert len(github.token_forms) == 1


def test_somebody_who_says_no_at_github_is_refused(server: Ponder, github: FakeGitHub) -> None:
    visitor = server.visitor()
    state = query_of(visitor.start("github"))["state"]
    query = f"error=access_denied&error_description=The+user+has+denied&state={state}"
    assert visitor.land(f"/auth/github/callback?{query}") == REFUSED
    assert visitor.is_nobody()
    assert github.token_forms == []


@pytest.mark.parametrize(
    "person",
    [None, [], "octo", 5, {}, {"login": "octo"}, {"id": "5"}, {"id": None}, {"id": 5.5}, {"id": [5]}, {"id": 10**300}],
    ids=str,
)
def test_a_person_without_a_number_is_refused(server: Ponder, github: FakeGitHub, person: Any) -> None:
    github.person = person
    visitor = server.visitor()
    assert visitor.sign_in(github, "github") == REFUSED
    assert visitor.is_nobody()


def test_a_person_whose_number_is_true_is_refused(server: Ponder, github: FakeGitHub) -> None:
    github.person = {"id": True, "login": "octo"}
    assert server.visitor().sign_in(github, "github") == REFUSED


@pytest.mark.parametrize("name", [None, 5, "", "\ud800", "x" * 5000])
def test_an_odd_name_at_github_still_signs_in(server: Ponder, github: FakeGitHub, name: Any) -> None:
    github.person["login"] = name
    visitor = server.visitor()
    github.instead["user"] = (
        JSONResponse(github.person)
        if name != "\ud800"
        else Response(f'{{"id": {github.person["id"]}, "login": "\\ud800"}}', media_type="application/json")
    )
    assert visitor.sign_in(github, "github") == "/"
    assert len(visitor.me()["name"]) <= 64


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": "bad_verification_code", "error_description": "The code has expired."}),
        JSONResponse({}),
        JSONResponse([]),
        PlainTextResponse("<html>"),
        JSONResponse({"access_token": "a", "token_type": "mac"}),
    ],
)
def test_a_token_that_is_none_is_refused(server: Ponder, github: FakeGitHub, answer: Response) -> None:
    github.instead["token"] = answer
    visitor = server.visitor()
    assert visitor.sign_in(github, "github") == REFUSED
    assert visitor.is_nobody()


@pytest.mark.parametrize("what", ["token", "user"])
@pytest.mark.parametrize("status", [500, 429])
def test_a_github_that_fails_is_unreachable(server: Ponder, github: FakeGitHub, what: str, status: int) -> None:
    github.instead[what] = PlainTextResponse("Unicorn", status)
    visitor = server.visitor()
    assert visitor.sign_in(github, "github") == "/#/sign-in/unreachable"
    assert visitor.is_nobody()


def test_an_id_token_from_github_is_not_looked_at(server: Ponder, github: FakeGitHub) -> None:
    answer = {"access_token": "gho_token", "token_type": "bearer", "id_token": "a.b.c"}
    github.instead["token"] = JSONResponse(answer)
    assert server.visitor().sign_in(github, "github") == "/"
    assert server.owner_of(github.url, str(github.person["id"]))

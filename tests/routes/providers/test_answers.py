"""What a provider says, bent in every way that a provider, or somebody in between, could bend it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from app.routes import provider_clients
from tests.routes.providers.hostile import (
    ABSENT,
    FOREIGN_KEY,
    KEY,
    Claims,
    HostileProvider,
    handmade,
    hostile_provider,
    query_of,
    signed,
)
from tests.routes.providers.loopback import CLIENT_ID, CLIENT_SECRET, Ponder, Visitor, free_port, ponder, provider

REFUSED = "/#/sign-in/refused"
UNREACHABLE = "/#/sign-in/unreachable"
HEADER = {"alg": "RS256", "kid": "first"}
CRITICAL = {"crit": ["unheard-of"], "unheard-of": True}


@pytest.fixture(scope="module")
def lasting_provider() -> Iterator[HostileProvider]:
    with hostile_provider() as found:
        yield found


@pytest.fixture
def acme(lasting_provider: HostileProvider) -> HostileProvider:
    lasting_provider.straighten()
    return lasting_provider


@pytest.fixture(scope="module")
def lasting_server(tmp_path_factory: pytest.TempPathFactory, lasting_provider: HostileProvider) -> Iterator[Ponder]:
    """Has read honest metadata and keys, and keeps them."""
    with ponder(tmp_path_factory.mktemp("ponder"), provider(lasting_provider.url)) as found:
        assert found.visitor().sign_in(lasting_provider) == "/"
        yield found


@pytest.fixture
def fresh_server(lasting_server: Ponder) -> Iterator[Ponder]:
    """Knows nothing of the provider yet."""
    lasting_server.forget_providers()
    yield lasting_server
    lasting_server.forget_providers()


@pytest.fixture
def impatient_server(fresh_server: Ponder, monkeypatch: pytest.MonkeyPatch) -> Ponder:
    """Waits only a moment for the provider."""
    monkeypatch.setattr(provider_clients, "_TIMEOUT_S", 0.4)
    fresh_server.forget_providers()
    return fresh_server


def assert_refused(server: Ponder, visitor: Visitor, acme: HostileProvider, where: str = REFUSED) -> None:
    assert visitor.sign_in(acme) == where
    assert visitor.is_nobody()
    assert server.owner_of(acme.url, str(acme.person["sub"])) is None


def test_nothing_bent_is_believed(lasting_server: Ponder, acme: HostileProvider) -> None:
    visitor = lasting_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert (visitor.me()["kind"], visitor.me()["name"]) == ("account", "Ada")
    assert lasting_server.owner_of(acme.url, acme.person["sub"])


# The id_token's claims

WRONG_CLAIMS: dict[str, Callable[[int], Claims]] = {
    "the audience is another client": lambda _: {"aud": "another"},
    "the audience is absent": lambda _: {"aud": ABSENT},
    "the audience is empty": lambda _: {"aud": []},
    "the audience is a list without us": lambda _: {"aud": ["another", "third"]},
    "the audience is not made of strings": lambda _: {"aud": [CLIENT_ID, 5], "azp": CLIENT_ID},
    "several audiences, for another party": lambda _: {"aud": [CLIENT_ID, "another"], "azp": "another"},
    "several audiences, for nobody said": lambda _: {"aud": [CLIENT_ID, "another"]},
    "our audience, for another party": lambda _: {"azp": "another"},
    "the issuer is another": lambda _: {"iss": "https://accounts.example"},
    "the issuer begins like ours": lambda _: {"iss": "http://127.0.0.1"},
    "the issuer is absent": lambda _: {"iss": ABSENT},
    "the issuer is a list": lambda _: {"iss": ["http://127.0.0.1"]},
    "it is over": lambda now: {"exp": now - 3600},
    "it never ends": lambda _: {"exp": ABSENT},
    "it ends at no number": lambda _: {"exp": "tomorrow"},
    "it ends at infinity": lambda _: {"exp": float("inf")},
    "it was made tomorrow": lambda now: {"iat": now + 86_400},
    "it was made in another age": lambda _: {"iat": 10**400},
    "it was made at no number": lambda _: {"iat": "now"},
    "it was made at no time": lambda _: {"iat": ABSENT},
    "it begins tomorrow": lambda now: {"nbf": now + 86_400},
    "the nonce is another": lambda _: {"nonce": "another"},
    "the nonce is empty": lambda _: {"nonce": ""},
    "the nonce is absent": lambda _: {"nonce": ABSENT},
    "the nonce is null": lambda _: {"nonce": None},
    "the nonce is a list": lambda _: {"nonce": []},
    "the subject is absent": lambda _: {"sub": ABSENT},
    "the subject is null": lambda _: {"sub": None},
    "the subject is empty": lambda _: {"sub": ""},
    "the subject is a number": lambda _: {"sub": 5},
    "the subject is true": lambda _: {"sub": True},
    "the subject is a list": lambda _: {"sub": ["ada"]},
    "the subject is an object": lambda _: {"sub": {"id": "ada"}},
    "the subject has 256 characters": lambda _: {"sub": "x" * 256},
    "the subject has 300 characters": lambda _: {"sub": "x" * 300},
    "the access token's hash is another's": lambda _: {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
}


@pytest.mark.parametrize("case", WRONG_CLAIMS)
def test_an_id_token_with_a_wrong_claim_is_refused(lasting_server: Ponder, acme: HostileProvider, case: str) -> None:
    acme.claims = WRONG_CLAIMS[case](int(time.time()))
    assert_refused(lasting_server, lasting_server.visitor(), acme)


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("\ud800", id="surrogate"),
        "a\x00b",
        "a\nb",
        " ",
        "x" * 255,
        "💚" * 255,
    ],
)
def test_an_odd_subject_signs_in_as_itself_or_is_refused(
    lasting_server: Ponder, acme: HostileProvider, subject: str
) -> None:
    acme.person["sub"] = subject
    acme.make_id_token = lambda claims: handmade(claims, HEADER, KEY)
    visitor = lasting_server.visitor()
    where = visitor.sign_in(acme)
    assert where in ("/", REFUSED)
    assert (visitor.me()["kind"] == "account") == (where == "/")


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": [CLIENT_ID]},
        {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID},
        {"azp": CLIENT_ID},
        {"sub": "x" * 255},
        {"preferred_username": ABSENT},
        {"preferred_username": 5, "name": "Ada"},
        {"auth_time": 5},
    ],
)
def test_what_the_standard_allows_is_believed(lasting_server: Ponder, acme: HostileProvider, claims: Claims) -> None:
    acme.claims = claims
    visitor = lasting_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert visitor.me()["kind"] == "account"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Ada", "Ada"),
        ("Ada\u202egro.live\n\x00Lovelace", "Ada gro.live Lovelace"),
        ("<b>Ada</b>", "<b>Ada</b>"),
        ("x" * 5000, "x" * 64),
        ("Ａｄａ", "Ada"),
        ("", ""),
    ],
)
def test_a_name_is_shown_on_one_line_of_visible_characters(
    lasting_server: Ponder, acme: HostileProvider, said: str, shown: str
) -> None:
    acme.person["preferred_username"] = said
    visitor = lasting_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert visitor.me()["name"] == shown


# What only UserInfo says


@pytest.mark.parametrize("claim", ["preferred_username", "nickname", "name"])
def test_a_name_that_only_userinfo_gives_is_the_accounts(
    fresh_server: Ponder, acme: HostileProvider, claim: str
) -> None:
    del acme.person["preferred_username"]
    acme.userinfo = {claim: "Ada of UserInfo"}
    visitor = fresh_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert visitor.me()["name"] == "Ada of UserInfo"


def test_userinfo_is_not_asked_where_the_id_token_has_a_name(fresh_server: Ponder, acme: HostileProvider) -> None:
    acme.userinfo = {"name": "Somebody"}
    visitor = fresh_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert visitor.me()["name"] == "Ada"
    assert "userinfo" not in acme.asked


@pytest.mark.parametrize("subject", ["another", "", None, 5, ABSENT])
def test_userinfo_of_somebody_else_is_refused(fresh_server: Ponder, acme: HostileProvider, subject: Any) -> None:
    del acme.person["preferred_username"]
    acme.userinfo = {"name": "Somebody else", "sub": subject}
    assert_refused(fresh_server, fresh_server.visitor(), acme)


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("no", 500),
        PlainTextResponse("no", 401),
        PlainTextResponse("a.signed.token", media_type="application/jwt"),
        JSONResponse([]),
        JSONResponse(None),
        RedirectResponse("http://127.0.0.1:1/"),
    ],
)
def test_userinfo_that_says_nothing_keeps_nobody_out(
    fresh_server: Ponder, acme: HostileProvider, answer: Response
) -> None:
    del acme.person["preferred_username"]
    acme.userinfo = {"name": "Ada"}
    acme.instead["userinfo"] = answer
    visitor = fresh_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert (visitor.me()["kind"], visitor.me()["name"]) == ("account", "")


@pytest.mark.parametrize("endpoint", ["http://elsewhere.example/userinfo", "ftp://127.0.0.1/", 5, None, ""])
def test_userinfo_is_asked_over_tls_or_not_at_all(fresh_server: Ponder, acme: HostileProvider, endpoint: Any) -> None:
    del acme.person["preferred_username"]
    acme.metadata = {"userinfo_endpoint": endpoint}
    visitor = fresh_server.visitor()
    assert visitor.sign_in(acme) == "/"
    assert visitor.me()["name"] == ""


# The id_token's signature


def jwk_in_header(claims: Claims) -> str:
    return signed(claims, FOREIGN_KEY, jwk=FOREIGN_KEY.as_dict(private=False))


def unknown_key_in_header(claims: Claims) -> str:
    return signed(claims, FOREIGN_KEY, kid="mine", jwk=FOREIGN_KEY.as_dict(private=False))


def tampered(claims: Claims) -> str:
    header, _, signature = signed(claims).split(".")
    _, body, _ = signed(claims | {"sub": "somebody-else"}).split(".")
    return f"{header}.{body}.{signature}"


PEM = KEY.as_pem(private=False)
WRONG_SIGNATURES: dict[str, Callable[[Claims], Any]] = {
    "alg none": lambda claims: handmade(claims, {"alg": "none"}),
    "alg None": lambda claims: handmade(claims, {"alg": "None", "kid": "first"}),
    "no alg": lambda claims: handmade(claims, {"kid": "first"}),
    "alg empty": lambda claims: handmade(claims, {"alg": "", "kid": "first"}),
    "alg a list": lambda claims: handmade(claims, {"alg": ["none"], "kid": "first"}),
    "HS256 with the client secret": lambda claims: handmade(claims, {"alg": "HS256"}, CLIENT_SECRET.encode()),
    "HS256 with the public key": lambda claims: handmade(claims, {"alg": "HS256", "kid": "first"}, PEM),
    "HS256 with nothing": lambda claims: handmade(claims, {"alg": "HS256", "kid": "first"}, b""),
    "RS256 without a signature": lambda claims: handmade(claims, {"alg": "RS256", "kid": "first"}),
    "RS512, which the metadata does not name": lambda claims: handmade(claims, HEADER | {"alg": "RS512"}, KEY),
    "another key under the same name": lambda claims: signed(claims, FOREIGN_KEY),
    "another key under another name": lambda claims: signed(claims, FOREIGN_KEY, kid="another"),
    "another key under no name": lambda claims: signed(claims, FOREIGN_KEY, kid=""),
    "the header brings the key": jwk_in_header,
    "the header brings and names the key": unknown_key_in_header,
    "a critical header nobody knows": lambda claims: handmade(claims, HEADER | CRITICAL, KEY),
    "claims changed after signing": tampered,
    "the signature taken away": lambda claims: signed(claims).rpartition(".")[0] + ".",
    "two parts": lambda claims: signed(claims).rpartition(".")[0],
    "no parts": lambda _: "...",
    "no token": lambda _: "not a token",
    "claims that are a list": lambda _: handmade([], HEADER, KEY),
    "claims that are no JSON": lambda claims: signed(claims).replace(".", ".!", 1),
    "claims that are a string": lambda _: handmade("sub", HEADER, KEY),
    "an id_token that is empty": lambda _: "",
    "an id_token that is null": lambda _: None,
    "an id_token that is a number": lambda _: 5,
    "an id_token that is true": lambda _: True,
    "an id_token that is a list": lambda _: [],
    "an id_token that is the claims": lambda claims: claims,
    "an id_token of letters beyond ASCII": lambda _: "é.é.é",
    "an id_token absent": lambda _: ABSENT,
}


@pytest.mark.parametrize("case", WRONG_SIGNATURES)
def test_an_id_token_that_is_not_signed_by_the_provider_is_refused(
    lasting_server: Ponder, acme: HostileProvider, case: str
) -> None:
    made: list[Any] = []

    def make(claims: Claims) -> Any:
        made.append(WRONG_SIGNATURES[case](claims))
        return None if made[0] is ABSENT else made[0]

    acme.make_id_token = make
    if case == "an id_token absent":
        acme.token = {"id_token": ABSENT}
    assert_refused(lasting_server, lasting_server.visitor(), acme)
    assert made


def test_the_address_of_keys_in_the_header_is_not_asked(lasting_server: Ponder, acme: HostileProvider) -> None:
    evil = f"{acme.url}/evil-jwks"
    acme.make_id_token = lambda claims: signed(claims, FOREIGN_KEY, kid="mine", jku=evil, x5u=evil)
    assert_refused(lasting_server, lasting_server.visitor(), acme)
    assert "evil-jwks" not in acme.asked


@pytest.mark.parametrize("metadata", [["none"], ["none", "HS256"], ["HS256"], [], ["none", "RS256"]])
def test_metadata_cannot_allow_tokens_without_the_providers_key(
    fresh_server: Ponder, acme: HostileProvider, metadata: list[str]
) -> None:
    acme.metadata = {"id_token_signing_alg_values_supported": metadata}
    for make in ("alg none", "HS256 with the client secret", "HS256 with the public key"):
        acme.make_id_token = WRONG_SIGNATURES[make]
        assert_refused(fresh_server, fresh_server.visitor(), acme)


def test_a_provider_that_changed_its_keys_is_asked_for_them_again(fresh_server: Ponder, acme: HostileProvider) -> None:
    assert fresh_server.visitor().sign_in(acme) == "/"
    acme.keys = {"keys": [FOREIGN_KEY.as_dict(private=False) | {"kid": "second"}]}
    acme.make_id_token = lambda claims: signed(claims, FOREIGN_KEY, kid="second")
    assert fresh_server.visitor().sign_in(acme) == "/"
    acme.make_id_token = signed
    assert_refused(fresh_server, _somebody_else(fresh_server, acme), acme)


def _somebody_else(server: Ponder, acme: HostileProvider) -> Visitor:
    acme.person = {"sub": "somebody-else"}
    return server.visitor()


# The token answer, the keys, the metadata

WRONG_TOKENS: dict[str, Response] = {
    "a list": JSONResponse([]),
    "a string": JSONResponse("token"),
    "a number": JSONResponse(5),
    "null": JSONResponse(None),
    "an empty object": JSONResponse({}),
    "an error": JSONResponse({"error": "invalid_grant"}, 400),
    "an error that is no string": JSONResponse({"error": {"code": [5]}, "error_description": 7}, 400),
    "an error with status 200": JSONResponse({"error": "invalid_grant"}),
    "a page": PlainTextResponse("<h1>Busy</h1>"),
    "bytes that are no text": Response(b"\xff\xfe\x00", media_type="application/json"),
    "a form": PlainTextResponse("access_token=a&token_type=bearer"),
    "a token alone": JSONResponse({"access_token": "a", "token_type": "Bearer"}),
    "an end at no number": JSONResponse({"access_token": "a", "token_type": "Bearer", "expires_in": "soon"}),
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
def test_a_token_answer_that_is_none_is_refused(lasting_server: Ponder, acme: HostileProvider, case: str) -> None:
    acme.instead["token"] = WRONG_TOKENS[case]
    assert_refused(lasting_server, lasting_server.visitor(), acme)


@pytest.mark.parametrize(
    "answer",
    [PlainTextResponse("<h1>Busy</h1>", 429), RedirectResponse("http://127.0.0.1:9/token"), Response(status_code=404)],
    ids=["busy", "redirect", "missing"],
)
def test_a_token_address_that_gives_none_is_unreachable(
    lasting_server: Ponder, acme: HostileProvider, answer: Response
) -> None:
    acme.instead["token"] = answer
    assert_refused(lasting_server, lasting_server.visitor(), acme, UNREACHABLE)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        [],
        "keys",
        5,
        None,
        {"keys": []},
        {"keys": {}},
        {"keys": 5},
        {"keys": [5]},
        {"keys": [{"kty": "RSA"}]},
        {"keys": [{"kty": "oct", "k": "YWFh" * 8, "kid": "first"}]},
        pytest.param({"keys": [FOREIGN_KEY.as_dict(private=False)]}, id="a foreign key"),
    ],
    ids=str,
)
def test_keys_that_are_none_are_refused(fresh_server: Ponder, acme: HostileProvider, keys: Any) -> None:
    acme.keys = keys
    assert_refused(fresh_server, fresh_server.visitor(), acme)


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://accounts.example"},
        {"issuer": "http://127.0.0.1"},
        {"issuer": ABSENT},
        {"issuer": None},
        {"issuer": [""]},
        {"authorization_endpoint": ABSENT},
        {"authorization_endpoint": 5},
        {"authorization_endpoint": ["http://127.0.0.1"]},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "/authorize"},
        {"token_endpoint": ABSENT},
        {"token_endpoint": 5},
        {"token_endpoint": "http://["},
        {"token_endpoint": "/token"},
        {"jwks_uri": ABSENT},
        {"jwks_uri": 5},
        {"jwks_uri": "http://["},
        {"id_token_signing_alg_values_supported": 5},
        {"id_token_signing_alg_values_supported": [[]]},
    ],
    ids=lambda given: str({key: "ABSENT" if value is ABSENT else value for key, value in given.items()}),
)
def test_metadata_that_cannot_be_right_is_refused(
    fresh_server: Ponder, acme: HostileProvider, metadata: dict[str, Any]
) -> None:
    acme.metadata = metadata
    visitor = fresh_server.visitor()
    assert visitor.sign_in(acme) in (REFUSED, UNREACHABLE)
    assert visitor.is_nobody()


@pytest.mark.parametrize("body", ["[]", "5", "null", '"x"', "{", "<html>", ""])
def test_metadata_that_is_none_is_refused(fresh_server: Ponder, acme: HostileProvider, body: str) -> None:
    acme.instead["metadata"] = Response(body, media_type="application/json")
    assert_refused(fresh_server, fresh_server.visitor(), acme)


def test_an_issuer_with_a_slash_at_its_end_is_the_same(fresh_server: Ponder, acme: HostileProvider) -> None:
    acme.metadata, acme.claims = {"issuer": f"{acme.url}/"}, {"iss": f"{acme.url}/"}
    assert fresh_server.visitor().sign_in(acme) == "/"
    acme.metadata, acme.claims = {}, {}
    assert fresh_server.owner_of(acme.url, acme.person["sub"])


def test_a_provider_that_mended_its_metadata_is_believed_without_a_restart(
    fresh_server: Ponder, acme: HostileProvider
) -> None:
    acme.metadata = {"issuer": "https://accounts.example"}
    assert fresh_server.visitor().sign_in(acme) == REFUSED
    acme.metadata = {}
    assert fresh_server.visitor().sign_in(acme) == "/"


@pytest.mark.parametrize(
    "metadata",
    [
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"code_challenge_methods_supported": []},
        {"response_type": "token"},
        {"response_mode": "fragment"},
        {"scope": "openid profile email"},
        {"state": "known", "nonce": "known", "code_verifier": "known"},
        {"redirect_uri": "https://evil.example"},
        {"prompt": "none", "login_hint": "ada"},
        {"client_id": "another"},
        {"timeout": "for ever"},
    ],
    ids=str,
)
def test_metadata_cannot_change_what_is_asked_for(
    fresh_server: Ponder, acme: HostileProvider, metadata: dict[str, Any]
) -> None:
    acme.metadata = metadata
    query = query_of(fresh_server.visitor().start())
    assert query.keys() == {
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "state",
        "nonce",
        "code_challenge",
        "code_challenge_method",
    }
    asked = [query[key] for key in ("response_type", "client_id", "redirect_uri", "scope", "code_challenge_method")]
    assert asked == ["code", CLIENT_ID, f"{fresh_server.url}/auth/acme/callback", "openid profile", "S256"]
    assert "known" not in (query["state"], query["nonce"])


# A provider in trouble


@pytest.mark.parametrize("what", ["metadata", "token", "jwks"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_provider_that_fails_is_unreachable(
    fresh_server: Ponder, acme: HostileProvider, what: str, status: int
) -> None:
    acme.instead[what] = PlainTextResponse("Broken", status)
    assert_refused(fresh_server, fresh_server.visitor(), acme, UNREACHABLE)
    del acme.instead[what]
    assert fresh_server.visitor().sign_in(acme) == "/"


@pytest.mark.parametrize("what", ["metadata", "token", "jwks"])
def test_a_provider_that_hangs_is_unreachable(impatient_server: Ponder, acme: HostileProvider, what: str) -> None:
    acme.hanging = what
    # A visitor loses patience long before what hangs goes on
    assert_refused(impatient_server, impatient_server.visitor(), acme, UNREACHABLE)


def test_a_provider_that_is_down_is_unreachable(tmp_path: Path, acme: HostileProvider) -> None:
    with ponder(tmp_path, provider(f"http://127.0.0.1:{free_port()}", "gone"), provider(acme.url)) as server:
        visitor = server.visitor()
        assert visitor.start("gone") == UNREACHABLE
        assert visitor.client.get("/auth/gone/login").headers["location"] == UNREACHABLE
        assert visitor.is_nobody()
        assert visitor.sign_in(acme) == "/"

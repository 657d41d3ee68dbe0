"""Providers that do what a test tells them: an OpenID provider whose every answer can be bent, and GitHub's API."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.patience import PATIENCE_S
from tests.people import NO_TLS
from tests.routes.providers.loopback import CLIENT_ID, CLIENT_SECRET, free_port, served

ABSENT = object()
KEY = RSAKey.generate_key(2048, {"kid": "first", "use": "sig", "alg": "RS256"})
FOREIGN_KEY = RSAKey.generate_key(2048, {"kid": "first", "use": "sig", "alg": "RS256"})
Claims = dict[str, Any]


def query_of(location: str) -> dict[str, str]:
    """The query of an address; each key stands in it once."""
    pairs = parse_qsl(urlsplit(location).query, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def with_query(location: str, **changes: Any) -> str:
    """The address with some of its query changed; None takes a key away."""
    query = {key: value for key, value in (query_of(location) | changes).items() if value is not None}
    return location.partition("?")[0] + "?" + urlencode(query)


def signed(claims: Claims, key: RSAKey = KEY, **header: Any) -> str:
    """An id_token as an honest provider makes it."""
    return jwt.encode({"alg": "RS256", "kid": "first", **header}, claims, key)


def handmade(claims: Any, header: dict[str, Any], secret: bytes | RSAKey | None = None) -> str:
    """An id_token that no library would make: without a signature, signed with an HMAC, or with our own header."""
    body = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    if isinstance(secret, RSAKey):
        kind = hashes.SHA512() if header["alg"] == "RS512" else hashes.SHA256()
        signature = secret.get_op_key("sign").sign(body.encode(), PKCS1v15(), kind)
    else:
        signature = b"" if secret is None else hmac.digest(secret, body.encode(), "sha256")
    return f"{body}.{base64url(signature)}"


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def bent(honest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`honest` with changes; `ABSENT` takes a key away."""
    return {key: value for key, value in (honest | changes).items() if value is not ABSENT}


class HostileProvider:
    """Believed as long as nothing is bent. Records what Ponder says to it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.straighten()

    def straighten(self) -> None:
        """Bend nothing, forget everything; somebody new sits before it."""
        self.person: Claims = {"sub": f"sub-{secrets.token_hex(4)}", "preferred_username": "Ada"}
        self.metadata: dict[str, Any] = {}
        self.claims: Claims = {}
        self.make_id_token: Callable[[Claims], Any] = signed
        self.token: dict[str, Any] = {}
        self.callback: dict[str, Any] = {}
        self.keys: Any = {"keys": [KEY.as_dict(private=False)]}
        self.instead: dict[str, Response] = {}
        self.hanging = ""
        self.checks_pkce = True
        # What is said of whom at UserInfo, by access token; none where it is not there
        self.userinfo: Claims = {}
        self.people: dict[str, Claims] = {}
        self.codes: dict[str, tuple[dict[str, str], Claims]] = {}
        self.authorize_queries: list[dict[str, str]] = []
        self.token_forms: list[dict[str, str]] = []
        self.token_answers: list[dict[str, Any]] = []
        self.asked: list[str] = []

    def consent(self, location: str) -> str:
        """Say yes on the provider's page; where it sends the browser then."""
        response = httpx.get(location, verify=NO_TLS)
        assert response.status_code == 302, response.text
        return response.headers["location"]

    def app(self) -> Starlette:
        """The provider as a web app."""
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._say_metadata),
                Route("/authorize", self._authorize),
                Route("/token", self._say_token, methods=["POST"]),
                Route("/userinfo", self._say_person),
                Route("/jwks", self._say_keys),
                Route("/evil-jwks", self._say_evil_keys),
            ]
        )

    async def _answer(self, what: str, honest: Any) -> Response:
        self.asked.append(what)
        if self.hanging == what:
            await asyncio.sleep(10 * PATIENCE_S)
        return self.instead.get(what) or JSONResponse(honest)

    async def _say_metadata(self, _: Request) -> Response:
        honest = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            **({"userinfo_endpoint": f"{self.url}/userinfo"} if self.userinfo else {}),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        return await self._answer("metadata", bent(honest, self.metadata))

    async def _say_person(self, request: Request) -> Response:
        person = self.people.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if person is None:
            return JSONResponse({"error": "invalid_token"}, 401)
        return await self._answer("userinfo", bent(person, self.userinfo))

    async def _say_keys(self, _: Request) -> Response:
        return await self._answer("jwks", self.keys)

    async def _say_evil_keys(self, _: Request) -> Response:
        return await self._answer("evil-jwks", {"keys": [FOREIGN_KEY.as_dict(private=False)]})

    async def _authorize(self, request: Request) -> Response:
        query = query_of(str(request.url))
        self.authorize_queries.append(query)
        code = secrets.token_urlsafe(16)
        self.codes[code] = query, dict(self.person)
        answer = bent({"code": code, "state": query["state"]}, self.callback)
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer)}", 302)

    async def _say_token(self, request: Request) -> Response:
        async with request.form() as form:
            said = {key: str(value) for key, value in form.items()}
        self.token_forms.append(said)
        begun = self.codes.pop(said.get("code", ""), None)
        if begun is None:
            return JSONResponse({"error": "invalid_grant"}, 400)
        query, person = begun
        challenge = base64url(hashlib.sha256(said.get("code_verifier", "").encode()).digest())
        if self.checks_pkce and challenge != query.get("code_challenge"):
            return JSONResponse({"error": "invalid_grant", "error_description": "PKCE"}, 400)
        now = int(time.time())
        honest = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "exp": now + 300,
            "iat": now,
            "nonce": query.get("nonce"),
            **person,
        }
        answer = {
            "access_token": secrets.token_urlsafe(16),
            "token_type": "Bearer",
            "expires_in": 300,
            "id_token": self.make_id_token(bent(honest, self.claims)),
        }
        self.people[answer["access_token"]] = {"sub": person["sub"]}
        self.token_answers.append(bent(answer, self.token))
        return await self._answer("token", self.token_answers[-1])


@contextmanager
def hostile_provider() -> Iterator[HostileProvider]:
    """A hostile provider while the `with` lasts."""
    port = free_port()
    found = HostileProvider(port)
    with served(found.app(), port):
        yield found


class FakeGitHub:
    """GitHub's three addresses. `person` is what its API says."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.straighten()

    def straighten(self) -> None:
        """Somebody new sits before it."""
        self.person: Any = {"id": 1 + secrets.randbelow(10**9), "login": "octo", "email": "ada@example.org"}
        self.instead: dict[str, Response] = {}
        self.authorize_queries: list[dict[str, str]] = []
        self.token_forms: list[dict[str, str]] = []
        self.authorizations: list[str] = []

    def consent(self, location: str) -> str:
        """Say yes on the page; where it sends the browser then."""
        response = httpx.get(location, verify=NO_TLS)
        assert response.status_code == 302, response.text
        return response.headers["location"]

    def app(self) -> Starlette:
        """It as a web app."""
        return Starlette(
            routes=[
                Route("/login/oauth/authorize", self._authorize),
                Route("/login/oauth/access_token", self._say_token, methods=["POST"]),
                Route("/api/v3/user", self._say_person),
            ]
        )

    async def _authorize(self, request: Request) -> Response:
        query = query_of(str(request.url))
        self.authorize_queries.append(query)
        return RedirectResponse(
            f"{query['redirect_uri']}?{urlencode({'code': 'a-code', 'state': query['state']})}", 302
        )

    async def _say_token(self, request: Request) -> Response:
        async with request.form() as form:
            self.token_forms.append({key: str(value) for key, value in form.items()})
        if self.token_forms[-1].get("client_secret") != CLIENT_SECRET:
            return JSONResponse({"error": "incorrect_client_credentials"})
        answer = {"access_token": "gho_token", "token_type": "bearer", "scope": ""}
        return self.instead.get("token") or JSONResponse(answer)

    async def _say_person(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization", ""))
        return self.instead.get("user") or JSONResponse(self.person)


@contextmanager
def fake_github() -> Iterator[FakeGitHub]:
    """A stand-in for GitHub while the `with` lasts."""
    port = free_port()
    found = FakeGitHub(port)
    with served(found.app(), port):
        yield found

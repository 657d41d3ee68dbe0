"""What we ask of providers and what we believe: Authlib's clients, held to OpenID Connect, PKCE and our own issuers.

Knows nothing of people: what comes out is a `ProvenIdentity`.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import OAuth, StarletteOAuth2App
from fastapi import Request
from joserfc.errors import JoseError

from app.accounts.identities import ProvenIdentity
from app.config import ProviderSettings, Settings, is_safe_address
from app.errors import NotFound

_TIMEOUT_S = 10
_OPEN_FLOWS = 2
_SIGNATURES = frozenset({f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {"EdDSA"})
_OLDEST_CHECK_S = 600
_log = logging.getLogger(__name__)
_METADATA = frozenset(
    {
        "_loaded_at",
        "issuer",
        "authorization_endpoint",
        "token_endpoint",
        "token_endpoint_auth_methods_supported",
        "userinfo_endpoint",
        "jwks_uri",
        "jwks",
        "id_token_signing_alg_values_supported",
    }
)
_BAD_ANSWERS = (AttributeError, OAuthError, AuthlibBaseError, JoseError, ValueError, KeyError, TypeError, RuntimeError)


class ProviderProblem(Exception):
    """Why signing in through a provider went no further; `code` is for the page, which has the words."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Providers:
    """The clients of all providers in the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_name = {provider.name: provider for provider in settings.providers}
        self._oauth = OAuth()
        for provider in settings.providers:
            self._oauth.register(provider.name, **_registration(provider))

    def get(self, name: str) -> tuple[ProviderSettings, StarletteOAuth2App]:
        """A provider and its client.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self._by_name:
            raise NotFound("This server does not know this provider.")
        return self._by_name[name], self._oauth.create_client(name)

    async def begin(self, request: Request, name: str, **kept: Any) -> str:
        """The provider's address to send the browser to; what is `kept` comes back with the callback.

        Raises:
            ProviderProblem: the provider does not answer, or is not who it should be.
        """
        provider, client = self.get(name)
        for key in [key for key in request.session if key.startswith("_state_")][: -_OPEN_FLOWS + 1 or None]:
            del request.session[key]
        redirect_uri = f"{self._settings.public_url}/auth/{name}/callback"
        more = {"prompt": "login", "max_age": "0"} if kept["purpose"] == "confirm" and provider.kind == "oidc" else {}
        with _problems(name):
            await _check_metadata(provider, client)
            found = await client.create_authorization_url(redirect_uri, **more)
        await client.save_authorize_data(request, redirect_uri=redirect_uri, kept=kept, **found)
        location: str = found["url"]
        return location

    async def finish(self, request: Request, name: str) -> tuple[ProvenIdentity, dict[str, Any]]:
        """Who the provider says this is, and what was kept at the beginning.

        Raises:
            ProviderProblem: the person or the provider said no, or what came back does not hold.
        """
        provider, client = self.get(name)
        state = request.query_params.get("state", "")
        begun = await client.framework.get_state_data(request.session, state) if state else None
        if not begun:
            raise ProviderProblem("expired")
        named = request.query_params.get("iss", provider.issuer).rstrip("/")
        # GitHub names its OAuth server there, and is not that to anybody else
        if named not in (provider.issuer, *([f"{provider.issuer}/login/oauth"] if provider.kind == "github" else [])):
            raise ProviderProblem("refused")
        with _problems(name):
            await _check_metadata(provider, client)
            proven = await (_ask_github if provider.kind == "github" else _read_id_token)(
                request, provider, client, begun
            )
        return proven, begun["kept"]


def _registration(provider: ProviderSettings) -> dict[str, Any]:
    common: dict[str, Any] = {
        "client_id": provider.client_id,
        "client_secret": provider.client_secret.get_secret_value(),
        "overwrite": False,
    }
    client = {"timeout": _TIMEOUT_S, "code_challenge_method": "S256"}
    if provider.kind == "github":
        is_public = provider.issuer == "https://github.com"
        return common | {
            "authorize_url": f"{provider.issuer}/login/oauth/authorize",
            "access_token_url": f"{provider.issuer}/login/oauth/access_token",
            "api_base_url": "https://api.github.com/" if is_public else f"{provider.issuer}/api/v3/",
            "client_kwargs": client | {"token_endpoint_auth_method": "client_secret_post"},
        }
    return common | {
        "server_metadata_url": f"{provider.issuer}/.well-known/openid-configuration",
        "client_kwargs": client | {"scope": "openid profile"},
    }


async def _check_metadata(provider: ProviderSettings, client: StarletteOAuth2App) -> None:
    """A provider that calls itself otherwise could speak for somebody else; and none may sign with "none"."""
    if provider.kind == "github":
        return
    metadata = await client.load_server_metadata()
    if str(metadata.get("issuer", "")).rstrip("/") != provider.issuer or not _has_safe_addresses(metadata):
        _log.error("provider %s has another issuer than the settings, or unsafe addresses", provider.name)
        # Authlib would keep what it has read until the next start
        metadata.clear()
        raise ProviderProblem("refused")
    # Authlib passes on whatever is there: PKCE could be turned off, or more asked for than we do
    for key in metadata.keys() - _METADATA:
        del metadata[key]
    named = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
    metadata["id_token_signing_alg_values_supported"] = sorted(_SIGNATURES.intersection(named)) or ["RS256"]


def _has_safe_addresses(metadata: dict[str, Any]) -> bool:
    found = [metadata.get(key) for key in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
    return all(isinstance(address, str) and is_safe_address(address) for address in found)


async def _read_id_token(
    request: Request, provider: ProviderSettings, client: StarletteOAuth2App, begun: dict[str, Any]
) -> ProvenIdentity:
    issuers = [provider.issuer, f"{provider.issuer}/"]
    token = await client.authorize_access_token(
        request,
        claims_options={
            "iss": {"essential": True, "values": issuers},
            "aud": {"essential": True, "value": provider.client_id},
            "sub": {"essential": True},
            "exp": {"essential": True},
            "nonce": {"essential": True, "value": begun.get("nonce")},
        },
    )
    claims = token.get("userinfo")
    # Authlib reads no id_token where the provider sent none, and checks no nonce where none was kept
    if not token.get("id_token") or not claims or not begun.get("nonce"):
        raise ProviderProblem("refused")
    audience = claims.get("aud")
    if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != provider.client_id:
        raise ProviderProblem("refused")
    checked_at = claims.get("auth_time")
    is_confirming = begun["kept"]["purpose"] == "confirm"
    if is_confirming and isinstance(checked_at, int | float) and time.time() - checked_at > _OLDEST_CHECK_S:
        raise ProviderProblem("expired")
    name = _name_in(claims)
    if not name and begun["kept"]["purpose"] == "sign_in":
        name = _name_in(await _ask_userinfo(provider, client, token, claims["sub"]))
    return _proven(provider, claims["sub"], name)


def _name_in(claims: dict[str, Any]) -> str:
    names = (claims.get(key) for key in ("preferred_username", "nickname", "name"))
    return next((name for name in names if isinstance(name, str) and name.strip()), "")


async def _ask_userinfo(
    provider: ProviderSettings, client: StarletteOAuth2App, token: dict[str, Any], subject: str
) -> dict[str, Any]:
    """What the provider says of the person where the id_token says nothing; {} if it says it in no way that we read.

    Source: OpenID Connect Core, 5.3.2: what is said there counts only for the same subject; 5.4: with a code, `profile`
    may be answered there alone.

    Raises:
        ProviderProblem: it speaks of somebody else.
    """
    endpoint = (await client.load_server_metadata()).get("userinfo_endpoint")
    if not isinstance(endpoint, str) or not is_safe_address(endpoint):
        return {}
    try:
        answer = await client.get(endpoint, token=token)
        answer.raise_for_status()
        said = answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, *_BAD_ANSWERS) as error:
        _log.warning("provider %s says no name: %s", provider.name, type(error).__name__)
        return {}
    if not isinstance(said, dict):
        return {}
    if said.get("sub") != subject:
        _log.error("provider %s gives the name of somebody else", provider.name)
        raise ProviderProblem("refused")
    return said


async def _ask_github(
    request: Request, provider: ProviderSettings, client: StarletteOAuth2App, _: dict[str, Any]
) -> ProvenIdentity:
    token = await client.authorize_access_token(request)
    answer = await client.get("user", token=token)
    answer.raise_for_status()
    person = answer.json()
    if not isinstance(person, dict) or type(person.get("id")) is not int:
        raise ProviderProblem("refused")
    return _proven(provider, str(person["id"]), str(person.get("login") or ""))


def _proven(provider: ProviderSettings, subject: Any, name: str) -> ProvenIdentity:
    # OpenID Connect allows 255 ASCII characters
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not (subject.isascii() and subject.isprintable()):
        raise ProviderProblem("refused")
    return ProvenIdentity(provider.issuer, subject, provider.name, name)


@contextmanager
def _problems(name: str) -> Iterator[None]:
    """Turns what a provider may do wrong into a ProviderProblem; logs its kind, never what it said."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        _log.warning("provider %s could not be reached: %s", name, type(error).__name__)
        raise ProviderProblem("unreachable") from error
    except _BAD_ANSWERS as error:
        _log.warning("provider %s: what came back does not hold: %s", name, type(error).__name__)
        raise ProviderProblem("refused") from error

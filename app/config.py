"""The settings: one frozen object, read once from PONDER_* variables and the command line.

Knows the names, the defaults and what is allowed; builds nothing.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import BadSetting

_SHORTEST_SECRET = 32
_KNOWN_PROVIDERS = {
    "google": ("https://accounts.google.com", "Google"),
    "github": ("https://github.com", "GitHub"),
    "huggingface": ("https://huggingface.co", "Hugging Face"),
}
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_PROVIDER_KEY = re.compile(r"PONDER_OIDC_([A-Z0-9]+)_(ISSUER|CLIENT_ID|CLIENT_SECRET|LABEL)")


def _home(*parts: str) -> Path:
    return Path.home().joinpath(*parts)


class ProviderSettings(BaseModel):
    """Somebody who can say who a person is. GitHub speaks OAuth without OIDC; `issuer` may be a server of one's own."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["oidc", "github"]
    issuer: str
    client_id: str
    client_secret: SecretStr
    label: str

    @field_validator("issuer")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if is_safe_address(value):
            return value.rstrip("/")
        raise ValueError("an issuer is an https address")


class Settings(BaseSettings):
    """What an operator can set; `docs/hosting.md` explains each. Bytes, seconds and tokens stand in the names."""

    model_config = SettingsConfigDict(env_prefix="PONDER_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    model: str = "auto"
    data_dir: Path = Field(default_factory=lambda: _home(".local", "share", "ponder"))
    cache_dir: Path = Field(default_factory=lambda: _home(".cache", "ponder"))
    database_url: str = ""
    base_url: str = ""
    secret_key: SecretStr = SecretStr("")
    log_level: str = "INFO"

    guests: bool = True
    registration: bool = True
    guest_days: int = Field(default=7, ge=1, le=90)
    guest_runs_per_day: int = Field(default=0, ge=0)
    account_runs_per_day: int = Field(default=0, ge=0)
    guest_runs_at_once: int = Field(default=3, ge=1)
    account_runs_at_once: int = Field(default=3, ge=1)
    new_guests_per_hour: int = Field(default=120, ge=1)
    trusted_proxies: int = Field(default=0, ge=0, le=10)
    framed_by: str = ""
    is_on_spaces: bool = False
    providers: tuple[ProviderSettings, ...] = ()

    operator: str = Field(default="", max_length=200)
    contact: str = Field(default="", max_length=200)
    minimum_age: int = Field(default=0, ge=0, le=99)
    privacy_note: str = Field(default="", max_length=10_000)

    max_text_bytes: int = Field(default=256 * 1024, ge=1024)
    max_waiting_runs: int = Field(default=100, ge=1)
    max_waiting_runs_per_address: int = Field(default=40, ge=1)
    max_context_tokens: int = Field(default=32768, ge=512)

    max_connections_per_address: int = Field(default=512, ge=8)
    head_timeout_s: float = Field(default=15, gt=0)
    idle_timeout_s: float = Field(default=20, gt=0)
    stall_timeout_s: float = Field(default=30, gt=0)
    upload_timeout_s: float = Field(default=1800, gt=0)

    engine: Literal["auto", "batched", "local"] = "auto"
    gpu_memory_gib: float = Field(default=0, ge=0)
    kv_ram_gib: float | None = Field(default=None, ge=0)

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @field_validator("base_url")
    @classmethod
    def _is_an_origin(cls, value: str) -> str:
        parts = urlsplit(value)
        is_whole = parts.scheme in ("http", "https") and host_of(parts.netloc) and "@" not in parts.netloc
        if value and (not is_whole or parts.path.strip("/")):
            raise ValueError("use an address like https://ponder.example, without a path")
        # As a browser writes it, to be compared with what browsers send
        default_port = {"http": 80, "https": 443}.get(parts.scheme)
        port = f":{parts.port}" if parts.port and parts.port != default_port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{port}" if value else ""

    @field_validator("framed_by")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in value.split():
            if not re.fullmatch(r"https?://[\w.*:-]+", origin):
                raise ValueError("use addresses like https://huggingface.co, with blanks between them")
        return value

    @field_validator("secret_key")
    @classmethod
    def _is_secret(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value()
        if secret and (len(secret) < _SHORTEST_SECRET or len(set(secret)) < 8):
            raise ValueError(f"use at least {_SHORTEST_SECRET} random characters: openssl rand -hex 32")
        return value

    @model_validator(mode="after")
    def _model_is_named(self) -> Self:
        if not self.model.strip():
            raise ValueError("model: name one of auto, demo, qwq-32b, qwq-32b-preview, a Hub id or a folder")
        return self

    @model_validator(mode="after")
    def _secret_is_shared(self) -> Self:
        if self.database_url and not self.database_url.startswith("sqlite") and not self.secret_key.get_secret_value():
            raise ValueError(
                "PONDER_SECRET_KEY is missing: processes that share a database share it too: openssl rand -hex 32"
            )
        return self

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy address in use: the one set, else a SQLite file in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir / 'ponder.sqlite'}"

    @property
    def public_url(self) -> str:
        """Where people reach us, without a slash at the end; never taken from a request."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return self.base_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def frame_origins(self) -> tuple[str, ...]:
        """Sites that may show the page in a frame."""
        return tuple(self.framed_by.split())


def host_of(authority: str) -> str:
    """The host of a `Host` header or of an address, in small letters and without brackets and port; "" if it is none.

    `urlsplit` takes `[::1].evil.example` for `::1`.
    """
    found = _AUTHORITY.fullmatch(authority.rpartition("@")[2])
    return (found[1] or found[2]).lower() if found else ""


def is_safe_address(address: str) -> bool:
    """Whether it is an https address, or an http one of this very machine."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    host = host_of(parts.netloc)
    return (parts.scheme == "https" and bool(host)) or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host, as `host_of` gives it, is this machine itself."""
    try:
        found = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return found.is_loopback and getattr(found, "scope_id", None) is None


def read_settings(**overrides: object) -> Settings:
    """The settings from the environment, with `overrides` (the command line) on top.

    Raises:
        BadSetting: a value cannot be used; the message names its PONDER_ key.
    """
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    spaces = {} if "is_on_spaces" in given else _of_spaces(os.environ)
    try:
        given = {"providers": read_providers(os.environ), **spaces, **given}
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = "_".join(["PONDER", *(str(part) for part in first["loc"])]).upper()
        raise BadSetting(f"{key} cannot be used: {first['msg']}") from error


def read_providers(environment: Mapping[str, str]) -> tuple[ProviderSettings, ...]:
    """The providers of PONDER_OIDC_<NAME>_* and, on Spaces, of the platform's own variables.

    Raises:
        BadSetting: one is not complete, or a key is unknown.
    """
    found: dict[str, dict[str, str]] = {}
    if environment.get("SPACE_HOST") and environment.get("OAUTH_CLIENT_ID"):
        found["huggingface"] = {
            "issuer": environment.get("OPENID_PROVIDER_URL", ""),
            "client_id": environment["OAUTH_CLIENT_ID"],
            "client_secret": environment.get("OAUTH_CLIENT_SECRET", ""),
        }
    for key, value in sorted(environment.items()):
        if key.startswith("PONDER_OIDC_"):
            match = _PROVIDER_KEY.fullmatch(key)
            if match is None:
                raise BadSetting(
                    f"{key} is not known: use PONDER_OIDC_<NAME>_ISSUER, _CLIENT_ID, _CLIENT_SECRET or _LABEL, "
                    "with letters and digits in <NAME>."
                )
            found.setdefault(match[1].lower(), {})[match[2].lower()] = value.strip()
    return tuple(_provider(name, given) for name, given in found.items())


def _provider(name: str, given: dict[str, str]) -> ProviderSettings:
    issuer, label = _KNOWN_PROVIDERS.get(name, ("", name.title()))
    whole = {"issuer": given.get("issuer") or issuer, "label": given.get("label") or label}
    for field in ("client_id", "client_secret"):
        whole[field] = given.get(field, "")
    for field, value in whole.items():
        if not value:
            raise BadSetting(f"PONDER_OIDC_{name.upper()}_{field.upper()} is missing.")
    if len(whole["label"]) > 60:
        raise BadSetting(f"PONDER_OIDC_{name.upper()}_LABEL is longer than 60 characters.")
    try:
        return ProviderSettings(name=name, kind="github" if name == "github" else "oidc", **whole)
    except ValidationError as error:
        raise BadSetting(f"PONDER_OIDC_{name.upper()}_ISSUER cannot be used: use an https address.") from error


def _of_spaces(environment: Mapping[str, str]) -> dict[str, Any]:
    """What Hugging Face Spaces says about itself, where nobody has set it otherwise."""
    host = environment.get("SPACE_HOST", "")
    if not host:
        return {}
    said: dict[str, Any] = {"base_url": f"https://{host}", "framed_by": "https://huggingface.co", "trusted_proxies": 1}
    said = {name: value for name, value in said.items() if f"PONDER_{name.upper()}" not in environment}
    return {"is_on_spaces": True, **said}

"""A Ponder that knows providers, on a port known beforehand, and browsers that walk through a sign-in."""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.config import ProviderSettings, Settings
from app.routes.access import Services
from app.routes.provider_clients import Providers
from app.web import build_app, build_services
from tests.patience import PATIENCE_S
from tests.people import NO_TLS
from tests.scripted import ScriptedEngine

CLIENT_ID = "ponder"
CLIENT_SECRET = "a-client-secret-that-nobody-sees"
ROOT = Path(__file__).parents[3]
PASSWORD = "seven green bicycles"
NEXT_PERSON = itertools.count(1)


class Consents(Protocol):
    """A provider's own page, where somebody says yes."""

    def consent(self, location: str) -> str:
        """The address that it sends the browser back to."""
        ...


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def served(app: ASGIApp, port: int, *, patience_s: int = 0) -> Iterator[str]:
    """Serve an app while the `with` lasts; its address."""
    config = uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=patience_s)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name=f"loopback-{port}")
    thread.start()
    until = time.monotonic() + PATIENCE_S
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@dataclass
class Visitor:
    """A browser, at an address of its own: Ponder counts new accounts by address."""

    client: httpx.Client

    def me(self) -> dict[str, Any]:
        """Who Ponder takes them for."""
        found: dict[str, Any] = self.client.get("/api/me").json()
        return found

    def is_nobody(self) -> bool:
        """Whether Ponder knows nothing of them, as before."""
        found = self.me()
        return (found["kind"], found["was_signed_out"]) == ("nobody", False)

    def start(self, provider: str = "acme", **body: Any) -> str:
        """Where the page goes when the provider's button is pressed."""
        response = self.client.post(f"/auth/{provider}/start", json=body)
        assert response.status_code == 200, response.text
        location: str = response.json()["location"]
        return location

    def land(self, callback: str) -> str:
        """Where the browser comes to rest, sent back by the provider."""
        response = self.client.get(callback, headers={"Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 303, (response.status_code, response.text)
        return response.headers["location"]

    def sign_in(self, at: Consents, provider: str = "acme", **body: Any) -> str:
        """All the way through a provider; where the browser comes to rest."""
        location = self.start(provider, **body)
        return self.land(at.consent(location)) if location.startswith("http") else location

    def register(self, name: str) -> None:
        """Sign up with a name and a password."""
        response = self.client.post("/auth/register", json={"username": name, "password": PASSWORD})
        assert response.status_code == 201, response.text

    def new_conversation(self) -> str:
        """An empty conversation's id; whoever is nobody becomes a guest."""
        response = self.client.post("/api/conversations", json={})
        assert response.status_code == 201, response.text
        found: str = response.json()["id"]
        return found

    def conversations(self) -> list[str]:
        """The ids of their conversations."""
        return [item["id"] for item in self.client.get("/api/conversations").json()["items"]]


@dataclass
class Ponder:
    """A Ponder at `url`; `services` are what its routes call."""

    url: str
    app: FastAPI
    services: Services
    visitors: list[Visitor] = field(default_factory=list)

    def forget_providers(self) -> None:
        """As after a restart: nothing is known of any provider's metadata and keys."""
        self.app.state.providers = Providers(self.services.settings)

    def visitor(self) -> Visitor:
        """Somebody nobody knows yet, in a new browser."""
        number = next(NEXT_PERSON)
        headers = {"Sec-Fetch-Site": "same-origin", "X-Forwarded-For": f"198.51.{number // 250}.{number % 250 + 1}"}
        self.visitors.append(
            Visitor(httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS))
        )
        return self.visitors[-1]

    def owner_of(self, issuer: str, subject: str) -> str | None:
        """The id of the person with this identity."""
        found = self.services.people.identity(issuer, subject)
        return found[0].person_id if found else None


def provider(issuer: str, name: str = "acme", **changes: Any) -> ProviderSettings:
    """A provider as the settings have it."""
    given = {"kind": "oidc", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "label": name.title()}
    return ProviderSettings.model_validate({"name": name, "issuer": issuer, **given, **changes})


@contextmanager
def ponder(folder: Path, *providers: ProviderSettings, **changes: Any) -> Iterator[Ponder]:
    """A whole Ponder while the `with` lasts, its files under `folder`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given: dict[str, Any] = {
        "data_dir": folder / "data",
        "cache_dir": folder / "cache",
        "model": "demo",
        "port": port,
        "base_url": url,
        "trusted_proxies": 1,
        "providers": providers,
    }
    services = build_services(Settings(**(given | changes)), ScriptedEngine())
    app = build_app(services)
    with served(app, port, patience_s=3):
        found = Ponder(url, app, services)
        try:
            yield found
        finally:
            for visitor in found.visitors:
                visitor.client.close()


@dataclass
class MockProvider:
    """`oidc-provider-mock`, as a process of its own; `subject` is who presses Authorize."""

    url: str
    subject: str = "ada@example.org"

    def consent(self, location: str) -> str:
        """Fill the form in; where it sends the browser then."""
        response = httpx.post(location, data={"sub": self.subject}, verify=NO_TLS)
        assert response.status_code == 302, response.text
        return response.headers["location"]

    def deny(self, location: str) -> str:
        """Press Deny; where it sends the browser then."""
        response = httpx.post(location, data={"action": "deny"}, verify=NO_TLS)
        assert response.status_code == 302, response.text
        return response.headers["location"]

    def know(self, subject: str, **claims: Any) -> None:
        """Make somebody known, with what it says of them."""
        self.subject = subject
        assert httpx.put(f"{self.url}/users/{subject}", json=claims, verify=NO_TLS).status_code == 204


@contextmanager
def process(*arguments: str, log: Path, **environment: str) -> Iterator[None]:
    """A Python process while the `with` lasts; what it says is in `log`."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=out, env=os.environ | environment, cwd=ROOT
        )
    try:
        yield
        assert running.poll() is None, log.read_text()
    finally:
        running.terminate()
        running.wait(PATIENCE_S)


def wait_for(url: str, log: Path) -> None:
    """Wait until an address answers."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            httpx.get(url, verify=NO_TLS)
            return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"{url} did not answer: {log.read_text()}")


@contextmanager
def mock_provider(folder: Path, host: str = "127.0.0.1") -> Iterator[MockProvider]:
    """The real provider while the `with` lasts. As "localhost" it is another site for a browser."""
    url = f"http://{host}:{(port := free_port())}"
    log = folder / "provider.log"
    with process("-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true", log=log):
        wait_for(f"{url}/.well-known/openid-configuration", log)
        yield MockProvider(url)

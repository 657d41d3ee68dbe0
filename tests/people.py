"""People for tests: browsers that do not know each other, and accounts made through the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ssl import PROTOCOL_TLS_CLIENT, SSLContext

import httpx

from tests.patience import PATIENCE_S

# Nothing here speaks TLS, and reading the system's certificates for each browser takes longer than most requests
NO_TLS = SSLContext(PROTOCOL_TLS_CLIENT)
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
PASSWORD = "seven green bicycles"


@dataclass
class Browsers:
    """Makes browsers for one server; all are closed with it."""

    url: str
    made: list[httpx.Client] = field(default_factory=list)

    def new(self) -> httpx.Client:
        """Somebody nobody knows yet."""
        self.made.append(httpx.Client(base_url=self.url, headers=OWN_PAGE, timeout=PATIENCE_S, verify=NO_TLS))
        return self.made[-1]

    def guest(self) -> httpx.Client:
        """A guest with an empty conversation."""
        client = self.new()
        assert client.post("/api/conversations", json={}).status_code == 201
        return client

    def account(self, name: str, password: str = PASSWORD) -> httpx.Client:
        """Somebody who has just signed up."""
        client = self.new()
        response = client.post("/auth/register", json={"username": name, "password": password})
        assert response.status_code == 201, response.text
        return client

    def signed_in(self, name: str, password: str = PASSWORD) -> httpx.Client:
        """Another browser of somebody who has an account."""
        client = self.new()
        response = client.post("/auth/login", json={"username": name, "password": password})
        assert response.status_code == 200, response.text
        return client


@contextmanager
def browsers(url: str) -> Iterator[Browsers]:
    """Browsers while the `with` lasts."""
    found = Browsers(url)
    try:
        yield found
    finally:
        for client in found.made:
            client.close()


def cookie_of(client: httpx.Client) -> str:
    """The token in a browser's cookie."""
    return client.cookies.get("ponder") or ""


def error_of(response: httpx.Response) -> str:
    """The code of an error's answer."""
    return str(response.json()["error"]["code"])

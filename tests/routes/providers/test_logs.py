"""What a server at DEBUG writes down while people sign in (53): nothing that opens anything."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import PATIENCE_S
from tests.people import NO_TLS
from tests.routes.providers.hostile import (
    FOREIGN_KEY,
    HostileProvider,
    fake_github,
    hostile_provider,
    query_of,
    signed,
)
from tests.routes.providers.loopback import CLIENT_SECRET, PASSWORD, Visitor, free_port, process, wait_for

# The real start of a server, with the engine of the tests in place of the model's process
START = """
import sys
import app.server
from tests.scripted import ScriptedEngine
app.server.EngineProcess = lambda _: ScriptedEngine()
sys.exit(app.server.main(["--model", "demo"]))
"""


@contextmanager
def loud_server(folder: Path, acme: str, github: str) -> Iterator[tuple[Visitor, Path]]:
    """A server in a process of its own that writes all it has to say; one browser, and the file it writes to."""
    import httpx

    port, log = free_port(), folder / "server.log"
    url = f"http://127.0.0.1:{port}"
    environment = {"PONDER_LOG_LEVEL": "DEBUG", "PONDER_PORT": str(port), "PONDER_BASE_URL": url, "PYTHONPATH": "."}
    environment |= {"PONDER_DATA_DIR": str(folder / "data"), "PONDER_CACHE_DIR": str(folder / "cache")}
    for name, issuer in (("ACME", acme), ("GITHUB", github)):
        environment[f"PONDER_OIDC_{name}_ISSUER"] = issuer
        environment[f"PONDER_OIDC_{name}_CLIENT_ID"] = "ponder"
        environment[f"PONDER_OIDC_{name}_CLIENT_SECRET"] = CLIENT_SECRET
    with process("-c", START, log=log, **environment):
        wait_for(f"{url}/healthz", log)
        headers = {"Sec-Fetch-Site": "same-origin"}
        with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS) as client:
            yield Visitor(client), log


def test_a_log_at_debug_holds_nothing_that_opens_anything(tmp_path: Path) -> None:
    secrets: set[str] = {CLIENT_SECRET, PASSWORD}
    with hostile_provider() as acme, fake_github() as github:
        acme.person |= {"preferred_username": "Countess", "email": "ada@example.org"}
        with loud_server(tmp_path, acme.url, github.url) as (visitor, log):
            assert visitor.sign_in(acme) == "/"
            secrets |= {visitor.client.cookies["ponder"]}
            assert visitor.sign_in(github, "github", purpose="link") == "/"
            secrets |= {visitor.client.cookies["ponder"]}
            callback = acme.consent(visitor.start(purpose="confirm"))
            secrets |= held_by(visitor) | {query_of(callback)["code"]}
            assert visitor.land(callback) == "/"
            secrets |= things_that_fail(visitor, acme)
            secrets |= said_by(acme, github)
        said = log.read_text()
    assert " DEBUG " in said
    assert "what came back does not hold" in said
    assert min(map(len, secrets)) > 7
    found = {secret for secret in secrets if re.search(re.escape(secret), said, re.IGNORECASE)}
    assert found == set()
    for word in ("code=", "code_verifier", "client_secret", "id_token", "Countess", "ada@example.org"):
        assert word.lower() not in said.lower()


def held_by(visitor: Visitor) -> set[str]:
    """What lies in the cookie of a sign-in that is going on."""
    cookie = visitor.client.cookies["ponder-auth"]
    (state,) = json.loads(base64.b64decode(cookie.split(".")[0])).items()
    kept = state[1]["data"]
    return {cookie, state[0].removeprefix("_state_acme_"), kept["code_verifier"], kept["nonce"]}


def things_that_fail(visitor: Visitor, acme: HostileProvider) -> set[str]:
    """Refused in every way that writes something; what was said on the way."""
    made: list[str] = []
    acme.make_id_token = lambda claims: made.append(signed(claims, FOREIGN_KEY)) or made[-1]  # type: ignore[func-returns-value]
    assert visitor.sign_in(acme) == "/#/sign-in/refused"
    acme.make_id_token = lambda claims: made.append(signed(claims | {"nonce": "of-another-time"})) or made[-1]  # type: ignore[func-returns-value]
    assert visitor.sign_in(acme) == "/#/sign-in/refused"
    acme.callback = {"error": "a-secret-of-theirs", "error_description": "another-secret-of-theirs"}
    assert visitor.sign_in(acme) == "/#/sign-in/refused"
    acme.callback = {"code": "a-code-that-is-none"}
    assert visitor.sign_in(acme) == "/#/sign-in/refused"
    return {*made, "a-secret-of-theirs", "another-secret-of-theirs", "a-code-that-is-none", "of-another-time"}


def said_by(acme: HostileProvider, *others: object) -> set[str]:
    """Every verifier, state, nonce, code and token that a provider has heard or said."""
    basic = base64.b64encode(f"ponder:{CLIENT_SECRET}".encode()).decode()
    found = {basic, "gho_token"}
    for provider in (acme, *others):
        for form in provider.token_forms:  # type: ignore[attr-defined]
            found |= {form["code"], form["code_verifier"]}
        for query in provider.authorize_queries:  # type: ignore[attr-defined]
            found |= {query[key] for key in ("state", "nonce", "code_challenge") if key in query}
    for answer in acme.token_answers:
        found |= {answer["access_token"], answer["id_token"]}
    # The stand-in for GitHub gives everybody the same code
    return found - {"a-code"}

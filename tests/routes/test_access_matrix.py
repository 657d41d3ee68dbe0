"""Who reaches what: every route the app has, asked by everybody, also about somebody else's things.

Each route stands in one of four tables here. A new one that stands in none fails the first test.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr
from sqlalchemy import select
from starlette.routing import Mount

import app.routes.runs
import app.runs.log
from app.accounts import passwords
from app.accounts.keys import hash_of_code, new_codes
from app.config import ProviderSettings, Settings
from app.history.store import now
from app.history.tables import ConversationTable, Table
from app.web import build_app
from tests.live import LiveServer, serving
from tests.patience import PATIENCE_S
from tests.people import NO_TLS, OWN_PAGE, PASSWORD, cookie_of, error_of
from tests.scripted import CLOSE, HOLD, ScriptedEngine

Key = tuple[str, str]
UNKNOWN_ID = "0" * 32
NEW_PASSWORD = "nine yellow bicycles"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


# The rules


@dataclass
class Someone:
    """A person and one of their browsers; `codes` are their recovery codes."""

    client: httpx.Client
    id: str = ""
    name: str = ""
    codes: list[str] = field(default_factory=list)


@dataclass
class Victim(Someone):
    """Somebody with one of everything; `things` has the ids by the names that the rules use."""

    elsewhere: httpx.Client = field(default_factory=httpx.Client)
    things: dict[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> list[str]:
        """What nobody else may ever read."""
        return [self.name, "victim's", *(self.things[name] for name in ("answer", "message", "session", "identity"))]


@dataclass(frozen=True)
class Rule:
    """How to ask a route so that it does its work: whose `thing` the path names, the JSON, the status for who may.

    A route that `needs_account` asks whoever has none to sign in first. A `file` names nobody.
    """

    status: int
    thing: str = ""
    body: Callable[[Victim], Any] | None = None
    needs_account: bool = False
    is_same_for_all: bool = False
    file: dict[str, Any] | None = None


def _message(_: Victim) -> dict[str, Any]:
    return {"text": "More?", "client_key": "a-matrix-key", "options": {"effort": "quick"}}


# Nobody needs a cookie, and it changes nothing
PUBLIC: dict[Key, Rule] = {
    ("GET", "/healthz"): Rule(200, is_same_for_all=True),
    ("GET", "/readyz"): Rule(200, is_same_for_all=True),
    ("GET", "/privacy"): Rule(200, is_same_for_all=True),
    ("GET", "/api/model"): Rule(200, is_same_for_all=True),
    ("GET", "/ponder/{path}"): Rule(200, "static", is_same_for_all=True),
    ("POST", "/auth/register"): Rule(409, body=lambda v: {"username": v.name, "password": PASSWORD}),
    ("POST", "/auth/login"): Rule(401, body=lambda v: {"username": v.name, "password": "a wrong one"}),
    ("POST", "/auth/recover"): Rule(
        401, body=lambda v: {"username": v.name, "code": "ABCD-EFGH-JKMN-PQRS", "password": NEW_PASSWORD}
    ),
    ("POST", "/auth/{provider}/start"): Rule(200, "provider", lambda _: {"purpose": "sign_in"}),
    ("GET", "/auth/{provider}/login"): Rule(303, "provider"),
    ("GET", "/auth/{provider}/callback"): Rule(303, "provider"),
}
# The answer is about whoever the cookie says, whatever else the request says
OWN: dict[Key, Rule] = {
    ("GET", "/api/me"): Rule(200),
    ("PATCH", "/api/me"): Rule(200, body=lambda _: {"settings": {"theme": "dark"}, "notice_version": 1}),
    ("DELETE", "/api/me"): Rule(204),
    ("GET", "/api/me/sessions"): Rule(200, needs_account=True),
    ("GET", "/api/me/export"): Rule(200),
    ("POST", "/api/me/import"): Rule(200, file={"format": "ponder", "version": 1, "conversations": []}),
    ("GET", "/api/conversations"): Rule(200),
    ("DELETE", "/api/conversations"): Rule(200),
    ("POST", "/api/conversations"): Rule(201, body=lambda _: {"title": "Mine"}),
    ("POST", "/auth/logout"): Rule(204, body=lambda _: {"everywhere": True}),
    ("POST", "/auth/password"): Rule(
        200, body=lambda _: {"password": PASSWORD, "new_password": NEW_PASSWORD}, needs_account=True
    ),
    ("POST", "/auth/confirm"): Rule(200, body=lambda _: {"password": PASSWORD}, needs_account=True),
    ("POST", "/auth/recovery-codes"): Rule(200, needs_account=True),
}
# The path names a thing, and it is there for its owner alone
BY_ID: dict[Key, Rule] = {
    ("GET", "/api/conversations/{conversation_id}"): Rule(200, "conversation"),
    ("GET", "/api/conversations/{conversation_id}/export"): Rule(200, "conversation"),
    ("PATCH", "/api/conversations/{conversation_id}"): Rule(200, "conversation", lambda _: {"title": "Mine"}),
    ("DELETE", "/api/conversations/{conversation_id}"): Rule(204, "conversation"),
    ("POST", "/api/conversations/{conversation_id}/restore"): Rule(200, "deleted_conversation"),
    ("POST", "/api/conversations/{conversation_id}/leave"): Rule(204, "temporary_conversation"),
    # The thing is in its body
    ("POST", "/api/conversations/restore"): Rule(200, body=lambda v: {"deletion_id": v.things["deletion"]}),
    ("POST", "/api/messages/{message_id}/retry"): Rule(202, "answer", lambda _: {"client_key": "a-retry-key"}),
    ("POST", "/api/conversations/{conversation_id}/messages"): Rule(202, "conversation", _message),
    ("GET", "/api/messages/{message_id}/reasoning"): Rule(200, "answer"),
    ("GET", "/api/runs/{run_id}"): Rule(200, "live_run"),
    ("POST", "/api/runs/{run_id}/stop"): Rule(202, "live_run"),
    ("POST", "/api/runs/{run_id}/answer-now"): Rule(202, "live_run"),
    ("GET", "/api/runs/{run_id}/events"): Rule(200, "run"),
    ("DELETE", "/api/me/sessions/{session_id}"): Rule(204, "session", needs_account=True),
    ("DELETE", "/api/me/identities/{identity_id}"): Rule(204, "identity", needs_account=True),
}
# There for admins alone
ADMIN: dict[Key, Rule] = {
    ("GET", "/api/admin/people"): Rule(200),
    ("PATCH", "/api/admin/people/{person_id}"): Rule(200, "person", lambda _: {"runs_per_day": 5}),
    ("DELETE", "/api/admin/people/{person_id}"): Rule(204, "person"),
    ("GET", "/api/admin/usage"): Rule(200),
    ("GET", "/api/admin/quotas"): Rule(200),
    ("GET", "/api/admin/runs"): Rule(200),
    ("POST", "/api/admin/runs/{run_id}/stop"): Rule(202, "live_run"),
}
# Whatever else stands under our prefixes: nothing, in our own words, and not Gradio's
NOTHING: set[Key] = {
    (method, f"{prefix}/{{rest}}")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
    for prefix in ("/api", "/auth")
}
RULES = PUBLIC | OWN | BY_ID | ADMIN
# Of Gradio's own routes, what the page needs: files, and a description that is the same for everybody
GRADIOS: set[Key] = {
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/config"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/static/{path}"),
    ("GET", "/assets/{path}"),
    ("GET", "/gradio_api/info"),
}
# Event handlers of the page, by name: which of PUBLIC, OWN, BY_ID or ADMIN each keeps, and the test that shows it
HANDLERS: dict[str, str] = {}
# What no JSON may set
NOT_TO_BE_SET = {
    "owner_id": UNKNOWN_ID,
    "person_id": UNKNOWN_ID,
    "role": "admin",
    "is_admin": True,
    "created_at": "2000-01-01T00:00:00Z",
    "kind": "account",
}


# What there is


def routes_of(app: FastAPI) -> set[Key]:
    """Ponder's own routes, and its folder of files."""
    found: set[Key] = set()
    for context in iter_route_contexts(app.routes):
        if not _is_gradios(context):
            methods = context.methods or {"GET"}
            found |= {(method, context.path_format or "") for method in methods}
    return found


def gradios_routes_of(app: FastAPI) -> set[Key]:
    """The routes of every app that is mounted at the root: Gradio's."""
    found: set[Key] = set()
    for context in iter_route_contexts(app.routes):
        if _is_gradios(context):
            mounted = context.original_route.app  # type: ignore[attr-defined]
            for inner in iter_route_contexts(mounted.routes):
                found |= {(method, inner.path_format or "") for method in inner.methods or {"GET"}}
    return found


def _is_gradios(context: Any) -> bool:
    return isinstance(context.original_route, Mount) and context.path == ""


def handlers_of(app: FastAPI) -> list[str]:
    """The names of the event handlers of every page that is mounted."""
    found = []
    for context in iter_route_contexts(app.routes):
        if _is_gradios(context):
            blocks = context.original_route.app.get_blocks()  # type: ignore[attr-defined]
            found += [str(handler.api_name or handler.name) for handler in blocks.fns.values()]
    return found


def problems_of(app: FastAPI) -> list[str]:
    """A sentence for each route and handler without a rule, and for each rule without a route."""
    place = f"Add it to PUBLIC, OWN, BY_ID or ADMIN in {Path(__file__).name}."
    there = routes_of(app)
    found = [f"{method} {path} has no rule. {place}" for method, path in sorted(there - set(RULES) - NOTHING)]
    found += [
        f"{method} {path} has a rule and is not there. Remove it." for method, path in (set(RULES) | NOTHING) - there
    ]
    found += [f"The page's handler {name} has no rule. Add it to HANDLERS." for name in handlers_of(app)]
    return found


# The people


@dataclass
class World:
    """One server, everybody on it, and what its database holds."""

    live: LiveServer
    app: FastAPI
    password_hash: str
    clients: list[httpx.Client] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def browser(self, token: str = "") -> httpx.Client:
        """A browser at an address of its own, so that no limit of one address counts."""
        number = next(self.numbers)
        headers = OWN_PAGE | {"X-Forwarded-For": f"10.1.{number // 250}.{number % 250 + 1}"}
        client = httpx.Client(base_url=self.live.url, headers=headers, timeout=PATIENCE_S, verify=NO_TLS)
        if token:
            client.cookies.set("ponder", token, domain="127.0.0.1", path="/")
        self.clients.append(client)
        return client

    def sign_in(self, person_id: str) -> httpx.Client:
        """A browser of an account, without the price of a hash."""
        return self.browser(self.live.services.sessions.open(person_id, "", verified_at=now(), instead_of=None))

    def account(self, *, is_admin: bool = False) -> Someone:
        """Somebody with an account, signed in."""
        name, codes = f"{'root' if is_admin else 'ada'}{next(self.numbers)}", new_codes()
        person_id = self.live.services.people.add_account(
            username=name,
            username_key=name,
            password_hash=self.password_hash,
            code_hashes=[hash_of_code(code) for code in codes],
            is_admin=is_admin,
        )
        return Someone(self.sign_in(person_id), person_id, name, codes)

    def guest(self) -> Someone:
        """Somebody with a cookie."""
        token = self.live.services.sessions.new_guest("", "10.0.0.1")
        caller = self.live.services.sessions.caller(token)
        assert caller is not None
        return Someone(self.browser(token), caller.person_id)

    def others(self) -> dict[str, Someone]:
        """Everybody who is not the victim."""
        return {
            "nobody": Someone(self.browser()),
            "guest": self.guest(),
            "account": self.account(),
            "admin": self.account(is_admin=True),
        }

    def ask(self, client: httpx.Client, text: str) -> dict[str, str]:
        """A new conversation with a first message; `conversation` and what was accepted."""
        conversation = client.post("/api/conversations", json={}).json()["id"]
        body = {"text": text, "client_key": f"a-client-key-{next(self.numbers)}"}
        accepted = client.post(f"/api/conversations/{conversation}/messages", json=body)
        assert accepted.status_code == 202, accepted.text
        return {"conversation": conversation, **accepted.json()}

    def victim(self) -> Victim:
        """Somebody new with one of everything; a run that waits at a HOLD included."""
        account, people = self.account(), self.live.services.people
        (session,) = people.sessions(account.id)
        found = Victim(account.client, account.id, account.name, account.codes, self.sign_in(account.id))
        people.link(account.id, "https://github.com", f"subject {account.name}", "github")
        self.live.script(
            f"The victim's thought.{CLOSE}The victim's answer.", f"{HOLD}The victim's late thought.{CLOSE}So."
        )
        calm = self.ask(account.client, "The victim's question")
        assert "event: done" in account.client.get(f"/api/runs/{calm['run_id']}/events").text
        busy = self.ask(account.client, "The victim's second question")
        while account.client.get(f"/api/runs/{busy['run_id']}").json()["state"] != "running":
            pass
        deleted = account.client.post("/api/conversations", json={"title": "The victim's deleted one"}).json()["id"]
        account.client.delete(f"/api/conversations/{deleted}")
        with self.live.services.store.database.reading() as db:
            deletion = db.scalar(select(ConversationTable.deletion_id).where(ConversationTable.id == deleted))
        body = {"title": "The victim's temporary one", "is_temporary": True}
        temporary = account.client.post("/api/conversations", json=body).json()["id"]
        (identity,) = people.identities(account.id)
        (elsewhere,) = [other for other in people.sessions(account.id) if other.id != session.id]
        found.things = {
            "person": account.id,
            "conversation": calm["conversation"],
            "message": calm["message_id"],
            "answer": calm["answer_id"],
            "run": calm["run_id"],
            "busy_conversation": busy["conversation"],
            "busy_answer": busy["answer_id"],
            "live_run": busy["run_id"],
            "deleted_conversation": deleted,
            "deletion": deletion or "",
            "temporary_conversation": temporary,
            "session": elsewhere.id,
            "identity": identity.id,
            "provider": "github",
            "static": "ponder.css",
        }
        return found

    def rows_of(self, *people: Victim | Someone) -> list[tuple[str, dict[str, Any]]]:
        """Every row that is theirs or hangs on something of theirs."""
        found: list[tuple[str, dict[str, Any]]] = []
        with self.live.services.store.database.reading() as db:
            owners = {someone.id for someone in people}
            talks = Table.metadata.tables["conversations"]
            owners |= set(db.scalars(talks.select().where(talks.c.owner_id.in_(owners)).with_only_columns(talks.c.id)))
            for table in Table.metadata.sorted_tables:
                for row in db.execute(table.select()).mappings():
                    if owners & {value for value in row.values() if isinstance(value, str)}:
                        found.append((table.name, dict(row)))
        for name, columns in found:
            if name == "runs" and columns["state"] == "running":
                # A run saves these by itself once a second
                for column in ("usage", "timing", "last_event"):
                    del columns[column]
        return sorted(found, key=repr)

    def state_of(self, victim: Victim) -> str:
        """The state of the run that waits, as it is stored."""
        return self.live.services.store.run(victim.id, victim.things["live_run"]).state

    def send(
        self, client: httpx.Client, key: Key, victim: Victim, *, thing: str | None = None, is_dressed: bool = False
    ) -> httpx.Response:
        """Ask a route as its rule says. Dressed up, the request says everywhere that it comes from the victim."""
        (method, path), rule = key, RULES[key]
        address = (
            path.replace(path[path.find("{") : path.find("}") + 1], thing or victim.things[rule.thing])
            if rule.thing
            else path
        )
        body = rule.body(victim) if rule.body else rule.file
        more: dict[str, Any] = {}
        if is_dressed:
            names = ("person_id", "owner_id", "user_id", "user", "id", "conversation_id", "run_id", "session")
            more["params"] = dict.fromkeys(names, victim.id)
            more["headers"] = {
                "X-Person-Id": victim.id,
                "X-Forwarded-User": victim.name,
                "Remote-User": victim.name,
                "Authorization": f"Bearer {victim.id}",
                "X-HTTP-Method-Override": "DELETE",
                "X-Original-URL": "/api/me",
            }
            if body is None and method != "GET":
                body = {"person_id": victim.id, "owner_id": victim.id, "is_admin": True}
        return client.request(method, address, json=body, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with a provider, behind a proxy, that lives as long as the module."""
    folder = tmp_path_factory.mktemp("matrix")
    github = ProviderSettings(
        name="github",
        kind="github",
        issuer="https://github.com",
        client_id="an-id",
        client_secret=SecretStr("a secret of ours"),
        label="GitHub",
    )
    settings = Settings(
        data_dir=folder / "data",
        cache_dir=folder / "cache",
        port=0,
        model="demo",
        new_guests_per_hour=100_000,
        account_runs_at_once=100,
        trusted_proxies=1,
        providers=(github,),
    )
    with serving(settings, ScriptedEngine()) as live:
        found = World(live, build_app(live.services), passwords.hashed(PASSWORD))
        yield found
        for client in found.clients:
            client.close()


@pytest.fixture
def victim(world: World) -> Victim:
    """Somebody new with one of everything."""
    return world.victim()


@pytest.fixture(autouse=True)
def no_run_is_left(world: World) -> Iterator[None]:
    """Ends what still runs: it would take the next test's script."""
    yield
    services, loop = world.live.services, world.live.loop
    for run in services.usage.open_runs():
        asyncio.run_coroutine_threadsafe(services.runs.stop_all_of(run.person_id), loop).result(10)
    assert not world.live.engine.scripts


def names_of(keys: dict[Key, Rule]) -> list[Any]:
    """The routes of a table, with readable ids."""
    return [pytest.param(key, id=" ".join(key)) for key in keys]


# Nothing is forgotten


def test_every_route_and_every_handler_has_a_rule(world: World) -> None:
    assert problems_of(world.app) == []
    assert len(RULES) == len(PUBLIC) + len(OWN) + len(BY_ID) + len(ADMIN), "A route has two rules."
    assert {key for key in RULES if "{" in key[1]} == {key for key, rule in RULES.items() if rule.thing}


def test_a_route_a_folder_or_a_handler_without_a_rule_is_noticed(world: World) -> None:
    import gradio as gr
    from starlette.staticfiles import StaticFiles

    new = build_app(world.live.services)
    new.add_api_route("/api/new/{thing_id}", lambda thing_id: thing_id, methods=["PUT"])
    new.mount("/uploads", StaticFiles(directory=Path(__file__).parent))
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Button("New").click(lambda: None, api_name="show")
    gr.mount_gradio_app(new, page, path="", ssr_mode=False)
    found = "\n".join(problems_of(new))
    for what in ("PUT /api/new/{thing_id} has no rule", "GET /uploads/{path} has no rule", "handler show has no rule"):
        assert what in found
    assert "PUBLIC, OWN, BY_ID or ADMIN in test_access_matrix.py" in found


def test_the_page_has_no_handler_that_a_program_could_call(world: World) -> None:
    from app.ui.page import build_page

    assert [handler.name for handler in build_page().fns.values()] == list(HANDLERS)
    assert handlers_of(world.app) == list(HANDLERS)
    assert world.browser().get("/config").json()["dependencies"] == []


def test_of_gradios_routes_only_those_in_the_list_are_reachable_by_anybody(world: World) -> None:
    there = gradios_routes_of(world.app)
    assert len(there) > 60, "Gradio's routes were not found."
    assert there >= GRADIOS
    everybody = world.others()
    for who in ("nobody", "admin"):
        client = everybody[who].client
        for method, path in sorted(there):
            address = "/".join("x" if "{" in part else part for part in path.split("/"))
            address = address.replace("proxy=x", "proxy=http://x").replace("file=x", "file=/etc/passwd")
            if (method, path) in GRADIOS:
                assert client.request(method, address).status_code == (404 if "{" in path else 200), address
                continue
            assert not any(client.request(other, address).is_success for other in METHODS), address
            assert client.request(method, address).status_code == 404, address


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data?session_hash=x"),
        ("GET", "/gradio_api/queue/status"),
        ("GET", "/gradio_api/heartbeat/x"),
        ("POST", "/gradio_api/cancel"),
        ("POST", "/gradio_api/reset"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("GET", "/gradio_api/call/predict/x"),
        ("GET", "/gradio_api/stream/x/1/1/playlist.m3u8"),
        ("GET", "/gradio_api/startup-events"),
    ],
)
def test_gradios_queue_is_shut_for_everybody(world: World, victim: Victim, method: str, path: str) -> None:
    body = {"session_hash": "x", "fn_index": 0, "data": [], "event_id": "x"} if method == "POST" else None
    for who, someone in {**world.others(), "victim": victim}.items():
        response = someone.client.request(method, path, json=body)
        assert (response.status_code, error_of(response)) == (404, "not_found"), who


# The four tables


@pytest.mark.parametrize("key", names_of(PUBLIC))
def test_a_public_route_says_the_same_to_everybody_and_changes_nothing(world: World, victim: Victim, key: Key) -> None:
    before, said = world.rows_of(victim), set()
    for who, someone in world.others().items():
        for is_dressed in (False, True):
            response = world.send(someone.client, key, victim, is_dressed=is_dressed and key[0] == "GET")
            assert response.status_code == PUBLIC[key].status, who
            said.add(response.text if PUBLIC[key].is_same_for_all else "")
            assert not any(secret in response.text for secret in victim.secrets), who
    assert world.rows_of(victim) == before
    said.add(world.send(victim.client, key, victim).text if PUBLIC[key].is_same_for_all else "")
    assert len(said) == 1


@pytest.mark.parametrize("key", names_of(OWN))
def test_an_own_route_is_about_the_cookies_person_whatever_else_the_request_says(
    world: World, victim: Victim, key: Key
) -> None:
    before, rule = world.rows_of(victim), OWN[key]
    for who, someone in world.others().items():
        plain = world.send(someone.client, key, victim).text if key[0] == "GET" else ""
        response = world.send(someone.client, key, victim, is_dressed=True)
        if rule.needs_account and who in ("nobody", "guest"):
            assert (response.status_code, error_of(response)) == (401, "sign_in_first"), who
        elif who != "nobody":
            assert response.status_code == rule.status, who
        assert response.text == plain or key[0] != "GET", who
        assert not any(secret in response.text for secret in victim.secrets), who
    assert world.rows_of(victim) == before
    response = world.send(victim.client, key, victim)
    assert response.status_code == rule.status
    assert key[0] != "GET" or any(
        secret in response.text for secret in [*victim.secrets, victim.things["conversation"]]
    )


@pytest.mark.parametrize("key", names_of(BY_ID))
def test_what_is_somebodys_is_there_for_them_and_for_nobody_else(world: World, victim: Victim, key: Key) -> None:
    before, rule = world.rows_of(victim), BY_ID[key]
    for who, someone in world.others().items():
        is_shut = rule.needs_account and who in ("nobody", "guest")
        expected = (401, "sign_in_first") if is_shut else (404, "not_found")
        unknown = world.send(someone.client, key, victim, thing=UNKNOWN_ID)
        for is_dressed in (False, True):
            response = world.send(someone.client, key, victim, is_dressed=is_dressed)
            assert (response.status_code, error_of(response)) == expected, who
            assert response.text == unknown.text, f"{who} can tell what is there from what is not"
    assert world.rows_of(victim) == before
    assert world.send(victim.client, key, victim).status_code == rule.status


@pytest.mark.parametrize("key", names_of(ADMIN))
def test_what_is_for_admins_is_not_there_for_anybody_else(world: World, victim: Victim, key: Key) -> None:
    before, everybody = world.rows_of(victim), world.others()
    admin = everybody.pop("admin")
    for who, someone in {**everybody, "victim": victim}.items():
        for is_dressed in (False, True):
            response = world.send(someone.client, key, victim, is_dressed=is_dressed)
            assert (response.status_code, error_of(response)) == (404, "not_found"), who
        if key[0] == "PATCH":
            address = f"/api/admin/people/{victim.id}"
            assert someone.client.patch(address, json={"nonsense": 1}).status_code == 404, who
    assert world.rows_of(victim) == before
    response = world.send(admin.client, key, victim)
    assert response.status_code == ADMIN[key].status
    assert "victim's" not in response.text


@pytest.mark.parametrize("rest", ["nowhere", "me/", "admin", "admin/people/", "conversations/x/y", "ME", "docs"])
@pytest.mark.parametrize("prefix", ["/api", "/auth"])
def test_what_is_no_route_is_nothing_to_everybody(world: World, prefix: str, rest: str) -> None:
    for who, someone in world.others().items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            response = someone.client.request(method, f"{prefix}/{rest}")
            assert (response.status_code, error_of(response)) == (404, "not_found"), f"{who} {method}"


# Nested ids, and orders for somebody else's run


@pytest.mark.parametrize("thing", ["answer", "message", "busy_answer"])
def test_a_message_cannot_follow_one_of_another_conversation(world: World, victim: Victim, thing: str) -> None:
    before = world.rows_of(victim)
    body = {"text": "And?", "client_key": "a-nested-key", "parent_id": victim.things[thing]}
    for someone in (world.guest(), world.account(), world.account(is_admin=True)):
        own = someone.client.post("/api/conversations", json={}).json()["id"]
        response = someone.client.post(f"/api/conversations/{own}/messages", json=body)
        assert (response.status_code, error_of(response)) == (404, "not_found")
        assert someone.client.get(f"/api/conversations/{own}").json()["messages"] == []
    assert world.rows_of(victim) == before
    # Nor one of an own other conversation
    own = victim.client.post("/api/conversations", json={}).json()["id"]
    assert victim.client.post(f"/api/conversations/{own}/messages", json=body).status_code == 404


def test_no_cursor_shows_anything_of_somebody_else(world: World, victim: Victim) -> None:
    cursor = victim.client.get("/api/conversations?limit=1").json()["next_cursor"]
    for someone in (world.guest(), world.account(), world.account(is_admin=True)):
        for forged in (cursor, "1-999999999999999999-z", cursor.replace("0-", "1-", 1)):
            response = someone.client.get("/api/conversations", params={"cursor": forged})
            assert response.json() == {"items": [], "next_cursor": None}
        response = someone.client.get("/api/conversations", params={"cursor": victim.things["conversation"]})
        assert (response.status_code, error_of(response)) == (422, "bad_request")
    assert victim.client.get("/api/conversations", params={"cursor": cursor}).json()["items"]


def test_a_temporary_chat_is_there_for_its_owner_alone(world: World, victim: Victim) -> None:
    talk = f"/api/conversations/{victim.things['temporary_conversation']}"
    sent = victim.client.post(f"{talk}/messages", json=_message(victim))
    assert sent.status_code == 202
    message, run = (f"/api/{kind}/{sent.json()[key]}" for kind, key in (("messages", "answer_id"), ("runs", "run_id")))
    asked: list[tuple[str, str, Any]] = [
        ("GET", talk, None),
        ("PATCH", talk, {"title": "Mine"}),
        ("POST", f"{talk}/messages", _message(victim)),
        ("POST", f"{talk}/leave", None),
        ("DELETE", talk, None),
        ("GET", f"{message}/reasoning", None),
        ("POST", f"{message}/retry", {"client_key": "a-retry-key"}),
        ("GET", run, None),
        ("GET", f"{run}/events", None),
        ("POST", f"{run}/stop", None),
    ]
    for who, someone in world.others().items():
        for method, path, body in asked:
            response = someone.client.request(method, path, json=body)
            assert (response.status_code, error_of(response)) == (404, "not_found"), f"{who} {method} {path}"
    assert victim.client.post(f"{run}/stop").status_code == 202
    assert [item["id"] for item in victim.client.get("/api/conversations").json()["items"]].count(talk[-32:]) == 0
    assert victim.client.delete(talk).status_code == 204
    assert victim.client.get(talk).status_code == 404


def test_somebody_elses_client_key_gives_nothing_of_theirs(world: World, victim: Victim) -> None:
    accepted = victim.client.post(
        f"/api/conversations/{victim.things['conversation']}/messages", json={"text": "x", "client_key": "shared-key"}
    )
    other = world.account()
    own = other.client.post("/api/conversations", json={}).json()["id"]
    response = other.client.post(f"/api/conversations/{own}/messages", json={"text": "x", "client_key": "shared-key"})
    assert response.status_code == 202
    assert not set(accepted.json().values()) & {response.json()["run_id"], response.json()["message_id"]}


def test_nobody_else_can_stop_hurry_or_delete_a_run_and_it_goes_on(world: World, victim: Victim) -> None:
    run, talk = victim.things["live_run"], victim.things["busy_conversation"]
    for who, someone in world.others().items():
        for method, path in (
            ("POST", f"/api/runs/{run}/stop"),
            ("POST", f"/api/runs/{run}/answer-now"),
            ("DELETE", f"/api/conversations/{talk}"),
        ):
            assert someone.client.request(method, path).status_code == 404, who
    assert world.state_of(victim) == "running"
    assert world.live.engine.cancelled == [] or run not in world.live.engine.cancelled
    world.live.release()
    assert '"state":"done"' in victim.client.get(f"/api/runs/{run}/events").text


# Event streams


@contextmanager
def stream(client: httpx.Client, run_id: str) -> Iterator[Iterator[str]]:
    """The lines of a run's event stream, which are read as they come."""
    with client.stream("GET", f"/api/runs/{run_id}/events") as response:
        assert response.status_code == 200
        yield response.iter_lines()


# Of heartbeats between two looks there are three; the looks take as long as the machine does
_MOST_LINES = 1000


def heartbeats(lines: Iterator[str], count: int) -> None:
    """Read until so many heartbeats have come."""
    assert sum(1 for _ in itertools.islice((line for line in lines if line.startswith(":")), count)) == count


def closes_soon(lines: Iterator[str]) -> list[str]:
    """The rest of a stream, which must end before many more looks at its session: a heartbeat comes oftener."""
    found = []
    for line in lines:
        found.append(line)
        assert len(found) < _MOST_LINES, "the stream stayed open"
    return found


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams look at their session often."""
    assert app.routes.runs._CHECK_EVERY_S + app.runs.log.HEARTBEAT_S < 15, "a stream may stay open for 15 s"
    monkeypatch.setattr(app.routes.runs, "_CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(app.runs.log, "HEARTBEAT_S", 0.02)


@pytest.mark.parametrize("more", [{}, {"headers": {"Last-Event-ID": "1"}}, {"params": {"after": 1}}])
@pytest.mark.parametrize("thing", ["live_run", "run"])
def test_the_true_id_of_a_run_opens_its_stream_for_nobody_else(
    world: World, victim: Victim, thing: str, more: dict[str, Any]
) -> None:
    for who, someone in world.others().items():
        response = someone.client.get(f"/api/runs/{victim.things[thing]}/events", **more)
        assert (response.status_code, error_of(response)) == (404, "not_found"), who
        assert response.headers["content-type"] == "application/json"


End = Callable[[World, Victim], httpx.Response]


def _sign_out(_: World, victim: Victim) -> httpx.Response:
    return victim.client.post("/auth/logout", json={})


def _sign_out_everywhere(_: World, victim: Victim) -> httpx.Response:
    return victim.elsewhere.post("/auth/logout", json={"everywhere": True})


def _change_the_password(_: World, victim: Victim) -> httpx.Response:
    return victim.elsewhere.post("/auth/password", json={"password": PASSWORD, "new_password": NEW_PASSWORD})


def _change_the_password_here(_: World, victim: Victim) -> httpx.Response:
    return victim.client.post("/auth/password", json={"password": PASSWORD, "new_password": NEW_PASSWORD})


def _recover(world: World, victim: Victim) -> httpx.Response:
    body = {"username": victim.name, "code": victim.codes[0], "password": NEW_PASSWORD}
    return world.browser().post("/auth/recover", json=body)


def _end_it_from_the_list(world: World, victim: Victim) -> httpx.Response:
    sessions = world.live.services.people.sessions(victim.id)
    (here,) = [session.id for session in sessions if session.id != victim.things["session"]]
    return victim.elsewhere.delete(f"/api/me/sessions/{here}")


def _be_disabled(world: World, victim: Victim) -> httpx.Response:
    admin = world.account(is_admin=True)
    return admin.client.patch(f"/api/admin/people/{victim.id}", json={"is_disabled": True})


def _be_deleted(world: World, victim: Victim) -> httpx.Response:
    return world.account(is_admin=True).client.delete(f"/api/admin/people/{victim.id}")


@pytest.mark.parametrize(
    ("end", "goes_on"),
    [
        (_sign_out, True),
        (_sign_out_everywhere, True),
        (_change_the_password, True),
        (_change_the_password_here, True),
        (_recover, True),
        (_end_it_from_the_list, True),
        (_be_disabled, False),
        (_be_deleted, False),
    ],
)
@pytest.mark.usefixtures("quick_checks")
def test_a_session_that_has_ended_is_dead_and_its_open_stream_closes(
    world: World, victim: Victim, end: End, goes_on: bool
) -> None:
    run = victim.things["live_run"]
    old = cookie_of(victim.client)
    reader = world.browser(old)
    with stream(reader, run) as lines:
        heartbeats(lines, 10)
        assert end(world, victim).is_success
        rest = closes_soon(lines)
    assert not goes_on or "event: done" not in rest
    saved = world.browser(old)
    for method, path in (
        ("GET", "/api/conversations"),
        ("GET", f"/api/runs/{run}/events"),
        ("POST", f"/api/runs/{run}/stop"),
    ):
        response = saved.request(method, path)
        assert (response.status_code, error_of(response)) == (401, "signed_out")
    assert saved.get("/api/me").json()["kind"] == "nobody"
    if goes_on:
        assert world.state_of(victim) == "running"


@pytest.mark.usefixtures("quick_checks")
def test_a_stream_closes_that_a_guest_left_by_signing_in(world: World) -> None:
    guest, account = world.guest(), world.account()
    world.live.script(f"{HOLD}Late.{CLOSE}So.")
    accepted = world.ask(guest.client, "Why?")
    reader = world.browser(cookie_of(guest.client))
    with stream(reader, accepted["run_id"]) as lines:
        heartbeats(lines, 5)
        assert guest.client.post("/auth/login", json={"username": account.name, "password": PASSWORD}).is_success
        closes_soon(lines)


# Guests who become accounts


def sign_up(world: World, client: httpx.Client, *, claim_guest: bool) -> str:
    name = f"bea{next(world.numbers)}"
    body = {"username": name, "password": PASSWORD, "claim_guest": claim_guest}
    assert client.post("/auth/register", json=body).status_code == 201
    return name


def talks_of(client: httpx.Client) -> set[str]:
    return {item["id"] for item in client.get("/api/conversations").json()["items"]}


def test_claiming_moves_the_chats_of_that_guest_alone(world: World, victim: Victim) -> None:
    first, second, before = world.guest(), world.guest(), world.rows_of(victim)
    first_talks, second_talks = (
        {world.ask(first.client, "One")["conversation"]},
        {world.ask(second.client, "Two")["conversation"]},
    )
    sign_up(world, first.client, claim_guest=True)
    assert talks_of(first.client) == first_talks
    assert talks_of(second.client) == second_talks
    # Another guest, with their own cookie, gets only their own
    sign_up(world, second.client, claim_guest=True)
    assert talks_of(second.client) == second_talks
    assert talks_of(first.client) == first_talks
    assert world.rows_of(victim) == before


@pytest.mark.parametrize("claim_guest", [True, False])
@pytest.mark.parametrize("way", ["register", "login", "recover"])
def test_a_guests_token_is_dead_once_they_have_signed_in(world: World, way: str, claim_guest: bool) -> None:
    guest, account = world.guest(), world.account()
    talk = world.ask(guest.client, "One")["conversation"]
    old = cookie_of(guest.client)
    body = {"username": account.name, "password": PASSWORD, "claim_guest": claim_guest}
    if way == "register":
        body["username"] = f"bea{next(world.numbers)}"
    if way == "recover":
        body |= {"code": account.codes[0], "password": NEW_PASSWORD}
    assert guest.client.post(f"/auth/{way}", json=body).is_success
    assert talks_of(guest.client) == ({talk} if claim_guest else set())
    stale = world.browser(old)
    assert stale.get("/api/me").json()["kind"] == "nobody"
    assert stale.get(f"/api/conversations/{talk}").status_code == 404
    assert talks_of(stale) == set()
    # Whoever has saved it cannot claim what the guest had, either
    sign_up(world, stale, claim_guest=True)
    assert talks_of(stale) == set()
    assert talks_of(guest.client) == ({talk} if claim_guest else set())


def test_an_account_cannot_be_claimed(world: World, victim: Victim) -> None:
    before = world.rows_of(victim)
    sessions = [row for row in before if row[0] == "sessions"]
    name = sign_up(world, victim.client, claim_guest=True)
    assert victim.client.get("/api/me").json()["name"] == name
    assert talks_of(victim.client) == set()
    kept = [row for row in before if row[0] != "sessions"]
    after = world.rows_of(victim)
    assert [row for row in after if row[0] != "sessions"] == kept
    # The browser's own session went with the change of person; nothing else did
    assert len([row for row in after if row[0] == "sessions"]) == len(sessions) - 1


# What no JSON may set


def json_routes() -> list[Any]:
    return names_of({key: rule for key, rule in RULES.items() if rule.body is not None})


def test_every_route_that_takes_json_has_a_body_here(world: World) -> None:
    described = {
        (method.upper(), path)
        for path, operations in world.app.openapi()["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }
    assert described == {key for key, rule in RULES.items() if rule.body is not None}


@pytest.mark.parametrize("key", json_routes())
def test_who_owns_what_and_who_may_what_is_set_by_no_json(world: World, victim: Victim, key: Key) -> None:
    rule = RULES[key]
    client = world.account(is_admin=True).client if key in ADMIN else victim.client
    (method, path), before = key, world.rows_of(victim)
    address = path.replace(path[path.find("{") : path.find("}") + 1], victim.things[rule.thing]) if rule.thing else path
    assert rule.body is not None
    body = rule.body(victim)
    for name, value in NOT_TO_BE_SET.items():
        if (key, name) == (("PATCH", "/api/admin/people/{person_id}"), "is_admin"):
            continue
        nested = [body | {part: body[part] | {name: value}} for part in body if isinstance(body[part], dict)]
        for tried in (body | {name: value}, *nested):
            response = client.request(method, address, json=tried)
            assert (response.status_code, error_of(response)) == (422, "bad_request"), tried
            assert name in response.json()["error"]["message"]
    assert world.rows_of(victim) == before
    assert client.request(method, address, json=body).status_code == rule.status


# Admins


def test_a_demoted_admin_loses_the_role_at_once(world: World, victim: Victim) -> None:
    admin, other = world.account(is_admin=True), world.account(is_admin=True)
    old = cookie_of(admin.client)
    assert admin.client.get("/api/admin/people").status_code == 200
    assert other.client.patch(f"/api/admin/people/{admin.id}", json={"is_admin": False}).status_code == 200
    for key in ADMIN:
        response = world.send(admin.client, key, victim)
        assert (response.status_code, error_of(response)) == (401, "signed_out"), key
    assert world.browser(old).get("/api/me").json()["kind"] == "nobody"
    again = world.sign_in(admin.id)
    for key in ADMIN:
        assert world.send(again, key, victim).status_code == 404, key
    assert not again.get("/api/me").json()["is_admin"]


def test_the_role_is_read_from_the_database_and_not_from_the_session(world: World) -> None:
    admin = world.account(is_admin=True)
    people = Table.metadata.tables["people"]
    assert admin.client.get("/api/admin/usage").status_code == 200
    with world.live.services.store.database.writing() as db:
        db.execute(people.update().where(people.c.id == admin.id).values(is_admin=False))
    assert admin.client.get("/api/admin/usage").status_code == 404
    assert admin.client.get("/api/me").json()["kind"] == "account"


def test_disabling_ends_every_session_and_every_run(world: World, victim: Victim) -> None:
    assert _be_disabled(world, victim).json()["is_disabled"]
    for client in (victim.client, victim.elsewhere):
        assert error_of(client.get("/api/conversations")) == "signed_out"
    assert world.live.services.people.sessions(victim.id) == []
    assert world.state_of(victim) == "stopped"
    body = {"username": victim.name, "password": PASSWORD}
    assert error_of(world.browser().post("/auth/login", json=body)) == "disabled"
    code = {"username": victim.name, "code": victim.codes[0], "password": NEW_PASSWORD}
    assert error_of(world.browser().post("/auth/recover", json=code)) == "disabled"


def test_an_admin_cannot_take_their_own_role_or_account(world: World) -> None:
    admin = world.account(is_admin=True)
    address = f"/api/admin/people/{admin.id}"
    for changes in ({"is_admin": False}, {"is_disabled": True}):
        assert error_of(admin.client.patch(address, json=changes)) == "not_yourself"
    assert error_of(admin.client.delete(address)) == "not_yourself"
    assert admin.client.get("/api/admin/usage").status_code == 200


# Cookies change with what they stand for


def _as(world: World, way: str) -> tuple[Someone, str, dict[str, Any]]:
    """Somebody before the change, and the change: its path and JSON."""
    account, other = world.account(), world.account()
    signing_in = {"username": other.name, "password": PASSWORD}
    signing_up = signing_in | {"username": f"bea{next(world.numbers)}"}
    ways: dict[str, tuple[Someone, str, dict[str, Any]]] = {
        "nobody signs in": (Someone(world.browser("a-chosen-by-the-attacker")), "/auth/login", signing_in),
        "nobody signs up": (Someone(world.browser("g-chosen-by-the-attacker")), "/auth/register", signing_up),
        "a guest signs in": (world.guest(), "/auth/login", signing_in),
        "a guest signs up": (world.guest(), "/auth/register", signing_up),
        "a guest is claimed": (world.guest(), "/auth/register", signing_up | {"claim_guest": True}),
        "an account signs in as another": (account, "/auth/login", signing_in),
        "an account signs in again": (account, "/auth/login", signing_in | {"username": account.name}),
        "an account signs up another": (account, "/auth/register", signing_up),
        "a password is changed": (account, "/auth/password", {"password": PASSWORD, "new_password": NEW_PASSWORD}),
        "a password is confirmed": (account, "/auth/confirm", {"password": PASSWORD}),
        "a code is used": (
            account,
            "/auth/recover",
            {"username": account.name, "code": account.codes[0], "password": NEW_PASSWORD},
        ),
    }
    return ways[way]


@pytest.mark.parametrize(
    "way",
    [
        "nobody signs in",
        "nobody signs up",
        "a guest signs in",
        "a guest signs up",
        "a guest is claimed",
        "an account signs in as another",
        "an account signs in again",
        "an account signs up another",
        "a password is changed",
        "a password is confirmed",
        "a code is used",
    ],
)
def test_a_cookie_from_before_is_not_the_cookie_after_and_is_worth_nothing(world: World, way: str) -> None:
    someone, path, body = _as(world, way)
    old = cookie_of(someone.client)
    assert someone.client.post(path, json=body).is_success, way
    new = cookie_of(someone.client)
    assert new
    assert new != old
    assert someone.client.get("/api/me").json()["kind"] == "account"
    stale = world.browser(old)
    assert stale.get("/api/me").json()["kind"] == "nobody"
    if old.startswith("a-"):
        assert error_of(world.browser(old).get("/api/conversations")) == "signed_out"


def test_a_guest_does_not_get_a_cookie_that_was_planted(world: World) -> None:
    for planted in ("g-chosen-by-the-attacker", "chosen", '"; drop'):
        client = world.browser()
        assert client.post("/api/conversations", json={}, headers={"Cookie": f"ponder={planted}"}).status_code == 201
        assert cookie_of(client).startswith("g-")
        assert cookie_of(client) != planted


def test_signing_in_with_a_planted_cookie_gives_its_owner_nothing(world: World) -> None:
    attacker, account = world.account(), world.account()
    planted = cookie_of(attacker.client)
    browser = world.browser(planted)
    assert browser.post("/auth/login", json={"username": account.name, "password": PASSWORD}).is_success
    assert browser.get("/api/me").json()["name"] == account.name
    assert error_of(attacker.client.get("/api/me/sessions")) == "signed_out"

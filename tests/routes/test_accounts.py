import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy import select
from starlette.requests import Request

from app.accounts import passwords
from app.accounts.settings import settings_of
from app.config import Settings
from app.engine.base import EngineStatus
from app.errors import StorageFailed
from app.history.store import now
from app.history.tables import RunTable
from app.routes.access import address_of
from tests.live import LiveServer
from tests.people import PASSWORD, Browsers, browsers, cookie_of, error_of
from tests.scripted import HOLD


@pytest.fixture
def people(live_server: LiveServer) -> Iterator[Browsers]:
    with browsers(live_server.url) as found:
        yield found


def me(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/me").json()
    return found


def test_signing_up_signs_in_and_gives_recovery_codes(people: Browsers) -> None:
    client = people.new()
    assert me(client)["kind"] == "nobody"
    made = client.post("/auth/register", json={"username": "Ada", "password": PASSWORD}).json()
    assert len(set(made["recovery_codes"])) == 8
    assert (made["me"]["kind"], made["me"]["name"], made["me"]["is_admin"]) == ("account", "Ada", False)
    assert me(client) == made["me"]


@pytest.mark.parametrize("name", ["Ada", "ADA", " ada "])
def test_a_name_is_taken_however_it_is_written(people: Browsers, name: str) -> None:
    people.account("ada")
    response = people.new().post("/auth/register", json={"username": name, "password": PASSWORD})
    assert (response.status_code, error_of(response)) == (409, "username_taken")


def test_names_cannot_be_listed_for_nothing(people: Browsers, monkeypatch: pytest.MonkeyPatch) -> None:
    people.account("ada")
    hashed: list[str] = []
    hash_it = passwords.hashed
    monkeypatch.setattr(passwords, "hashed", lambda typed: hashed.append(typed) or hash_it(typed))
    tries = [people.new().post("/auth/register", json={"username": "ada", "password": PASSWORD}) for _ in range(12)]
    assert [response.status_code for response in tries] == [409] * 10 + [429] * 2
    assert len(hashed) == 10, "each answer has cost a hash, and a refusal has cost none"
    for name in ("ada", "somebody-new"):
        refused = people.new().post("/auth/register", json={"username": name, "password": PASSWORD})
        assert (refused.status_code, error_of(refused)) == (429, "too_many_attempts")
        assert int(refused.headers["retry-after"]) > 60
    assert people.signed_in("ada").get("/api/me").json()["kind"] == "account"


def test_many_who_ask_for_a_taken_name_at_once_are_counted_too(people: Browsers) -> None:
    people.account("ada")
    clients = [people.new() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda c: c.post("/auth/register", json={"username": "ada", "password": PASSWORD}), clients)
        assert sorted(answer.status_code for answer in answers) == [409] * 10 + [429] * 10


@pytest.mark.parametrize("name", ["admin", "Root", "ad\u0301min", "аԁміп", "adm1n", "Ponder"])
def test_nobody_signs_up_as_who_runs_the_server(people: Browsers, name: str) -> None:
    response = people.new().post("/auth/register", json={"username": name, "password": PASSWORD})
    assert (response.status_code, error_of(response)) == (422, "bad_username")
    assert response.json()["error"]["rule"] == "reserved"


def test_of_nine_who_want_one_name_at_once_one_gets_it(people: Browsers) -> None:
    clients = [people.new() for _ in range(9)]
    with ThreadPoolExecutor(9) as pool:
        answers = pool.map(lambda c: c.post("/auth/register", json={"username": "ada", "password": PASSWORD}), clients)
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 8


def test_an_unknown_name_and_a_wrong_password_look_the_same_and_take_as_long(
    people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all of a login's time goes into one hash."""
    hashed: list[str] = []
    verify = PasswordHasher.verify

    def counted(hasher: PasswordHasher, kept: str, typed: str) -> bool:
        hashed.append(kept.rsplit("$", 2)[0])
        return verify(hasher, kept, typed)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    people.account("ada")
    client = people.new()
    answers = set()
    for name in ("ada", "bob", "ada", "bob"):
        response = client.post("/auth/login", json={"username": name, "password": "wrong password"})
        answers.add((response.status_code, response.text))
    assert len(answers) == 1
    assert hashed == ["$argon2id$v=19$m=19456,t=2,p=1"] * 4


def test_five_failures_for_a_name_are_followed_by_a_wait_and_not_elsewhere(
    people: Browsers, live_server: LiveServer
) -> None:
    people.account("ada")
    client = people.new()
    wrong = {"username": "ADA", "password": "wrong password"}
    assert [client.post("/auth/login", json=wrong).status_code for _ in range(6)] == [401] * 5 + [429]
    refused = client.post("/auth/login", json={"username": "ada", "password": PASSWORD})
    assert (refused.status_code, error_of(refused)) == (429, "too_many_attempts")
    assert 0 < int(refused.headers["retry-after"]) <= 15 * 60
    # From another address the right password still works, and so does another name from here
    assert live_server.services.local._sign_in("ada", PASSWORD, "198.51.100.7")
    people.account("bob")
    people.signed_in("bob")
    with time_machine.travel(now().timestamp() + 15 * 60 + 1):
        people.signed_in("ada")


def test_tries_are_refused_before_anything_is_hashed(people: Browsers, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr("app.accounts.passwords.fits", lambda _, typed: bool(hashed.append(typed)))
    client = people.new()
    with ThreadPoolExecutor(20) as pool:
        bodies = [{"username": "ada", "password": f"guess number {n}"} for n in range(20)]
        codes = sorted(answer.status_code for answer in pool.map(lambda b: client.post("/auth/login", json=b), bodies))
    assert codes == [401] * 5 + [429] * 15
    assert len(hashed) == 5


def test_fifty_failures_from_one_address_are_followed_by_a_wait(live_server: LiveServer) -> None:
    attempts = live_server.services.local._attempts
    for number in range(50):
        attempts.refuse_too_many(f"name {number}", "198.51.100.7")
        attempts.failed(f"name {number}", "198.51.100.7")
    with pytest.raises(Exception, match="failed too often"):
        attempts.refuse_too_many("one more", "198.51.100.7")
    attempts.refuse_too_many("one more", "198.51.100.8")


def test_logins_at_once_hold_nobody_else_up(people: Browsers) -> None:
    """No figure: the pool of one leaves the loop free, so a health check gets in between any two hashes."""
    client, other = people.new(), people.new()
    waiting = threading.Event()

    def sign_in(number: int) -> int:
        waiting.set()
        return client.post("/auth/login", json={"username": f"nobody{number}", "password": "a b c d e f"}).status_code

    with ThreadPoolExecutor(30) as pool:
        tries = [pool.submit(sign_in, number) for number in range(30)]
        waiting.wait()
        assert other.get("/healthz").status_code == 200
        assert any(not one.done() for one in tries)
        assert {one.result() for one in tries} == {401}


def test_a_changed_password_ends_the_other_sessions_and_rotates_this_one(people: Browsers) -> None:
    client = people.account("ada")
    elsewhere, old = people.signed_in("ada"), cookie_of(client)
    body = {"password": PASSWORD, "new_password": "eight red bicycles"}
    assert client.post("/auth/password", json=body | {"password": "wrong password"}).status_code == 401
    assert elsewhere.get("/api/me/sessions").status_code == 200
    assert client.post("/auth/password", json=body).status_code == 200
    assert cookie_of(client) != old
    assert error_of(elsewhere.get("/api/conversations")) == "signed_out"
    assert people.new().post("/auth/login", json={"username": "ada", "password": PASSWORD}).status_code == 401
    people.signed_in("ada", "eight red bicycles")


def test_a_recovery_code_sets_a_password_once(people: Browsers) -> None:
    client = people.new()
    codes = client.post("/auth/register", json={"username": "ada", "password": PASSWORD}).json()["recovery_codes"]
    body = {"username": "Ada", "code": codes[0].lower().replace("-", " "), "password": "eight red bicycles"}
    other = people.new()
    assert error_of(other.post("/auth/recover", json=body | {"password": "short"})) == "bad_password"
    assert error_of(other.post("/auth/recover", json=body | {"code": "AAAA-BBBB-CCCC-DDDD"})) == "wrong_password"
    assert error_of(other.post("/auth/recover", json=body | {"username": "bob"})) == "wrong_password"
    recovered = other.post("/auth/recover", json=body)
    assert (recovered.status_code, recovered.json()["me"]["recovery_codes_left"]) == (200, 7)
    assert error_of(client.get("/api/conversations")) == "signed_out"
    assert error_of(people.new().post("/auth/recover", json=body)) == "wrong_password"
    people.signed_in("ada", "eight red bicycles")


def test_one_recovery_code_works_for_one_of_many_who_try_at_once(people: Browsers) -> None:
    client = people.new()
    codes = client.post("/auth/register", json={"username": "ada", "password": PASSWORD}).json()["recovery_codes"]
    clients = [people.new() for _ in range(4)]

    def recover(number: int) -> int:
        body = {"username": "ada", "code": codes[0], "password": f"bicycle number {number}"}
        return clients[number].post("/auth/recover", json=body).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(recover, range(4))) == [200, 401, 401, 401]


def test_new_recovery_codes_void_the_old_and_need_a_recent_check(people: Browsers) -> None:
    client = people.new()
    old = client.post("/auth/register", json={"username": "ada", "password": PASSWORD}).json()["recovery_codes"]
    new = client.post("/auth/recovery-codes", json={}).json()["recovery_codes"]
    assert not set(old) & set(new)
    body = {"username": "ada", "code": old[0], "password": "eight red bicycles"}
    assert people.new().post("/auth/recover", json=body).status_code == 401
    with time_machine.travel(now().timestamp() + 11 * 60):
        refused = client.post("/auth/recovery-codes", json={})
        assert (refused.status_code, error_of(refused)) == (403, "confirm_first")
        assert refused.json()["error"]["methods"] == "password"
        old_cookie = cookie_of(client)
        assert client.post("/auth/confirm", json={"password": "wrong password"}).status_code == 401
        assert client.post("/auth/confirm", json={"password": PASSWORD}).status_code == 200
        assert cookie_of(client) != old_cookie
        assert client.post("/auth/recovery-codes", json={}).status_code == 200


def test_sessions_are_listed_and_ended_one_by_one(people: Browsers) -> None:
    client = people.account("ada")
    other = people.new()
    other.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0"
    other.post("/auth/login", json={"username": "ada", "password": PASSWORD})
    items = client.get("/api/me/sessions").json()["items"]
    assert [item["is_current"] for item in sorted(items, key=lambda item: item["is_current"])] == [False, True]
    (foreign,) = [item for item in items if not item["is_current"]]
    assert foreign["agent"] == "Firefox on Linux"
    assert client.delete(f"/api/me/sessions/{foreign['id']}").status_code == 204
    assert error_of(other.get("/api/me/sessions")) == "signed_out"
    assert me(other)["was_signed_out"]
    # Only saying so takes the cookie away, and never one that another tab has got meanwhile
    assert cookie_of(other)
    client.post("/auth/logout", json={"ended": True})
    assert cookie_of(client)
    other.post("/auth/logout", json={"ended": True})
    assert not cookie_of(other)
    assert not me(other)["was_signed_out"]


@pytest.mark.parametrize(("days", "is_alive"), [(13.9, True), (14.1, False)])
def test_an_idle_session_ends_after_fourteen_days(people: Browsers, days: float, is_alive: bool) -> None:
    client = people.account("ada")
    with time_machine.travel(now().timestamp() + days * 86400):
        assert (me(client)["kind"] == "account") is is_alive


def test_a_busy_session_ends_after_sixty_days(people: Browsers) -> None:
    client = people.account("ada")
    began = now().timestamp()
    for day in range(10, 60, 10):
        with time_machine.travel(began + day * 86400):
            assert me(client)["kind"] == "account"
    with time_machine.travel(began + 60.1 * 86400):
        assert error_of(client.get("/api/me/sessions")) == "signed_out"


def test_a_guest_who_comes_back_keeps_everything_and_one_who_does_not_is_purged(
    people: Browsers, live_server: LiveServer
) -> None:
    faithful, gone, account = people.guest(), people.guest(), people.account("ada")
    began = now().timestamp()
    retention = live_server.services.retention
    for day in (5, 10, 35, 40, 65):
        if day == 35:
            with time_machine.travel(began + 16 * 86400):
                me(faithful)
            with time_machine.travel(began + 22 * 86400):
                me(faithful)
            with time_machine.travel(began + 28.5 * 86400):
                me(faithful)
        if day == 65:
            for between in (46, 52, 58, 62):
                with time_machine.travel(began + between * 86400):
                    me(faithful)
        with time_machine.travel(began + day * 86400):
            assert me(faithful)["conversation_count"] == 1, day
            if day == 10:
                dry = retention.purge(is_dry=True)
                assert dry.guests == 1
                assert retention.purge() == dry
                assert retention.purge(is_dry=True).guests == 0
            else:
                retention.purge()
    assert me(gone)["kind"] == "nobody"
    assert live_server.services.usage.totals().guests == 1
    with time_machine.travel(began + 61 * 86400):
        assert error_of(account.get("/api/me/sessions")) == "signed_out"
        people.signed_in("ada")


def test_guests_can_be_turned_off(live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = live_server.services.settings.model_copy(update={"guests": False, "registration": False})
    client = people.account("ada")
    monkeypatch.setattr(live_server.services.settings, "__dict__", settings.__dict__)
    stranger = people.new()
    for response in (stranger.post("/api/conversations", json={}), stranger.patch("/api/me", json={})):
        assert (response.status_code, error_of(response)) == (401, "sign_in_first")
    refused = stranger.post("/auth/register", json={"username": "bob", "password": PASSWORD})
    assert (refused.status_code, error_of(refused)) == (403, "registration_closed")
    assert client.post("/api/conversations", json={}).status_code == 201


def test_many_guests_from_one_address_are_refused(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = live_server.services.sessions._attempts
    monkeypatch.setattr(attempts, "_guests", type(attempts._guests)(3, 1, namespace="few"))
    codes = [people.new().post("/api/conversations", json={}).status_code for _ in range(4)]
    assert codes == [201, 201, 201, 429]


def ask(client: Any, key: str = "a-client-key", **options: Any) -> Any:
    conversation = client.post("/api/conversations", json={}).json()["id"]
    body = {"text": "Why?", "client_key": key, "options": options}
    return client.post(f"/api/conversations/{conversation}/messages", json=body)


def test_settings_are_kept_and_applied_where_a_message_leaves_them_out(
    people: Browsers, live_server: LiveServer
) -> None:
    client = people.account("ada")
    changes = {"effort": "quick", "system_prompt": "Be brief.", "temperature": 0.3, "theme": "dark", "language": "de"}
    shown = client.patch("/api/me", json={"settings": changes}).json()["settings"]
    assert {name: shown[name] for name in changes} == changes
    assert shown["top_p"] is None
    assert '<html lang="de" data-theme="dark"' in client.get("/").text
    ask(client, "first-key")
    ask(client, "second-key", effort="deep", temperature=1.0, system_prompt="Be long.")
    with live_server.services.store.database.reading() as db:
        first, second = db.scalars(select(RunTable).order_by(RunTable.created_at)).all()
    assert first.options == {"effort": "quick", "system_prompt": "Be brief.", "temperature": 0.3}
    assert second.options == {"effort": "deep", "system_prompt": "Be long.", "temperature": 1.0}


BAD = [
    {"theme": "pink"},
    {"temperature": 3},
    {"top_p": 0},
    {"system_prompt": "x" * 8001},
    {"unknown": 1},
    {"effort": None},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_settings_are_refused_with_their_name_and_change_nothing(people: Browsers, bad: dict[str, Any]) -> None:
    client = people.account("ada")
    before = me(client)
    refused = client.patch("/api/me", json={"settings": {"panel_opens": False, **bad}})
    assert (refused.status_code, error_of(refused)) == (422, "bad_request")
    assert next(iter(bad)) in refused.json()["error"]["message"]
    assert me(client) == before


def test_settings_of_another_version_are_read_as_far_as_they_are_known() -> None:
    found = settings_of({"theme": "dark", "effort": "gigantic", "from_the_future": 1})
    assert (found.theme, found.effort) == ("dark", "normal")


def test_the_notice_is_accepted_once_and_goes_with_the_guest_into_the_account(people: Browsers) -> None:
    client = people.new()
    assert me(client)["notice_version"] == 0
    assert client.patch("/api/me", json={"notice_version": 1}).json()["kind"] == "guest"
    body = {"username": "ada", "password": PASSWORD, "claim_guest": True}
    assert client.post("/auth/register", json=body).json()["me"]["notice_version"] == 1


def test_a_quota_counts_questions_by_day_and_deleting_gives_nothing_back(
    people: Browsers, live_server: LiveServer
) -> None:
    client = people.account("ada")
    with time_machine.travel("2026-11-24T12:00:00Z", tick=True):
        person = live_server.services.usage.members(now())[0][0].id
        live_server.services.usage.change(person, {"runs_per_day": 2})
        client = people.signed_in("ada")
        for key in ("key-number-1", "key-number-2"):
            accepted = ask(client, key)
            assert accepted.status_code == 202
            with client.stream("GET", f"/api/runs/{accepted.json()['run_id']}/events") as events:
                events.read()
        for item in client.get("/api/conversations").json()["items"]:
            client.delete(f"/api/conversations/{item['id']}")
        refused = ask(client, "key-number-3")
        assert (refused.status_code, error_of(refused)) == (429, "quota_used_up")
        assert refused.headers["retry-after"] == str(refused.json()["error"]["retry_after_s"])
        assert 43_000 < refused.json()["error"]["retry_after_s"] <= 43_201
        assert me(client)["quota"] == {"runs_per_day": 2, "runs_today": 2, "runs_at_once": 3}
    with time_machine.travel("2026-11-25T00:00:01Z", tick=True):
        assert ask(client, "key-number-4").status_code == 202


def test_a_fourth_question_at_once_waits_for_the_person(people: Browsers, live_server: LiveServer) -> None:
    live_server.script(HOLD)
    client = people.account("ada")
    answers = [ask(client, f"key-number-{n}") for n in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert error_of(answers[3]) == "too_many_runs"
    # The same message again is the same message, not one more
    conversation = client.get("/api/conversations").json()["items"][1]["id"]
    again = {"text": "Why?", "client_key": "key-number-2"}
    assert client.post(f"/api/conversations/{conversation}/messages", json=again).status_code == 202
    live_server.release()


def test_deleting_oneself_leaves_nothing_and_needs_a_recent_check(people: Browsers, live_server: LiveServer) -> None:
    live_server.script(HOLD)
    client = people.account("ada")
    accepted = ask(client)
    with time_machine.travel(now().timestamp() + 11 * 60):
        assert error_of(client.delete("/api/me")) == "confirm_first"
        assert client.post("/auth/confirm", json={"password": PASSWORD}).status_code == 200
        assert client.delete("/api/me").status_code == 204
    assert me(client)["kind"] == "nobody"
    assert live_server.engine.cancelled
    assert people.new().post("/auth/login", json={"username": "ada", "password": PASSWORD}).status_code == 401
    totals = live_server.services.usage.totals()
    assert (totals.accounts, totals.conversations, totals.messages, totals.sessions) == (0, 0, 0, 0)
    assert accepted.status_code == 202
    # The numbers stay, without the person
    (day,) = live_server.services.usage.days()
    assert (day["runs"], day["people"]) == (1, 1)
    people.account("ada")


def test_a_guest_forgets_themselves_without_a_check(people: Browsers) -> None:
    client = people.guest()
    assert client.delete("/api/me").status_code == 204
    assert me(client) | {"kind": "nobody"} == me(client)


def test_an_admin_sees_numbers_and_no_text(people: Browsers, live_server: LiveServer) -> None:
    client = people.account("ada")
    admin = people.account("root.admin")
    everyone = {member.name: member.id for member in live_server.services.usage.members(now())[0]}
    assert admin.get("/api/admin/people").status_code == 404
    live_server.services.usage.change(everyone["root.admin"], {"is_admin": True})
    assert error_of(admin.get("/api/admin/people")) == "signed_out"
    admin = people.signed_in("root.admin")
    live_server.script(f"A secret thought {HOLD}")
    ask(client, "first-key")
    texts = [admin.get(f"/api/admin/{what}").text for what in ("people", "usage", "runs", "quotas")]
    assert not any("Why" in text or "secret" in text for text in texts)
    assert [run["name"] for run in admin.get("/api/admin/runs").json()["items"]] == ["ada"]
    run_id = admin.get("/api/admin/runs").json()["items"][0]["id"]
    assert admin.post(f"/api/admin/runs/{run_id}/stop").status_code == 202
    with client.stream("GET", f"/api/runs/{run_id}/events") as events:
        events.read()
    assert client.get(f"/api/runs/{run_id}").json()["state"] == "stopped"
    assert admin.get("/api/admin/usage").json()["days"][0]["stopped"] == 1


def test_an_admin_sees_which_model_answers_and_how(people: Browsers, live_server: LiveServer) -> None:
    live_server.services.local.register_now("root.admin", PASSWORD, is_admin=True)
    admin = people.signed_in("root.admin")
    engine = live_server.engine
    engine.status = EngineStatus("ready", way="8 at once, eager steps")
    ready = {"title": "Scripted model", "state": "ready", "stage": "", "problem": "", "way": "8 at once, eager steps"}
    assert admin.get("/api/admin/usage").json()["model"] == ready
    assert admin.get("/readyz").json()["model"]["way"] == "8 at once, eager steps"
    engine.status = EngineStatus("failed", problem="The GPU is gone.", remedy="Look at it.")
    assert admin.get("/api/admin/usage").json()["model"]["problem"] == "The GPU is gone. Look at it."


def test_an_admin_disables_deletes_and_sets_quotas_but_not_themselves(
    people: Browsers, live_server: LiveServer
) -> None:
    client = people.account("ada")
    people.account("root.admin")
    everyone = {member.name: member.id for member in live_server.services.usage.members(now())[0]}
    live_server.services.usage.change(everyone["root.admin"], {"is_admin": True})
    admin = people.signed_in("root.admin")
    ada = f"/api/admin/people/{everyone['ada']}"
    assert admin.patch(ada, json={"runs_per_day": 7}).json()["runs_per_day"] == 7
    assert me(client)["quota"]["runs_per_day"] == 7
    assert admin.patch(ada, json={"runs_per_day": None}).json()["runs_per_day"] is None
    assert admin.patch(ada, json={"is_disabled": True}).json()["is_disabled"]
    assert error_of(client.get("/api/me/sessions")) == "signed_out"
    refused = people.new().post("/auth/login", json={"username": "ada", "password": PASSWORD})
    assert (refused.status_code, error_of(refused)) == (403, "disabled")
    admin.patch(ada, json={"is_disabled": False})
    people.signed_in("ada")
    for method, body in (("PATCH", {"is_admin": False}), ("PATCH", {"is_disabled": True}), ("DELETE", None)):
        response = admin.request(method, f"/api/admin/people/{everyone['root.admin']}", json=body)
        assert (response.status_code, error_of(response)) == (409, "not_yourself")
    assert admin.delete(ada).status_code == 204
    assert admin.delete(ada).status_code == 404
    assert [item["name"] for item in admin.get("/api/admin/people?q=ROOT").json()["items"]] == ["root.admin"]
    assert admin.get("/api/admin/people?q=ada").json()["items"] == []


def test_the_privacy_page_says_what_the_operator_said_and_holds_no_script(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"operator": "The <b>lab</b>", "contact": "lab@example.org", "minimum_age": 16, "guest_days": 3}
    settings = live_server.services.settings.model_copy(update=changes)
    monkeypatch.setattr(live_server.services.settings, "__dict__", settings.__dict__)
    page = people.new().get("/privacy")
    assert "The &lt;b&gt;lab&lt;/b&gt;" in page.text
    for said in ("lab@example.org", "at least 16 years", "3 days after the last visit"):
        assert said in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_guest_is_disabled_and_enabled_without_losing_anything(people: Browsers, live_server: LiveServer) -> None:
    guest = people.guest()
    usage = live_server.services.usage
    (member,) = usage.members(now())[0]
    usage.change(member.id, {"is_disabled": True})
    for refused in (guest.post("/api/conversations", json={}), guest.get("/api/conversations")):
        assert (refused.status_code, error_of(refused)) == (403, "disabled")
    assert me(guest)["kind"] == "nobody"
    live_server.services.retention.purge()
    usage.change(member.id, {"is_disabled": False})
    assert me(guest)["conversation_count"] == 1


def test_a_renewed_guest_is_known_by_the_old_cookie_too_until_it_is_idle(people: Browsers) -> None:
    guest = people.guest()
    began, old = now().timestamp(), cookie_of(guest)
    for day in (6, 12, 18, 24, 29.9):
        with time_machine.travel(began + day * 86400):
            me(guest)
    with time_machine.travel(began + 31 * 86400):
        me(guest)
        new = cookie_of(guest)
        assert new != old
        for token in (new, old):
            late = people.new()
            late.cookies.set("ponder", token)
            assert me(late)["conversation_count"] == 1


def test_a_double_click_on_signing_in_signs_in_and_moves_the_chats_once(people: Browsers) -> None:
    people.account("ada")
    guest = people.guest()
    body = {"username": "ada", "password": PASSWORD, "claim_guest": True}
    cookie = cookie_of(guest)
    clients = [people.new() for _ in range(4)]
    for client in clients:
        client.cookies.set("ponder", cookie)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda client: client.post("/auth/login", json=body), clients))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert me(people.signed_in("ada"))["conversation_count"] == 1


def test_a_request_that_is_refused_makes_no_guest(people: Browsers, live_server: LiveServer) -> None:
    client = people.new()
    assert client.post("/api/conversations", json={"title": 7}).status_code == 422
    assert client.patch("/api/me", json={"settings": {"theme": "pink"}}).status_code == 422
    assert live_server.services.usage.totals().guests == 0


def test_reading_goes_on_where_a_visit_cannot_be_noted(
    people: Browsers, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.account("ada")

    def no_room(*_: object) -> None:
        raise StorageFailed("The server's disk is full.")

    monkeypatch.setattr(live_server.services.people, "touch", no_room)
    with time_machine.travel(now().timestamp() + 2 * 3600):
        assert client.get("/api/conversations").status_code == 200


def test_an_admins_gravest_acts_need_a_recent_check(people: Browsers, live_server: LiveServer) -> None:
    people.account("ada")
    people.account("root.admin")
    everyone = {member.name: member.id for member in live_server.services.usage.members(now())[0]}
    live_server.services.usage.change(everyone["root.admin"], {"is_admin": True})
    admin = people.signed_in("root.admin")
    with time_machine.travel(now().timestamp() + 11 * 60):
        assert error_of(admin.delete(f"/api/admin/people/{everyone['ada']}")) == "confirm_first"
        assert error_of(admin.patch(f"/api/admin/people/{everyone['ada']}", json={"is_admin": True})) == "confirm_first"
        assert admin.patch(f"/api/admin/people/{everyone['ada']}", json={"is_disabled": True}).status_code == 200


def test_a_run_of_somebody_who_was_deleted_while_sending_is_never_begun(
    people: Browsers, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.account("ada")
    store, people_table = live_server.services.store, live_server.services.people
    accept = store.accept

    def accept_and_delete(owner_id: str, *arguments: Any, **more: Any) -> Any:
        accepted = accept(owner_id, *arguments, **more)
        people_table.delete(owner_id)
        return accepted

    monkeypatch.setattr(store, "accept", accept_and_delete)
    assert ask(client).status_code == 202
    other = people.account("bob")
    monkeypatch.setattr(store, "accept", accept)
    accepted = ask(other).json()
    with other.stream("GET", f"/api/runs/{accepted['run_id']}/events") as events:
        events.read()
    assert len(live_server.engine.requests) == 1


def test_the_newest_fifty_sessions_are_kept(live_server: LiveServer, people: Browsers) -> None:
    people.account("ada")
    person_id = live_server.services.usage.members(now())[0][0].id
    sessions = live_server.services.sessions
    for _ in range(60):
        token = sessions.open(person_id, "", instead_of=None, verified_at=None)
    assert len(live_server.services.people.sessions(person_id)) == 50
    assert sessions.caller(token) is not None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:5001", "192.0.2.1"),
        ("[2001:db8::1]:99", "2001:0db8:0000:0000"),
        ("2001:db8::2", "2001:0db8:0000:0000"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("what?", "unknown"),
    ],
)
def test_an_address_is_the_same_however_it_is_written(written: str, address: str) -> None:
    request = Request({"type": "http", "client": (written, 1), "headers": []})
    assert address_of(request, Settings(secret_key="")) == address  # type: ignore[arg-type]

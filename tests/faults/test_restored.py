"""A copy of the database was put back, and browsers hold ids of what came after it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from app.config import Settings
from app.history.store import new_id
from app.history.tables import ConversationTable
from tests.faults.chatting import Person, command, person
from tests.live import LiveServer, serving
from tests.people import PASSWORD, error_of
from tests.routes.test_access_matrix import ADMIN, BY_ID, Key, Victim
from tests.scripted import ScriptedEngine

NAMED = {key: rule for key, rule in (BY_ID | ADMIN).items() if "{" in key[1] or key[1].endswith("/restore")}


@dataclass
class Restored:
    """A server on the copy. `ada` is an admin who was there before it; `newer` has ids of what came after."""

    server: LiveServer
    ada: Person
    kept: dict[str, str]
    newer: dict[str, str]
    newer_guest: Person
    newer_account: Person


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restored]:
    folder = tmp_path_factory.mktemp("restored")
    settings = Settings(data_dir=folder / "data", cache_dir=folder / "cache", port=0, model="demo")
    copy = folder / "copy.sqlite"
    with serving(settings, ScriptedEngine()) as server:
        ada, guest, account = person(server), person(server), person(server)
        kept = begin_as_admin(server, ada)
        assert command(settings.data_dir, "backup", str(copy)).returncode == 0
        newer = go_on(server, ada, guest, account)
    assert command(settings.data_dir, "restore", str(copy), "--yes").returncode == 0
    with serving(settings, ScriptedEngine()) as server:
        for somebody in (ada, guest, account):
            cookies = somebody.client.cookies
            somebody.client.close()
            somebody.url = server.url
            somebody.__post_init__()
            somebody.client.cookies = cookies
        yield Restored(server, ada, kept, newer, guest, account)
        for somebody in (ada, guest, account):
            somebody.client.close()


def begin_as_admin(server: LiveServer, ada: Person) -> dict[str, str]:
    """What there is before the copy."""
    account = {"username": "ada", "password": PASSWORD}
    assert ada.client.post("/auth/register", json=account).status_code == 201
    talk = ada.begin("Kept")
    accepted = ada.answered(talk)
    with server.services.store.database.reading() as db:
        owner = db.scalar(select(ConversationTable.owner_id).where(ConversationTable.id == talk))
    server.services.usage.change(owner or "", {"is_admin": True})
    assert ada.client.post("/auth/login", json=account).status_code == 200
    return {"conversation": talk, "answer": accepted["answer_id"], "run": accepted["run_id"]}


def go_on(server: LiveServer, ada: Person, guest: Person, account: Person) -> dict[str, str]:
    """What comes after the copy, by the names that the rules of the routes use."""
    talk, gone, all_gone = ada.begin("Newer"), ada.begin("Gone"), guest.begin("All gone")
    accepted = ada.answered(talk)
    assert ada.client.delete(f"/api/conversations/{gone}").status_code == 204
    assert ada.client.patch(f"/api/conversations/{talk}", json={"title": "Newest"}).status_code == 200
    deletion = guest.client.delete("/api/conversations").json()["deletion_id"]
    assert account.client.post("/auth/register", json={"username": "bob", "password": PASSWORD}).status_code == 201
    with server.services.store.database.reading() as db:
        stranger = db.scalar(select(ConversationTable.owner_id).where(ConversationTable.id == all_gone))
    with person(server) as elsewhere:
        assert elsewhere.client.post("/auth/login", json={"username": "ada", "password": PASSWORD}).status_code == 200
        sessions = ada.client.get("/api/me/sessions").json()["items"]
    temporary = ada.client.post("/api/conversations", json={"is_temporary": True}).json()["id"]
    return {
        "conversation": talk,
        "temporary_conversation": temporary,
        "deleted_conversation": gone,
        "message": accepted["message_id"],
        "answer": accepted["answer_id"],
        "run": accepted["run_id"],
        "live_run": accepted["run_id"],
        "session": next(session["id"] for session in sessions if not session["is_current"]),
        "identity": new_id(),
        "person": stranger or "",
        "deletion": deletion,
    }


@pytest.mark.parametrize("key", sorted(NAMED), ids=" ".join)
def test_an_id_that_is_newer_than_the_copy_is_not_found_and_that_is_said(restored: Restored, key: Key) -> None:
    rule = NAMED[key]
    method, path = key
    path = re.sub(r"\{\w+\}", restored.newer.get(rule.thing, ""), path)
    victim = Victim(restored.ada.client, things=restored.newer)
    response = restored.ada.client.request(method, path, json=rule.body(victim) if rule.body else None)
    assert (response.status_code, error_of(response)) == (404, "not_found"), response.text
    assert response.json()["error"]["message"].endswith(".")


def test_what_the_copy_has_goes_on_and_newer_ids_inside_of_it_are_not_found(restored: Restored) -> None:
    ada, talk, newer = restored.ada, restored.kept["conversation"], restored.newer
    assert ada.titles() == ["Kept"]
    for body in ({"leaf_id": newer["answer"]},):
        assert ada.client.patch(f"/api/conversations/{talk}", json=body).status_code == 404
    assert ada.client.patch(f"/api/conversations/{talk}", json={"title": "x", "version": 7}).status_code == 409
    assert ada.send(talk, parent_id=newer["answer"]).status_code == 404
    path = f"/api/runs/{restored.kept['run']}/events"
    followed = ada.client.get(path, headers={"Last-Event-ID": "999999"})
    assert (followed.status_code, followed.text.count("event: done")) == (200, 1)
    page = ada.client.get("/api/conversations", params={"cursor": f"0-{10**17}-{newer['conversation']}"})
    assert page.status_code == 200
    ada.answered(talk)


def test_people_who_are_newer_than_the_copy_are_told_so_or_begin_anew(restored: Restored) -> None:
    guest, account = restored.newer_guest, restored.newer_account
    assert guest.titles() == []
    assert guest.client.get("/api/me").json()["kind"] == "nobody"
    assert guest.client.get(f"/api/conversations/{restored.newer['conversation']}").status_code == 404
    guest.answered(guest.begin())
    refused = account.client.get("/api/conversations")
    assert (refused.status_code, error_of(refused)) == (401, "signed_out")
    assert account.client.get("/api/me").json()["was_signed_out"]
    assert account.client.get("/").status_code == 200


def test_every_route_that_takes_an_id_is_asked() -> None:
    assert {key for key in BY_ID | ADMIN if "{" in key[1]} <= set(NAMED)
    assert len(NAMED) > 15

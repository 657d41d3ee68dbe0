"""A running Ponder whose SQLite file is damaged: a whole page, or a value in a row."""

import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.config import Settings
from app.errors import StorageFailed
from app.history import database
from app.history.database import Database
from app.web import build_services
from tests.faults.chatting import Person, command, person, refused, until
from tests.live import LiveServer, serving
from tests.scripted import ScriptedEngine

SECRET = "marker-secret"


@pytest.fixture
def file(settings: Settings) -> Path:
    return settings.data_dir / "ponder.sqlite"


# A damaged page


def damage_page(file: Path, name: str) -> None:
    """Overwrite the page that an index of the database begins at."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    with file.open("r+b") as out:
        out.seek((page - 1) * size)
        out.write(b"\xa5" * size)


def test_a_damaged_page_leaves_what_can_be_read_and_the_command_in_the_message_brings_the_copy_back(
    settings: Settings, file: Path
) -> None:
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        talk = ada.begin("Here")
        ada.answered(talk)
        made = command(settings.data_dir, "backup")
        assert made.returncode == 0, made.stderr
        ada.begin("After the copy")
        cookies = ada.client.cookies
    damage_page(file, "ix_messages_parent_id")
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        ada.client.cookies = cookies
        assert not ada.ready()
        assert ada.titles() == ["After the copy", "Here"]
        assert len(ada.read(talk)["messages"]) == 2
        sent = ada.send(talk)
        refused(sent, saying="damaged, so nothing new can be saved")
        found = re.search(r"python -m app restore (\S+)", sent.json()["error"]["message"])
    assert found is not None
    assert found[1] in made.stdout
    restored = command(settings.data_dir, "restore", found[1], "--yes")
    assert restored.returncode == 0, restored.stderr
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        ada.client.cookies = cookies
        until(ada.ready)
        assert ada.titles() == ["Here"]
        ada.answered(talk)
    assert len(list(file.parent.glob("ponder.sqlite.*.before-restore"))) == 1


def test_a_large_database_is_looked_through_while_it_serves(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        talk = ada.begin("Here")
        cookies = ada.client.cookies
    damage_page(file, "ix_messages_parent_id")
    monkeypatch.setattr(database, "_QUICKLY_CHECKED_BYTES", 0)
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        ada.client.cookies = cookies
        until(lambda: not ada.ready())
        refused(ada.send(talk), saying="damaged")
        assert ada.titles() == ["Here"]


def test_damage_that_is_met_only_in_use_ends_all_writing(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        talk = ada.begin("Here")
        cookies = ada.client.cookies
    damage_page(file, "ix_messages_parent_id")
    monkeypatch.setattr(Database, "check", lambda _: True)
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        ada.client.cookies = cookies
        refused(ada.send(talk))
        assert not ada.ready()
        refused(ada.client.post("/api/conversations", json={}), saying="python -m app restore")
        assert ada.titles() == ["Here"]


def test_a_file_that_is_no_database_any_more_stops_the_start_and_is_left_as_it_is(
    settings: Settings, file: Path
) -> None:
    with serving(settings, ScriptedEngine()):
        pass
    file.write_bytes(b"This is no database." * 1000)
    before = file.read_bytes()
    with pytest.raises(StorageFailed, match=r"is damaged .*python -m app restore FILE"):
        build_services(settings, ScriptedEngine())
    assert file.read_bytes() == before


# A damaged row


@dataclass(frozen=True)
class House:
    """A server with somebody in it, for all damaged rows."""

    server: LiveServer
    ada: Person
    file: Path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    settings = Settings(data_dir=folder / "data", cache_dir=folder / "cache", port=0, model="demo")
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        yield House(server, ada, settings.data_dir / "ponder.sqlite")


# What is done to the rows, and the table whose row the log names
DAMAGES = {
    "notes that are no JSON": ("UPDATE runs SET notes = '{\"marker-secret' WHERE id = :run", "runs"),
    "notes that are no list": ('UPDATE runs SET notes = \'{"kind": "marker-secret"}\' WHERE id = :run', "runs"),
    "a note of something else": ("UPDATE runs SET notes = '[\"marker-secret\", {}]' WHERE id = :run", "runs"),
    "half of a pair in a note": (
        """UPDATE runs SET notes = '[{"kind": "budget", "text": "marker-secret \\ud800", "at_token": 1}]'
        WHERE id = :run""",
        "runs",
    ),
    "usage that is null": ("UPDATE runs SET usage = 'null' WHERE id = :run", "runs"),
    "usage in words": ('UPDATE runs SET usage = \'{"answer_tokens": "marker-secret"}\' WHERE id = :run', "runs"),
    "timing that is no number": ("UPDATE runs SET timing = '{\"thinking_s\": NaN}' WHERE id = :run", "runs"),
    "options that are no JSON": ("UPDATE runs SET options = 'marker-secret' WHERE id = :run", "runs"),
    "a state that there is not": ("UPDATE runs SET state = 'marker-secret' WHERE id = :run", "runs"),
    "an effort that there is not": ("UPDATE runs SET effort = 'Marker-Secret' WHERE id = :run", "runs"),
    "an error that there is not": ("UPDATE runs SET error_code = 'Marker Secret' WHERE id = :run", "runs"),
    "an answer's role": ("UPDATE messages SET role = 'marker-secret' WHERE id = :answer", "messages"),
    "a question's role": ("UPDATE messages SET role = 'marker-secret' WHERE id = :question", "messages"),
    "a date of a message": ("UPDATE messages SET created_at = 'marker-secret' WHERE id = :answer", "messages"),
    "an answer below itself": ("UPDATE messages SET parent_id = id WHERE id = :answer", "messages"),
    "a question below its answer": ("UPDATE messages SET parent_id = :answer WHERE id = :question", "messages"),
    "bytes that are no text": (
        "UPDATE messages SET text = CAST(x'ff6d61726b6572eda080' AS TEXT) WHERE id = :answer",
        "",
    ),
    "bytes in place of text": ("UPDATE messages SET text = x'ff6d61726b6572eda080' WHERE id = :answer", ""),
    "bytes in place of HTML": ("UPDATE messages SET html = x'ff6d61726b6572eda080' WHERE id = :answer", ""),
    "bytes in place of a title": ("UPDATE conversations SET title = x'ff6d61726b6572eda080' WHERE id = :talk", ""),
    "a date of a conversation": (
        "UPDATE conversations SET updated_at = 'marker-secret' WHERE id = :talk",
        "conversations",
    ),
    "an end that is nowhere": ("UPDATE conversations SET leaf_id = 'marker-secret' WHERE id = :talk", ""),
}


@pytest.mark.parametrize("what", list(DAMAGES))
def test_a_damaged_row_keeps_nobody_from_anything_else(
    house: House, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    ada = house.ada
    statement, table = DAMAGES[what]
    other, talk = ada.begin("A whole one"), ada.begin("A damaged one")
    ada.answered(other, "What is in the kettle?")
    accepted = ada.answered(talk, "What is in the teapot?")
    ids = {
        "talk": talk,
        "question": accepted["message_id"],
        "answer": accepted["answer_id"],
        "run": accepted["run_id"],
    }
    with closing(sqlite3.connect(house.file, timeout=60)) as connection, connection:
        assert connection.execute(statement, ids).rowcount == 1

    with caplog.at_level(logging.INFO, logger="app"):
        for _ in range(2):
            shown = ada.read(talk)
            assert [message["role"] for message in shown["messages"]] == ["user", "assistant"]
            assert shown["messages"][0]["text"] == "What is in the teapot?"
            if table == "runs":
                assert shown["messages"][1]["text"] == "Forty-two."
            if "state" not in what and "effort" not in what and "error" not in what and table == "runs":
                assert shown["messages"][1]["run"]["notes"][-1]["kind"] == "damaged"
        check_all_works(ada, ids, other)

    said = [record.getMessage() for record in caplog.records]
    row = {"runs": ids["run"], "conversations": talk}.get(table)
    named = [line for line in said if "is damaged" in line and (row or "") in line]
    assert len(named) == bool(table), said
    assert SECRET not in "".join(said).lower()

    with closing(sqlite3.connect(house.file, timeout=60)) as connection, connection:
        connection.execute("DELETE FROM conversations WHERE id IN (?, ?)", (talk, other))


def check_all_works(ada: Person, ids: dict[str, str], other: str) -> None:
    """Every way to read these rows, and going on with them."""
    talk = ids["talk"]
    assert len(ada.read(other)["messages"]) == 2
    assert "A whole one" in ada.titles()
    for words in ("kettle", "teapot", "forty", "one"):
        assert ada.client.get("/api/conversations", params={"q": words}).status_code == 200
    for path in (f"runs/{ids['run']}", f"runs/{ids['run']}/events", f"messages/{ids['answer']}/reasoning"):
        assert ada.client.get(f"/api/{path}").status_code == 200
    for form in ("md", "html", "json"):
        exported = ada.client.get(f"/api/conversations/{talk}/export", params={"format": form})
        assert exported.status_code == 200, exported.text
    everything = ada.client.get("/api/me/export")
    assert talk not in everything.text
    titles = [conversation["title"] for conversation in everything.json()["conversations"]]
    assert len(titles) == len(ada.titles())
    with Person(ada.url) as bob:
        bob.begin()
        imported = bob.client.post("/api/me/import", content=everything.content)
        assert imported.status_code == 200, imported.text
        assert imported.json()["conversations"] == len(titles)
    changed = ada.client.patch(f"/api/conversations/{talk}", json={"leaf_id": ids["question"]})
    assert changed.status_code == 200, changed.text
    again = ada.client.post(f"/api/messages/{ids['answer']}/retry", json={"client_key": f"again {talk}"})
    assert again.status_code in (202, 422), again.text
    if again.status_code == 202:
        ada.finish(again.json()["run_id"])
    ada.answered(talk, "And now?")
    assert ada.client.post(f"/api/conversations/{talk}/leave").status_code == 204


def test_settings_that_are_damaged_are_those_of_somebody_who_has_set_none(house: House) -> None:
    with Person(house.ada.url) as bob:
        talk = bob.begin("Mine")
        with closing(sqlite3.connect(house.file, timeout=60)) as connection, connection:
            connection.execute(
                "UPDATE people SET settings = '{' WHERE id = (SELECT owner_id FROM conversations WHERE id = ?)", (talk,)
            )
        assert bob.client.get("/api/me").json()["settings"]["theme"] == "system"
        bob.answered(talk)
        changed = bob.client.patch("/api/me", json={"settings": {"theme": "dark"}})
        assert changed.json()["settings"]["theme"] == "dark"
        assert bob.client.get("/").status_code == 200


def test_a_start_gets_over_a_damaged_run_that_was_open(settings: Settings, file: Path) -> None:
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        talk = ada.begin("Here")
        accepted = ada.answered(talk)
        cookies = ada.client.cookies
    with closing(sqlite3.connect(file)) as connection, connection:
        changed = "UPDATE runs SET state = 'running', ended_at = NULL, usage = ? WHERE id = ?"
        connection.execute(changed, (json.dumps({"answer_tokens": SECRET}), accepted["run_id"]))
    with serving(settings, ScriptedEngine()) as server, person(server) as ada:
        ada.client.cookies = cookies
        until(ada.ready)
        assert ada.read(talk)["messages"][1]["run"]["state"] == "interrupted"
        ada.answered(talk)

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import static_files
from app.static_files import STATIC, address, digest
from tests.live import LiveServer
from tests.people import NO_TLS

KEPT = "public, max-age=31536000, immutable"


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.url, verify=NO_TLS) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/privacy"])
def test_all_that_the_page_names_of_ours_may_be_kept_for_good(client: httpx.Client, path: str) -> None:
    named = re.findall(r'(?:href|src)="(/ponder/[^"]+)"', client.get(path).text)
    assert len(named) >= 2
    for name in named:
        response = client.get(name)
        assert response.status_code == 200, name
        assert response.headers["cache-control"] == KEPT, name


def test_without_the_digest_a_file_is_asked_for_each_time(client: httpx.Client) -> None:
    response = client.get("/ponder/ponder.js")
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")
    again = client.get("/ponder/ponder.js", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_under_another_digest_and_under_two_nothing_is_there(client: httpx.Client) -> None:
    for path in ("/ponder/0123456789ab/ponder.js", address(f"{digest()}/ponder.js"), address(""), address("js")):
        response = client.get(path)
        assert response.status_code == 404, path
        assert "immutable" not in response.headers.get("cache-control", "")


def test_the_digest_changes_with_what_is_in_a_file_and_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "static"
    shutil.copytree(STATIC, copy)
    monkeypatch.setattr(static_files, "STATIC", copy)

    def now() -> str:
        return digest.__wrapped__()

    assert now() == digest()
    with (copy / "js" / "dom.js").open("a") as file:
        file.write("\n")
    changed = now()
    (copy / "js" / "dom.js").rename(copy / "js" / "dom2.js")
    assert len({digest(), changed, now()}) == 3


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip", "gzip")])
def test_text_travels_compressed_and_is_the_same_text(client: httpx.Client, accepted: str, encoding: str) -> None:
    response = client.get(address("ponder.js"), headers={"Accept-Encoding": accepted})
    assert response.headers["content-encoding"] == encoding
    assert "accept-encoding" in response.headers["vary"].lower()
    assert response.headers["cache-control"] == KEPT
    assert response.text == (STATIC / "ponder.js").read_text()
    assert int(response.headers["content-length"]) < (STATIC / "ponder.js").stat().st_size / 2
    again = {"Accept-Encoding": accepted, "If-None-Match": response.headers["etag"]}
    assert client.get(address("ponder.js"), headers=again).status_code == 304
    head = client.head(address("ponder.js"), headers={"Accept-Encoding": accepted})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == response.headers["etag"]


def test_what_is_compressed_already_a_part_and_what_nobody_asks_compressed_are_sent_as_they_are(
    client: httpx.Client,
) -> None:
    for path, headers in (
        ("fonts/latinmodern-math.woff2", {"Accept-Encoding": "br"}),
        ("ponder.js", {"Accept-Encoding": "identity"}),
        ("ponder.js", {"Accept-Encoding": "br", "Range": "bytes=0-99"}),
    ):
        response = client.get(address(path), headers=headers)
        assert "content-encoding" not in response.headers, path
    assert response.status_code == 206


def test_the_page_names_every_module_that_it_will_need(client: httpx.Client) -> None:
    page = client.get("/").text
    named = re.findall(r'<link rel="modulepreload" href="([^"]+)"', page)
    assert len(named) > 30
    assert all(client.get(name).status_code == 200 for name in named)
    imported = set(re.findall(r'from "\./(js/[^"]+)"', (STATIC / "ponder.js").read_text()))
    assert {address(name) for name in imported} <= set(named)
    assert "<script>" not in page

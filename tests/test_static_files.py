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

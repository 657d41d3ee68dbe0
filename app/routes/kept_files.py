"""The page's own files, which browsers keep; text travels compressed, and is compressed once."""

import functools
import gzip
import hashlib
import mimetypes
import stat
from pathlib import Path

import brotli
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

from app.static_files import STATIC, digest

_KEPT_S = 365 * 24 * 3600
# Fonts are compressed already
_TEXTS = frozenset({".js", ".css", ".svg", ".html", ".txt", ".json"})
_LEAST_BYTES = 256


class KeptFiles(StaticFiles):
    """The files: at their `address` kept by browsers for good, and without the digest asked for again each time.

    A browser left to itself keeps a module for a tenth of its age: after an upgrade it would join new modules to old.
    """

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        first, _, rest = path.partition("/")
        is_kept = first == digest()
        name = rest if is_kept else path
        response = await self._compressed(name, scope) or await super().get_response(name, scope)
        response.headers["Cache-Control"] = f"public, max-age={_KEPT_S}, immutable" if is_kept else "no-cache"
        if Path(name).suffix in _TEXTS:
            response.headers.add_vary_header("Accept-Encoding")
        return response

    async def _compressed(self, name: str, scope: Scope) -> Response | None:
        """The file as the browser takes it; None where it is sent as it is. A part of it is never compressed."""
        headers = Headers(scope=scope)
        encoding = _encoding(headers.get("accept-encoding", ""))
        if encoding is None or Path(name).suffix not in _TEXTS or scope["method"] not in ("GET", "HEAD"):
            return None
        if "range" in headers:
            return None
        full_path, found = await run_in_threadpool(self.lookup_path, name)
        if found is None or found.st_size < _LEAST_BYTES or not stat.S_ISREG(found.st_mode):
            return None
        body, tag = await run_in_threadpool(_smaller, full_path, found.st_mtime_ns, found.st_size, encoding)
        kind = mimetypes.guess_type(full_path)[0] or "text/plain"
        response = Response(body, media_type=kind, headers={"Content-Encoding": encoding, "ETag": tag})
        if tag in {one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")}:
            return NotModifiedResponse(response.headers)
        return response


def _encoding(accepted: str) -> str | None:
    """The best of what a browser takes; what it gives no weight is not taken."""
    weights = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";q=")
        weights[name.strip()] = weight.strip() not in ("0", "0.0", "0.00", "0.000")
    return next((name for name in ("br", "gzip") if weights.get(name)), None)


@functools.lru_cache(maxsize=512)
def _smaller(path: str, _changed_ns: int, _size: int, encoding: str) -> tuple[bytes, str]:
    """A file's compressed bytes and their tag; kept in memory, as all of them together are small."""
    content = Path(path).read_bytes()
    body = brotli.compress(content) if encoding == "br" else gzip.compress(content, 9, mtime=0)
    return body, f'"{hashlib.sha256(content).hexdigest()[:20]}-{encoding}"'

"""The page's own files, which browsers keep."""

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.static_files import STATIC, digest

_KEPT_S = 365 * 24 * 3600


class KeptFiles(StaticFiles):
    """The files: at their `address` kept by browsers for good, and without the digest asked for again each time.

    A browser left to itself keeps a module for a tenth of its age: after an upgrade it would join new modules to old.
    """

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        first, _, rest = path.partition("/")
        is_kept = first == digest()
        response = await super().get_response(rest if is_kept else path, scope)
        response.headers["Cache-Control"] = f"public, max-age={_KEPT_S}, immutable" if is_kept else "no-cache"
        return response

"""The one place where the parts are built and joined. Decides nothing else."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.accounts.attempts import Attempts
from app.accounts.identities import Identities
from app.accounts.keys import keyed, read_secret
from app.accounts.local import LocalAccounts
from app.accounts.retention import Retention
from app.accounts.sessions import Sessions
from app.config import Settings
from app.engine.base import Engine
from app.errors import BadRequest, NotFound, PonderError, StorageFailed
from app.history.database import Database
from app.history.people import People
from app.history.portable.importing import Imports
from app.history.removal import Removal
from app.history.search import Indexer, Search
from app.history.store import Store
from app.history.temporary import History
from app.history.usage import Usage
from app.memory import give_back
from app.routes import admin, auth, conversations, health, me, portable, privacy, providers, runs
from app.routes.access import Services, appearance
from app.routes.guards import Guards, error_response, too_large
from app.routes.kept_files import KeptFiles
from app.routes.lanes import Lanes
from app.routes.provider_clients import Providers
from app.runs.service import RunService
from app.runs.shown import Freshener, ReaderGone
from app.static_files import PREFIX

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build_services(settings: Settings, engine: Engine) -> Services:
    """Every long-lived object, the database's tables brought up to date.

    Raises:
        StorageFailed: the database cannot be opened.
        BadSetting: the server's secret cannot be used.
    """
    database = _opened(settings)
    secret = read_secret(settings)
    store, people = Store(database), People(database)
    history = History(store)
    attempts = Attempts(database, secret, settings.new_guests_per_hour)
    imports = Imports(database, settings.data_dir / "imports")
    imports.sweep()
    return Services(
        settings=settings,
        secret=secret,
        engine=engine,
        store=store,
        history=history,
        people=people,
        usage=Usage(database),
        sessions=Sessions(people, attempts, settings),
        local=LocalAccounts(people, attempts),
        identities=Identities(people, attempts, settings),
        retention=Retention(database, people, settings),
        removal=Removal(database),
        search=Search(database),
        indexer=Indexer(database),
        attempts=attempts,
        imports=imports,
        runs=RunService(settings, engine, history),
        freshener=Freshener(),
        lanes=Lanes(),
    )


def _opened(settings: Settings) -> Database:
    database = Database(settings.resolved_database_url)
    try:
        database.claim()
        if database.is_quickly_checked:
            database.check()
        database.migrate()
    except StorageFailed:
        database.close()
        raise
    return database


def build_app(services: Services) -> FastAPI:
    """The whole app: routes, static files and the page."""
    # Read by gradio while it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from gradio import Server

    from app.ui.page import mount_page

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.runs.start()
        jobs = asyncio.create_task(_keep_in_order(services))
        yield
        jobs.cancel()
        await services.runs.close()
        services.freshener.close()
        for part in (services.local, services.lanes, services.removal, services.indexer, services.retention):
            part.close()
        await asyncio.to_thread(services.imports.close)
        services.history.close()

    app: FastAPI = Server(title="Ponder", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.services = services
    app.state.providers = Providers(services.settings)
    for part in (health, me, auth, providers, conversations, portable, runs, admin, privacy):
        app.include_router(part.router)
    for prefix in ("/api", "/auth"):
        # Before Gradio's page, which would answer for whatever is left over
        app.add_api_route(f"{prefix}/{{rest:path}}", _nothing, methods=_METHODS, include_in_schema=False)
    app.mount(PREFIX, KeptFiles(), name="ponder")
    _translate_errors(app)
    mount_page(app, lambda request: appearance(request, services))
    secret = keyed(services.secret, "provider sign-in")
    app.add_middleware(
        providers.AuthCookie, secret=secret, is_https=services.settings.public_url.startswith("https://")
    )
    app.add_middleware(Guards, settings=services.settings)
    return app


async def _keep_in_order(services: Services) -> None:
    """The jobs that go on beside the server; none of them touches a database that is damaged."""
    trimming = asyncio.create_task(give_back())
    try:
        await _keep_database_in_order(services)
        await trimming
    finally:
        trimming.cancel()


async def _keep_database_in_order(services: Services) -> None:
    database = services.store.database
    if not database.is_quickly_checked:
        await asyncio.to_thread(database.check)
    if not database.damage:
        await asyncio.gather(
            services.retention.run(), services.removal.run(), services.indexer.run(), services.imports.run()
        )


async def _nothing() -> None:
    raise NotFound("There is nothing at this address.")


def _translate_errors(app: FastAPI) -> None:
    @app.exception_handler(PonderError)
    async def ours(_: Request, error: PonderError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(ReaderGone)
    async def gone(_: Request, _error: ReaderGone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str)) or "The request's body"
        return error_response(BadRequest(f"{where} cannot be used: {first['msg'][0].lower()}{first['msg'][1:]}."))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return error_response(NotFound("There is nothing at this address."))
        if error.status_code == 413:
            return error_response(too_large())
        body = {"error": {"code": "bad_request", "message": f"{error.detail}."}}
        return JSONResponse(body, status_code=error.status_code)

"""Start Ponder: settings, app, and a server that lets runs and readers go before it ends."""

import argparse
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.config import Settings, read_settings
from app.connection import bounded_http
from app.crowd import raise_file_limit
from app.engine.process import EngineProcess
from app.errors import PonderError
from app.logs import set_up_logs
from app.routes.access import Services
from app.runs.service import RunService
from app.web import build_app, build_services

_DRAIN_S = 20
# A terminal or a shell from afar that is closed says SIGHUP; under `nohup` it is ignored, and stays so
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Server(uvicorn.Server):
    """Ends every run and event stream before it waits for connections, and says when the page can be opened."""

    def __init__(self, config: uvicorn.Config, runs: RunService) -> None:
        super().__init__(config)
        self._runs = runs

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, and SIGHUP, which it leaves to the system: that ends a process on the spot."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before == signal.SIG_IGN:
                yield
                return
            signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there by now stays: looking through all of it for garbage would hold everybody up for 0.2 s
            gc.collect()
            gc.freeze()
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            sys.stdout.write(f"\n  Ponder is at http://{shown}:{port}\n\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._runs.close()
        await super().shutdown(sockets)


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal says stop; the exit status."""
    parser = argparse.ArgumentParser(prog="app.py", description="Ponder, a chat for reasoning models on one GPU.")
    parser.add_argument("--host", help="address to listen on (PONDER_HOST, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (PONDER_PORT, 7860)")
    parser.add_argument("--model", help="auto, demo, qwq-32b, qwq-32b-preview, a Hub id or a folder (PONDER_MODEL)")
    try:
        settings = read_settings(**vars(parser.parse_args(arguments)))
        set_up_logs(settings.log_level)
        server = _build(settings)
    except PonderError as error:
        sys.stderr.write(f"Ponder cannot start. {error.message}\n")
        return 2
    # uvicorn raises the signal that ended it once more; ending on request is no failure
    for name in _ENDING:
        if signal.getsignal(name) != signal.SIG_IGN:
            signal.signal(name, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # uvicorn's word for a port it cannot have; its log line says which error
        sys.stderr.write(
            f"Ponder cannot listen on {settings.host}:{settings.port}. Is it running already? "
            "Choose another port with --port or PONDER_PORT.\n"
        )
        return 1
    return 0


def _build(settings: Settings) -> _Server:
    services = build_services(settings, EngineProcess(settings))
    most = raise_file_limit()
    config = http_config(
        build_app(services), settings.port, host=settings.host, drain_s=_DRAIN_S, most_connections=most
    )
    return _Server(config, services.runs)


def http_config(
    app: FastAPI, port: int, *, host: str = "127.0.0.1", drain_s: int = 5, most_connections: int = 10_000
) -> uvicorn.Config:
    """How Ponder is served, by `python app.py` as by the tests."""
    services: Services = app.state.services
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=bounded_http(services.settings, most_connections),  # type: ignore[arg-type]  # called as the class would be
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
        # X-Forwarded-For is counted from the right by app/routes/access.py; uvicorn would believe its left end
        proxy_headers=False,
    )

"""`ltdi serve`: the service, its settings by flag, environment and file."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic.fields import FieldInfo

from service.app import create_app, log_to_stdout
from service.protocol import MAX_HEAD_BYTES, bounded_protocol
from service.settings import PREFIX, Settings, flag_of, load_settings

DEAD_SECONDS = 5.0  # in which who asks learns that nothing runs the generator any more, before the service ends
LAST_SECONDS = 0.3  # between the last connection that is taken and the first that is closed


def serve(argv: list[str]) -> int:
    """Serve bundles over HTTP."""
    given = vars(parser().parse_args(argv))
    file = given.pop("config")
    settings = load_settings({name: value for name, value in given.items() if value is not None}, file)
    log_to_stdout()
    server = Server(create_app(settings), settings)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, server.handle_reload)
    server.run()
    return 1 if server.gave_up else 0


def parser() -> argparse.ArgumentParser:
    """The reference of the settings."""
    made = argparse.ArgumentParser(
        prog="ltdi serve", description="Serve bundles over HTTP. Flags win over the environment, it over the file."
    )
    made.add_argument("--config", type=Path, help=f"a TOML file of settings ({PREFIX}CONFIG)")
    for name, field in Settings.model_fields.items():
        made.add_argument(
            flag_of(name),
            help=f"{field.description} (default: {default_of(field)}; {PREFIX}{name.upper()})",
            metavar=name.upper(),
        )
    return made


def default_of(field: FieldInfo) -> str:
    """A default as an operator would write it."""
    if field.default is None:
        return "none"
    return ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)


class Server(uvicorn.Server):
    """uvicorn, which tells the service of a signal before it stops taking connections."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service = app.state.service
        self._leaves_at: float | None = None
        self._leave_seconds = settings.leave_seconds
        self._died_at: float | None = None
        self.gave_up = False  # what ran the generator has ended, and so does the service, for whoever runs it to start it anew
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                http=bounded_protocol(settings.head_seconds, settings.body_seconds),
                ws="none",
            )
        )

    def handle_exit(self, sig: int, frame: object) -> None:
        """Not ready at once; a little later the usual stop, with exit code 0. A second signal does not wait.

        In between every answer closes its connection, so that none is closed under a request that is on its way.
        """
        self._service.leave()
        if self._leaves_at is None:
            self._leaves_at = time.monotonic() + self._leave_seconds
        else:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop."""
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self.should_exit = True
        elif self._leaves_at is None and not self._service.worker.alive:
            self._died_at = self._died_at or time.monotonic()
            self.gave_up = self.should_exit = time.monotonic() - self._died_at > DEAD_SECONDS
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what came in just before, then stop."""
        loop = asyncio.get_running_loop()
        for connection in self._last_connections():
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LAST_SECONDS)
        await super().shutdown(sockets)

    def _last_connections(self) -> list[socket.socket]:
        """Stop listening; the connections that stood in line, which would be reset with the listening socket."""
        listening = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        taken = []
        for one in listening:
            one.setblocking(False)
            with one, suppress(BlockingIOError):
                while True:
                    taken.append(one.accept()[0])
        return taken

    def _protocol(self) -> asyncio.Protocol:
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        return self.config.http_protocol_class(config=self.config, **state)

    def handle_reload(self, sig: int, frame: object) -> None:
        """Read the key files and load the bundles again, in a thread; requests are answered meanwhile."""
        threading.Thread(target=self._service.reload, name="reloading", daemon=True).start()

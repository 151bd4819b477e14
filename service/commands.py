"""`ltdi serve`: the service, its settings by flag, environment and file."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from service.app import create_app, log_to_stdout
from service.protocol import MAX_HEAD_BYTES, bounded_protocol
from service.settings import PREFIX, Settings, flag_of, load_settings


def serve(argv: list[str]) -> int:
    """Serve bundles over HTTP."""
    given = vars(parser().parse_args(argv))
    file = given.pop("config")
    settings = load_settings({name: value for name, value in given.items() if value is not None}, file)
    log_to_stdout()
    server = Server(create_app(settings), settings)
    server.run()
    return 0


def parser() -> argparse.ArgumentParser:
    """The reference of the settings."""
    made = argparse.ArgumentParser(
        prog="ltdi serve", description="Serve bundles over HTTP. Flags win over the environment, it over the file."
    )
    made.add_argument("--config", type=Path, help=f"a TOML file of settings ({PREFIX}CONFIG)")
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        made.add_argument(
            flag_of(name),
            help=f"{field.description} (default: {default}; {PREFIX}{name.upper()})",
            metavar=name.upper(),
        )
    return made


class Server(uvicorn.Server):
    """uvicorn, which tells the service of a signal before it stops taking connections."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service = app.state.service
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
        """Not ready at once, then the usual stop and exit code 0; a second signal does not wait."""
        self._service.draining = True
        self.force_exit, self.should_exit = self.should_exit, True

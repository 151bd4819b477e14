"""A real server on a free loopback port, and helpers to speak to it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from ltdi import Bundle
from service.app import create_app
from service.client import png
from service.settings import Settings

Serve = Callable[..., httpx.Client]


class Running:
    """A server in a thread of this process; `prepare` may change the app before it starts."""

    def __init__(
        self, settings: Settings, bundles: list[Bundle], prepare: Callable[[FastAPI], None] = lambda app: None
    ) -> None:
        self.app = create_app(settings, bundles)
        prepare(self.app)
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port()}", timeout=30)
        while self.client.get("/readyz").status_code != 200:
            time.sleep(0.01)

    def _port(self) -> int:
        until = time.monotonic() + 20
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)
        return self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(timeout=20)


@pytest.fixture(scope="session")
def running(toy: Bundle, toy_paper: Bundle) -> Iterator[Running]:
    server = Running(Settings(), [toy, toy_paper])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def http(running: Running) -> httpx.Client:
    return running.client


@pytest.fixture
def bounded(toy: Bundle) -> Iterator[Callable[..., httpx.Client]]:
    servers = []

    def start(**settings: object) -> httpx.Client:
        servers.append(Running(Settings(**settings), [toy]))
        return servers[-1].client

    yield start
    for server in servers:
        server.stop()


def encoded(image: torch.Tensor) -> str:
    """A drawing as base64 of a PNG."""
    return base64.b64encode(png(image)).decode()


def json_task(images: torch.Tensor, labels: list[str], **fields: object) -> dict:
    """A request in the JSON form."""
    support = [{"label": label, "image": encoded(image)} for image, label in zip(images, labels, strict=True)]
    return {"support": support} | fields

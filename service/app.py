"""The application: state, request ids, logs, problems for every error, start and drain."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from ltdi import Bundle, LtDiError, library_version
from ltdi.errors import EmbedderFailed, InvalidConfig
from service.embedder import Embedder
from service.encode import Cache
from service.faults import fault_fields
from service.jobs import WorkerDead
from service.keys import Keys, Tries
from service.metrics import Metrics
from service.models import Model, Models
from service.openapi import document
from service.problems import Problem, framework_problem, located, problem_of, problem_response
from service.process import ProcessWorker, processes_work
from service.routes import open_routes, router
from service.settings import Settings
from service.traces import Traces, trace_id
from service.worker import Worker

LOG = logging.getLogger("ltdi.service")
LOADING_SECONDS = 10.0  # that a stop waits for the bundle that is being loaded
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ASGI = Callable[[dict, Callable, Callable], Awaitable[None]]


class State:
    """What the routes share.

    Args:
        bundles: served instead of those that the settings name.
    """

    def __init__(self, settings: Settings, bundles: list[Bundle] | None = None) -> None:
        self.settings, self.metrics, self.cache = settings, Metrics(), Cache(settings.cache_items)
        self.worker = self._worker(bundles)
        self.models = Models(settings, bundles, self.metrics, self.worker)
        self.embedder = Embedder(settings.queue_length)
        self.metrics.watch_queue(lambda: self.worker.depth, settings.queue_length)
        self.metrics.watch_worker(lambda: self.worker.alive)
        self.keys = Keys(settings.keys_file, "keys_file")
        self.admin_keys = Keys(settings.admin_keys_file, "admin_keys_file")
        self.key_tries = Tries(settings.key_tries_per_minute)
        self.traces = Traces(settings.otlp_endpoint) if settings.otlp_endpoint else None
        self.draining, self._stop_at = False, None
        self.begun, self.answered = 0, 0  # requests

    def _worker(self, bundles: list[Bundle] | None) -> Worker | ProcessWorker:
        """What runs torch; bundles that are here already are run here."""
        settings = self.settings

        def on_batch(name: str, size: int) -> None:
            self.metrics.batch_size.labels(name).observe(size)

        def on_death(error: BaseException) -> None:
            facts = {"worker": settings.worker, "exit_code": getattr(error, "code", None)}
            LOG.critical("inference ended", extra={"fields": facts | fault_fields(error)})

        if settings.worker == "process" and not bundles and processes_work():
            return ProcessWorker(settings, on_batch, on_death)
        return Worker(settings.queue_length, settings.max_batch, on_batch, on_death)

    def live_reasons(self) -> list[str]:
        """Why the process should be restarted; empty when it should not."""
        return [] if self.worker.alive else ["the inference thread or process has ended"]

    def ready_reasons(self) -> list[str]:
        """Why no work should be sent; empty when it should."""
        default = self.models.default
        reasons = self.live_reasons()
        if self.draining:
            reasons.append("the service is shutting down")
        if default.state != "ready":
            reasons.append(f"model {default.name!r} is {default.state}: {default.reason}")
        return reasons

    def reload(self, models: Sequence[Model] | None = None) -> list[str]:
        """Read the key files and load bundles again; what fails stays as it was.

        Args:
            models: which; every one where absent.

        Returns:
            What failed, and why.
        """
        failures = []
        for read in (self.keys.read, self.admin_keys.read, self.models.read_embedder_key):
            try:
                read()
            except InvalidConfig as error:
                LOG.error("keys not read again", extra={"fields": {"reason": str(error)}})
                failures.append(f"{error}; the keys stay as they were")
        failed = self.models.reload(self.models.all if models is None else models)
        return failures + [f"model {model.name!r}: {model.reason}" for model in failed]

    def leave(self) -> None:
        """Take no new work from now on; the time to finish what is in hand begins."""
        if not self.draining:
            self.draining = self.models.stopping = True
            self._stop_at = time.monotonic() + self.settings.leave_seconds + self.settings.drain_seconds

    async def drain(self) -> None:
        """Finish the work in hand, until `drain_seconds` after it left."""
        self.leave()
        left = 0.0 if self._stop_at is None else self._stop_at - time.monotonic()
        await self.worker.drain(max(left, 0.0))
        if self.models.remote is not None:
            self.models.remote.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.stop)


def create_app(settings: Settings | None = None, bundles: list[Bundle] | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: defaults where absent.
        bundles: bundles to serve, instead of loading those that the settings name.
    """
    state = State(settings or Settings(), bundles)
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        title="ltdi",
        version=library_version(),
        lifespan=_lifespan,
        summary="Weights on demand: classifier heads from a few examples",
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None},
    )
    app.openapi = cache(lambda: document(app))
    app.state.service = state
    app.mount("/page", PageFiles(packages=[("service", "page")]), name="page")
    app.include_router(router)
    app.include_router(open_routes)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(LtDiError, _on_library_error)
    app.add_exception_handler(WorkerDead, _on_dead_worker)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_middleware(Envelope, state=state)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.service
    state.worker.start()
    if not state.keys.configured:
        LOG.warning("no keys are configured; every caller may ask", extra={"fields": {"setting": "keys_file"}})
    loading = threading.Thread(target=state.models.load_all, name="loading", daemon=True)
    loading.start()
    try:
        yield
    finally:
        state.models.stopping = True
        await state.drain()
        await asyncio.to_thread(loading.join, LOADING_SECONDS)  # a thread that is inside torch at the exit aborts the process
        LOG.info("stopped", extra={"fields": {"begun": state.begun, "answered": state.answered}})


class PageFiles(StaticFiles):
    """Files that a browser asks about again each time, so that those of one release stay together."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """The file."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


class Envelope:
    """Around every request: its id, its place in metrics and log, and a problem where nothing else answered."""

    def __init__(self, app: ASGI, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = identifier = request_id_of(scope)
        traces = self.state.traces
        span = None if traces is None else traces.begin(scope, identifier)
        timing: dict[str, float] = {}
        scope["state"] |= {"seconds": timing, "started": started}

        async def send_with_id(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
                if self.state.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        metrics = self.state.metrics
        metrics.in_flight.inc()
        self.state.begun += 1
        try:
            await self._answer(scope, receive, send_with_id, identifier)
        except Exception as error:
            LOG.error("fault", extra={"fields": {"request_id": identifier} | fault_fields(error)})
            if not status:
                problem = Problem("fault", "something went wrong here; report it with the request id")
                await problem_response(problem, identifier)(scope, receive, send_with_id)
        finally:
            metrics.in_flight.dec()
            self.state.answered += bool(status)
            more = {} if span is None else {"trace_id": trace_id(span)}
            self._count(scope, status, time.perf_counter() - started, dict(timing), {"request_id": identifier} | more)
            if traces is not None:
                traces.end(span, getattr(scope.get("route"), "path", None), status, timing)

    async def _answer(self, scope: dict, receive: Callable, send: Callable, identifier: str) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        most = self.state.settings.max_header_bytes
        if size > most:
            problem = Problem("headers-too-large", f"the headers hold {size} bytes; at most {most}")
            self.state.metrics.rejected.labels("too_large").inc()
            await problem_response(problem, identifier)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _count(self, scope: dict, status: int, seconds: float, timing: dict[str, float], facts: dict) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.state.metrics.requests.labels(route, str(status)).inc()
        self.state.metrics.duration.labels(route).observe(seconds)
        fields = facts | {"route": route, "code": status, "seconds": round(seconds, 6)}
        fields |= {f"{stage}_seconds": round(value, 6) for stage, value in timing.items() if stage != "total"}
        LOG.info("request", extra={"fields": fields})


def request_id_of(scope: dict) -> str:
    """The caller's `X-Request-Id` where it is a plain token, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return text
    return f"{random.getrandbits(128):032x}"


def _answer(request: Request, problem: Problem) -> Response:
    problem = located(problem, request.headers.get("content-type", ""))
    reason = problem.kind.reason
    if reason is not None:
        request.app.state.service.metrics.rejected.labels(reason).inc()
    return problem_response(problem, request.state.request_id)


async def _on_problem(request: Request, error: Problem) -> Response:
    return _answer(request, error)


async def _on_library_error(request: Request, error: LtDiError) -> Response:
    problem = problem_of(error)
    if isinstance(error, EmbedderFailed):
        words, _, _ = str(error).partition(": ")  # what follows is the endpoint's, and may hold a caller's text
        LOG.warning("embedder failed", extra={"fields": {"request_id": request.state.request_id, "reason": words}})
    elif problem.kind.status >= 500:
        request.app.state.service.metrics.check_failures.labels(error.code).inc()
        LOG.error("fault", extra={"fields": {"request_id": request.state.request_id} | fault_fields(error)})
    return _answer(request, problem)


async def _on_dead_worker(request: Request, error: WorkerDead) -> Response:
    return _answer(
        request, Problem("not-ready", "nothing runs the generator any more; the service has to be restarted")
    )


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    problem = framework_problem(error.status_code, request.url.path, request.method, error.headers)
    return _answer(request, problem)


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return _answer(request, Problem("request-invalid", f"{name}: {first['msg'].lower()}", name))


class JsonLines(logging.Formatter):
    """A log record as one JSON line; never examples, labels or keys."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= fault_fields(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def log_to_stdout() -> None:
    """JSON lines of this service and of its server, on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in ("ltdi", "uvicorn", "uvicorn.error", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

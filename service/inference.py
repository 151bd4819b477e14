"""The process that runs torch, at two sockets that its server hands to it.

The server sends jobs, and takes back those whose caller left; this process says which it began, and what came of them.
Over the second socket it is told which bundles to load.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ltdi import Bundle, load_bundle
from ltdi.errors import DamagedFile
from service import encode  # noqa: F401 - what jobs are finished by, imported before the first of them comes
from service.embedder import remote_body
from service.faults import fault_fields
from service.jobs import Job, work_on
from service.problems import Problem
from service.selftest import self_test
from service.settings import Settings
from service.wire import Frames, SentError, frame, pack, unpack

KEPT = 2  # bundles of one source: work that was sent before a reload still finds its own
Bundles = OrderedDict[str, Bundle]


class Inference:
    """Takes jobs that wait together, does them, and tells what came of them."""

    def __init__(self, jobs: socket.socket, max_batch: int, bundles: Bundles) -> None:
        self._frames, self._send, self._max_batch, self._bundles = Frames(jobs), jobs.sendall, max_batch, bundles
        self._waiting: OrderedDict[int, Job] = OrderedDict()

    def run(self) -> None:
        """Work until the server has gone."""
        try:
            while True:
                for content in self._frames.take(wait=not self._waiting):
                    self._note(*unpack(content))
                self._work()
        except (EOFError, ConnectionError):
            pass

    def _note(
        self, number: int, packed: bytes | None = None, finish: Callable | None = None, deadline: float = 0.0, queued_at: float = 0.0
    ) -> None:
        """A job, or, where there is nothing but its number, that it is not wanted any more."""
        if packed is None:
            self._waiting.pop(number, None)
            return
        try:
            work, bundle = unpack(packed, self._bundles)
            self._waiting[number] = Job(work, bundle, deadline, finish, queued_at=queued_at)
        except Exception as error:
            if isinstance(error, KeyError):
                error = Problem("model-not-ready", "the bundle was loaded anew meanwhile, twice; send the request again", "model")
            self._tell("done", [(number, None, portable(error), {})], [])

    def _work(self) -> None:
        taken = [self._waiting.popitem(last=False) for _ in range(min(len(self._waiting), self._max_batch))]
        if not taken:
            return
        numbers = {id(job): number for number, job in taken}
        self._tell("begun", list(numbers.values()))
        begun = [(job, job.begin()) for _, job in taken]
        late = [job for job, in_time in begun if not in_time]
        batches: list[tuple[str, int]] = []
        self._answer(late, numbers, batches)
        for done in work_on([job for job, in_time in begun if in_time], lambda name, size: batches.append((name, size))):
            self._answer(done, numbers, batches)

    def _answer(self, done: Sequence[Job], numbers: dict[int, int], batches: list[tuple[str, int]]) -> None:
        if not done:
            return
        answers = [(numbers[id(job)], *_outcome(job), job.seconds) for job in done]
        try:
            self._tell("done", answers, batches)
        except Exception as error:  # a result that cannot be packed is its own job's fault
            if len(done) == 1:
                self._tell("done", [(numbers[id(done[0])], None, portable(error), done[0].seconds)], batches)
            else:
                for job in done:
                    self._answer([job], numbers, batches)
        batches.clear()

    def _tell(self, *message: Any) -> None:
        self._send(frame(pack(message)))


def _outcome(job: Job) -> tuple[Any, SentError | None]:
    error = job.future.exception()
    return (job.future.result(), None) if error is None else (None, portable(error))


def portable(error: BaseException) -> SentError:
    """An error that can be sent; by its name alone where it cannot be."""
    at = fault_fields(error)["at"]
    try:
        unpack(pack(error))
    except Exception:
        return SentError(RuntimeError(type(error).__name__), at)
    return SentError(error, at)


def control(orders: socket.socket, bundles: Bundles) -> None:
    """Load bundles as the server orders, until it has gone."""
    frames, settings = Frames(orders), Settings.model_construct()
    loaded: dict[str, list[str]] = {}  # digests by source

    def configure(values: dict[str, Any]) -> None:
        nonlocal settings
        settings = Settings(**values)

    def load(source: str, digest: str) -> str:
        bundle = load_bundle(source, device=settings.device)
        if bundle.digest != digest:
            raise DamagedFile(f"the bundle {bundle.name!r} was changed while it was loaded; load it again")
        self_test(bundle, settings.max_batch)
        if settings.embedder_url and bundle.takes_a_body:  # texts are embedded by the server; here they are but named
            bundle = bundle.with_body(remote_body(settings.model_copy(update={"embedder_key_file": ""})))
        bundles[digest] = bundle
        kept = [one for one in loaded.get(source, []) if one != digest] + [digest]
        loaded[source] = kept[-KEPT:]
        for old in kept[:-KEPT]:
            if not any(old in others for others in loaded.values()):
                bundles.pop(old, None)
        return str(bundle.device)

    def settle() -> None:
        gc.collect()
        gc.freeze()

    known: dict[str, Callable[..., Any]] = {"configure": configure, "load": load, "settle": settle}
    try:
        while True:
            for content in frames.take(wait=True):
                order, *arguments = unpack(content)
                orders.sendall(frame(pack(_done(known[order], arguments))))
    except (EOFError, ConnectionError):
        pass


def _done(order: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, SentError | None]:
    try:
        return order(*arguments), None
    except Exception as error:
        return None, portable(error)


def main(jobs: int, orders: int, max_batch: int) -> None:
    """Serve the two sockets; the server's end is this one's too. What nobody expected ends the process."""
    torch.set_num_threads(1)  # batch-invariant arithmetic, and no slower for small chains
    bundles: Bundles = OrderedDict()
    ordered, inference = socket.socket(fileno=orders), Inference(socket.socket(fileno=jobs), max_batch, bundles)
    threading.Thread(target=_to_the_end, args=(control, ordered, bundles), daemon=True).start()
    _to_the_end(inference.run)


def _to_the_end(work: Callable[..., None], *arguments: Any) -> None:
    """Work, then end the process: a thread that is inside torch while the interpreter is taken down aborts it."""
    code = 0
    try:
        work(*arguments)
    except BaseException as error:
        code = 1
        line = {"level": "critical", "logger": "ltdi.service", "message": "inference ended"} | fault_fields(error)
        print(json.dumps(line), flush=True)
    os._exit(code)

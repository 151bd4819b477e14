"""The server's side of the process that runs torch."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from ltdi import Bundle
from service.jobs import Job, OnBatch, Queue, WorkerDead
from service.settings import Settings
from service.wire import Buffer, Frames, SentError, frame, pack, unpack

ENDED = "the inference process has ended"


class ProcessWorker(Queue):
    """A process that runs torch, and the queue in front of it; used from the event loop that started it.

    The interpreter of the server is left to HTTP and decoding, that of the process to the generator.

    Args:
        settings: of the service.
        on_batch: told the bundle's name and the number of heads sampled together.
        on_death: told the error that ended it.
    """

    def __init__(
        self, settings: Settings, on_batch: OnBatch = lambda name, size: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        super().__init__(settings.queue_length)
        self._settings, self._on_batch, self._on_death = settings, on_batch, on_death
        self._numbers = itertools.count()
        self._sent: dict[int, Job] = {}
        self._waiting: dict[int, int] = {}  # id of a job: its number
        self._stopping, self._dead = False, False
        self._process: subprocess.Popen | None = None
        self._ordering = Lock()

    def start(self) -> None:
        """Start the process; it is there, and loads, when the first bundle is adopted."""
        jobs, theirs = socket.socketpair()
        self._orders, their_orders = socket.socketpair()
        handed = theirs.fileno(), their_orders.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.inference", *map(str, handed), str(self._settings.max_batch)],
            pass_fds=handed, stdin=subprocess.DEVNULL,
        )
        theirs.close()
        their_orders.close()
        self._loop, self._jobs = asyncio.get_running_loop(), jobs
        self._connecting = self._loop.create_task(self._loop.create_connection(lambda: Line(self._heard, self._end), sock=jobs))

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and not self._dead

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def adopt(self, bundle: Bundle, source: str) -> str:
        """Have the process load and prove a bundle, which takes until it has done so.

        Returns:
            The device that it runs on.

        Raises:
            LtDiError: why it must not serve.
            WorkerDead: the process has ended.
        """
        self._order("configure", self._settings.model_dump())
        return self._order("load", source, bundle.digest)

    def settle(self) -> None:
        """Tell the process, where it still runs, that all bundles are loaded."""
        with suppress(WorkerDead):
            self._order("settle")

    def _order(self, *order: Any) -> Any:
        with self._ordering:
            try:
                self._orders.sendall(frame(pack(order)))
                answer = next(Frames(self._orders).take(wait=True))
            except (EOFError, OSError) as error:
                raise WorkerDead(ENDED) from error
        result, error = unpack(answer)
        if error is not None:
            raise error.arrived()
        return result

    def pack(self, work: Any, bundle: Bundle | None) -> bytes:
        """Work as it is sent; a large task takes milliseconds, so that its thread does it."""
        return pack((work, bundle))

    async def submit(self, job: Job) -> Any:
        """The result of `job`; everything happens on the event loop, which another thread's future would have to wake."""
        job.future = self._loop.create_future()
        return await super().submit(job)

    def put(self, job: Job) -> None:
        """Send `job` without waiting for it; raises as `Queue.put` does."""
        if not self.alive or self._stopping:
            raise WorkerDead(ENDED)
        self.refuse_when_full()
        number = next(self._numbers)
        packed = job.packed or self.pack(job.work, job.bundle)
        self._write(number, packed, job.finish, job.deadline, job.queued_at)
        self._sent[number] = job
        self._waiting[id(job)] = number

    def _withdraw(self, job: Job) -> bool:
        number = self._waiting.pop(id(job), None)
        if number is None:
            return False
        self._sent.pop(number, None)
        if self.alive:
            self._write(number)
        return job.future.cancel()

    def _write(self, *message: Any) -> None:
        transport, _ = self._connecting.result()
        transport.write(frame(pack(message)))

    def _heard(self, what: str, *facts: Any) -> None:
        (self._begun if what == "begun" else self._done)(*facts)

    def _begun(self, numbers: list[int]) -> None:
        for number in numbers:
            if (job := self._sent.get(number)) is not None:
                self._waiting.pop(id(job), None)

    def _done(self, answers: list[tuple[int, Any, SentError | None, dict[str, float]]], batches: list) -> None:
        for batch in batches:
            self._on_batch(*batch)
        for number, result, error, seconds in answers:
            job = self._sent.pop(number, None)
            if job is None:
                continue
            self._waiting.pop(id(job), None)
            if job.future.done():
                continue
            job.seconds |= seconds
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error.arrived())

    def _end(self, error: Exception | None) -> None:
        """The process has gone: tell those who still wait that nobody will answer."""
        self._dead = True
        if not self._stopping:
            self._on_death(error or EOFError(ENDED))
        for job in self._sent.values():
            if not job.future.done():
                job.future.set_exception(WorkerDead(ENDED))
        self._sent.clear()
        self._waiting.clear()

    async def drain(self, timeout: float) -> None:
        """Finish what waits, then end the process; it is killed where that takes longer than `timeout` seconds."""
        self._stopping = True
        until = self._loop.time() + timeout
        while self._sent and self.alive and self._loop.time() < until:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """End the process at once."""
        for end in (self._orders, self._jobs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # who waits at it learns it
            end.close()
        if self._process is None:
            return
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Line(asyncio.Protocol):
    """The end of the socket over which jobs go and answers come.

    Args:
        heard: told each answer.
        ended: told that there will be no more, and the error if there was one.
    """

    def __init__(self, heard: Callable[..., None], ended: Callable[[Exception | None], None]) -> None:
        self._heard, self._ended, self._buffer = heard, ended, Buffer()

    def data_received(self, data: bytes) -> None:
        """Some bytes of answers."""
        self._buffer.add(data)
        while (content := self._buffer.whole()) is not None:
            self._heard(*unpack(content))

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has closed its end."""
        self._ended(exc)


def processes_work() -> bool:
    """Whether sockets can be handed to another process here."""
    return os.name == "posix"

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

import torch

from ltdi import Bundle
from service.jobs import Job, OnBatch, Queue, WorkerDead
from service.settings import Settings
from service.wire import Buffer, Frames, SentError, frame, pack, unpack

ENDED = "the inference process has ended"
END_SECONDS = 2.0  # for the process to end once its sockets are closed
LARGE_ANSWER = 256 * 2**10  # bytes that are unpacked in a thread, as they take milliseconds
BOOTSTRAP = """
import signal, sys
for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(name, signal.SIG_IGN)
sys.path[:] = {path!r}
from service.inference import main
main({jobs}, {orders}, {max_batch})
"""


class ProcessDied(WorkerDead):
    """The process has ended by itself.

    Args:
        code: its exit status; minus the number of a signal.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(ENDED)
        self.code = code


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
        self._jobs: dict[int, Job] = {}  # by number, until they are answered
        self._waiting: dict[int, int] = {}  # those that have not begun: id of a job to its number
        self._unsent: dict[int, bytes] = {}  # what the socket has no room for yet
        self._stopping = False
        self._process: subprocess.Popen | None = None
        self._ordering = Lock()

    def start(self) -> None:
        """Start the process; it is there, and loads, when the first bundle is adopted.

        Raises:
            RuntimeError: it was started before.
        """
        if self._process is not None:
            raise RuntimeError("a worker is started once")
        torch.set_num_threads(1)  # here features are but looked at
        jobs, theirs = socket.socketpair()
        self._orders, their_orders = socket.socketpair()
        handed = theirs.fileno(), their_orders.fileno()
        code = BOOTSTRAP.format(path=sys.path, jobs=handed[0], orders=handed[1], max_batch=self._settings.max_batch)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], pass_fds=handed, stdin=subprocess.DEVNULL, process_group=0
        )
        theirs.close()
        their_orders.close()
        self._loop = asyncio.get_running_loop()
        self._line = Line(self._heard, self._flush, self._end)
        self._connecting = self._loop.create_task(self._loop.create_connection(lambda: self._line, sock=jobs))

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and not self._line.ended.is_set()

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
            except (EOFError, OSError, ValueError) as error:
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
        """Send `job` as soon as there is room, without waiting for it; raises as `Queue.put` does."""
        if not self.alive or self._stopping:
            raise WorkerDead(ENDED)
        self.refuse_when_full()
        number = next(self._numbers)
        packed = job.packed or self.pack(job.work, job.bundle)
        self._unsent[number] = frame(pack((number, packed, job.finish, job.deadline, job.queued_at)))
        job.work, job.packed = None, None  # they would be kept twice
        self._jobs[number] = job
        self._waiting[id(job)] = number
        self._flush()

    def _flush(self) -> None:
        """Write what there is room for."""
        while self._unsent and self._line.writable:
            number = next(iter(self._unsent))
            self._line.write(self._unsent.pop(number))

    def _withdraw(self, job: Job) -> bool:
        number = self._waiting.pop(id(job), None)
        if number is None:
            return False
        self._jobs.pop(number, None)
        if self._unsent.pop(number, None) is None and self.alive:
            self._line.write(frame(pack((number,))))
        return job.future.cancel()

    def _heard(self, content: bytes) -> None:
        if len(content) <= LARGE_ANSWER:
            self._take(unpack(content))
            return
        later = self._loop.run_in_executor(None, unpack, content)
        later.add_done_callback(lambda done: self._take(done.result()))

    def _take(self, message: tuple[Any, ...]) -> None:
        what, *facts = message
        (self._begun if what == "begun" else self._done)(*facts)

    def _begun(self, numbers: list[int]) -> None:
        for number in numbers:
            if (job := self._jobs.get(number)) is not None:
                self._waiting.pop(id(job), None)

    def _done(self, answers: list[tuple[int, Any, SentError | None, dict[str, float]]], batches: list) -> None:
        for batch in batches:
            self._on_batch(*batch)
        for number, result, error, seconds in answers:
            job = self._jobs.pop(number, None)
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

    def _end(self) -> None:
        """The process has gone: tell those who still wait that nobody will answer."""
        for job in self._jobs.values():
            if not job.future.done():
                job.future.set_exception(WorkerDead(ENDED))
        for left in (self._jobs, self._waiting, self._unsent):
            left.clear()
        if not self._stopping:
            waiting = self._loop.run_in_executor(None, self._exit_code)
            waiting.add_done_callback(lambda done: self._on_death(ProcessDied(done.result())))

    def _exit_code(self) -> int | None:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_SECONDS)
        return None

    async def drain(self, timeout: float) -> None:
        """Finish what waits, then end the process; it is killed where that takes longer than `timeout` seconds."""
        self._stopping = True
        if self._process is None:
            return
        until = self._loop.time() + timeout
        while self._jobs and self.alive and self._loop.time() < until:
            await asyncio.sleep(0.01)
        with suppress(OSError):
            transport, _ = await self._connecting
            transport.abort()
            await self._line.ended.wait()
        with suppress(OSError):
            self._orders.shutdown(socket.SHUT_RDWR)  # who waits at it learns it
        self._orders.close()
        if await asyncio.to_thread(self._exit_code) is None:
            self._process.kill()
            self._process.wait()


class Line(asyncio.Protocol):
    """The end of the socket over which jobs go and answers come.

    Args:
        heard: told each answer, as bytes.
        room: told that it may be written to again.
        gone: told that there will be no more answers.
    """

    def __init__(self, heard: Callable[[bytes], None], room: Callable[[], None], gone: Callable[[], None]) -> None:
        self._heard, self._room, self._gone = heard, room, gone
        self._buffer, self._transport = Buffer(), None
        self.writable, self.ended = False, asyncio.Event()

    def write(self, content: bytes) -> None:
        """Send something; `writable` says whether more is welcome."""
        self._transport.write(content)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It can be written to."""
        self._transport, self.writable = transport, True
        self._room()

    def pause_writing(self) -> None:
        """The process has not read what was sent; more would pile up here."""
        self.writable = False

    def resume_writing(self) -> None:
        """There is room again."""
        self.writable = True
        self._room()

    def data_received(self, data: bytes) -> None:
        """Some bytes of answers."""
        self._buffer.add(data)
        while (content := self._buffer.whole()) is not None:
            self._heard(content)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has closed its end."""
        self.writable = False
        self.ended.set()
        self._gone()


def processes_work() -> bool:
    """Whether sockets can be handed to another process here."""
    return os.name == "posix"

"""The one thread that runs torch, behind a bounded queue; heads that wait together are sampled together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ltdi import Bundle, Head, HeadRequest
from service.problems import Problem

FULL_PAUSE = 0.25  # seconds before a refusal, so that callers who ask again at once leave time for those who are served

OnStage = Callable[[str, float], None]
Work = Callable[[OnStage], Any]


@dataclass
class Job:
    """One piece of work.

    Args:
        work: a head to generate, or a function that is told how to report stages.
        bundle: what generates; heads of one bundle are sampled together.
        deadline: `time.monotonic()` after which it is not begun.
        finish: makes of the head what the job answers, stage `encode`; the head itself where absent.
        seconds: spent by stage, filled while it runs; those of a batch count for each of its jobs.
    """

    work: HeadRequest | Work
    bundle: Bundle | None
    deadline: float
    finish: Callable[[Head], Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    queued_at: float = field(default_factory=time.monotonic)
    future: Future = field(default_factory=Future)

    def note(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class WorkerDead(Exception):
    """The inference thread has ended; only a new process helps."""


class Worker:
    """The inference thread and its queue.

    Args:
        queue_length: jobs that may wait.
        max_batch: waiting jobs taken together.
        on_batch: told the bundle's name and the number of heads sampled together.
        on_death: told the error that ended the thread.
    """

    def __init__(
        self,
        queue_length: int,
        max_batch: int = 64,
        on_batch: Callable[[str, int], None] = lambda name, size: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.queue_length, self.max_batch, self._on_batch, self._on_death = queue_length, max_batch, on_batch, on_death
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._taken: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="ltdi-inference", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Finish what waits, then end; waits for the thread at most `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    async def submit(self, job: Job) -> Any:
        """The result of `job`, once the thread has done it.

        A caller that is cancelled takes its job with it, unless that has begun.

        Raises:
            Problem: the queue is full (429), or the deadline passed before the job began (504).
            WorkerDead: the thread has ended.
        """
        self.put(job)
        answer = asyncio.wrap_future(job.future)
        answer.add_done_callback(_look_at)
        try:
            done, _ = await asyncio.wait({answer}, timeout=max(0.0, job.deadline - time.monotonic()))
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        if not done and self._withdraw(job):
            raise _too_late()
        return await asyncio.shield(answer)

    def put(self, job: Job) -> None:
        """Queue `job` without waiting for it.

        Raises:
            Problem: the queue is full.
            WorkerDead: the thread has ended, or is ending.
        """
        with self._changed:
            if not self.alive or self._stopping:
                raise WorkerDead("the inference thread has ended")
            self.refuse_when_full()
            self._waiting.append(job)
            self._changed.notify()

    @property
    def full(self) -> bool:
        """Whether no further job may wait."""
        return len(self._waiting) >= self.queue_length

    def refuse_when_full(self) -> None:
        """Nothing, while a job more may wait.

        Raises:
            Problem: the queue is full.
        """
        if self.full:
            raise Problem(
                "queue-full", f"{len(self._waiting)} requests wait, as many as may; send it again in a second"
            )

    def _withdraw(self, job: Job) -> bool:
        """Take a job back that has not begun."""
        withdrawn = job.future.cancel()
        with self._changed:
            if withdrawn and job in self._waiting:
                self._waiting.remove(job)
        return withdrawn

    def _run(self) -> None:
        torch.set_num_threads(1)  # batch-invariant arithmetic, and no slower for small chains
        try:
            while self._take():
                self._work_on([job for job in self._taken if _begin(job)])
        except BaseException as error:
            self._on_death(error)
        finally:
            self._abandon()

    def _take(self) -> bool:
        """Move what waits to `_taken`; False when there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
        return bool(self._taken)

    def _work_on(self, jobs: Sequence[Job]) -> None:
        heads: dict[int, list[Job]] = {}
        for job in jobs:
            if isinstance(job.work, HeadRequest):
                heads.setdefault(id(job.bundle), []).append(job)
            else:
                _answer(job, lambda job=job: job.work(job.note))
        for batch in heads.values():
            self._generate(batch)

    def _generate(self, batch: list[Job]) -> None:
        """Heads for jobs of one bundle; where the batch fails, each is tried alone, so that none hurts another."""
        bundle = batch[0].bundle
        assert bundle is not None
        self._on_batch(bundle.name, len(batch))
        if len(batch) == 1:
            _answer(batch[0], lambda: _finished(batch[0], _heads(bundle, batch)[0]))
            return
        try:
            made = _heads(bundle, batch)
        except Exception:
            for job in batch:
                job.seconds = {"queue": job.seconds["queue"]}
                self._generate([job])
            return
        for job, head in zip(batch, made, strict=True):
            _answer(job, lambda job=job, head=head: _finished(job, head))

    def _abandon(self) -> None:
        """Tell those who still wait that nobody will answer."""
        with self._changed:
            self._stopping = True
            left = [*self._taken, *self._waiting]
            self._waiting.clear()
        for job in left:
            if not job.future.done():
                job.future.set_exception(WorkerDead("the inference thread has ended"))


def _heads(bundle: Bundle, batch: list[Job]) -> list[Head]:
    def note(stage: str, seconds: float) -> None:
        for job in batch:
            job.note(stage, seconds)

    return bundle.generate_many([job.work for job in batch], on_stage=note)  # type: ignore[misc]


def _finished(job: Job, head: Head) -> Any:
    """What the job answers; here, because handing a head to another thread costs more than writing its file."""
    if job.finish is None:
        return head
    started = time.perf_counter()
    made = job.finish(head)
    job.note("encode", time.perf_counter() - started)
    return made


def _begin(job: Job) -> bool:
    """Whether to do this job: its caller still waits and its deadline lies ahead."""
    if not job.future.set_running_or_notify_cancel():
        return False
    job.note("queue", time.monotonic() - job.queued_at)
    if time.monotonic() > job.deadline:
        job.future.set_exception(_too_late())
        return False
    return True


def _answer(job: Job, work: Callable[[], Any]) -> None:
    try:
        with torch.inference_mode():
            job.future.set_result(work())
    except Exception as error:
        job.future.set_exception(error)


def _too_late() -> Problem:
    return Problem(
        "deadline-passed", "the work had not begun when its deadline passed; send it again when load is lower"
    )


def _look_at(answer: asyncio.Future) -> None:
    """Look at an error that nobody waits for any more, so that it is not reported as forgotten."""
    if not answer.cancelled():
        answer.exception()

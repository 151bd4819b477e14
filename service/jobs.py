"""Pieces of work: what they are, how those of one bundle are done together, and the bounded queue in front of them."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from ltdi import Bundle, Head, HeadRequest
from service.problems import Problem

FULL_PAUSE = 0.25  # seconds before a refusal, so that callers who ask again at once leave time for those who are served

OnStage = Callable[[str, float], None]
OnBatch = Callable[[str, int], None]
Work = Callable[[OnStage], Any]


@dataclass(frozen=True)
class Call:
    """Work other than a head: a function of a module with its arguments, so that it can be sent to another process.

    Args:
        stage: that its time counts for.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    stage: str = "embed"

    def __call__(self, note: OnStage) -> Any:
        """The result."""
        started = time.perf_counter()
        result = self.function(*self.arguments)
        note(self.stage, time.perf_counter() - started)
        return result


@dataclass(eq=False)
class Job:
    """One piece of work.

    Args:
        work: a head to generate, or a function that is told how to report stages; a `Call` where it may be sent away.
        bundle: what generates; heads of one bundle are sampled together.
        deadline: `time.monotonic()` after which it is not begun; an adapter that was begun may take as long as it might have waited.
        finish: makes of the head what the job answers, stage `encode`; the head itself where absent.
        packed: the work and its bundle as `Queue.pack` gives them, where a thread has done that already.
        seconds: spent by stage, filled while it runs; those of a batch count for each of its jobs.
    """

    work: HeadRequest | Work | None
    bundle: Bundle | None
    deadline: float
    finish: Callable[[Head], Any] | None = None
    packed: bytes | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    queued_at: float = field(default_factory=time.monotonic)
    future: Future | asyncio.Future = field(default_factory=Future)

    @property
    def allowed(self) -> float:
        """Seconds that it might have waited."""
        return self.deadline - self.queued_at

    def note(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def begin(self) -> bool:
        """Whether to do it: its caller still waits and its deadline lies ahead."""
        if not self.future.set_running_or_notify_cancel():
            return False
        self.note("queue", time.monotonic() - self.queued_at)
        if time.monotonic() > self.deadline:
            self.future.set_exception(too_late())
            return False
        return True


class WorkerDead(Exception):
    """What runs torch has ended; only a new process helps."""


def work_on(jobs: Sequence[Job], on_batch: OnBatch) -> Iterator[Sequence[Job]]:
    """Do jobs that have begun; those that are done are given, group by group.

    Args:
        on_batch: told the bundle's name and the number of heads sampled together.
    """
    heads: dict[int, list[Job]] = {}
    for job in jobs:
        if isinstance(job.work, HeadRequest):
            heads.setdefault(id(job.bundle), []).append(job)
        else:
            _answer(job, lambda job=job: job.work(job.note))
            yield [job]
    for batch in heads.values():
        alone = batch[0].bundle.kind == "lora"  # adapters are made one by one, so that each is answered when it is done
        for part in [[job] for job in batch] if alone else [batch]:
            _generate(part, on_batch)
            yield part


def _generate(batch: Sequence[Job], on_batch: OnBatch) -> None:
    """Heads for jobs of one bundle; where the batch fails, each is tried alone, so that none hurts another."""
    bundle = batch[0].bundle
    assert bundle is not None
    on_batch(bundle.name, len(batch))
    if len(batch) == 1:
        _answer(batch[0], lambda: _finished(batch[0], _heads(bundle, batch)[0]))
        return
    try:
        made = _heads(bundle, batch)
    except Exception:
        for job in batch:
            job.seconds = {"queue": job.seconds["queue"]}
            _generate([job], on_batch)
        return
    for job, head in zip(batch, made, strict=True):
        _answer(job, lambda job=job, head=head: _finished(job, head))


def _heads(bundle: Bundle, batch: Sequence[Job]) -> list[Head]:
    def note(stage: str, seconds: float) -> None:
        for job in batch:
            job.note(stage, seconds)

    until = {"until": time.monotonic() + batch[0].allowed} if bundle.kind == "lora" else {}
    return bundle.generate_many([job.work for job in batch], on_stage=note, **until)  # type: ignore[misc]


def _finished(job: Job, head: Head) -> Any:
    """What the job answers; here, because handing a head to another thread costs more than writing its file."""
    if job.finish is None:
        return head
    started = time.perf_counter()
    made = job.finish(head)
    job.note("encode", time.perf_counter() - started)
    return made


def _answer(job: Job, work: Callable[[], Any]) -> None:
    try:
        with torch.inference_mode():
            job.future.set_result(work())
    except Exception as error:
        job.future.set_exception(error)


def too_late() -> Problem:
    """What a caller is told whose job had not begun in time."""
    return Problem(
        "deadline-passed", "the work had not begun when its deadline passed; send it again when load is lower"
    )


class Queue(ABC):
    """A bounded queue of jobs.

    Args:
        length: jobs that may wait.
    """

    def __init__(self, length: int) -> None:
        self.queue_length = length

    @property
    @abstractmethod
    def depth(self) -> int:
        """Jobs that wait."""

    def pack(self, work: HeadRequest | Work, bundle: Bundle | None) -> bytes | None:
        """Work as it goes to another process; None where it stays in this one."""
        return None

    @abstractmethod
    def put(self, job: Job) -> None:
        """Queue `job` without waiting for it.

        Raises:
            Problem: the queue is full.
            WorkerDead: nobody works any more, or not for long.
        """

    @abstractmethod
    def _withdraw(self, job: Job) -> bool:
        """Take a job back that has not begun."""

    @property
    def full(self) -> bool:
        """Whether no further job may wait."""
        return self.depth >= self.queue_length

    def refuse_when_full(self) -> None:
        """Nothing, while a job more may wait.

        Raises:
            Problem: the queue is full.
        """
        if self.full:
            raise Problem("queue-full", f"{self.depth} requests wait, as many as may; send it again in a second")

    async def submit(self, job: Job) -> Any:
        """The result of `job`, once it is done.

        A caller that is cancelled takes its job with it, unless that has begun.

        Raises:
            Problem: the queue is full (429), or the deadline passed before the job began (504).
            WorkerDead: nobody works any more.
        """
        loop, late = asyncio.get_running_loop(), False

        def expire() -> None:
            nonlocal late
            late = self._withdraw(job)

        self.put(job)
        answer = asyncio.wrap_future(job.future)
        answer.add_done_callback(_look_at)
        timer = loop.call_later(max(0.0, job.deadline - time.monotonic()), expire)
        try:
            return await answer
        except asyncio.CancelledError:
            if late:
                raise too_late() from None
            self._withdraw(job)
            raise
        finally:
            timer.cancel()


def _look_at(answer: asyncio.Future) -> None:
    """Look at an error that nobody waits for any more, so that it is not reported as forgotten."""
    if not answer.cancelled():
        answer.exception()

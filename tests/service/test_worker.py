"""The inference thread: bounds, batches, neighbours, callers that leave, and its death."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from ltdi import Bundle, HeadRequest, Options, TaskEmbedding, UnsupportedInput, safetensors_bytes
from service.jobs import Job, WorkerDead
from service.problems import Problem
from service.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(queue_length=8)
    made.start()
    yield made
    made.stop(10)


class Gate:
    """Work that occupies the thread until it is let go."""

    def __init__(self) -> None:
        self.begun, self._open = threading.Event(), threading.Event()

    def __call__(self, note: object) -> None:
        self.begun.set()
        assert self._open.wait(10)

    def hold(self, worker: Worker) -> None:
        worker.put(Job(self, None, soon()))
        assert self.begun.wait(10)

    def release(self) -> None:
        self._open.set()


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def requests(toy: Bundle, count: int) -> list[HeadRequest]:
    """Tasks of two to four classes, with different seeds."""
    torch.manual_seed(3)
    made = []
    for seed in range(count):
        labels = [f"c{i % (2 + seed % 3)}" for i in range(12)]
        made.append(HeadRequest(toy.support(torch.rand(12, toy.feature_size), labels), Options(seed=seed)))
    return made


def of_another_bundle(toy: Bundle) -> HeadRequest:
    task = toy.embed_task(requests(toy, 1)[0].task)
    file = safetensors_bytes(task.tensors(), task.metadata() | {"bundle_digest": "0" * 64})
    return HeadRequest(TaskEmbedding.from_bytes(file))


def test_heads_that_wait_together_are_one_batch_and_have_the_bytes_they_have_alone(toy: Bundle) -> None:
    sizes: list[int] = []
    worker, gate = Worker(32, on_batch=lambda name, size: sizes.append(size)), Gate()
    worker.start()
    gate.hold(worker)
    tasks = requests(toy, 7)
    jobs = [Job(task, toy, soon()) for task in tasks]
    for job in jobs:
        worker.put(job)
    gate.release()
    together = [job.future.result(20).to_bytes() for job in jobs]
    worker.stop(10)
    assert sizes == [7]
    assert together == [toy.generate_many([task])[0].to_bytes() for task in tasks]


def test_a_job_that_fails_does_not_hurt_its_neighbours(worker: Worker, toy: Bundle) -> None:
    gate = Gate()
    gate.hold(worker)
    first, bad, last = jobs = [
        Job(work, toy, soon()) for work in (*requests(toy, 1), of_another_bundle(toy), *requests(toy, 1))
    ]
    for job in jobs:
        worker.put(job)
    gate.release()
    assert first.future.result(20).to_bytes() == last.future.result(20).to_bytes()
    with pytest.raises(UnsupportedInput, match="made by bundle"):
        bad.future.result(20)
    assert {"queue", "embed", "sample", "check"} <= set(first.seconds)


def test_a_full_queue_refuses_the_next_job(worker: Worker) -> None:
    gate = Gate()
    gate.hold(worker)
    for _ in range(worker.queue_length):
        worker.put(Job(lambda note: None, None, soon()))
    with pytest.raises(Problem, match="8 requests wait"):
        worker.put(Job(lambda note: None, None, soon()))
    assert worker.depth == worker.queue_length
    gate.release()


def test_a_job_whose_deadline_passes_while_it_waits_is_never_begun(worker: Worker) -> None:
    gate, begun = Gate(), []
    gate.hold(worker)
    job = Job(begun.append, None, soon(0.05))
    with pytest.raises(Problem, match="deadline"):
        asyncio.run(worker.submit(job))
    gate.release()
    worker.stop(10)
    assert not begun


def test_a_caller_who_leaves_takes_a_waiting_job_along(worker: Worker) -> None:
    gate, begun = Gate(), []
    gate.hold(worker)

    async def leave() -> None:
        asked = asyncio.ensure_future(worker.submit(Job(begun.append, None, soon())))
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(leave())
    assert worker.depth == 0
    gate.release()
    worker.stop(10)
    assert not begun


def test_stopping_finishes_what_waits(toy: Bundle) -> None:
    worker = Worker(8)
    worker.start()
    jobs = [Job(task, toy, soon()) for task in requests(toy, 3)]
    for job in jobs:
        worker.put(job)
    worker.stop(20)
    assert all(job.future.done() and job.future.exception() is None for job in jobs)
    with pytest.raises(WorkerDead):
        worker.put(jobs[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_dies_those_who_wait_are_told(worker: Worker) -> None:
    gate = Gate()
    gate.hold(worker)

    def die(note: object) -> None:
        raise SystemExit

    dying, waiting = Job(die, None, soon()), Job(lambda note: 1, None, soon())
    worker.put(dying)
    worker.put(waiting)
    gate.release()
    for job in (dying, waiting):
        with pytest.raises(WorkerDead):
            job.future.result(10)
    worker.stop(10)
    assert not worker.alive


def test_a_late_job_is_told_so_while_others_like_it_wait(worker: Worker, toy: Bundle) -> None:
    gate = Gate()
    gate.hold(worker)
    first, late = requests(toy, 4)[0], requests(toy, 4)[3]
    worker.put(Job(first, toy, soon()))
    with pytest.raises(Problem) as problem:
        asyncio.run(worker.submit(Job(late, toy, soon(0.05))))
    assert problem.value.code == "deadline-passed" and worker.depth == 1
    gate.release()

"""The thread that runs torch inside the server's own process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

import torch

from ltdi import Bundle
from service.jobs import Job, OnBatch, Queue, WorkerDead, work_on
from service.selftest import self_test


class Worker(Queue):
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
        on_batch: OnBatch = lambda name, size: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        super().__init__(queue_length)
        self.max_batch, self._on_batch, self._on_death = max_batch, on_batch, on_death
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

    async def drain(self, timeout: float) -> None:
        """`stop`, without holding up the event loop."""
        await asyncio.to_thread(self.stop, timeout)

    def adopt(self, bundle: Bundle, source: str) -> str:
        """Prove a bundle that is to serve here.

        Returns:
            The device that it runs on.

        Raises:
            LtDiError: why it must not serve.
        """
        self_test(bundle, self.max_batch)
        return str(bundle.device)

    def settle(self) -> None:
        """Nothing; the server's own process looks after what it has loaded."""

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def put(self, job: Job) -> None:
        """Queue `job` without waiting for it; raises as `Queue.put` does."""
        with self._changed:
            if not self.alive or self._stopping:
                raise WorkerDead("the inference thread has ended")
            self.refuse_when_full()
            self._waiting.append(job)
            self._changed.notify()

    def _withdraw(self, job: Job) -> bool:
        withdrawn = job.future.cancel()
        with self._changed:
            if withdrawn and job in self._waiting:
                self._waiting.remove(job)
        return withdrawn

    def _run(self) -> None:
        torch.set_num_threads(1)  # batch-invariant arithmetic, and no slower for small chains
        try:
            while self._take():
                for _ in work_on([job for job in self._taken if job.begin()], self._on_batch):
                    pass
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

    def _abandon(self) -> None:
        """Tell those who still wait that nobody will answer."""
        with self._changed:
            self._stopping = True
            left = [*self._taken, *self._waiting]
            self._waiting.clear()
        for job in left:
            if not job.future.done():
                job.future.set_exception(WorkerDead("the inference thread has ended"))

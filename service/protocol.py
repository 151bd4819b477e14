"""HTTP as uvicorn speaks it, with a bound on how long a caller may take, and problems for what is not HTTP."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.problems import Problem, problem_response

MAX_HEAD_BYTES = 64 * 2**10


class BoundedProtocol(H11Protocol):
    """A connection that is closed where its caller sends no whole request, or takes no answer, in time.

    uvicorn itself bounds only the time between two requests. The body of a request in work is bounded by the app.
    """

    head_seconds: ClassVar[float] = 10.0
    answer_seconds: ClassVar[float] = 30.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller: the time for its first request begins."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some bytes, which do not prolong the time for a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is sent: the time for the next request begins."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No more timers."""
        self._cancel(self._head_timer, self._answer_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller does not take its answer."""
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller goes on."""
        self._cancel(self._answer_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """The problem of bytes that are not HTTP, or of a head that is too large."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            detail = f"the request's line and headers hold more than {MAX_HEAD_BYTES} bytes; send fewer"
            self._refuse(Problem("headers-too-large", detail))
        else:
            self._refuse(Problem("body-malformed", "these bytes are not HTTP/1.1; send a request line, headers, a body"))

    def _watch(self) -> None:
        """Run the timer while no request is in work: before its head is whole, and while what is refused still comes."""
        if self.conn.our_state not in (h11.IDLE, h11.DONE) or self.transport.is_closing():
            self._cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _too_slow(self) -> None:
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            detail = f"no whole request came within {self.head_seconds:g} seconds; send its line and headers faster"
            self._refuse(Problem("body-timeout", detail))
        self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Send a problem where the state of the connection allows one, and close it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            identifier = uuid.uuid4().hex
            answer = problem_response(problem, identifier)
            headers = [*answer.raw_headers, (b"x-request-id", identifier.encode()), (b"connection", b"close")]
            events = (
                h11.Response(status_code=answer.status_code, headers=headers), h11.Data(data=answer.body), h11.EndOfMessage()
            )  # fmt: skip
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    @staticmethod
    def _cancel(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


def bounded_protocol(head_seconds: float, answer_seconds: float) -> type[BoundedProtocol]:
    """The protocol with these bounds, in seconds: for a request's head, and for a caller who stops taking its answer."""
    return type("Protocol", (BoundedProtocol,), {"head_seconds": head_seconds, "answer_seconds": answer_seconds})

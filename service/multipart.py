"""`multipart/form-data`, read whole and strictly: a form that ends early is refused."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.problems import Problem


@dataclass(frozen=True)
class Part:
    """One part of a form.

    Args:
        name: of the field.
        filename: where the part is a file.
        content: its bytes.
    """

    name: str
    filename: str | None
    content: bytes


class _Collector:
    """Turns the parser's events into parts."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts

    def on_part_begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise _too_many(self._max_parts)
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._content = b"", b"", bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise Problem("body-malformed", "a part of the form has no name; give each `name=` in Content-Disposition")
        filename = options.get(b"filename")
        self.parts.append(
            Part(_text(options[b"name"]), None if filename is None else _text(filename), bytes(self._content))
        )

    def on_end(self) -> None:
        self.ended = True


def parse_form(body: bytes, content_type: str, max_parts: int) -> list[Part]:
    """The parts of a form, in their order.

    Args:
        content_type: the header, with its boundary.
        max_parts: more are refused.

    Raises:
        Problem: 400 where it is no whole form, 413 where it has too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem(
            "body-malformed", "the Content-Type of the form names no boundary; let your client set the header"
        )
    if body.count(b"--" + boundary) > max_parts + 1:
        raise _too_many(max_parts)
    collector = _Collector(max_parts)
    events = {name: getattr(collector, name) for name in dir(_Collector) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, events)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Problem("body-malformed", f"the body is not multipart/form-data: {error}") from error
    if not collector.ended:
        raise Problem("body-malformed", "the form ends before its last boundary; send the whole body")
    return collector.parts


def _too_many(most: int) -> Problem:
    return Problem("items-too-many", f"the form has more than {most} parts; send it in several requests")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")

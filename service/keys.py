"""API keys: read from a file, kept as digests, compared in constant time; wrong ones are limited by client address."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request

from ltdi.errors import InvalidConfig
from service.problems import Problem

WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000
SCHEME = "bearer "


class Keys:
    """The keys of one file, one a line; empty lines and lines that begin with `#` are left out.

    Args:
        file: none means that no key is needed.
        setting: the name of the setting, for errors.

    Raises:
        InvalidConfig: as for `read`.
    """

    def __init__(self, file: Path | None, setting: str) -> None:
        self._file, self._setting = file, setting
        self._digests: list[bytes] = []
        self.read()

    @property
    def configured(self) -> bool:
        """Whether a key is needed."""
        return self._file is not None

    def read(self) -> None:
        """Read the file again; where that fails, the keys stay what they were.

        Raises:
            InvalidConfig: the file cannot be read, holds no key, or holds a line that is none.
        """
        if self._file is not None:
            self._digests = [_digest(key) for key in _keys_in(self._file, self._setting)]

    def hold(self, given: str) -> bool:
        """Whether `given` is one of the keys; takes as long for each answer, whichever key it is."""
        digest, found = _digest(given), False
        for key in self._digests:
            found |= hmac.compare_digest(key, digest)
        return found


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _keys_in(file: Path, setting: str) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InvalidConfig(f"{setting}: {file.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{setting}: {file.name} is not text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if line and line[0] != "#" and not all("!" <= sign <= "~" for sign in line):
            raise InvalidConfig(
                f"{setting}: line {number} of {file.name} is no key; a key is visible ASCII without blanks, one a line"
            )
    keys = [line for line in lines if line and line[0] != "#"]
    if not keys:
        raise InvalidConfig(f"{setting}: {file.name} holds no key; write one a line, or leave the setting out")
    return keys


class Tries:
    """Wrong keys by client address: so many in a minute, counted from the first of them.

    What is kept is bounded: beyond `addresses`, the address whose minute began longest ago is forgotten.

    Args:
        limit: wrong keys of one address in a minute.
        clock: seconds.
    """

    def __init__(
        self, limit: int, addresses: int = MAX_ADDRESSES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._most, self._clock = limit, addresses, clock
        self._kept: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def seconds_left(self, address: str) -> int:
        """Until the address may try again; 0 where it may."""
        begun, count = self._kept.get(network_of(address), (0.0, 0))
        left = begun + WINDOW_SECONDS - self._clock()
        return max(1, math.ceil(left)) if count >= self._limit and left > 0 else 0

    def note(self, address: str) -> None:
        """Count a wrong key."""
        now, name = self._clock(), network_of(address)
        begun, count = self._kept.get(name, (now, 0))
        if now - begun >= WINDOW_SECONDS:
            del self._kept[name]
            begun, count = now, 0
        self._kept[name] = begun, count + 1
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


def network_of(address: str) -> str:
    """An IPv4 address as it is; of an IPv6 address its /64, which one caller has whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def check_key(request: Request, keys: Keys, tries: Tries) -> None:
    """Let a request pass that has one of the keys, or that needs none.

    Once an address has tried too many wrong keys, its right ones are refused too: else it could go on to guess.

    Raises:
        Problem: 401, or 429 where the address tried too many wrong keys.
    """
    if not keys.configured:
        return
    address = request.client.host if request.client else ""
    if left := tries.seconds_left(address):
        detail = f"too many wrong keys came from this address; try again in {left} seconds"
        raise Problem("key-rate", detail, "Authorization", {"Retry-After": str(left)})
    given = key_of(request)
    if given and keys.hold(given):
        return
    if given:
        tries.note(address)
    detail = f"the key is {'wrong' if given else 'missing'}; send `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    raise Problem("unauthorized", detail, "Authorization", {"WWW-Authenticate": "Bearer"})


def key_of(request: Request) -> str:
    """The key that a request brings; empty where it brings none."""
    header = request.headers.get("authorization", "")
    if header[: len(SCHEME)].lower() == SCHEME:
        return header[len(SCHEME) :].strip()
    return request.headers.get("x-api-key", "").strip()

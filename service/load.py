"""`ltdi load`: what a running service does under load, overload, SIGTERM and time; every figure of the README's table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors

from ltdi import load_bundle, safetensors_bytes
from ltdi.files import write_json
from service.settings import PREFIX

HOST, BUNDLE, WAYS, SIZE = "127.0.0.1", "omniglot", 5, 256
SAFETENSORS = "application/vnd.safetensors"
LOST = 0  # the status of a request that was sent and got no answer


@dataclass
class Outcome:
    """What a load met.

    Args:
        seconds: that it lasted.
        latencies: by status, each in seconds.
    """

    seconds: float = 0.0
    latencies: dict[int, list[float]] = field(default_factory=dict)

    def note(self, status: int, latency: float) -> None:
        """Count one answer."""
        self.latencies.setdefault(status, []).append(latency)

    def facts(self, status: int = 200) -> dict[str, Any]:
        """Requests a second and latencies of one status in ms, and all statuses."""
        good = sorted(self.latencies.get(status, [])) or [float("nan")]
        quantile = {f"p{p}_ms": round(1000 * float(np.quantile(good, p / 100)), 2) for p in (50, 90, 99)}
        counts = {str(code): len(times) for code, times in sorted(self.latencies.items())}
        return {"per_second": round(counts.get(str(status), 0) / self.seconds, 1)} | quantile | {"statuses": counts}


class Connection:
    """One HTTP/1.1 connection that is kept open, as cheap as Python allows."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self, request: bytes) -> int:
        """The status of the answer; `LOST` where the connection broke after the request had gone out.

        Raises:
            ConnectionError: nobody listens.
        """
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        assert self._reader is not None
        try:
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return LOST
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        """Close it; the next call opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def message(route: str, body: bytes = b"", content_type: str = SAFETENSORS) -> bytes:
    """A request as bytes: a POST where there is a body, else a GET."""
    method = "POST" if body else "GET"
    head = f"{method} {route} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def task(ways: int = WAYS, shots: int = 1, size: int = SIZE, seed: int = 0, **metadata: str) -> bytes:
    """A request for a head of made features."""
    features = torch.randn(ways * shots, size, generator=torch.Generator().manual_seed(seed)).relu()
    return safetensors_bytes({"features": features, "labels": torch.arange(ways).repeat_interleave(shots)}, metadata)


async def load_of(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, pause: float = 0.0, rate: float = 0.0,
    until: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Closed load: so many clients, each sending its next request when the last was answered.

    Args:
        requests: sent in turn.
        pause: seconds between an answer and the next request.
        rate: requests a second of all clients together; as many as are answered where it is 0.
        until: ends it early, once no connection can be made any more.
    """
    outcome, started = Outcome(), time.perf_counter()

    async def client(number: int) -> None:
        connection, at = Connection(port), number
        due = started + number / rate if rate else started
        while time.perf_counter() - started < seconds:
            if rate:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += clients / rate
            sent = time.perf_counter()
            try:
                status = await connection.call(requests[at % len(requests)])
            except ConnectionError:
                if until():
                    return
                await asyncio.sleep(0.01)
                continue
            outcome.note(status, time.perf_counter() - sent)
            at += clients
            if pause:
                await asyncio.sleep(pause)
        connection.close()

    await asyncio.gather(*(client(n) for n in range(clients)))
    outcome.seconds = time.perf_counter() - started
    return outcome


class Serving:
    """A server in a process of its own, ready when entered.

    Args:
        settings: of the service, by name.
        rival: `plain` or `litserve` in its place.
    """

    def __init__(self, rival: str | None = None, **settings: Any) -> None:
        self._rival = rival
        self._settings = {"bundle": BUNDLE, "cache_items": 0} | settings
        self.port = free_port()
        self.seconds_to_ready = 0.0

    def __enter__(self) -> Serving:
        started = time.perf_counter()
        if self._rival:
            command = [sys.executable, "-m", "service.rivals", self._rival, BUNDLE, str(self.port)]
            given = {}
        else:
            command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", str(self.port)]
            given = {PREFIX + name.upper(): str(value) for name, value in self._settings.items()}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=os.environ | given, stdout=self.log, start_new_session=True)
        while not self._ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {self.process.returncode}")
            time.sleep(0.05)
        self.seconds_to_ready = time.perf_counter() - started
        return self

    def _ready(self) -> bool:
        try:
            return asyncio.run(Connection(self.port).call(message("/readyz"))) == 200
        except ConnectionError:
            return False

    def __exit__(self, *_: object) -> None:
        if self._rival is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # LitServe's workers outlive a polite end
        elif self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def last_words(self) -> dict[str, Any]:
        """What it logged when it stopped."""
        self.log.seek(0)
        lines = [json.loads(line) for line in self.log.read().splitlines()]
        return next(line for line in reversed(lines) if line["message"] == "stopped")

    def processes(self) -> list[int]:
        """The server's process, and the one that runs torch for it where there is one."""
        own = self.process.pid
        return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]

    def memory(self) -> float:
        """Resident memory of its processes in MiB, what they share counted once."""
        rolled = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes()]
        return round(sum(int(text.split("Pss:")[1].split()[0]) for text in rolled) / 1024, 1)

    def descriptors(self) -> int:
        """Open file descriptors of its processes."""
        return sum(1 for pid in self.processes() for _ in Path(f"/proc/{pid}/fd").iterdir())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]


def latency(seconds: float) -> dict[str, Any]:
    """One client: what HTTP adds to the same generation in this process."""
    bundle = load_bundle(BUNDLE, device="cpu")
    torch.set_num_threads(1)
    found = {}
    for shots in (1, 5):
        features = torch.randn(WAYS * shots, SIZE).relu()
        labels = [str(n) for n in range(WAYS) for _ in range(shots)]
        with Serving() as server:
            request = message("/generate-head", task(shots=shots))
            asyncio.run(load_of(server.port, [request], 1, 1.0))
            here, there = [], []
            for _ in range(10):
                for _ in range(int(20 * seconds)):
                    started = time.perf_counter()
                    bundle.generate(features, labels)
                    here.append(1000 * (time.perf_counter() - started))
                outcome = asyncio.run(load_of(server.port, [request], 1, seconds / 10))
                there += [1000 * t for t in outcome.latencies[200]]
        p50 = statistics.median(there), statistics.median(here)
        found[f"{WAYS}-way {shots}-shot"] = {
            "http_p50_ms": round(p50[0], 2), "in_process_p50_ms": round(p50[1], 2), "beyond_ms": round(p50[0] - p50[1], 2),
            "start_to_ready_seconds": round(server.seconds_to_ready, 1),
        }  # fmt: skip
    return found


def throughput(seconds: float, rivals: Sequence[str] = ("plain", "litserve")) -> dict[str, Any]:
    """1 and 32 clients, beside what one would write by hand; the servers take turns."""
    found: dict[str, Any] = {}
    for name in ("ltdi", *rivals):
        requests = [message("/generate-head", *_form(name, task(seed=n))) for n in range(16)]
        try:
            with Serving(None if name == "ltdi" else name) as server:
                asyncio.run(load_of(server.port, requests, 4, 1.0))
                found[name] = {
                    f"{clients} clients": asyncio.run(load_of(server.port, requests, clients, seconds)).facts()
                    for clients in (1, 8, 32)
                }
        except RuntimeError as error:
            found[name] = {"missing": str(error)}
    for facts in found.values():
        if "32 clients" in facts:
            facts["ratio"] = round(facts["32 clients"]["per_second"] / facts["1 clients"]["per_second"], 2)
    return found


def _form(name: str, file: bytes) -> tuple[bytes, str]:
    """The body of a request and its media type; LitServe's worker is handed nothing but JSON."""
    if name != "litserve":
        return file, SAFETENSORS
    tensors = load_safetensors(file)
    return json.dumps({key: tensor.tolist() for key, tensor in tensors.items()}).encode(), "application/json"


def overload(seconds: float) -> dict[str, Any]:
    """Ten times as many clients as may wait, and whether the process still says that it lives."""
    with Serving(queue_length=16, max_batch=16) as server:
        requests = [message("/generate-head", task(seed=n)) for n in range(16)]

        async def both() -> tuple[Outcome, Outcome, list[float]]:
            memory: list[float] = []

            async def watch() -> None:
                while True:
                    memory.append(server.memory())
                    await asyncio.sleep(max(seconds / 30, 0.1))

            watching = asyncio.create_task(watch())
            load, alive = await asyncio.gather(
                load_of(server.port, requests, 160, seconds),
                load_of(server.port, [message("/livez")], 1, seconds, pause=0.02),
            )
            watching.cancel()
            return load, alive, memory

        load, alive, memory = asyncio.run(both())
    third = max(len(memory) // 3, 1)
    return {
        "load": load.facts(), "refused": load.facts(429), "livez": alive.facts(),
        "memory_mib": {"first_third": round(statistics.mean(memory[:third]), 1),
                       "last_third": round(statistics.mean(memory[-third:]), 1), "most": max(memory)},
    }  # fmt: skip


def drain(times: int) -> dict[str, Any]:
    """SIGTERM under load: every request that was sent is answered, and the exit code is 0."""
    statuses: Counter[int] = Counter()
    codes, longest, unanswered = Counter(), 0.0, 0
    requests = [message("/generate-head", task(seed=n)) for n in range(16)]
    for _ in range(times):
        with Serving() as server:

            async def stopped(server: Serving = server) -> Outcome:
                load = asyncio.create_task(
                    load_of(server.port, requests, 16, 30.0, until=lambda: server.process.poll() is not None)
                )
                await asyncio.sleep(0.7)
                server.process.send_signal(signal.SIGTERM)
                return await load

            outcome = asyncio.run(stopped())
            codes[server.process.wait()] += 1
            longest = max(longest, outcome.seconds - 0.7)
            words = server.last_words()
            unanswered += words["begun"] - words["answered"]
        statuses.update({status: len(times) for status, times in outcome.latencies.items()})
    return {
        "times": times, "exit_codes": {str(code): count for code, count in codes.items()},
        "statuses": {str(code): count for code, count in sorted(statuses.items())},
        "accepted_and_not_answered": unanswered, "connections_broken": statuses[LOST],
        "longest_seconds": round(longest, 2),
    }  # fmt: skip


def soak(seconds: float) -> dict[str, Any]:
    """Half of what it can do, for long: memory and descriptors. The cache is full, and never holds what is asked for."""
    requests = [message("/generate-head", task(shots=1 + n % 5, ways=2 + n % 19, seed=n)) for n in range(256)]
    with Serving(cache_items=64) as server:
        full = asyncio.run(load_of(server.port, requests, 8, 10.0)).facts()
        samples = []

        async def watched() -> Outcome:
            load = asyncio.create_task(load_of(server.port, requests, 8, seconds, rate=full["per_second"] / 2))
            while not load.done():
                samples.append((server.memory(), server.descriptors()))
                await asyncio.wait({load}, timeout=max(seconds / 60, 1.0))
            return await load

        outcome = asyncio.run(watched())
    third = max(len(samples) // 3, 1)
    middle, last = samples[third : 2 * third] or samples, samples[-third:]
    return outcome.facts() | {
        "minutes": round(seconds / 60, 1), "full_load_per_second": full["per_second"],
        "memory_mib": {"middle_third": round(statistics.mean(m for m, _ in middle), 1),
                       "last_third": round(statistics.mean(m for m, _ in last), 1)},
        "descriptors": {"middle_third": round(statistics.mean(d for _, d in middle), 1),
                        "last_third": round(statistics.mean(d for _, d in last), 1)},
    }  # fmt: skip


SCENARIOS: dict[str, tuple[Callable[..., dict[str, Any]], float]] = {
    "latency": (latency, 5.0), "throughput": (throughput, 8.0), "overload": (overload, 60.0), "drain": (drain, 20),
    "soak": (soak, 900.0),
}  # fmt: skip


def load(argv: list[str]) -> int:
    """Measure the service under load: latency, throughput, overload, drain, soak."""
    parser = argparse.ArgumentParser(prog="ltdi load", description=load.__doc__)
    parser.add_argument("scenarios", nargs="*", default=[], help=f"of {', '.join(SCENARIOS)} (default: all but soak)")
    parser.add_argument("--scale", type=float, default=1.0, help="of seconds and times (default: 1)")
    parser.add_argument("--out", type=Path, help="a JSON file; scenarios that it holds already and that do not run now stay")
    args = parser.parse_args(argv)
    unknown = [name for name in args.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; known are {', '.join(SCENARIOS)}")
    found = {}
    for name in args.scenarios or [name for name in SCENARIOS if name != "soak"]:
        scenario, amount = SCENARIOS[name]
        found[name] = scenario(type(amount)(max(1, amount * args.scale)))
        print(name, found[name], flush=True)
        if args.out is not None:
            write_json(args.out, _kept(args.out) | found)
    return 0


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}

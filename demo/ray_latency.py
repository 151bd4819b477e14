"""What Ray Serve's proxy costs: the same requests to `ltdi serve` and to one replica on Ray, taking turns.

`make bench-ray` writes `results/bench-ray.json`. Each server runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import torch

ROUNDS, TOGETHER = 300, 16
OUT = Path(__file__).parents[1] / "results" / "bench-ray.json"


def main() -> None:
    """Start both, measure, print and write."""
    environment = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.update(environment)
    import ray
    from ray import serve

    from service.ray_app import build

    ray.init("local", _node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=2, log_to_driver=False)
    own, behind = str(free_port()), free_port()
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", own, "--bundle", "omniglot", "--cache-items", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as alone:
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": behind})
            serve.run(build({"bundle": "omniglot", "cache_items": "0", "max_replicas": "1"}), name="ltdi")
            measured = measure({"uvicorn": f"http://127.0.0.1:{own}", "ray": f"http://127.0.0.1:{behind}"})
        finally:
            alone.terminate()
            serve.shutdown()
            ray.shutdown()
    OUT.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2))


def measure(addresses: dict[str, str]) -> dict[str, dict[str, float]]:
    """Milliseconds of single requests, and requests a second where 16 callers ask together."""
    clients = {name: httpx.Client(base_url=address, timeout=60) for name, address in addresses.items()}
    for client in clients.values():
        wait(client)
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for seed in range(ROUNDS):
        for name, client in clients.items():
            seconds[name].append(asked(client, seed))
    for turn in range(5):
        for name, client in clients.items():
            rates[name].append(rate(client, turn))
    return {
        name: {
            "p50_ms": round(1000 * float(np.percentile(seconds[name][20:], 50)), 2),
            "p95_ms": round(1000 * float(np.percentile(seconds[name][20:], 95)), 2),
            "per_second_16_together": round(float(np.median(rates[name])), 1),
        }
        for name in clients
    }


def wait(client: httpx.Client) -> None:
    """Return once the service is ready."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the service is not ready after a minute")


def asked(client: httpx.Client, seed: int) -> float:
    """Seconds for a head of five classes from one example each, features given."""
    rows = torch.eye(256)[:5].tolist()
    support = [{"label": str(i), "features": row} for i, row in enumerate(rows)]
    started = time.perf_counter()
    client.post("/generate-head", json={"support": support, "seed": seed}).raise_for_status()
    return time.perf_counter() - started


def rate(client: httpx.Client, turn: int) -> float:
    """Requests a second of `TOGETHER` callers."""
    started = time.perf_counter()
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda seed: asked(client, seed), range(1000 + 160 * turn, 1160 + 160 * turn)))
    return 160 / (time.perf_counter() - started)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()

"""`ltdi load`, in its short forms: each starts the real service in a process of its own."""

import asyncio
import math
import socket
import threading

import pytest

from service import load
from service.load import LOST, Connection, Outcome, load_of, message


def test_overload_is_refused_and_nothing_else_happens() -> None:
    found = load.overload(3.0)
    assert set(found["load"]["statuses"]) == {"200", "429"}
    assert found["load"]["statuses"]["200"] > 20
    assert set(found["livez"]["statuses"]) == {"200"}
    assert found["memory_mib"]["most"] < found["memory_mib"]["first_third"] + 60


def test_sigterm_under_load_loses_nothing_that_was_accepted() -> None:
    found = load.drain(1)
    assert found["exit_codes"] == {"0": 1}
    assert set(found["statuses"]) <= {"0", "200", "503"} and found["statuses"]["200"] > 5
    assert found["accepted_and_not_answered"] == 0
    assert found["connections_broken"] == 0


def test_a_soak_reports_memory_and_descriptors() -> None:
    found = load.soak(3.0)
    assert set(found["statuses"]) == {"200"}
    assert 0 < found["per_second"] < found["full_load_per_second"]
    assert found["descriptors"]["last_third"] < found["descriptors"]["middle_third"] + 5


def test_a_request_that_gets_no_answer_is_lost_and_a_refused_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def hang_up() -> None:
            accepted, _ = listening.accept()
            accepted.recv(10_000)
            accepted.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        port = listening.getsockname()[1]
        assert asyncio.run(Connection(port).call(message("/livez"))) == LOST
        thread.join()
    with pytest.raises(ConnectionError):
        asyncio.run(Connection(port).call(message("/livez")))
    assert asyncio.run(load_of(port, [message("/livez")], 2, 5.0, until=lambda: True)).latencies == {}


def test_facts_of_a_load() -> None:
    outcome = Outcome(seconds=2.0)
    for status, latency in ((200, 0.001), (200, 0.003), (429, 0.5)):
        outcome.note(status, latency)
    facts = outcome.facts()
    assert (facts["per_second"], facts["p50_ms"], facts["statuses"]) == (1.0, 2.0, {"200": 2, "429": 1})
    assert math.isnan(Outcome(seconds=1.0).facts()["p99_ms"])


def test_scenarios_are_kept_in_one_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(load.SCENARIOS, "soak", (lambda seconds: {"for": seconds}, 10.0))
    monkeypatch.setitem(load.SCENARIOS, "drain", (lambda times: {"times": times}, 4))
    out = tmp_path / "load.json"
    assert load.load(["soak", "--scale", "0.5", "--out", str(out)]) == 0
    assert load.load(["drain", "--scale", "0.5", "--out", str(out)]) == 0
    assert load._kept(out) == {"soak": {"for": 5.0}, "drain": {"times": 2}}
    with pytest.raises(SystemExit):
        load.load(["flood"])

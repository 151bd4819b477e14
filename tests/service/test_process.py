"""The process that runs torch: the same answers as a thread, its bounds, its death, and its end."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ltdi import Bundle, HeadRequest, Options, UnsupportedInput, load_bundle, safetensors_bytes
from service.decode import cheap
from service.inference import portable
from service.jobs import Call, Job, WorkerDead
from service.problems import Problem
from service.process import ProcessWorker, processes_work
from service.settings import Settings
from service.wire import Buffer, bundle_of, frame, pack, unpack
from tests.conftest import make_bundle
from tests.embedder import embedder
from tests.service.conftest import Running, json_task
from tests.service.test_callers import wait_for
from tests.service.test_worker import of_another_bundle, requests, soon

pytestmark = pytest.mark.skipif(not processes_work(), reason="sockets cannot be handed to another process here")
SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    running = Running(Settings(bundle=(str(folder),), cache_items=0), None)
    yield running
    running.stop()


def with_worker(folder: Path, ask: Callable[[ProcessWorker, Bundle], Any], **settings: Any) -> Any:
    """What `ask` returns, with a worker that has adopted the bundle of the folder."""

    async def run() -> Any:
        worker = ProcessWorker(Settings(**settings))
        worker.start()
        bundle = load_bundle(folder, device="cpu")
        try:
            assert await asyncio.to_thread(worker.adopt, bundle, str(folder)) == "cpu"
            return await ask(worker, bundle)
        finally:
            await worker.drain(10)

    return asyncio.run(run())


def test_the_service_runs_torch_in_a_process_unless_it_is_told_otherwise(server: Running, running: Running) -> None:
    assert isinstance(server.app.state.service.worker, ProcessWorker)
    assert not isinstance(running.app.state.service.worker, ProcessWorker)


def test_process_and_thread_answer_with_the_same_bytes_and_etag(server: Running, folder: Path, images, labels) -> None:
    here = Running(Settings(bundle=(str(folder),), worker="thread"), None)
    try:
        for form in ({"json": json_task(images, labels, seed=7)}, {"json": json_task(images, labels, options={"draws": 2})}):
            one, other = (s.client.post("/generate-head", **form) for s in (server, here))
            assert (one.status_code, other.status_code) == (200, 200)
            assert one.content == other.content and one.headers["etag"] == other.headers["etag"]
        for route, body in (("/embed", {"inputs": [{"features": [0.1] * 256}]}), ("/embed?as=task", json_task(images, labels))):
            answers = [s.client.post(route, json=body) for s in (server, here)]
            assert answers[0].content == answers[1].content and answers[0].status_code == 200
        head = here.client.post("/generate-head", json=json_task(images, labels))
        asked = {"artefact": head.headers["etag"].strip('"'), "queries": [{"features": [0.5] * 256}]}
        here_says = here.client.post("/predict", json=asked).json()["probabilities"]
        assert server.client.post("/predict", json=asked).status_code == 404, "a cache is a server's own"
        asked = {"head": base64.b64encode(head.content).decode(), "queries": asked["queries"]}
        assert server.client.post("/predict", json=asked).json()["probabilities"] == here_says
    finally:
        here.stop()


def test_stages_and_batches_are_counted_as_in_a_thread(server: Running, images, labels) -> None:
    answer = server.client.post("/generate-head", json=json_task(images, labels, seed=11))
    assert re.findall(r"(\w+);dur", answer.headers["server-timing"]) == [
        "decode", "embed", "queue", "sample", "check", "encode", "total",
    ]  # fmt: skip
    metrics = server.client.get("/metrics").text
    assert re.search(r'ltdi_batch_size_count{model="toy"} [1-9]', metrics) and "ltdi_worker_alive 1.0" in metrics
    assert re.search(r'ltdi_model_info{.*device="cpu".*} 1', metrics)


def test_heads_that_wait_together_are_sampled_together_and_one_that_fails_hurts_no_other(folder: Path) -> None:
    sizes: list[int] = []

    async def ask(worker: ProcessWorker, bundle: Bundle) -> list[Any]:
        worker._on_batch = lambda name, size: sizes.append(size)
        works = [*requests(bundle, 9), of_another_bundle(bundle)]
        first = asyncio.ensure_future(worker.submit(Job(Call(time.sleep, (0.5,)), None, soon())))
        assert await settled(lambda: worker._jobs and not worker.depth)
        jobs = [worker.submit(Job(work, bundle, soon())) for work in works]
        return await asyncio.gather(first, *jobs, return_exceptions=True)

    _, *heads, failed = with_worker(folder, ask)
    bundle = load_bundle(folder, device="cpu")
    alone = [bundle.generate_many([request])[0].to_bytes() for request in requests(bundle, 9)]
    assert [head.to_bytes() for head in heads] == alone
    assert isinstance(failed, UnsupportedInput) and failed.field == "task_embedding"
    assert sizes[0] == 10


def test_a_full_queue_a_late_job_and_a_caller_who_left(folder: Path) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        busy = asyncio.ensure_future(worker.submit(Job(Call(time.sleep, (0.6,)), None, soon())))
        assert await settled(lambda: worker.depth == 0 and worker._jobs)
        late = asyncio.ensure_future(worker.submit(Job(Call(os.getpid, ()), None, soon(0.1))))
        leaving = asyncio.ensure_future(worker.submit(Job(Call(os.getpid, ()), None, soon())))
        await asyncio.sleep(0)
        assert worker.depth == 2 and worker.full
        with pytest.raises(Problem) as refused:
            await worker.submit(Job(Call(os.getpid, ()), None, soon()))
        assert refused.value.code == "queue-full"
        leaving.cancel()
        with pytest.raises(Problem) as problem:
            await late
        assert problem.value.code == "deadline-passed" and not busy.done()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert worker.depth == 0
        await busy
        assert await worker.submit(Job(Call(os.getpid, ()), None, soon())) == worker.pid

    with_worker(folder, ask, queue_length=2)


async def settled(condition: Callable[[], Any]) -> bool:
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        await asyncio.sleep(0.01)
    return bool(condition())


def test_a_fault_brings_the_places_where_it_was_raised_and_nothing_of_its_message(folder: Path, caplog) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        with pytest.raises(ValueError) as fault:
            await worker.submit(Job(Call(json.loads, ("{secret",)), None, soon()))
        assert any("decoder.py" in place for place in fault.value.at)

    with_worker(folder, ask)


def test_an_error_that_cannot_be_sent_is_told_by_its_name() -> None:
    class Local(Exception):
        pass

    sent = portable(Local("secret"))
    assert isinstance(sent.error, RuntimeError) and str(sent.error) == "Local"
    problem = portable(Problem("queue-full", "so many", "support", {"A": "b"}))
    assert unpack(pack(problem)).arrived() == Problem("queue-full", "so many", "support", {"A": "b"})


def test_work_for_a_bundle_that_is_not_there_any_more_is_told_to_come_again(folder: Path, toy_paper: Bundle) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        with pytest.raises(Problem) as problem:
            await worker.submit(Job(Call(Bundle.embed, (toy_paper, torch.zeros(2, 256))), None, soon()))
        assert problem.value.code == "model-not-ready"

    with_worker(folder, ask)


def test_when_the_process_is_killed_everyone_learns_it_within_a_second(folder: Path, caplog) -> None:
    server = Running(Settings(bundle=(str(folder),), cache_items=0), None)
    try:
        http, worker = server.client, server.app.state.service.worker
        body = safetensors_bytes({"features": torch.rand(2, 256), "labels": torch.arange(2)}, {})
        os.kill(worker.pid, signal.SIGSTOP)
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(http.post("/generate-head", content=body, headers=SAFETENSORS))
        )
        asking.start()
        assert wait_for(lambda: worker.depth == 1)
        os.kill(worker.pid, signal.SIGKILL)
        died = time.monotonic()
        while (codes := [http.get(path).status_code for path in ("/readyz", "/livez")]) != [503, 503]:
            assert time.monotonic() - died < 1, codes
        asking.join(10)
        refused = http.post("/generate-head", content=body, headers=SAFETENSORS)
        for answer in (answers[0], refused):
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:ltdi:not-ready")
        assert "ltdi_worker_alive 0.0" in http.get("/metrics").text
    finally:
        server.stop()
    (record,) = [record for record in caplog.records if record.message == "inference ended"]
    assert record.levelname == "CRITICAL" and record.fields["exit_code"] == -signal.SIGKILL


def test_a_bundle_that_changes_between_server_and_process_does_not_serve(folder: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "toy", fallback_margin=0.25)

    async def run() -> None:
        worker = ProcessWorker(Settings())
        worker.start()
        try:
            with pytest.raises(Exception, match="was changed while it was loaded"):
                await asyncio.to_thread(worker.adopt, load_bundle(folder, device="cpu"), str(other))
        finally:
            await worker.drain(5)

    asyncio.run(run())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_with_its_server(folder: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(folder), "--leave-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        lines: list[str] = []
        for line in server.stdout:
            lines.append(line)
            if "bundle ready" in line:
                break
        child = children_of(server.pid)[0]
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if how != signal.SIGKILL:
                os.kill(child, name)  # what ends a whole process group reaches it too, and it goes on
        server.send_signal(how)
        rest = server.stdout.read()
        code = server.wait(timeout=30)
    assert wait_for(lambda: not Path(f"/proc/{child}").exists(), 10)
    assert code == (0 if how != signal.SIGKILL else -signal.SIGKILL), rest
    assert "Traceback" not in rest and "terminate" not in rest and "inference ended" not in rest


def children_of(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_tensors_and_bundles_survive_the_way_and_a_bundle_goes_as_its_digest(toy: Bundle) -> None:
    request = requests(toy, 1)[0]
    tensors = [torch.arange(3), torch.rand(2, 3), torch.zeros(0, 4), torch.tensor([True]), torch.randint(0, 9, (2, 2, 2)).byte()]
    packed = pack((request, toy, tensors))
    assert len(packed) < 30_000
    back, bundle, same = unpack(packed, {toy.digest: toy})
    assert bundle is toy and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, same, strict=True))
    assert isinstance(back, HeadRequest) and back.options == Options(seed=0)
    assert toy.generate_many([back])[0].to_bytes() == toy.generate_many([request])[0].to_bytes()
    with pytest.raises(LookupError):
        bundle_of(toy.digest)


def test_frames_come_whole_however_they_are_cut() -> None:
    contents = [b"", b"a", b"x" * 70_000]
    stream, buffer, seen = b"".join(map(frame, contents)), Buffer(), []
    for at in range(0, len(stream), 7):
        buffer.add(stream[at : at + 7])
        while (whole := buffer.whole()) is not None:
            seen.append(whole)
    assert seen == contents


def test_a_worker_that_was_stopped_takes_no_job(folder: Path) -> None:
    kept: list[ProcessWorker] = []

    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        kept.append(worker)

    with_worker(folder, ask)
    with pytest.raises(WorkerDead):
        kept[0].put(Job(Call(os.getpid, ()), None, soon()))
    with pytest.raises(WorkerDead):
        kept[0].adopt(load_bundle(folder, device="cpu"), str(folder))


def test_texts_are_embedded_by_the_server_and_their_head_is_made_by_the_process() -> None:
    with embedder() as endpoint:
        asked = {"embedder_url": endpoint.url, "embedder_batch": 4}
        far = Running(Settings(bundle=("any-embedding",), **asked), None)
        near = Running(Settings(bundle=("any-embedding",), worker="thread", **asked), None)
        try:
            classes = [{"label": "refund", "description": "money back"}, {"label": "card", "description": "a lost card"}]
            log = [{"text": text} for text in ("where is my money", "my card is gone", "a new card please")]
            task = {"classes": classes, "unlabelled": log}
            heads = [server.client.post("/generate-head", json=task) for server in (far, near)]
            assert [head.status_code for head in heads] == [200, 200], heads[0].text
            assert heads[0].content == heads[1].content and "embed;dur=" in heads[0].headers["server-timing"]
            endpoint.reset()
            vectors = [server.client.post("/embed", json={"inputs": log}).content for server in (far, near)]
            assert vectors[0] == vectors[1] and len(endpoint.calls) == 2
        finally:
            far.stop()
            near.stop()


def test_a_result_that_cannot_be_sent_is_told_and_the_process_goes_on(folder: Path) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        with pytest.raises(Exception, match="pickle"):
            await worker.submit(Job(Call(eval, ("lambda: 1",)), None, soon()))
        assert await worker.submit(Job(Call(os.getpid, ()), None, soon())) == worker.pid

    with_worker(folder, ask)


def test_large_answers_come_whole(folder: Path) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        made = await worker.submit(Job(Call(torch.arange, (500_000,)), None, soon()))
        assert torch.equal(made, torch.arange(500_000))

    with_worker(folder, ask)


def test_what_callers_who_left_had_sent_does_not_pile_up(folder: Path) -> None:
    async def ask(worker: ProcessWorker, bundle: Bundle) -> None:
        busy = asyncio.ensure_future(worker.submit(Job(Call(time.sleep, (0.8,)), None, soon())))
        assert await settled(lambda: worker._jobs and not worker.depth)
        for _ in range(12):
            large = Call(len, (torch.zeros(2**20),))
            jobs = [asyncio.ensure_future(worker.submit(Job(large, None, soon()))) for _ in range(4)]
            await asyncio.sleep(0)
            assert worker.depth == 4
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            assert worker.depth == 0 and not worker._unsent
        held = worker._line._transport.get_write_buffer_size()
        assert held <= 2**22 + 2**16, f"{held} bytes wait in the socket"  # one of them may have been on its way
        assert await worker.submit(Job(Call(os.getpid, ()), None, soon())) == worker.pid
        await busy

    with_worker(folder, ask, queue_length=4)


def test_a_worker_is_started_once_and_answers_everyone_when_it_is_stopped(folder: Path) -> None:
    async def run() -> None:
        worker = ProcessWorker(Settings())
        worker.start()
        with pytest.raises(RuntimeError):
            worker.start()
        await asyncio.to_thread(worker.adopt, load_bundle(folder, device="cpu"), str(folder))
        left = asyncio.ensure_future(worker.submit(Job(Call(time.sleep, (30,)), None, soon())))
        assert await settled(lambda: worker._jobs and not worker.depth)
        await worker.drain(0.0)
        with pytest.raises(WorkerDead):
            await left
        assert not worker.alive and worker._process.returncode is not None

    asyncio.run(run())


def served_in(folder: Path, cwd: Path, ends_at: str, **environment: str) -> tuple[int, list[dict]]:
    """Exit code and log of a service that is sent SIGTERM soon after it has logged `ends_at`."""
    command = [sys.executable, "-P", "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", f"{folder},omniglot,any-embedding"]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [*command, "--leave-seconds", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        env=os.environ | {"PYTHONPATH": root} | environment,
    ) as server:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if ends_at in line:
                break
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        lines += server.stdout.readlines()
        return server.wait(timeout=30), [json.loads(line) for line in lines]


def test_the_process_imports_what_its_server_does_and_takes_settings_from_it_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "safetensors.py").write_text("raise SystemExit('imported from the working directory')")
    code, lines = served_in(folder, tmp_path, "bundle ready", LTDI_PORT="no number")
    assert code == 0 and "bundle ready" in {line["message"] for line in lines}
    assert not [line for line in lines if line["level"] in ("error", "critical")]


def test_a_stop_while_bundles_are_loaded_is_no_error(folder: Path, tmp_path: Path) -> None:
    code, lines = served_in(folder, tmp_path, "startup complete")
    assert code == 0 and not [line for line in lines if line["level"] in ("error", "critical")]


def test_only_small_bodies_of_features_are_decoded_on_the_event_loop() -> None:
    labels = torch.arange(20) % 5
    few = {"features": torch.rand(20, 256), "labels": labels}
    assert cheap(safetensors_bytes(few, {"classes": '["a","b"]'}))
    rest = {
        "many rows": ({"features": torch.rand(200, 4), "labels": torch.zeros(200).long()}, {}),
        "images": ({"images": torch.zeros(20, 1, 2, 2).byte(), "labels": labels}, {}),
        "a pool": (few | {"unlabelled": torch.rand(5, 256)}, {}),
        "descriptions": (few, {"classes": '[{"label": "a", "description": "b"}]'}),
        "descriptions in other letters": (few, {"classes": r'[{"label": "a", "descr\u0069ption": "b"}]'}),
        "much metadata": (few, {"classes": "[]" + " " * 2000}),
    }
    for name, (tensors, metadata) in rest.items():
        assert not cheap(safetensors_bytes(tensors, metadata)), name
    for damaged in (b"", b"x" * 50, (2**40).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"{}"):
        assert not cheap(damaged)


def test_a_service_whose_process_was_killed_ends_with_exit_code_1(folder: Path) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        for line in server.stdout:
            if "bundle ready" in line:
                break
        os.kill(children_of(server.pid)[0], signal.SIGKILL)
        lines = [json.loads(line) for line in server.stdout.readlines()]
        assert server.wait(timeout=30) == 1
    (ended,) = [line for line in lines if line["message"] == "inference ended"]
    assert (ended["level"], ended["exit_code"]) == ("critical", -signal.SIGKILL)

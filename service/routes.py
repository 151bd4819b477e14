"""The routes: read a body within its bounds, decode it in a thread, queue the work, send the artefact."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from ltdi import Bundle, Head, LtDiError, TaskEmbedding, load_head, safetensors_bytes
from service import documents
from service.decode import JSON, MULTIPART, SAFETENSORS, Decoder, HeadCall, PredictCall
from service.encode import Artefact, choose_form, etag_of, milliseconds, server_timing
from service.metrics import MEDIA_TYPE
from service.problems import CLIENT_GONE, Problem
from service.worker import Job

router = APIRouter()


@router.post("/generate-head", **documents.GENERATE)
async def generate_head(request: Request) -> Response:
    """A task in, a head out."""
    state = request.app.state.service
    _refuse_while_not_ready(state)
    form = choose_form(request.headers.get("accept", ""))
    call: HeadCall = await _decoded(request, lambda decoder: decoder.head_call)
    etag = etag_of(call, form)
    artefact, hit = state.cache.get(etag), True
    state.metrics.cache.labels("miss" if artefact is None else "hit").inc()
    if artefact is None:
        artefact, hit = await _generated(request, call, etag, form), False
        state.cache.put(artefact)
    return await _send(request, artefact, hit, call.truncated)


async def _generated(request: Request, call: HeadCall, etag: str, form: str) -> Artefact:
    state, seconds = request.app.state.service, request.state.seconds
    job = Job(call.request, call.bundle, _deadline(state), seconds)
    head: Head = await _while_connected(request, state.worker.submit(job))
    seconds |= job.seconds
    artefact = await _encoded(seconds, Artefact.of, head, etag, form)
    _count_artefact(state, call, artefact, seconds)
    return artefact


def _count_artefact(state: Any, call: HeadCall, artefact: Artefact, seconds: dict[str, float]) -> None:
    metrics, model = state.metrics, call.bundle.name
    metrics.ways.labels("head").observe(call.ways)
    metrics.examples.labels("head").observe(call.examples)
    metrics.artefact_bytes.labels("head").observe(len(artefact.content))
    if artefact.method == "baseline":
        metrics.fallbacks.labels("support_accuracy").inc()
    if artefact.support_accuracy is not None:
        metrics.accuracy.labels(model).observe(artefact.support_accuracy)
        metrics.gain.labels(model).observe(artefact.support_accuracy - artefact.baseline_support_accuracy)
    metrics.observe_stages(model, seconds)


async def _encoded(seconds: dict[str, float], encode: Callable[..., Any], *arguments: Any) -> Any:
    """What `encode` makes of the arguments, in a thread, timed."""
    started = time.perf_counter()
    made = await asyncio.to_thread(encode, *arguments)
    seconds["encode"] = seconds.get("encode", 0.0) + time.perf_counter() - started
    return made


async def _send(request: Request, artefact: Artefact, hit: bool, truncated: int = 0) -> Response:
    content = await asyncio.to_thread(artefact.body, milliseconds(_stages(request)))
    headers = artefact.headers() | {
        "Server-Timing": server_timing(_stages(request)),
        "LtDi-Cache": "hit" if hit else "miss",
        "Vary": "Accept",
    }
    if truncated:
        headers["LtDi-Truncated"] = str(truncated)
    return Response(content, 200, headers, artefact.form)


@router.get("/artefacts/{etag}", **documents.ARTEFACT)
async def artefact(request: Request, etag: str) -> Response:
    """A cached artefact."""
    kept = request.app.state.service.cache.get(etag)
    if kept is None:
        raise Problem("artefact-not-cached", f"artefact {etag[:80]!r} is not kept any more; generate it again", "etag")
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(None, 304, kept.headers())
    choose_form(request.headers.get("accept", ""), (kept.form,))
    return await _send(request, kept, hit=True)


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return etag in tags or "*" in tags


@router.post("/embed", **documents.EMBED)
async def embed(request: Request, kind: str = Query("features", alias="as", pattern="^(features|task)$")) -> Response:
    """Items in, features out; with `as=task`, a task embedding."""
    state = request.app.state.service
    _refuse_while_not_ready(state)
    form = choose_form(request.headers.get("accept", ""))
    return await (_embed_task if kind == "task" else _embed_items)(request, form)


async def _embed_items(request: Request, form: str) -> Response:
    state, seconds = request.app.state.service, request.state.seconds
    bundle, prepared = await _decoded(request, lambda decoder: decoder.inputs)
    features = await _run(request, lambda: bundle.embed(prepared), "embed")
    facts = {"model": bundle.name, "bundle_digest": bundle.digest}
    if form == SAFETENSORS:
        file = {"format": "ltdi.features", **facts}
        content = await _encoded(seconds, safetensors_bytes, {"features": features}, file)
    else:
        rows = await _encoded(seconds, features.tolist)
        values = {"feature_size": bundle.feature_size, "features": rows, "timings_ms": milliseconds(_stages(request))}
        content = await asyncio.to_thread(_json, facts | values)
    state.metrics.observe_stages(bundle.name, seconds)
    return Response(
        content, 200, {"Server-Timing": server_timing(_stages(request)), "LtDi-Bundle": _named(bundle)}, form
    )


async def _embed_task(request: Request, form: str) -> Response:
    seconds = request.state.seconds
    bundle, support = await _decoded(request, lambda decoder: decoder.task)
    task: TaskEmbedding = await _run(request, lambda: bundle.embed_task(support), "embed")
    content = await _encoded(seconds, safetensors_bytes, task.tensors(), task.metadata())
    if form == JSON:
        facts = {
            "model": bundle.name,
            "bundle_digest": bundle.digest,
            "labels": list(task.rows),
            "baseline_support_accuracy": task.baseline_support_accuracy,
            "task_embedding": base64.b64encode(content).decode(),
            "timings_ms": milliseconds(_stages(request)),
        }
        content = await asyncio.to_thread(_json, facts)
    request.app.state.service.metrics.observe_stages(bundle.name, seconds)
    return Response(
        content, 200, {"Server-Timing": server_timing(_stages(request)), "LtDi-Bundle": _named(bundle)}, form
    )


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


@router.post("/predict", **documents.PREDICT)
async def predict(request: Request) -> Response:
    """A head and queries in, probabilities out."""
    state = request.app.state.service
    _refuse_while_not_ready(state)
    choose_form(request.headers.get("accept", ""), (JSON,))
    call: PredictCall = await _decoded(request, lambda decoder: decoder.prediction)
    head = await asyncio.to_thread(_head_of, state, call)
    bundle = state.models.bundle(call.model or head.metadata.get("model"))
    prepared = await asyncio.to_thread(call.queries, bundle)
    probabilities = await _run(request, lambda: head.predict_proba(bundle.embed(prepared)).tolist(), "embed")
    document = {
        "model": bundle.name,
        "labels": head.labels,
        "predictions": [head.labels[row.index(max(row))] for row in probabilities],
        "probabilities": probabilities,
        "timings_ms": milliseconds(_stages(request)),
    }
    content = await asyncio.to_thread(_json, document)
    return Response(
        content, 200, {"Server-Timing": server_timing(_stages(request)), "LtDi-Bundle": _named(bundle)}, JSON
    )


def _head_of(state: Any, call: PredictCall) -> Head:
    if (call.artefact is None) == (call.head is None):
        raise Problem("request-invalid", "send exactly one of `artefact` (an ETag) and `head` (a file)", "artefact")
    if call.head is not None:
        try:
            return load_head(call.head)
        except LtDiError as error:
            error.field = "head"
            raise
    kept = state.cache.get(call.artefact.removeprefix("W/").strip('"'))
    if kept is None:
        raise Problem("artefact-not-cached", "this artefact is not kept any more; send it as `head`", "artefact")
    return load_head(kept.content)


@router.get("/models", **documents.MODELS)
async def models(request: Request) -> JSONResponse:
    """Every bundle, the default first."""
    served = request.app.state.service.models
    return JSONResponse({"models": [served.document(model) for model in served.all]})


@router.get("/models/{name}", **documents.MODEL)
async def model(request: Request, name: str) -> JSONResponse:
    """One bundle: limits, digest, measured accuracy beside the closed form."""
    served = request.app.state.service.models
    return JSONResponse(served.document(served.find(name)))


@router.get("/models/{name}/body", **documents.BODY)
async def body(request: Request, name: str) -> Response:
    """The body's parameters, so that a client can embed by itself."""
    choose_form(request.headers.get("accept", ""), (SAFETENSORS,))
    bundle: Bundle = request.app.state.service.models.bundle(name)
    config = bundle.config.body
    if bundle.body.kind != "images":
        raise Problem(
            "input-unsupported",
            f"model {bundle.name!r} carries no body: {config.model or 'features are made elsewhere'}",
            "model",
        )
    facts = {
        "format": "ltdi.body",
        "body": config.name,
        "image_size": str(config.image_size),
        "bundle_digest": bundle.digest,
    }
    content = await asyncio.to_thread(safetensors_bytes, dict(bundle.body.state_dict()), facts)
    return Response(content, 200, {"ETag": f'"{bundle.digest}-body"'}, SAFETENSORS)


@router.get("/livez", **documents.HEALTH)
async def livez(request: Request) -> JSONResponse:
    """Whether the process should go on running."""
    return _health(request.app.state.service.live_reasons())


@router.get("/readyz", **documents.HEALTH)
async def readyz(request: Request) -> JSONResponse:
    """Whether the service takes work."""
    return _health(request.app.state.service.ready_reasons())


@router.get("/health", **documents.HEALTH)
async def health(request: Request) -> JSONResponse:
    """The same as `/readyz`."""
    return _health(request.app.state.service.ready_reasons())


def _health(reasons: list[str]) -> JSONResponse:
    headers = {"Retry-After": "5"} if reasons else None
    document = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
    return JSONResponse(document, 503 if reasons else 200, headers)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    return Response(request.app.state.service.metrics.text(), media_type=MEDIA_TYPE)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """A page to try it."""
    return HTMLResponse(_page())


@cache
def _page() -> str:
    return (files("service") / "page" / "index.html").read_text(encoding="utf-8")


def _stages(request: Request) -> dict[str, float]:
    """Seconds by stage, with the total until now."""
    request.state.seconds["total"] = time.perf_counter() - request.state.started
    return request.state.seconds


def _named(bundle: Bundle) -> str:
    return f"{bundle.name}@{bundle.digest[:12]}"


def _deadline(state: Any) -> float:
    return time.monotonic() + state.settings.answer_seconds


def _refuse_while_not_ready(state: Any) -> None:
    if state.draining:
        raise Problem("draining", "the service is shutting down; send the request to another replica")
    if state.live_reasons():
        raise Problem("not-ready", "; ".join(state.live_reasons()))


async def _run(request: Request, work: Callable[[], Any], stage: str) -> Any:
    """Work on the inference thread, timed as a stage."""
    state, seconds = request.app.state.service, request.state.seconds

    def timed(note: Callable[[str, float], None]) -> Any:
        started = time.perf_counter()
        result = work()
        note(stage, time.perf_counter() - started)
        return result

    job = Job(timed, None, _deadline(state), seconds)
    result = await _while_connected(request, state.worker.submit(job))
    seconds |= job.seconds
    return result


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of `work`, given up when the caller leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem("client-gone", f"the caller left ({CLIENT_GONE})")
    finally:
        for pending in (task, gone):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _decoded(request: Request, choose: Callable[[Decoder], Callable]) -> Any:
    """The body, read within its bounds and decoded in a thread by the method that `choose` picks."""
    state = request.app.state.service
    content_type = request.headers.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    if media_type not in (JSON, MULTIPART, SAFETENSORS):
        raise Problem(
            "media-type-unsupported",
            f"request form {media_type[:80]!r} is unknown; known are {JSON}, {MULTIPART}, {SAFETENSORS}",
            "Content-Type",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem("media-type-unsupported", "the body is compressed; send it as it is", "Content-Encoding")
    content = await _read_body(request, state.settings.max_body_bytes, state.settings.body_seconds)
    started = time.perf_counter()
    decode = choose(Decoder(state.settings, state.models.bundle))
    result = await asyncio.to_thread(decode, media_type, content_type, content)
    request.state.seconds["decode"] = time.perf_counter() - started
    return result


async def _read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body, refused as soon as it is known to be too large or too slow."""
    too_large = Problem("body-too-large", f"the body is larger than {most} bytes; send fewer or smaller examples")
    if int(request.headers.get("content-length", "0") or 0) > most:
        raise too_large
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                received += chunk
                if len(received) > most:
                    raise too_large
    except TimeoutError as error:
        detail = f"the body did not arrive within {seconds:g} seconds; send it faster, or less of it"
        raise Problem("body-timeout", detail, headers={"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise Problem("client-gone", f"the caller left ({CLIENT_GONE}) before the body was whole") from error
    return bytes(received)

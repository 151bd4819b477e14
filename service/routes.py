"""The routes: read a body within its bounds, decode it (in a thread, unless that is quick), queue the work, send the artefact."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor

from ltdi import Bundle, Head, HeadRequest, LtDiError, TaskEmbedding, load_head, safetensors_bytes
from ltdi.onnx_files import body_onnx
from ltdi.support import Items
from service import documents, schemas
from service.decode import JSON, MULTIPART, ONNX, SAFETENSORS, Decoder, HeadCall, PredictCall, cheap, parse_json
from service.encode import (
    ALL_FORMS,
    BODY_FORMS,
    FORMS_OF,
    Artefact,
    choose_form,
    etag_of,
    milliseconds,
    probabilities,
    server_timing,
)
from service.jobs import FULL_PAUSE, Call, Job
from service.keys import check_key
from service.metrics import MEDIA_TYPE
from service.problems import CLIENT_GONE, Problem, framework_problem

SMALL_BODY = 64 * 2**10  # bytes that are read and decoded although the queue is full: the answer may be cached
DISCARD_SECONDS = 1.0  # to read a body that is refused while the service stops
UNWATCHED = 0.02  # seconds before it is watched whether the caller left; most work is done by then
DRAINING_PAUSE = 0.1  # seconds before a refusal, so that callers who ask again at once do not stand at a closing door


async def need_key(request: Request) -> None:
    """The key, looked at before anything of the body is read."""
    state = request.app.state.service
    check_key(request, state.keys, state.key_tries)


router = APIRouter(dependencies=[Depends(need_key)])
open_routes = APIRouter()


@router.post("/generate-head", **documents.GENERATE)
async def generate_head(request: Request) -> Response:
    """A task in, a head or an adapter out."""
    state, accept = request.app.state.service, request.headers.get("accept", "")
    await _refuse_while_not_ready(request)
    choose_form(accept, ALL_FORMS)
    call: HeadCall = await _decoded(request, lambda decoder: decoder.head_call)
    form = choose_form(accept, FORMS_OF[call.bundle.kind])
    etag = etag_of(call, form)
    artefact, hit = state.cache.get(etag), True
    state.metrics.cache.labels("miss" if artefact is None else "hit").inc()
    if artefact is None:
        artefact, hit = await _generated(request, call, etag, form), False
        state.cache.put(artefact)
    return await _send(request, artefact, hit, call.truncated)


async def _generated(request: Request, call: HeadCall, etag: str, form: str) -> Artefact:
    state, seconds = request.app.state.service, request.state.seconds
    deadline = _deadline(state)
    work = await _with_features(request, call, deadline)
    finish = partial(Artefact.of, etag=etag, form=form)
    artefact: Artefact = await _submitted(request, Job(work, call.bundle, deadline, finish, seconds=seconds))
    _count_artefact(state, call, artefact, seconds)
    return artefact


async def _with_features(request: Request, call: HeadCall, deadline: float) -> HeadRequest:
    """The task with the features of its texts, where a remote body makes them."""
    wanted, body = call.request, call.bundle.body
    if not body.remote or isinstance(wanted.task, TaskEmbedding) or not wanted.task.texts:
        return wanted
    work = request.app.state.service.embedder.of_task(body, wanted.task, wanted.truncate, deadline)
    return replace(wanted, embedded=await _elsewhere(request, call.bundle, work))


async def _as_features(request: Request, bundle: Bundle, prepared: Items, deadline: float) -> Items:
    """Prepared items; texts that a remote body reads as features."""
    if not bundle.body.remote or isinstance(prepared, Tensor):
        return prepared
    work = request.app.state.service.embedder.of_texts(bundle.body, prepared, False, deadline)
    return await _elsewhere(request, bundle, work)


async def _elsewhere(request: Request, bundle: Bundle, work: Any) -> Any:
    """The result of remote embedding, timed as stage `embed`, which is counted where it fails too."""
    seconds, started = request.state.seconds, time.perf_counter()
    try:
        return await _while_connected(request, work)
    except Exception:
        request.app.state.service.metrics.observe_stages(bundle.name, {"embed": time.perf_counter() - started})
        raise
    finally:
        seconds["embed"] = time.perf_counter() - started


def _count_artefact(state: Any, call: HeadCall, artefact: Artefact, seconds: dict[str, float]) -> None:
    metrics, model, kind = state.metrics, call.bundle.name, call.bundle.kind
    metrics.ways.labels(kind).observe(call.ways)
    metrics.examples.labels(kind).observe(call.examples)
    metrics.artefact_bytes.labels(kind).observe(len(artefact.content))
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
    content = artefact.content
    if artefact.form != SAFETENSORS:
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
    await _refuse_while_not_ready(request)
    form = choose_form(request.headers.get("accept", ""))
    return await (_embed_task if kind == "task" else _embed_items)(request, form)


async def _embed_items(request: Request, form: str) -> Response:
    state, seconds = request.app.state.service, request.state.seconds
    bundle, prepared = await _decoded(request, lambda decoder: decoder.inputs)
    _needs_heads(bundle)
    deadline = _deadline(state)
    prepared = await _as_features(request, bundle, prepared, deadline)
    features = await _run(request, Call(Bundle.embed, (bundle, prepared)), deadline)
    facts = {"model": bundle.name, "bundle_digest": bundle.digest}
    if form == SAFETENSORS:
        file = {"format": "ltdi.features", **facts}
        content = await _encoded(seconds, safetensors_bytes, {"features": features}, file)
    else:
        rows = await _encoded(seconds, features.tolist)
        values = {"feature_size": features.shape[1], "features": rows, "timings_ms": milliseconds(_stages(request))}
        content = await asyncio.to_thread(_json, facts | values)
    state.metrics.observe_stages(bundle.name, seconds)
    return Response(
        content, 200, {"Server-Timing": server_timing(_stages(request)), "LtDi-Bundle": _named(bundle)}, form
    )


async def _embed_task(request: Request, form: str) -> Response:
    seconds = request.state.seconds
    bundle, support = await _decoded(request, lambda decoder: decoder.task)
    _needs_heads(bundle)
    task: TaskEmbedding = await _run(request, Call(Bundle.embed_task, (bundle, support)))
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
    await _refuse_while_not_ready(request)
    choose_form(request.headers.get("accept", ""), (JSON,))
    call: PredictCall = await _decoded(request, lambda decoder: decoder.prediction)
    head = await asyncio.to_thread(_head_of, state, call)
    bundle = state.models.bundle(call.model or head.metadata.get("model"))
    _needs_heads(bundle)
    deadline = _deadline(state)
    prepared = await _as_features(request, bundle, await asyncio.to_thread(call.queries, bundle), deadline)
    found: Tensor = await _run(request, Call(probabilities, (head, bundle, prepared)), deadline)
    facts = {"model": bundle.name, "labels": head.labels, "timings_ms": milliseconds(_stages(request))}
    content = await asyncio.to_thread(lambda: _json(facts | _predicted(head, found)))
    return Response(
        content, 200, {"Server-Timing": server_timing(_stages(request)), "LtDi-Bundle": _named(bundle)}, JSON
    )


def _predicted(head: Head, found: Tensor) -> dict[str, Any]:
    rows = found.tolist()
    return {"predictions": [head.labels[row.index(max(row))] for row in rows], "probabilities": rows}


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
    if kept.kind != "head":
        raise Problem("input-unsupported", "this artefact is an adapter; load it with PEFT on its base model", "artefact")
    return load_head(kept.content)


def _needs_heads(bundle: Bundle) -> None:
    """Refuse features and task embeddings of a bundle that has none, as each of its adapters changes its body."""
    if bundle.kind != "head":
        raise Problem("input-unsupported", f"model {bundle.name!r} makes adapters, and only that", "model")


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
    """The body's parameters, or the body as an ONNX graph, so that a client can embed by itself."""
    form = choose_form(request.headers.get("accept", ""), BODY_FORMS)
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
    etag = f"{bundle.digest}-body" + ("-onnx" if form == ONNX else "")
    headers = {"ETag": f'"{etag}"', "Vary": "Accept"}
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(None, 304, headers)
    if form == ONNX:
        content = await asyncio.to_thread(body_onnx, bundle.body, facts)
    else:
        content = await asyncio.to_thread(safetensors_bytes, dict(bundle.body.state_dict()), facts)
    return Response(content, 200, headers, form)


@open_routes.post("/admin/reload", **documents.RELOAD)
async def reload(request: Request) -> JSONResponse:
    """Read the key files and load bundles again; needs a key of its own, and is there only where such are configured."""
    state = request.app.state.service
    if not state.admin_keys.configured:
        raise framework_problem(404, request.url.path, request.method, None)
    check_key(request, state.admin_keys, state.key_tries)
    if state.draining:
        raise Problem("draining", "the service is shutting down; nothing is loaded again")
    name = await _model_to_reload(request)
    models = state.models.all if name is None else [state.models.find(name)]
    failures = await asyncio.to_thread(state.reload, models)
    if failures:
        raise Problem("reload-failed", "; ".join(failures))
    return JSONResponse({"models": [state.models.document(model) for model in models]})


async def _model_to_reload(request: Request) -> str | None:
    """The model that the body names; None where there is no body, or it names none."""
    state = request.app.state.service
    content = await _read_body(request, state.settings.max_body_bytes, state.settings.body_seconds)
    if not content:
        return None
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != JSON:
        raise Problem("media-type-unsupported", f"the body is {media_type[:80]!r}; send {JSON}, or none", "Content-Type")
    return schemas.validate(schemas.ReloadRequest, parse_json(content)).model


@open_routes.get("/livez", **documents.HEALTH)
async def livez(request: Request) -> JSONResponse:
    """Whether the process should go on running."""
    return _health(request.app.state.service.live_reasons())


@open_routes.get("/readyz", **documents.HEALTH)
async def readyz(request: Request) -> JSONResponse:
    """Whether the service takes work."""
    return _health(request.app.state.service.ready_reasons())


@open_routes.get("/health", **documents.HEALTH)
async def health(request: Request) -> JSONResponse:
    """The same as `/readyz`."""
    return _health(request.app.state.service.ready_reasons())


def _health(reasons: list[str]) -> JSONResponse:
    headers = {"Retry-After": "5"} if reasons else None
    document = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
    return JSONResponse(document, 503 if reasons else 200, headers)


@open_routes.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    return Response(request.app.state.service.metrics.text(), media_type=MEDIA_TYPE)


@open_routes.get("/", include_in_schema=False)
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


async def _refuse_while_not_ready(request: Request) -> None:
    """Refuse what cannot be done now, before the body is read where reading and decoding it costs more than the work."""
    state = request.app.state.service
    if state.draining:
        await _discard(request)
        await asyncio.sleep(DRAINING_PAUSE)
        raise Problem("draining", "the service is shutting down; send the request to another replica")
    if state.live_reasons():
        raise Problem("not-ready", "; ".join(state.live_reasons()))
    if state.worker.full and int(request.headers.get("content-length", "0") or 0) > SMALL_BODY:
        await asyncio.sleep(FULL_PAUSE)
        state.worker.refuse_when_full()


async def _discard(request: Request) -> None:
    """Read a body that nobody looks at, because a connection that is closed with some of it unread is reset."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_SECONDS):
            async for _ in request.stream():
                pass


async def _submitted(request: Request, job: Job) -> Any:
    """The result of a job; where the queue is full it waits a moment for room."""
    worker = request.app.state.service.worker
    if worker.full:
        await asyncio.sleep(FULL_PAUSE)
    if request.state.body_bytes > SMALL_BODY or getattr(job.work, "embedded", None):
        job.packed = await asyncio.to_thread(worker.pack, job.work, job.bundle)
    result = await _while_connected(request, worker.submit(job))
    request.state.seconds |= job.seconds
    return result


async def _run(request: Request, work: Call, deadline: float | None = None) -> Any:
    """Work where torch runs, timed as a stage."""
    state, seconds = request.app.state.service, request.state.seconds
    job = Job(work, None, _deadline(state) if deadline is None else deadline, seconds=seconds)
    return await _submitted(request, job)


async def _while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, given up when the caller leaves; that is watched for after a while only."""
    this, watching, gone = asyncio.current_task(), [], False

    async def watch() -> None:
        nonlocal gone
        await _disconnected(request)
        gone = True
        this.cancel()

    timer = asyncio.get_running_loop().call_later(UNWATCHED, lambda: watching.append(asyncio.ensure_future(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        this.uncancel()
        raise Problem("client-gone", f"the caller left ({CLIENT_GONE})") from None
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _decoded(request: Request, choose: Callable[[Decoder], Callable]) -> Any:
    """The body, read within its bounds and decoded by the method that `choose` picks: in a thread, unless that is quick."""
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
    request.state.body_bytes = len(content)
    started = time.perf_counter()
    decode = choose(Decoder(state.settings, state.models.bundle))
    if media_type == SAFETENSORS and cheap(content):  # a fifth of a millisecond; another thread costs half as much
        result = decode(media_type, content_type, content)
    else:
        result = await asyncio.to_thread(decode, media_type, content_type, content)
    request.state.seconds["decode"] = time.perf_counter() - started
    return result


async def _read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body, refused as soon as it is known to be too large or too slow."""
    too_large = Problem("body-too-large", f"the body is larger than {most} bytes; send fewer or smaller examples")
    if int(request.headers.get("content-length", "0") or 0) > most:
        raise too_large
    received, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                received.append(chunk)
                size += len(chunk)
                if size > most:
                    raise too_large
    except TimeoutError as error:
        detail = f"the body did not arrive within {seconds:g} seconds; send it faster, or less of it"
        raise Problem("body-timeout", detail, headers={"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise Problem("client-gone", f"the caller left ({CLIENT_GONE}) before the body was whole") from error
    return b"".join(received)

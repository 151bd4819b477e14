"""What one would write by hand around the same generator: to compare the service with, not to serve."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from safetensors.torch import load
from starlette.responses import Response

from ltdi import Bundle, load_bundle

SAFETENSORS = "application/vnd.safetensors"


def answer(bundle: Bundle, body: bytes) -> bytes:
    """One head for one body, without checks of either."""
    tensors = load(body)
    labels = [str(i) for i in tensors["labels"].tolist()]
    return bundle.generate(tensors["features"], labels).to_bytes()


def plain_app(bundle: Bundle) -> FastAPI:
    """FastAPI with its thread pool: every request on its own."""
    app = FastAPI()

    @app.post("/generate-head")
    async def generate_head(request: Request) -> Response:
        body = await request.body()
        return Response(await run_in_threadpool(answer, bundle, body), media_type=SAFETENSORS)

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def serve_plain(name: str, port: int) -> None:
    """Run the plain app."""
    torch.set_num_threads(1)
    uvicorn.run(plain_app(load_bundle(name, device="cpu")), port=port, log_level="warning", access_log=False)


def serve_litserve(name: str, port: int) -> None:
    """Run the same behind LitServe, its batching on (`pip install litserve`)."""
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            torch.set_num_threads(1)
            self.bundle = load_bundle(name, device="cpu")

        async def decode_request(self, request: Request) -> Any:
            return await request.body()

        def predict(self, inputs: list[bytes]) -> list[bytes]:
            return [answer(self.bundle, body) for body in inputs]

        def batch(self, inputs: list[bytes]) -> list[bytes]:
            return inputs

        def unbatch(self, output: list[bytes]) -> list[bytes]:
            return output

        def encode_response(self, output: bytes) -> Response:
            return Response(output, media_type=SAFETENSORS)

    api = Api(max_batch_size=64, batch_timeout=0.0, api_path="/generate-head")
    litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz").run(
        port=port, generate_client_file=False, log_level="warning"
    )


SERVE = {"plain": serve_plain, "litserve": serve_litserve}

if __name__ == "__main__":
    SERVE[sys.argv[1]](sys.argv[2], int(sys.argv[3]))

"""What one would write by hand around the same generator: to compare the service with, not to serve."""

from __future__ import annotations

import base64
import sys

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from safetensors.torch import load
from starlette.responses import Response

from ltdi import Bundle, HeadRequest, Options, load_bundle

try:
    import litserve
except ImportError:
    litserve = None

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


if litserve is not None:

    class BatchedApi(litserve.LitAPI):
        """Batches of what waits; here at module level, because its worker is a process of its own."""

        def setup(self, device: str) -> None:
            """Load the bundle."""
            torch.set_num_threads(1)
            self.bundle = load_bundle(self.bundle_name, device="cpu")

        def decode_request(self, request: dict) -> dict:
            """JSON with `features` and `labels`, the form that LitServe hands to its worker."""
            return request

        def batch(self, inputs: list[dict]) -> list[dict]:
            """As they are."""
            return inputs

        def predict(self, tasks: list[dict]) -> list[bytes]:
            """All heads of a batch, sampled together."""
            supports = [self.bundle.support(torch.tensor(t["features"]), [str(i) for i in t["labels"]]) for t in tasks]
            return [head.to_bytes() for head in self.bundle.generate_many([HeadRequest(s, Options()) for s in supports])]

        def unbatch(self, output: list[bytes]) -> list[bytes]:
            """As they are."""
            return output

        def encode_response(self, output: bytes) -> dict[str, str]:
            """The file as base64."""
            return {"head": base64.b64encode(output).decode()}


def serve_litserve(name: str, port: int) -> None:
    """Run the same behind LitServe, its batching on; `pip install litserve` first."""
    if litserve is None:
        raise SystemExit("litserve is not installed")
    api = BatchedApi(max_batch_size=64, batch_timeout=0.0, api_path="/generate-head")
    api.bundle_name = name
    litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz").run(
        port=port, generate_client_file=False, log_level="warning"
    )


SERVE = {"plain": serve_plain, "litserve": serve_litserve}

if __name__ == "__main__":
    SERVE[sys.argv[1]](sys.argv[2], int(sys.argv[3]))

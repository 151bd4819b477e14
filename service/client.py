"""A client: a task over HTTP, a ready `nn.Module` back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from ltdi import Head, load_head, safetensors_bytes
from ltdi.images import prepare_images

SAFETENSORS = "application/vnd.safetensors"


class ServiceError(Exception):
    """An error that the service answered with.

    Args:
        problem: the members of its problem document.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('status')} {problem.get('title')}: {problem.get('detail')}")
        self.problem = problem


class LtDiClient:
    """Talks to one service.

    Args:
        base_url: for example `http://localhost:8080`.
        timeout: seconds for a whole request.
        api_key: for a service that needs one.
    """

    def __init__(self, base_url: str, timeout: float = 60.0, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, timeout=timeout, headers=headers)

    def __enter__(self) -> LtDiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate_head(
        self,
        inputs: Any = (),
        labels: Sequence[str] = (),
        *,
        model: str | None = None,
        classes: Sequence[str] | None = None,
        descriptions: Mapping[str, str] | None = None,
        unlabelled: Sequence[str] | Tensor | None = None,
        seed: int = 0,
        draws: int = 1,
        check: bool = True,
        fallback: str = "baseline",
        refine_steps: int = 0,
        truncate: bool = False,
    ) -> Head:
        """The head of a task.

        Args:
            inputs: features (a float tensor or array `[M, D]`), images as `ltdi.images.prepare_images` takes them, or
                texts; none where descriptions say enough.
            labels: one for each.
            descriptions: label to a name or sentence, beside texts or features of a model that reads texts.
            unlabelled: texts, or features `[U, D]`, of the same kind as `inputs`.

        Raises:
            ServiceError: the service's answer is an error.
        """
        names = list(classes) if classes is not None else sorted(set(labels) | set(descriptions or ()))
        row = {name: i for i, name in enumerate(names)}
        missing = sorted(set(labels) - set(names))
        if missing:
            raise ValueError(f"labels {missing} are not among `classes`")
        options = {
            "draws": draws, "check": check, "fallback": fallback, "refine_steps": refine_steps, "truncate": truncate
        }
        if descriptions is not None or _are_texts(inputs) or (unlabelled is not None and _are_texts(unlabelled)):
            task = {
                "classes": [{"label": name, "description": (descriptions or {}).get(name)} for name in names],
                "support": [item | {"label": label} for item, label in zip(_items(inputs), labels, strict=True)],
                "unlabelled": _items(() if unlabelled is None else unlabelled),
                "seed": seed, "options": options,
            }  # fmt: skip
            return load_head(self._post_json("/generate-head", task, model).content)
        tensors = self._inputs(inputs, model) | {"labels": torch.tensor([row[label] for label in labels])}
        if unlabelled is not None and len(unlabelled):
            tensors["unlabelled"] = torch.as_tensor(unlabelled, dtype=torch.float32)
        metadata = {"classes": json.dumps(names), "seed": str(seed), "options": json.dumps(options)}
        return load_head(self._post("/generate-head", tensors, metadata | ({"model": model} if model else {})))

    def embed(self, inputs: Any, *, model: str | None = None) -> Tensor:
        """Features of images or texts, `[M, D]`."""
        if _are_texts(inputs):
            return load(self._post_json("/embed", {"inputs": _items(inputs)}, model).content)["features"]
        content = self._post("/embed", self._inputs(inputs, model), {"model": model} if model else {})
        return load(content)["features"]

    def predict(self, head: Head, queries: Tensor) -> dict[str, Any]:
        """Labels and probabilities of features `[Q, D]`; a convenience for trying a head."""
        body = {
            "head": base64.b64encode(head.to_bytes()).decode(),
            "queries": [{"features": row} for row in queries.tolist()],
        }
        return _checked(self._http.post("/predict", json=body)).json()

    def model(self, name: str) -> dict[str, Any]:
        """One bundle, as `/models/NAME` says."""
        return _checked(self._http.get(f"/models/{name}")).json()

    def models(self) -> list[dict[str, Any]]:
        """The bundles that are served."""
        return _checked(self._http.get("/models")).json()["models"]

    def ready(self) -> bool:
        """Whether the service takes work; false also where nothing listens yet."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _inputs(self, inputs: Any, model: str | None) -> dict[str, Tensor]:
        if not isinstance(inputs, Tensor | list | tuple) and hasattr(inputs, "__array__"):
            inputs = torch.from_numpy(inputs.__array__())
        if isinstance(inputs, Tensor) and inputs.ndim == 2:
            return {"features": inputs.float()}
        size = self._image_size(model)
        return {"images": prepare_images(inputs, size).unsqueeze(1)}

    def _image_size(self, model: str | None) -> int:
        served = self.models()
        chosen = next((m for m in served if m["name"] == model), served[0])
        if chosen.get("body") is None:
            raise ServiceError({"status": 503, "title": "The model is not ready", "detail": chosen.get("reason")})
        return chosen["body"]["image_size"]

    def _post(self, path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
        headers = {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}
        return _checked(self._http.post(path, content=safetensors_bytes(tensors, metadata), headers=headers)).content


    def _post_json(self, path: str, body: dict[str, Any], model: str | None) -> httpx.Response:
        named = {"model": model} if model else {}
        return _checked(self._http.post(path, json=body | named, headers={"Accept": SAFETENSORS}))


def _are_texts(items: Any) -> bool:
    return not isinstance(items, Tensor) and len(items) > 0 and isinstance(items[0], str)


def _items(items: Any) -> list[dict[str, Any]]:
    """Texts or features as the JSON form has them."""
    if _are_texts(items):
        return [{"text": str(text)} for text in items]
    return [{"features": row} for row in torch.as_tensor(items, dtype=torch.float32).tolist()] if len(items) else []


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = {"status": response.status_code, "title": response.reason_phrase, "detail": response.text[:200]}
    raise ServiceError(problem)


def png(image: Tensor) -> bytes:
    """A grey image `[H, W]`, uint8, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()

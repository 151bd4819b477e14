"""What the clients send and how they read the answers, whatever carries it: each function yields calls and is sent responses."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import httpx
import torch
from safetensors.torch import load
from torch import Tensor

from ltdi import Head, load_head, safetensors_bytes
from ltdi.adapters import Adapter, from_safetensors
from ltdi.images import prepare_images, prepare_photos

JSON, SAFETENSORS = "application/json", "application/vnd.safetensors"
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        content: the body; none for a GET.
        content_type: of the body.
        accept: the form of the answer.
    """

    path: str
    content: bytes | None = None
    content_type: str = JSON
    accept: str = JSON

    @property
    def method(self) -> str:
        """GET without a body, POST with one."""
        return "GET" if self.content is None else "POST"

    @property
    def headers(self) -> dict[str, str]:
        """What it says of its body and of the answer."""
        return {"Accept": self.accept} | ({} if self.content is None else {"Content-Type": self.content_type})


Exchange = Generator[Call, httpx.Response, T]


class ServiceError(Exception):
    """An error that the service answered with.

    Args:
        problem: the members of its problem document.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('status')} {problem.get('title')}: {problem.get('detail')}")
        self.problem = problem


class HeadOptions(TypedDict, total=False):
    """What may be said of a task beside its examples.

    Args:
        model: a name of `models`; the service's default where absent.
        classes: the rows of the head; the sorted labels where absent.
        descriptions: label to a name or sentence, beside texts or features of a model that reads texts.
        unlabelled: texts, images, or features `[U, D]`, of the same kind as the examples.
        seed: the same seed gives the same bytes.
        draws: chains whose results are averaged.
        check: measure accuracy on folds of the support.
        fallback: `baseline` or `none`: what comes back where the baseline is better.
        refine_steps: gradient steps from the generated weights.
        truncate: shorten texts that are too long.
    """

    model: str | None
    classes: Sequence[str] | None
    descriptions: Mapping[str, str] | None
    unlabelled: Any
    seed: int
    draws: int
    check: bool
    fallback: str
    refine_steps: int
    truncate: bool


def advance(exchange: Exchange[T], answer: httpx.Response | None) -> tuple[Call | None, T | None]:
    """The next call of an exchange, or none and its result."""
    try:
        return exchange.send(answer), None  # type: ignore[arg-type]
    except StopIteration as done:
        return None, done.value


def generate_head(
    inputs: Any,
    labels: Sequence[str],
    *,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None,
    unlabelled: Any = None,
    seed: int = 0,
    **options: Any,
) -> Exchange[Head]:
    """The head of a task; texts and descriptions go as JSON, images and features as safetensors.

    Raises:
        ServiceError: the service's answer is an error.
        ValueError: a label that is not among `classes`, or images for a model that reads none.
    """
    names = list(classes) if classes is not None else sorted(set(labels) | set(descriptions or ()))
    row = {name: i for i, name in enumerate(names)}
    if missing := sorted(set(labels) - set(names)):
        raise ValueError(f"labels {missing} are not among `classes`")
    if descriptions is not None or _are_texts(inputs) or (unlabelled is not None and _are_texts(unlabelled)):
        task = {
            "classes": [{"label": name, "description": (descriptions or {}).get(name)} for name in names],
            "support": [item | {"label": label} for item, label in zip(_items(inputs), labels, strict=True)],
            "unlabelled": _items(() if unlabelled is None else unlabelled),
            "seed": seed, "options": options,
        }  # fmt: skip
        answer = yield _json_call("/generate-head", task | _named(model), SAFETENSORS)
        return load_head(_checked(answer).content)
    tensors = yield from _tensors(inputs, model)
    tensors["labels"] = torch.tensor([row[label] for label in labels])
    if unlabelled is not None and len(unlabelled):
        (tensors["unlabelled"],) = (yield from _tensors(unlabelled, model)).values()
    facts = {"classes": json.dumps(names), "seed": str(seed), "options": json.dumps(options)}
    answer = yield _tensor_call("/generate-head", tensors, facts | _named(model))
    return load_head(_checked(answer).content)


def generate_adapter(
    inputs: Sequence[Any], labels: Sequence[str], *, model: str, classes: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None, seed: int = 0, base_model_name_or_path: str | None = None, **options: Any,
) -> Exchange[Adapter]:
    """The LoRA adapter of a task of texts, or of pairs of texts.

    Raises:
        ServiceError: the service's answer is an error.
    """
    support = [
        ({"text": item} if isinstance(item, str) else {"pair": list(item)}) | {"label": label}
        for item, label in zip(inputs, labels, strict=True)
    ]
    task: dict[str, Any] = {"kind": "lora", "model": model, "support": support, "seed": seed, "options": options}
    if classes is not None or descriptions:
        names = classes if classes is not None else sorted(set(labels) | set(descriptions or ()))
        if strangers := set(descriptions or ()) - set(names):
            raise ValueError(f"descriptions of {sorted(strangers)[:3]}, which are not among `classes`")
        task["classes"] = [{"label": label, "description": (descriptions or {}).get(label)} for label in names]
    answer = yield _json_call("/generate-head", task | {"base_model_name_or_path": base_model_name_or_path}, SAFETENSORS)
    return from_safetensors(_checked(answer).content)


def embed(inputs: Any, model: str | None) -> Exchange[Tensor]:
    """Features of images or texts."""
    if _are_texts(inputs):
        call = _json_call("/embed", {"inputs": _items(inputs)} | _named(model), SAFETENSORS)
    else:
        call = _tensor_call("/embed", (yield from _tensors(inputs, model)), _named(model))
    return load(_checked((yield call)).content)["features"]


def predict(head: Head, queries: Tensor) -> Exchange[dict[str, Any]]:
    """Labels and probabilities of features."""
    file = base64.b64encode(head.to_bytes()).decode()
    answer = yield _json_call("/predict", {"head": file, "queries": _items(queries)}, JSON)
    return _checked(answer).json()


def model(name: str) -> Exchange[dict[str, Any]]:
    """One bundle."""
    return _checked((yield Call(f"/models/{name}"))).json()


def models() -> Exchange[list[dict[str, Any]]]:
    """Every bundle."""
    return _checked((yield Call("/models"))).json()["models"]


def ready() -> Exchange[bool]:
    """Whether the service takes work."""
    return (yield Call("/readyz")).status_code == 200


def _tensors(inputs: Any, model: str | None) -> Exchange[dict[str, Tensor]]:
    """Features, or images in the size that the model reads."""
    if not isinstance(inputs, Tensor | list | tuple) and hasattr(inputs, "__array__"):
        inputs = torch.from_numpy(inputs.__array__())
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        return {"features": inputs.float()}
    served = yield from models()
    chosen = next((m for m in served if m["name"] == model), served[0])
    if chosen.get("body") is None:
        raise ServiceError({"status": 503, "title": "The model is not ready", "detail": chosen.get("reason")})
    if not chosen["body"]["image_size"]:
        raise ValueError(f"model {chosen['name']!r} reads no images; send texts, or features as an array [M, D]")
    side = chosen["body"]["image_size"]
    if chosen["body"].get("colours") == 3:
        return {"images": prepare_photos(inputs, side)}
    return {"images": prepare_images(inputs, side).unsqueeze(1)}


def _tensor_call(path: str, tensors: dict[str, Tensor], facts: dict[str, str]) -> Call:
    return Call(path, safetensors_bytes(tensors, facts), SAFETENSORS, SAFETENSORS)


def _json_call(path: str, body: dict[str, Any], accept: str) -> Call:
    return Call(path, json.dumps(body).encode(), JSON, accept)


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


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
    problem = {"status": response.status_code, "title": response.reason_phrase, "detail": response.text[:200]}
    try:
        said = response.json()
    except ValueError:
        said = None
    raise ServiceError(said if isinstance(said, dict) else problem)

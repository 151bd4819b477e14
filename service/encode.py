"""Artefacts and their forms, the headers that go with them, and the bounded cache that keeps them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import astuple, dataclass
from hashlib import sha256
from threading import Lock
from typing import Any

from torch import Tensor

from ltdi import Bundle, Head, load_head
from ltdi.adapters import Adapter, from_safetensors, to_safetensors, to_zip
from ltdi.onnx_files import REMEDY, head_onnx, onnx_installed
from ltdi.support import Items
from service.decode import JSON, ONNX, SAFETENSORS, ZIP, HeadCall
from service.problems import Problem

STAGES = ("decode", "embed", "queue", "sample", "check", "encode", "total")
HEAD_FORMS = (SAFETENSORS, JSON, ONNX)
LORA_FORMS = (SAFETENSORS, JSON, ZIP)
FORMS_OF = {"head": HEAD_FORMS, "lora": LORA_FORMS}
ALL_FORMS = (*HEAD_FORMS, ZIP)
BODY_FORMS = (SAFETENSORS, ONNX)


@dataclass(frozen=True)
class Artefact:
    """A head or an adapter that is ready to be sent.

    Args:
        etag: without quotes.
        form: the media type it was asked for in.
        content: the safetensors file.
        model: the bundle's name.
        bundle_digest: its digest.
        method: `generated` or `baseline`.
        support_accuracy, baseline_support_accuracy: on folds of the support, or None.
        kind: `head` or `lora`.
    """

    etag: str
    form: str
    content: bytes
    model: str
    bundle_digest: str
    method: str
    support_accuracy: float | None
    baseline_support_accuracy: float | None
    kind: str = "head"

    @classmethod
    def of(cls, made: Head | Adapter, etag: str, form: str) -> Artefact:
        """From what was generated."""
        adapter = isinstance(made, Adapter)
        return cls(
            etag,
            form,
            to_safetensors(made) if adapter else made.to_bytes(),
            made.metadata["model"],
            made.metadata["bundle_digest"],
            made.method,
            made.support_accuracy,
            made.baseline_support_accuracy,
            "lora" if adapter else "head",
        )

    def body(self, timings: dict[str, float]) -> bytes:
        """The response body in its form; timings (ms) stand in JSON only."""
        if self.form == SAFETENSORS:
            return self.content
        if self.kind == "lora":
            adapter = from_safetensors(self.content)
            return to_zip(adapter) if self.form == ZIP else adapter_json(adapter, timings)
        head = load_head(self.content)
        return head_onnx(head) if self.form == ONNX else head_json(head, timings)

    def headers(self) -> dict[str, str]:
        """What every answer with this artefact carries."""
        headers = {
            "ETag": f'"{self.etag}"',
            "LtDi-Method": self.method,
            "LtDi-Bundle": f"{self.model}@{self.bundle_digest[:12]}",
        }
        for name, value in (
            ("LtDi-Support-Accuracy", self.support_accuracy),
            ("LtDi-Baseline-Support-Accuracy", self.baseline_support_accuracy),
        ):
            if value is not None:
                headers[name] = f"{value:.4f}"
        return headers


def probabilities(head: Head, bundle: Bundle, prepared: Items) -> Tensor:
    """Calibrated probabilities of prepared items, `[M, N]`."""
    return head.predict_proba(bundle.embed(prepared))


def etag_of(call: HeadCall, form: str) -> str:
    """Digest of bundle, canonical task, seed, options and form."""
    parts = [call.bundle.digest, call.identity, astuple(call.request.options), form]
    return sha256(json.dumps(parts).encode()).hexdigest()[:40]


def head_json(head: Head, timings: dict[str, float]) -> bytes:
    """A head as JSON, tensors as nested lists."""
    facts: dict[str, Any] = dict(head.file_metadata())
    facts |= {"labels": head.labels, "temperature": head.temperature} | head.metadata
    facts["tensors"] = {name: tensor.tolist() for name, tensor in head.tensors().items()}
    facts["timings_ms"] = timings
    return json.dumps(facts, ensure_ascii=False).encode()


def adapter_json(adapter: Adapter, timings: dict[str, float]) -> bytes:
    """An adapter as JSON: its config as PEFT reads it, tensors as nested lists."""
    facts = {
        "format": "ltdi.adapter", "format_version": "1", "labels": list(adapter.labels),
        "adapter_config": adapter.config(), **adapter.metadata,
        "tensors": {name: tensor.tolist() for name, tensor in adapter.tensors.items()}, "timings_ms": timings,
    }  # fmt: skip
    return json.dumps(facts, ensure_ascii=False).encode()


def server_timing(seconds: dict[str, float]) -> str:
    """`Server-Timing` in ms, stages in order."""
    return ", ".join(f"{stage};dur={1000 * seconds[stage]:.3f}" for stage in STAGES if stage in seconds)


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    """Stage times as the JSON answers give them."""
    return {stage: round(1000 * seconds[stage], 3) for stage in STAGES if stage in seconds}


def choose_form(accept: str, offered: tuple[str, ...] = (SAFETENSORS, JSON)) -> str:
    """The response form that `Accept` likes best; the first offered where it likes all the same.

    ONNX is offered only where it can be written.

    Raises:
        Problem: 406.
    """
    known, offered = offered, writable(offered)
    quality = dict.fromkeys(offered, 0.0)
    for part in (accept or "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        for form in offered:
            if media in (form, "*/*", form.split("/")[0] + "/*"):
                quality[form] = max(quality[form], weight)
    best = max(offered, key=lambda form: quality[form])
    if quality[best] <= 0:
        detail = f"no form of {accept[:80]!r} is offered; offered are {', '.join(offered)}"
        remedy = f"; {ONNX} needs `{REMEDY}` where the service runs" if known != offered else ""
        raise Problem("not-acceptable", detail + remedy, "Accept")
    return best


def writable(forms: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the forms that can be written with what is installed."""
    return forms if onnx_installed() else tuple(form for form in forms if form != ONNX)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class Cache:
    """The latest artefacts by ETag, `items` at most."""

    def __init__(self, items: int) -> None:
        self._items, self._kept, self._lock = items, OrderedDict[str, Artefact](), Lock()

    def get(self, etag: str) -> Artefact | None:
        """An artefact that is still kept."""
        with self._lock:
            if etag in self._kept:
                self._kept.move_to_end(etag)
            return self._kept.get(etag)

    def put(self, artefact: Artefact) -> None:
        """Keep an artefact, letting go of the one that was used longest ago."""
        with self._lock:
            self._kept[artefact.etag] = artefact
            while len(self._kept) > self._items:
                self._kept.popitem(last=False)

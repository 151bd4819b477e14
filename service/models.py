"""The bundles of a service and their states."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ltdi import Bundle, LtDiError, library_version, load_bundle
from service.metrics import Metrics
from service.problems import Problem
from service.settings import Settings

FORMS = ["application/json", "multipart/form-data", "application/vnd.safetensors"]
ANSWERS = ["application/vnd.safetensors", "application/json"]


LOG = logging.getLogger("ltdi.service")


class Model:
    """A bundle that is loading, ready, or failed.

    Args:
        source: a shipped name or a folder; its last part is the name until the bundle says its own.
    """

    def __init__(self, source: str) -> None:
        self.source, self.name = source, Path(source).name
        self.state, self.reason = "loading", "the bundle is being loaded"
        self.bundle: Bundle | None = None

    def load(self, device: str) -> None:
        """Load, verify and warm up; a bundle that fails says why and is not served."""
        try:
            self.use(load_bundle(self.source, device=device))
        except LtDiError as error:
            self._fail(str(error).replace(self.source, self.name))
        except Exception as error:
            self._fail(f"it could not be loaded: {type(error).__name__}")

    def _fail(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        LOG.error("bundle failed", extra={"fields": {"model": self.name, "reason": reason}})

    def use(self, bundle: Bundle) -> None:
        """Warm this bundle up and serve it."""
        warm_up(bundle)
        self.bundle, self.name, self.state, self.reason = bundle, bundle.name, "ready", None


class Models:
    """All models of a service; the first is the default."""

    def __init__(self, settings: Settings, bundles: list[Bundle] | None, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.all = [Model(source) for source in ([b.name for b in bundles] if bundles else settings.bundle)]
        self._given = bundles or []

    def load_all(self) -> None:
        """Load every bundle, the default first."""
        for place, model in enumerate(self.all):
            if self._given:
                model.use(self._given[place])
            else:
                model.load(self._settings.device)
            if model.bundle is not None:
                self._metrics.model_info.labels(
                    model.name,
                    library_version(),
                    model.bundle.digest,
                    model.bundle.config.body.name,
                    str(model.bundle.device),
                ).set(1)

    @property
    def default(self) -> Model:
        """The model that answers where none is named."""
        return self.all[0]

    def find(self, name: str | None) -> Model:
        """A model by name.

        Raises:
            Problem: 404.
        """
        if name is None:
            return self.default
        for model in self.all:
            if name == model.name:
                return model
        known = ", ".join(model.name for model in self.all)
        raise Problem("model-unknown", f"no model {name[:80]!r}; served are {known}", "model")

    def bundle(self, name: str | None) -> Bundle:
        """A bundle that is ready.

        Raises:
            Problem: 404 or 503.
        """
        model = self.find(name)
        if model.bundle is None:
            raise Problem("model-not-ready", f"model {model.name!r} is not ready: {model.reason}", "model")
        return model.bundle

    def document(self, model: Model) -> dict:
        """What `/models/{name}` says."""
        document = {
            "name": model.name,
            "default": model is self.default,
            "state": model.state,
            "reason": model.reason,
            "kind": "head",
        }
        if model.bundle is None:
            return document
        bundle, settings = model.bundle, self._settings
        ways = (bundle.fixed_ways, bundle.fixed_ways) if bundle.fixed_ways else (2, bundle.limits.max_ways)
        body = bundle.config.body
        return document | {
            "recipe": bundle.config.recipe,
            "body": {
                "name": body.name,
                "image_size": body.image_size if bundle.body.kind == "images" else 0,
                "feature_size": bundle.feature_size,
                "model": body.model,
                "installed": getattr(bundle.body, "installed", True),
            },
            "feature_size": bundle.feature_size,
            "input_kinds": list(bundle.input_kinds),
            "limits": {
                "ways": ways,
                "shots": (0 if bundle.takes_descriptions else 1, bundle.limits.max_shots),
                "examples": bundle.limits.max_examples,
                "unlabelled": bundle.limits.max_unlabelled if bundle.takes_descriptions else 0,
                "body_bytes": settings.max_body_bytes,
                "header_bytes": settings.max_header_bytes,
                "items": settings.max_items,
                "pixels": settings.max_pixels,
                "total_pixels": settings.max_total_pixels,
                "queue_length": settings.queue_length,
                "answer_seconds": settings.answer_seconds,
                "head_seconds": settings.head_seconds,
                "body_seconds": settings.body_seconds,
            },
            "digest": bundle.digest,
            "device": str(bundle.device),
            "card": bundle.card,
            "request_forms": FORMS,
            "response_forms": ANSWERS,
        }


def warm_up(bundle: Bundle) -> None:
    """Generate and embed once, so that the first caller does not pay for first calls."""
    ways = bundle.fixed_ways or 5
    features = torch.randn(2 * ways, bundle.feature_size or 64, generator=torch.Generator().manual_seed(0))
    pool = features if bundle.takes_descriptions else None
    bundle.generate(features, [str(i % ways) for i in range(2 * ways)], unlabelled=pool)
    size = bundle.config.body.image_size
    if bundle.body.kind == "images":
        bundle.embed(torch.zeros(1, size, size, dtype=torch.uint8))
    elif bundle.body.kind == "text" and bundle.body.installed:
        bundle.embed(["warm up"])

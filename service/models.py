"""The bundles of a service and their states."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from ltdi import Bundle, LtDiError, library_version, load_bundle
from ltdi.bodies.remote import RemoteBody
from ltdi.errors import InvalidConfig
from service.embedder import embedder_key, remote_body
from service.encode import FORMS_OF, writable
from service.jobs import WorkerDead
from service.metrics import Metrics
from service.problems import Problem
from service.process import ProcessWorker
from service.settings import Settings
from service.worker import Worker

FORMS = ["application/json", "multipart/form-data", "application/vnd.safetensors"]
RELOAD_FAILED = "the bundle that was loaded before goes on, as the new one failed:"

LOG = logging.getLogger("ltdi.service")


class Model:
    """A bundle that is loading, ready, or failed.

    Args:
        source: a shipped name or a folder; its last part is the name until the bundle says its own.
        given: the bundle itself, where it is not to be loaded.
    """

    def __init__(self, source: str, given: Bundle | None = None) -> None:
        self.source, self.name, self._given = source, Path(source).name, given
        self.state, self.reason = "loading", "the bundle is being loaded"
        self.bundle: Bundle | None = None
        self.device = ""

    def load(self, device: str, adopt: Callable[[Bundle, str], str], body: RemoteBody | None = None) -> bool:
        """Load, verify and test; a bundle that fails says why, and one that served before goes on.

        Args:
            device: of the bundle here.
            adopt: proves the bundle where it will run, and says on which device.
            body: stands before a bundle that has none of its own, once it is tested.

        Returns:
            Whether the bundle serves now.
        """
        try:
            bundle = self._given or load_bundle(self.source, device=device)
            if self.bundle is not None and bundle.name != self.name:
                raise InvalidConfig(f"the bundle is named {bundle.name!r} now; one that replaces another has its name")
            running_on = adopt(bundle, self.source)
            if body is not None and bundle.takes_a_body:
                bundle = bundle.with_body(body)
        except LtDiError as error:
            return self._fail(str(error).replace(self.source, self.name))
        except WorkerDead as error:
            return self._fail(str(error), logging.INFO)  # the log has said so already, unless the service is stopping
        except Exception as error:
            return self._fail(f"it could not be loaded: {type(error).__name__}")
        self.bundle, self.name, self.device, self.state, self.reason = bundle, bundle.name, running_on, "ready", None
        LOG.info("bundle ready", extra={"fields": {"model": self.name, "digest": bundle.digest}})
        return True

    def _fail(self, reason: str, level: int = logging.ERROR) -> bool:
        if self.bundle is None:
            self.state, self.reason = "failed", reason
        else:
            self.reason = f"{RELOAD_FAILED} {reason}"
        LOG.log(level, "bundle failed", extra={"fields": {"model": self.name, "state": self.state, "reason": reason}})
        return False


class Models:
    """All models of a service; the first is the default."""

    def __init__(
        self, settings: Settings, bundles: list[Bundle] | None, metrics: Metrics, worker: Worker | ProcessWorker
    ) -> None:
        self._settings, self._metrics, self._worker, self._loading = settings, metrics, worker, Lock()
        self.stopping = False  # nothing further is loaded
        self.all = [Model(b.name, b) for b in bundles] if bundles else [Model(source) for source in settings.bundle]
        self.remote = remote_body(settings)

    def load_all(self) -> None:
        """Load every bundle, the default first."""
        self.reload(self.all)
        gc.collect()
        self._worker.settle()
        gc.freeze()  # what is loaded stays; looking through it again and again stops everything for a tenth of a second
        if self.remote is not None and not any(model.bundle and model.bundle.body.remote for model in self.all):
            LOG.warning("no bundle takes features of any encoder, so that the embedding endpoint is not used")

    def read_embedder_key(self) -> None:
        """Read the embedding endpoint's key again.

        Raises:
            InvalidConfig: its file cannot be used; the key stays as it was.
        """
        if self.remote is not None:
            self.remote.use_key(embedder_key(self._settings.embedder_key_file))

    def reload(self, models: Sequence[Model]) -> list[Model]:
        """Load these, one after the other; each old bundle serves until its new one has proven itself.

        Returns:
            Those whose new bundle does not serve.
        """
        with self._loading:
            return [model for model in models if self.stopping or not self._load(model)]

    def _load(self, model: Model) -> bool:
        old = _info(model)
        device = "cpu" if isinstance(self._worker, ProcessWorker) else self._settings.device
        loaded = model.load(device, self._worker.adopt, self.remote)
        new = _info(model)
        if new is not None:
            self._metrics.model_info.labels(*new).set(1)
        if old is not None and old != new:
            self._metrics.model_info.remove(*old)
        return loaded

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
            "kind": None,
        }
        if model.bundle is None:
            return document
        bundle, settings = model.bundle, self._settings
        ways = (bundle.fixed_ways, bundle.fixed_ways) if bundle.fixed_ways else (2, bundle.limits.max_ways)
        return document | {
            "kind": bundle.kind,
            "recipe": bundle.config.recipe,
            "body": body_document(bundle),
            "feature_size": bundle.feature_size,
            "input_kinds": list(bundle.input_kinds),
            "limits": {
                "ways": ways,
                "shots": (0 if bundle.takes_descriptions else 1, bundle.limits.max_shots),
                "examples": bundle.limits.max_examples,
                "unlabelled": bundle.limits.max_unlabelled if bundle.takes_pool else 0,
                "body_bytes": settings.max_body_bytes,
                "header_bytes": settings.max_header_bytes,
                "items": settings.max_items,
                "pixels": settings.max_pixels,
                "total_pixels": settings.max_total_pixels,
                "queue_length": settings.queue_length,
                "key_tries_per_minute": settings.key_tries_per_minute,
                "answer_seconds": settings.answer_seconds,
                "head_seconds": settings.head_seconds,
                "body_seconds": settings.body_seconds,
            },
            "digest": bundle.digest,
            "device": model.device,
            "card": bundle.card,
            "request_forms": FORMS[:1] if bundle.kind == "lora" else FORMS,
            "response_forms": list(writable(FORMS_OF[bundle.kind])),
        }


def _info(model: Model) -> tuple[str, ...] | None:
    """Labels of `ltdi_model_info`; None where no bundle serves."""
    if (bundle := model.bundle) is None:
        return None
    return model.name, library_version(), bundle.digest, "remote" if bundle.body.remote else bundle.config.body.name, model.device


def body_document(bundle: Bundle) -> dict:
    """What `/models/{name}` says of the body; no address and no key."""
    config, body = bundle.config.body, bundle.body
    return {
        "name": config.name,
        "kind": "remote" if body.remote else body.kind,
        "protocol": body.protocol if body.remote else None,
        "image_size": config.image_size if body.kind == "images" else 0,
        "colours": body.colours if body.kind == "images" else 0,
        "feature_size": body.feature_size,
        "model": body.model_name if body.remote else config.model,
        "installed": getattr(body, "installed", True),
    }

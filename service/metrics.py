"""What the service counts: a registry of its own, base units, few and fixed label values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from service.problems import KINDS

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STAGES = ("decode", "embed", "queue", "sample", "check", "encode")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
COUNTS = (1, 2, 5, 10, 20, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BYTES = tuple(1024 * 4**power for power in range(9))
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1)
GAINS = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class Metrics:
    """The metrics of one application; `text()` is what `/metrics` answers."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "code")
        self.duration = self._histogram("request_duration_seconds", "From first to last byte.", SECONDS, "route")
        self.stages = self._histogram(
            "stage_duration_seconds",
            "Time that a request spent in a stage; a batch counts for each.",
            SECONDS,
            "stage",
            "model",
        )
        self.rejected = self._counter("requests_rejected", "Requests refused.", "reason")
        self.queue_depth = self._gauge("queue_depth", "Requests that wait for the generator.")
        self.queue_limit = self._gauge("queue_limit", "Requests that may wait.")
        self.in_flight = self._gauge("requests_in_flight", "Requests not yet answered.")
        self.worker_alive = self._gauge("worker_alive", "1 while the inference thread or process runs, else 0.")
        self.batch_size = self._histogram("batch_size", "Heads sampled together.", COUNTS, "model")
        self.ways = self._histogram("ways", "Classes of a task.", COUNTS, "kind")
        self.examples = self._histogram("support_examples", "Examples of a task.", COUNTS, "kind")
        self.artefact_bytes = self._histogram("artefact_bytes", "Size of an artefact's file.", BYTES, "kind")
        self.check_failures = self._counter("artefact_check_failures", "Artefacts that failed their check.", "reason")
        self.fallbacks = self._counter("fallbacks", "Baselines returned instead of what was generated.", "reason")
        self.cache = self._counter("cache_requests", "Artefacts looked up.", "outcome")
        self.accuracy = self._histogram("support_accuracy", "On folds of the support.", SHARES, "model")
        self.gain = self._histogram("support_accuracy_gain", "The same, minus the closed form's.", GAINS, "model")
        self.model_info = self._gauge("model_info", "A loaded bundle.", "model", "version", "digest", "body", "device")
        self._start_at_zero()

    def watch_queue(self, depth: Callable[[], int], limit: int) -> None:
        """Read the queue's depth whenever the metrics are read."""
        self.queue_depth.set_function(depth)
        self.queue_limit.set(limit)

    def watch_worker(self, alive: Callable[[], bool]) -> None:
        """Ask whether the inference thread or process runs whenever the metrics are read."""
        self.worker_alive.set_function(alive)

    def observe_stages(self, model: str, seconds: Mapping[str, float]) -> None:
        """Count the stages of one request."""
        for stage in STAGES:
            if stage in seconds:
                self.stages.labels(stage, model).observe(seconds[stage])

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def _start_at_zero(self) -> None:
        """Show the counters before their first event, which a rate could not see otherwise."""
        for reason in {kind.reason for kind in KINDS.values() if kind.reason}:
            self.rejected.labels(reason)
        for outcome in ("hit", "miss"):
            self.cache.labels(outcome)
        self.fallbacks.labels("support_accuracy")
        self.check_failures.labels("generation-failed")

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"ltdi_{name}_total", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"ltdi_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"ltdi_{name}", help, labels, registry=self.registry, buckets=buckets)

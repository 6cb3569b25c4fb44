"""Prometheus metrics: what HTTP, gRPC and the scheduler did, scraped at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.runtime import Model

if TYPE_CHECKING:
    from app.engine.queueing import Batch
    from app.engine.repository import Repository
    from app.engine.scheduler import BatchTimes, Runnable, Scheduler
    from app.errors import KronserveError

disable_created_metrics()  # type: ignore[no-untyped-call]
"""A gauge beside each counter with its time of birth, which nothing here asks for."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's metric families, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.http_requests = Counter(
            "kronserve_http_requests", "HTTP requests answered.", ("route", "status"), registry=self.registry
        )
        self.http_seconds = Histogram(
            "kronserve_http_request_seconds",
            "From the end of the request's head to the last byte of its answer handed to the system.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.grpc_requests = Counter(
            "kronserve_grpc_requests", "gRPC calls answered.", ("method", "code"), registry=self.registry
        )
        self.grpc_seconds = Histogram(
            "kronserve_grpc_request_seconds",
            "From the call's whole message to its answer.",
            ("method",),
            buckets=SECONDS,
            registry=self.registry,
        )
        # Looking up a labelled child costs more than counting in it.
        self._http: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._batches: dict[tuple[str, str, str], tuple[Counter, Histogram, Histogram, Histogram]] = {}
        self._rejected: dict[tuple[str, str, str], Counter] = {}
        self._grpc: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._batch_count = Counter(
            "kronserve_batches",
            "Executed batches, by why they had no more rows: drained, full, shared.",
            ("model", "version", "reason"),
            registry=self.registry,
        )
        self._rejections = Counter(
            "kronserve_rejected_requests",
            "Requests turned away or given up without being computed, by reason; model and version where they count.",
            ("model", "version", "reason"),
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "kronserve_batch_rows",
            "Rows per executed batch.",
            ("model", "version"),
            buckets=ROWS,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "kronserve_queue_seconds",
            "Time that requests waited before their batch ran.",
            ("model", "version"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._compute_seconds = Histogram(
            "kronserve_compute_seconds",
            "Time that batches took in ONNX Runtime.",
            ("model", "version"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def watch(self, scheduler: Scheduler, repository: Repository) -> None:
        """Report this scheduler's and repository's state at every scrape."""
        self.registry.register(_State(scheduler, repository))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP answer; `route` is a path template, never a caller's path."""
        counted = self._http.get((route, status))
        if counted is None:
            counted = self.http_requests.labels(route, str(status)), self.http_seconds.labels(route)
            self._http[route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def called(self, method: str, code: str, seconds: float) -> None:
        """Count one gRPC call; `code` is the status code's name."""
        counted = self._grpc.get((method, code))
        if counted is None:
            counted = self.grpc_requests.labels(method, code), self.grpc_seconds.labels(method)
            self._grpc[method, code] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def unparsed(self, status: int) -> None:
        """Count an HTTP answer to what did not become a request."""
        self.http_requests.labels("unparsed", str(status)).inc()

    def rejected(self, reason: str, model: str = "", version: str = "") -> None:
        """Count a request that was turned away; from the event loop."""
        labels = (model, version, reason)
        counted = self._rejected.get(labels)
        if counted is None:
            counted = self._rejected[labels] = self._rejections.labels(*labels)
        counted.inc()

    def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
        """Count one executed batch; called from executor threads."""
        labels = (batch.model.name, batch.model.version)
        counted = self._batches.get((*labels, batch.reason))
        if counted is None:
            counted = self._batches[*labels, batch.reason] = (
                self._batch_count.labels(*labels, batch.reason),
                self._batch_rows.labels(*labels),
                self._compute_seconds.labels(*labels),
                self._queue_seconds.labels(*labels),
            )
        batches, batch_rows, compute, queue = counted
        batches.inc()
        batch_rows.observe(batch.rows)
        compute.observe(times.whole)
        for wait in waited:
            queue.observe(wait)

    def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:  # noqa: ARG002
        """Count one that was turned away; the scheduler's own counters, which are scraped, have the others."""
        if error is not None and error.reason:
            self.rejected(error.reason, model.name, model.version)

    def page(self) -> bytes:
        """The metrics page in Prometheus text format."""
        return generate_latest(self.registry)


class _State(Collector):
    def __init__(self, scheduler: Scheduler, repository: Repository) -> None:
        self._scheduler, self._repository = scheduler, repository

    def collect(self) -> Iterator[Metric]:
        counters = self._scheduler.counters
        endings = CounterMetricFamily(
            "kronserve_inference_requests", "Requests that left the scheduler, by how they ended.", labels=("outcome",)
        )
        for outcome in ("succeeded", "failed", "refused", "expired", "cancelled", "aborted"):
            endings.add_metric((outcome,), getattr(counters, outcome))
        yield endings
        yield CounterMetricFamily(
            "kronserve_inference_submitted", "Requests handed to the scheduler.", value=counters.submitted
        )
        yield GaugeMetricFamily("kronserve_queue_requests", "Requests waiting now.", value=self._scheduler.queued)
        yield GaugeMetricFamily("kronserve_running_batches", "Batches running now.", value=self._scheduler.running)
        yield GaugeMetricFamily("kronserve_executors", "Executor threads.", value=self._scheduler.executors)
        yield GaugeMetricFamily(
            "kronserve_estimated_wait_seconds",
            "Estimated wait of a request that arrives now.",
            value=self._scheduler.estimated_wait,
        )
        models = GaugeMetricFamily(
            "kronserve_model_loaded",
            "1 for a version that serves, 0 for one that could not be loaded.",
            labels=("model", "version"),
        )
        memory = GaugeMetricFamily(
            "kronserve_model_memory_bytes",
            "Main memory of a version that serves: weights mapped from files; growth of the process by loading it.",
            labels=("model", "version", "kind"),
        )
        for entry in self._repository:
            if isinstance(entry, Model) or self._repository.broken(entry):
                models.add_metric((entry.name, entry.version), float(entry.serves))
            if isinstance(entry, Model):
                for kind, size in asdict(entry.memory).items():
                    memory.add_metric((entry.name, entry.version, kind), size)
        yield models
        yield memory

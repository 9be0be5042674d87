"""What Prometheus is told. Every server has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nextscale.serve.engine import Engine, Observer

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """All of them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "nextscale_requests", "Answered requests", ["route", "status"], registry=self._registry
        )
        self._orders = Counter("nextscale_orders", "Orders by their end", ["end"], registry=self._registry)
        self._order_seconds = Histogram(
            "nextscale_order_seconds", "From acceptance to the end", buckets=_SECONDS, registry=self._registry
        )
        self._preview_seconds = Histogram(
            "nextscale_first_preview_seconds", "From acceptance to the first preview", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._batch_images = Histogram(
            "nextscale_batch_images", "Images of a batch", buckets=[2**power for power in range(9)],
            registry=self._registry,
        )  # fmt: skip
        self._batch_seconds = Histogram(
            "nextscale_batch_seconds", "Seconds of a batch", buckets=_SECONDS, registry=self._registry
        )

    @property
    def observer(self) -> Observer:
        """What the engine tells."""
        return Observer(batch=self._batch, preview=self._preview_seconds.observe, end=self._end)

    def watch(self, engine: Engine) -> None:
        """Read the lengths of queue and batch from an engine whenever somebody asks."""
        queued = Gauge("nextscale_queued_images", "Images that wait", registry=self._registry)
        queued.set_function(lambda: engine.state().queued)
        running = Gauge("nextscale_running_images", "Images that are being made", registry=self._registry)
        running.set_function(lambda: engine.state().running)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _batch(self, images: int, seconds: float) -> None:
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def _end(self, end: str, seconds: float) -> None:
        self._orders.labels(end).inc()
        self._order_seconds.observe(seconds)

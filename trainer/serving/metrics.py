"""What a server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

PREFIX = "patchwork"
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bounds in seconds of what a client waits for."""
PACES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""The same of what comes byte by byte."""


class Metrics:
    """Of one server. All but the requests are by model."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every count, which nobody asks for
        self.registry = CollectorRegistry()
        self._by_model: list[Counter | Gauge | Histogram] = []
        self.requests = self._counter("requests", "Requests answered", ("path", "status"))
        self.queue = self._gauge("queue_length", "Prompts that wait for room")
        self.rows = self._gauge("batch_rows", "Texts that are being written")
        self.prompt_bytes = self._counter("prompt_bytes", "Bytes of prompts read, without those of kept prefixes")
        self.prompt_seconds = self._counter("prompt_seconds", "Time that reading prompts took")
        self.prefix_bytes = self._counter("prefix_bytes", "Bytes of prompts that a kept prefix spared reading")
        self.written_bytes = self._counter("written_bytes", "Bytes written")
        self.written_patches = self._counter("written_patches", "Patches that began with a written byte")
        self.first_byte = self._histogram("first_byte_seconds", "From a request to the first byte after it", WAITS)
        self.between_bytes = self._histogram("between_bytes_seconds", "From a byte of a text to its next", PACES)
        self.memory = self._gauge("memory_reserved_bytes", "Memory that running requests may take, at most")
        self.memory_limit = self._gauge("memory_limit_bytes", "Memory for requests")
        self.prefix_memory = self._gauge("prefix_memory_bytes", "Memory of kept prefixes, at most")
        self.cancelled = self._counter("cancelled", "Prompts given up", ("model", "reason"))

    def begin(self, model: str) -> None:
        """Show the metrics of this model before anything has happened: a rate is taken from a 0 on."""
        for metric in self._by_model:
            metric.labels(model)

    def text(self) -> bytes:
        """Everything so far."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, labels: tuple[str, ...] = ("model",)) -> Counter:
        counter = Counter(f"{PREFIX}_{name}", about, labels, registry=self.registry)
        self._by_model += [counter] * (labels == ("model",))
        return counter

    def _gauge(self, name: str, about: str) -> Gauge:
        gauge = Gauge(f"{PREFIX}_{name}", about, ("model",), registry=self.registry)
        self._by_model.append(gauge)
        return gauge

    def _histogram(self, name: str, about: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"{PREFIX}_{name}", about, ("model",), buckets=bounds, registry=self.registry)
        self._by_model.append(histogram)
        return histogram

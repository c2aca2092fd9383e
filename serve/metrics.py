"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServiceMetrics:
    """Counters of one app; no query text, ever."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests_total", "HTTP requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("request_seconds", "Time to answer", ["path"], buckets=SECONDS, registry=self.registry)
        self.engine_seconds = Histogram(
            "engine_seconds", "Time the engine took for one query", buckets=SECONDS, registry=self.registry
        )
        self.labels = Counter("labels_total", "Queries by the label they got", ["label"], registry=self.registry)
        self.answers = Counter("answers_total", "Answers by where they came from", ["source"], registry=self.registry)
        for source in ("engine", "in_flight", "cache"):
            self.answers.labels(source)
        self.abstentions = Counter("abstentions_total", "Queries answered below the threshold", registry=self.registry)
        self.parse_failures = Counter(
            "parse_failures_total", "Answers of the model that named no label", registry=self.registry
        )
        self.engine_failures = Counter(
            "engine_failures_total", "Queries the engine did not answer", registry=self.registry
        )
        self.in_flight = Gauge("queries_in_flight", "Queries accepted and not answered yet", registry=self.registry)
        self.ready = Gauge("ready", "1 while the engine answers", registry=self.registry)

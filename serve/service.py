"""What the service does with queries, whatever protocol brings them: a bounded number in flight, one request to the
engine each, counts.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.answer_cache import AnswerCache
from serve.backend import Backend
from stages.parts.engines.errors import EngineError, QueryRefused
from stages.parts.students.prediction import Abstention, CalibratedPrediction, QueryClassifier
from stages.parts.task.labels import UNKNOWN

if TYPE_CHECKING:  # it imports the teachers' rooms: most of a second that a service without them does not wait
    from serve.traffic import Traffic

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class NotReady(Exception):
    """The engine is not up, or not up again yet."""

    def __str__(self) -> str:
        return "the engine is not up"


class Overloaded(Exception):
    """As many queries as the service holds are in flight."""

    def __str__(self) -> str:
        return "too many queries are in flight"


class TooLarge(Exception):
    """More queries in one request than the service ever holds."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"the service holds {capacity} queries at most: send smaller batches")


class BlankQuery(Exception):
    """Nothing of a query would reach the prompt: it holds whitespace, invisible characters and markers only. `number`
    is its place in a batch.
    """

    def __init__(self, number: int | None) -> None:
        super().__init__("the query holds nothing to read")
        self.number = number


class ServiceMetrics:
    """What Prometheus reads of one app; never the text of a query."""

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
        self.abstentions = Counter("abstentions_total", "Queries without an answer", ["why"], registry=self.registry)
        for why in get_args(Abstention):
            self.abstentions.labels(why)
        self.parse_failures = Counter(
            "parse_failures_total", "Answers of the model that named no label", registry=self.registry
        )
        self.engine_failures = Counter(
            "engine_failures_total", "Queries the engine did not answer", registry=self.registry
        )
        self.in_flight = Gauge("queries_in_flight", "Queries accepted and not answered yet", registry=self.registry)
        self.ready = Gauge("ready", "1 while the engine answers", registry=self.registry)


class Service:
    """A student behind every protocol. `capacity` queries may be in flight, each of which gets an answer or an error;
    `cached` is how many answers are kept. Cancelling a call gives its slots back and cancels its queries.
    """

    traffic: "Traffic | None" = None
    """What happens after a prediction: the teacher, rows, audits. None: nothing."""

    def __init__(self, classifier: QueryClassifier, backend: Backend, capacity: int, cached: int) -> None:
        self.classifier = classifier
        self.backend = backend
        self.capacity = capacity
        self.in_flight = 0
        self.cache = AnswerCache(classifier.pair, cached)
        self.metrics = ServiceMetrics()
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.ready.set_function(lambda: self.backend.ready)

    def swap(self, classifier: QueryClassifier) -> None:
        """Let another student answer the queries that come from now on; those in flight end with theirs."""
        self.classifier = classifier
        self.cache = AnswerCache(classifier.pair, self.cache.size)

    async def predict(self, queries: Sequence[str]) -> list[CalibratedPrediction]:
        """Return predictions in the queries' order; raises BlankQuery, NotReady, TooLarge, Overloaded or EngineError,
        which then holds for the whole call.
        """
        # by what the prompt shows: however a query is spelled, it is one query
        texts = [self.classifier.shown(query) for query in queries]
        if "" in texts:
            raise BlankQuery(texts.index("") if len(texts) > 1 else None)
        if not self.backend.ready:
            raise NotReady
        with self.slots(len(queries)):
            if len(queries) == 1:
                return [await self.predict_one(queries[0], texts[0])]
            rows = zip(range(len(queries)), queries, texts, strict=True)
            tasks = [asyncio.create_task(self.predict_numbered(*row)) for row in rows]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # after the first failure nobody waits for the rest
                    task.cancel()

    @contextmanager
    def slots(self, queries: int) -> Iterator[None]:
        """Hold slots for so many queries; raises TooLarge or Overloaded."""
        if queries > self.capacity:
            raise TooLarge(self.capacity)
        if self.in_flight + queries > self.capacity:
            raise Overloaded
        self.in_flight += queries
        try:
            yield
        finally:
            self.in_flight -= queries

    async def predict_numbered(self, number: int, query: str, text: str) -> CalibratedPrediction:
        """Predict one query of a batch, with its place in the error if the engine refuses it."""
        try:
            return await self.predict_one(query, text)
        except QueryRefused as error:
            raise QueryRefused(f"queries[{number}]: {error}") from None

    async def predict_one(self, query: str, text: str) -> CalibratedPrediction:
        """Predict one query, from the cache if its text is there."""
        prediction, source = await self.cache.get(text, lambda: self.query_engine(query))
        if self.traffic:
            prediction = await self.traffic.after(query, prediction)
        self.metrics.answers.labels(source).inc()
        self.metrics.labels.labels(prediction.label).inc()
        if prediction.abstained:
            self.metrics.abstentions.labels(prediction.abstained).inc()
        return prediction

    async def query_engine(self, query: str) -> CalibratedPrediction:
        """Return the engine's prediction; raises EngineError."""
        started = time.perf_counter()
        try:
            prediction = await self.classifier.predict(query)
            self.metrics.engine_seconds.observe(time.perf_counter() - started)
        except QueryRefused:
            raise
        except EngineError:
            self.metrics.engine_failures.inc()
            raise
        if prediction.label == UNKNOWN:
            self.metrics.parse_failures.inc()
        return prediction

"""What the service does with queries, whatever protocol brings them: a bounded queue, one request to the engine each,
counts.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve.answer_cache import AnswerCache
from serve.metrics import ServiceMetrics
from serve.schemas import Classification
from serve.supervisor import Supervisor
from stages.parts.engines.http_client import EngineClient, EngineError, QueryRefused
from stages.parts.students.pair import Classifier
from stages.parts.task.labels import UNKNOWN


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

    def __init__(self, places: int) -> None:
        super().__init__(f"the service holds {places} queries at most: send smaller batches")


class Service:
    """The classifier on its engine. `places` is how many queries may be in flight at a time, each of which gets an
    answer or an error; `cached` how many answers are kept."""

    def __init__(
        self, classifier: Classifier, client: EngineClient, supervisor: Supervisor, places: int, cached: int
    ) -> None:
        self.classifier = classifier
        self.client = client
        self.supervisor = supervisor
        self.places = places
        self.taken = 0
        self.answers = AnswerCache(classifier.pair, cached)
        self.metrics = ServiceMetrics()
        self.metrics.in_flight.set_function(lambda: self.taken)
        self.metrics.ready.set_function(lambda: self.supervisor.ready)

    async def classify(self, queries: Sequence[str]) -> list[Classification]:
        """Answers in order; raises NotReady, TooLarge, Overloaded or EngineError, then for all of them."""
        if not self.supervisor.ready:
            raise NotReady
        with self.accepted(len(queries)):
            if len(queries) == 1:
                return [await self.answer(queries[0])]
            tasks = [asyncio.create_task(self.answer(query)) for query in queries]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # after the first failure nobody waits for the rest
                    task.cancel()

    @contextmanager
    def accepted(self, queries: int) -> Iterator[None]:
        if queries > self.places:
            raise TooLarge(self.places)
        if self.taken + queries > self.places:
            raise Overloaded
        self.taken += queries
        try:
            yield
        finally:
            self.taken -= queries

    async def answer(self, query: str) -> Classification:
        answer, source = await self.answers.answer(query, self.ask)
        self.metrics.answers.labels(source).inc()
        self.metrics.labels.labels(answer.label).inc()
        if answer.abstained:
            self.metrics.abstentions.inc()
        return answer

    async def ask(self, query: str) -> Classification:
        """The engine's answer; raises EngineError."""
        started = time.perf_counter()
        try:
            completion = await self.client.complete(self.classifier.request(query))
            self.metrics.engine_seconds.observe(time.perf_counter() - started)
            answer = Classification(**vars(self.classifier.read(completion)))
        except QueryRefused:
            raise
        except EngineError:
            self.metrics.engine_failures.inc()
            raise
        if answer.label == UNKNOWN:
            self.metrics.parse_failures.inc()
        return answer

"""The answer to a row, from whatever file it came."""

from typing import Any

from serve.batch.rows import COLUMNS
from stages.parts.engines.caching_client import CachingClient
from stages.parts.students.pair import Classifier
from stages.parts.task.labels import UNKNOWN

AT_ONCE = 256  # rows in flight to the engine, of each process
SLOWEST = 20  # times serve.timeout_s is how long an answer may take: all that are in flight wait for each other
ATTEMPTS = 3  # for a row: the engine is near, and an operator waits
NO_LABEL = {"label": UNKNOWN, "confidence": 0.0, "abstained": True, "reasoning": None}


async def answer(client: CachingClient, classifier: Classifier, text: str) -> dict[str, Any]:
    """A row's COLUMNS; raises EngineError as the client does."""
    found = classifier.read(await client.complete(classifier.request(text)))
    return {name: getattr(found, name) for name in COLUMNS}

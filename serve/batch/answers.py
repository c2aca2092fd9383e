"""The answer to one row, whichever file it is from."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve.batch.csv_file import COLUMNS, NO_LABEL
from stages.parts.engines.caching_client import CachingClient
from stages.parts.engines.http_client import EngineError, EngineRefuses, RequestRefused
from stages.parts.engines.rate_limit import backoff_s
from stages.parts.engines.requests import NO_ANSWER, Failure
from stages.parts.run.errors import UserError
from stages.parts.students.pair import Classifier

MAX_IN_FLIGHT = 256  # rows at the engine, of each process
PATIENCE = 20  # times serve.timeout_s is how long an answer may take: all rows in flight wait for each other
ATTEMPTS = 3  # for a request: the engine is near, and an operator waits
CHANCES = 3  # for a row that fails while others are answered: the engine may have died and come back in between


def unlabelled(reason: str) -> dict[str, Any]:
    """Return the answer to a row without a label, with its `failure`."""
    return {**NO_LABEL, "failure": reason}


@contextmanager
def resumable() -> Iterator[None]:
    """Turn an engine's failure, alone or in a group, into a UserError that says how to go on."""
    try:
        yield
    except* EngineError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise UserError(f"{error}; answers so far are kept: run it again to go on") from None


class RowClassifier:
    """Classifies the texts of rows on one engine."""

    def __init__(self, client: CachingClient, classifier: Classifier) -> None:
        self.client = client
        self.classifier = classifier
        self.recovering: asyncio.Task[None] | None = None

    async def classify(self, text: str | None) -> dict[str, Any]:
        """Return a row's COLUMNS, and `failure`: None, or why the row has no label (empty, too long, refused).

        Raises EngineError if the engine gives no answer, EngineRefuses if it would give none to any row.
        """
        if text is None or not self.classifier.shown(text):
            return unlabelled("empty")
        try:
            found = self.classifier.read(await self.client.complete(self.classifier.request(text)))
        except EngineError as error:
            failure = Failure.of(error)
            if failure.reason == NO_ANSWER:
                raise
            return unlabelled(f"{failure.reason}: {failure.message}")
        return {name: getattr(found, name) for name in COLUMNS} | {"failure": None}

    async def classify_patiently(self, text: str | None) -> dict[str, Any]:
        """Do the same, but wait while the engine is away. A row that fails CHANCES times while the engine answers
        others has no label, and `failure` says so. Raises EngineRefuses.
        """
        for _ in range(CHANCES):
            try:
                return await self.classify(text)
            except EngineRefuses:
                raise
            except EngineError as error:
                last = error
            await self.until_up()
        return unlabelled(f"{NO_ANSWER}: {last}")

    async def until_up(self) -> None:
        """Wait until the engine answers a harmless query. All rows that wait share the attempts."""
        if not self.recovering or self.recovering.done():
            self.recovering = asyncio.create_task(self.recover())
        await asyncio.shield(self.recovering)

    async def recover(self) -> None:
        """Send a harmless query until it is answered; raises EngineRefuses or RequestRefused if it never will be."""
        for attempt in itertools.count():
            try:
                await self.client.send(self.classifier.trial())
                return
            except (EngineRefuses, RequestRefused):
                raise
            except EngineError:
                await asyncio.sleep(backoff_s(attempt))

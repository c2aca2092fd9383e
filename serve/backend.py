"""What computes a service's answers: an engine under its supervisor (supervisor.py), or this process."""

import asyncio
from typing import Protocol

from stages.parts.students.prediction import QueryClassifier

TRIAL = "hello"


class Backend(Protocol):
    """`ready` while queries can be answered; `was_ready` is set when that was so for the first time."""

    ready: bool
    was_ready: asyncio.Event

    async def run(self) -> None:
        """Run until cancelled; raises why answers were never possible."""

    def stop(self) -> None:
        """Stop what runs besides this process."""


class InProcess:
    """The backend of a student in this process: ready once a query has been answered."""

    def __init__(self, classifier: QueryClassifier) -> None:
        self.classifier = classifier
        self.ready = False
        self.was_ready = asyncio.Event()

    async def run(self) -> None:
        await self.classifier.predict(TRIAL)
        self.ready = True
        self.was_ready.set()
        await asyncio.Event().wait()

    def stop(self) -> None:
        pass

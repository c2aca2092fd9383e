"""Why requests and rows fail, in one line, and a client that gives up as long as nothing succeeds."""

import re
import time
from collections.abc import Mapping
from typing import Any

from stages.parts.engines.caching_client import ChatClient
from stages.parts.engines.completions import compact
from stages.parts.engines.http_client import EngineBusy, EngineError, EngineRefuses, QueryRefused, RequestRefused

SHOWN = 3  # distinct messages
# Numbers, and identifiers with a digit, as of requests: messages that differ in them alone are one. A status is kept.
VARYING = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}\b|(?<!answered )\b\d[\d.,]*")
MAX_REQUESTS = 20  # without a success: none is sent before the first, and so many failures make an outage
PATIENCE_S = 10.0  # before the first success, beside what the endpoint asks to wait
OUTAGE_S = 60.0  # after it: longer than a restart, and than one request's own retries
MAX_REFUSED = 8  # before the first success: as many as are in flight at first


class Causes:
    """Messages with their counts, in the order in which they came. Those that differ by numbers alone count as one."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, message: str) -> None:
        kind = VARYING.sub("#", message)
        self.first.setdefault(kind, message)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def __str__(self) -> str:
        """The first SHOWN distinct messages with their counts, and how many failures have other causes."""
        kinds = list(self.counts)
        times = {kind: "once" if count == 1 else f"{count} times" for kind, count in self.counts.items()}
        shown = [f"{self.first[kind]} ({times[kind]})" for kind in kinds[:SHOWN]]
        others = sum(self.counts[kind] for kind in kinds[SHOWN:])
        return "; ".join([*shown, f"{others} with other messages"] if others else shown)


class FailFastClient:
    """A client that raises EngineRefuses, with the causes, instead of going on while nothing at all succeeds.

    Before the first success: instead of request MAX_REQUESTS + 1, at a failure after PATIENCE_S, and at MAX_REFUSED
    refusals (one alone may be about its own text). Later: at the MAX_REQUESTS-th failure in a row after OUTAGE_S.
    """

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self.causes = Causes()
        self.sent = self.refused = self.failed = 0
        self.succeeded = False
        self.silent_since: float | None = None  # the start of the first request without a success since the last one

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if not self.succeeded and self.sent == MAX_REQUESTS:
            raise self.nothing_succeeds()
        self.sent += 1
        started = time.monotonic()
        try:
            completion = await self.client.complete(body)
            if not self.succeeded:
                compact(completion)  # an answer that is no completion is no success
        except EngineRefuses:
            raise
        except EngineError as error:
            self.count(error, started)
            raise
        self.succeeded = True
        if self.failed:
            self.causes, self.failed, self.silent_since = Causes(), 0, None
        return completion

    def count(self, error: EngineError, started: float) -> None:
        """Count a failure; raises EngineRefuses if nothing has succeeded for too long."""
        refused = isinstance(error, QueryRefused | RequestRefused)
        if refused and self.succeeded:
            return
        self.causes.add(str(error))
        self.failed += 1
        self.refused += refused
        now = time.monotonic()
        self.silent_since = started if self.silent_since is None else self.silent_since
        if isinstance(error, EngineBusy) and error.retry_after_s:
            self.silent_since = max(self.silent_since, now + error.retry_after_s)
        if self.succeeded:
            give_up = self.failed >= MAX_REQUESTS and now - self.silent_since > OUTAGE_S
        else:
            give_up = self.refused >= MAX_REFUSED or now - self.silent_since > PATIENCE_S
        if give_up:
            raise self.nothing_succeeds() from None

    def nothing_succeeds(self) -> EngineRefuses:
        since = " any more" if self.succeeded else ""
        return EngineRefuses(f"no request succeeds{since}: {self.causes}")

"""Vendors' batch APIs, in OpenAI's protocol: a file of requests is uploaded, worked through within a day at half the
price, and collected.

Answers go to the same log as those that are asked for one by one, so that whatever a batch leaves open is asked in the
usual way behind it. A second log notes each job before it starts, and the batch once it has: a run that is killed while
it waits finds its jobs again and pays for nothing twice. Whatever fails here is tried again; a day's wait outlives an
hour without a network.
"""

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any, TypeVar

import aiohttp

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.caching_client import CachingClient, allowed_tokens, compact, content_key, still_answers
from stages.parts.engines.http_client import EngineClient, EngineError, EngineRefuses, EngineTimeout, RequestRefused
from stages.parts.engines.rate_limit import backoff_s
from stages.parts.run.answer_store import KEY_LENGTH, AnswerStore
from stages.parts.run.progress import Progress

MOST_REQUESTS, MOST_BYTES = 50_000, 100 * 2**20  # in one batch: OpenAI allows 50,000 and 200 MB
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 60.0
ATTEMPTS = 8  # with the pauses between them, about half a minute
LOST_POLLS = 60  # in a row, each so many attempts: more than an hour
ENDED = ("completed", "failed", "expired", "cancelled")

Reply = TypeVar("Reply")


def line_of(key: str, body: Mapping[str, Any]) -> str:
    """A request as a line of a batch's file."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


class Batches:
    """Jobs at one endpoint, whose answers go to the log of `caching`. `jobs` is the other log."""

    def __init__(self, client: EngineClient, caching: CachingClient, jobs: AnswerStore) -> None:
        assert caching.store is not None
        self.client = client
        self.caching = caching
        self.answers, self.budget = caching.store, caching.budget
        self.jobs = jobs

    async def complete_all(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Get what the log lacks of the answers to requests that allow as many tokens each, in batches as large as
        limits and budget allow; leaves out what a batch failed to answer. Raises EngineError, and OverBudget."""
        for key, job in self.jobs.records():
            if not job["done"]:
                await self.finish({**job, "key": key})
        wanted: dict[str, dict[str, Any]] = {}
        size = prompt = completion = 0
        for body in bodies:
            key = content_key(body)
            if key in wanted or self.caching.stored(key, body) is not None:
                continue
            length, more = len(line_of(key, body)), self.budget.expected(body)
            too_much = self.budget.exceeded_limit(prompt + more[0], completion + more[1])
            if wanted and (too_much or len(wanted) == MOST_REQUESTS or size + length > MOST_BYTES):
                await self.send(wanted)
                wanted, size, prompt, completion = {}, 0, 0, 0
                too_much = self.budget.exceeded_limit(*more)
            if too_much:
                raise BudgetExceeded(too_much)
            wanted[key] = body
            size, prompt, completion = size + length, prompt + more[0], completion + more[1]
        if wanted:
            await self.send(wanted)

    async def send(self, wanted: Mapping[str, dict[str, Any]]) -> None:
        """A batch from its file to its end; counts what it cost."""
        file = await again(lambda: self.upload("".join(line_of(key, body) for key, body in wanted.items())))
        job = {
            "key": hashlib.sha256(file.encode()).hexdigest()[:KEY_LENGTH],
            "file": file,
            "batch": None,
            "rows": len(wanted),
            "max_tokens": max(map(allowed_tokens, wanted.values())),
            "done": False,
        }
        self.note(job)
        await self.finish(job)
        for key, body in wanted.items():
            self.caching.stored(key, body)

    async def finish(self, job: dict[str, Any]) -> None:
        """Start a noted job if it has not started, wait for its end, and keep its answers."""
        if not job.get("batch"):
            job = {**job, "batch": await again(lambda: self.started(job))}
            self.note(job)
        start = time.monotonic()
        batch = await self.ended(job)
        if batch["status"] == "failed":
            self.note({**job, "done": True})
            raise EngineRefuses(f"the endpoint refuses the batch: {json.dumps(batch.get('errors'))[:300]}")
        if output := batch.get("output_file_id"):
            with tempfile.TemporaryFile() as lines:
                await again(lambda: self.download(output, lines))
                for line in lines:
                    self.keep(json.loads(line), job["max_tokens"], time.monotonic() - start)
        self.note({**job, "done": True})

    async def started(self, job: dict[str, Any]) -> str:
        """The name of the job's batch; a killed run may have started it and not learned its name."""
        page = await self.get("batches?limit=100")
        while True:
            for batch in page["data"]:
                if batch["input_file_id"] == job["file"]:
                    return str(batch["id"])
            if not page.get("has_more"):
                break
            page = await self.get(f"batches?limit=100&after={page['data'][-1]['id']}")
        wanted = {"input_file_id": job["file"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        async with self.opened("POST", "batches", json=wanted) as response:
            return str((await response.json())["id"])

    async def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job's batch when the vendor is done with it."""
        pause, lost = FIRST_POLL_S, 0
        with Progress(f"waiting for {job['batch']} ({job['rows']} rows)") as progress:
            while True:
                try:
                    batch = await again(lambda: self.get(f"batches/{job['batch']}"))
                    lost = 0
                    if batch["status"] in ENDED:
                        return batch
                    progress.update(0, note=batch["status"])
                except (EngineRefuses, RequestRefused):
                    raise
                except EngineError:
                    lost += 1
                    if lost == LOST_POLLS:
                        raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_POLL_S)

    def keep(self, line: dict[str, Any], max_tokens: int, seconds: float) -> None:
        """Log one line of an output file; one that holds no chat completion is asked for one by one later."""
        response = line.get("response") or {}
        key = line["custom_id"]
        if response.get("status_code") != 200 or still_answers(self.answers.get(key), {"max_tokens": max_tokens}):
            return
        try:
            completion = compact(response["body"])
        except EngineError:
            return
        record = {
            "max_tokens": max_tokens,
            "completion": completion,
            "dollars": self.budget.cost(completion["usage"], batch=True),
            "batch": True,
            "attempts": 1,
            "seconds": round(seconds, 3),
            "at": int(time.time()),
        }
        self.caching.record(key, record)

    def note(self, job: dict[str, Any]) -> None:
        self.jobs.put(job["key"], {name: value for name, value in job.items() if name != "key"})

    async def upload(self, lines: str) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", lines.encode(), filename="requests.jsonl", content_type="application/jsonl")
        async with self.opened("POST", "files", data=form, timeout=self.for_files()) as response:
            return str((await response.json())["id"])

    async def download(self, file: str, into: IO[bytes]) -> None:
        """A whole file, ready to be read. (The response's own lines end at half a megabyte, and log-probabilities are
        longer.)
        """
        into.seek(0)
        into.truncate()
        async with self.opened("GET", f"files/{file}/content", timeout=self.for_files()) as response:
            async for chunk in response.content.iter_any():
                into.write(chunk)
        into.seek(0)

    async def get(self, path: str) -> dict[str, Any]:
        async with self.opened("GET", path) as response:
            return dict(await response.json())

    def for_files(self) -> aiohttp.ClientTimeout:
        """The time limit of an answer for each piece of a file, not for the whole."""
        return aiohttp.ClientTimeout(
            sock_connect=self.client.session.timeout.total, sock_read=self.client.session.timeout.total
        )

    @asynccontextmanager
    async def opened(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response of status 200; raises EngineError."""
        try:
            async with self.client.session.request(method, f"{self.client.api_base}/{path}", **options) as response:
                if response.status != 200:
                    raise self.client.failure(response.status, response.headers, await response.text(errors="replace"))
                yield response
        except TimeoutError:
            raise EngineTimeout("the engine did not answer in time") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineError(f"the engine failed: {type(error).__name__}") from None


async def again(ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """What `ask` gives, at the last of ATTEMPTS; raises EngineError, at once where asking again would not help."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return await ask()
        except (EngineRefuses, RequestRefused):
            raise
        except EngineError:
            await asyncio.sleep(backoff_s(attempt))
    return await ask()

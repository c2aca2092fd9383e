"""Vendors' batch APIs, in OpenAI's protocol: a file of requests is uploaded, worked through within a day at half the price, and collected.

Answers go to the same log as those that are asked for one by one, so that whatever a batch leaves open is asked in the usual way behind
it. A second log notes each job before it starts: a run that is killed while it waits finds its jobs again and pays for nothing twice.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from stages.parts.engines.asking import Asker, allowed_tokens, compact, content_key
from stages.parts.engines.client import EngineClient, EngineError, EngineRefuses, EngineTimeout
from stages.parts.engines.meter import OverBudget
from stages.parts.engines.pace import pause_s
from stages.parts.run.append_log import KEY_LENGTH, AppendLog
from stages.parts.run.progress import Progress

MOST_REQUESTS, MOST_BYTES = 50_000, 100 * 2**20  # in one batch: OpenAI allows 50,000 and 200 MB
DISCOUNT = 0.5
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 60.0
ATTEMPTS = 8
ENDED = ("completed", "failed", "expired", "cancelled")


def line_of(key: str, body: Mapping[str, Any]) -> str:
    """A request as a line of a batch's file."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


class Batches:
    """Jobs at one endpoint, whose answers go to the log of `asker`. `jobs` is the other log."""

    def __init__(self, client: EngineClient, asker: Asker, jobs: AppendLog) -> None:
        assert asker.log is not None
        self.client = client
        self.asker = asker
        self.answers, self.meter = asker.log, asker.meter
        self.jobs = jobs

    async def ask(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Get what the log lacks of the answers to requests that allow as many tokens each, in batches as large as limits and budget allow;
        leaves out what a batch failed to answer. Raises EngineError, and OverBudget."""
        for job in self.jobs.records():
            if not job["done"]:
                await self.finish(job)
        wanted: dict[str, dict[str, Any]] = {}
        size = prompt = completion = 0
        for body in bodies:
            key = content_key(body)
            if key in wanted or self.asker.kept(key, body) is not None:
                continue
            length, more = len(line_of(key, body)), self.meter.expected(body)
            too_much = self.meter.passed(prompt + more[0], completion + more[1])
            if wanted and (too_much or len(wanted) == MOST_REQUESTS or size + length > MOST_BYTES):
                await self.send(wanted)
                wanted, size, prompt, completion = {}, 0, 0, 0
                too_much = self.meter.passed(*more)
            if too_much:
                raise OverBudget(too_much)
            wanted[key] = body
            size, prompt, completion = size + length, prompt + more[0], completion + more[1]
        if wanted:
            await self.send(wanted)

    async def send(self, wanted: Mapping[str, dict[str, Any]]) -> None:
        """A batch from its file to its end; counts what it cost."""
        file = await self.upload("".join(line_of(key, body) for key, body in wanted.items()))
        job = {
            "key": hashlib.sha256(file.encode()).hexdigest()[:KEY_LENGTH],
            "file": file,
            "rows": len(wanted),
            "max_tokens": max(map(allowed_tokens, wanted.values())),
            "done": False,
        }
        self.note(job)
        await self.finish(job)
        for key, body in wanted.items():
            self.asker.kept(key, body)

    async def finish(self, job: dict[str, Any]) -> None:
        """Start a noted job if it has not started, wait for its end, and keep its answers."""
        batch = await self.started(job)
        pause, start = FIRST_POLL_S, time.monotonic()
        with Progress(f"waiting for {batch['id']} ({job['rows']} rows)") as progress:
            while batch["status"] not in ENDED:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_POLL_S)
                batch = await self.get(f"batches/{batch['id']}")
                progress.update(0, note=batch["status"])
        if batch["status"] == "failed":
            self.note({**job, "done": True})
            raise EngineRefuses(f"the endpoint refuses the batch: {json.dumps(batch.get('errors'))[:300]}")
        if output := batch.get("output_file_id"):
            async with self.opened("GET", f"files/{output}/content") as response:
                async for line in response.content:
                    self.keep(json.loads(line), job["max_tokens"], time.monotonic() - start)
        self.note({**job, "done": True})

    async def started(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's batch; a killed run may have started it and not learned its name."""
        known = await self.get("batches?limit=100")
        for batch in known["data"]:
            if batch["input_file_id"] == job["file"]:
                return dict(batch)
        wanted = {"input_file_id": job["file"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        async with self.opened("POST", "batches", json=wanted) as response:
            return dict(await response.json())

    def keep(self, line: dict[str, Any], max_tokens: int, seconds: float) -> None:
        """Log one line of an output file; one that holds no chat completion is asked for one by one later."""
        response = line.get("response") or {}
        key = line["custom_id"]
        if response.get("status_code") != 200 or self.answers.get(key) is not None:
            return
        try:
            completion = compact(response["body"])
        except EngineError:
            return
        price = self.meter.cost(completion["usage"])
        dollars = None if price is None else DISCOUNT * price
        record = {
            "max_tokens": max_tokens,
            "completion": completion,
            "dollars": dollars,
            "attempts": 1,
            "seconds": round(seconds, 3),
        }
        self.answers.put(key, {**record, "at": int(time.time())})

    def note(self, job: dict[str, Any]) -> None:
        self.jobs.put(job["key"], {name: value for name, value in job.items() if name != "key"})

    async def upload(self, lines: str) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", lines.encode(), filename="requests.jsonl", content_type="application/jsonl")
        async with self.opened("POST", "files", data=form) as response:
            return str((await response.json())["id"])

    async def get(self, path: str) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            try:
                async with self.opened("GET", path) as response:
                    return dict(await response.json())
            except EngineRefuses:
                raise
            except EngineError:
                if attempt + 1 == ATTEMPTS:
                    raise
                await asyncio.sleep(pause_s(attempt))
        raise AssertionError("unreachable")

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

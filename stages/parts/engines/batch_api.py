"""Vendors' batch APIs, in OpenAI's protocol: a file of requests is uploaded, worked through within a day at half the
price, and collected.

Answers go to the same store as those that are requested one by one, which is how whatever a batch leaves out is
requested afterwards, at the full price: one line says how many these are, and why. A second store notes each job before
it starts, and the batch once it has: a run that is killed while it waits finds its jobs again and pays for nothing
twice. A day's wait outlives an hour without a network.
"""

import asyncio
import hashlib
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any

import httpx
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError
from openai.types import Batch

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.caching_client import CachingClient, allowed_tokens, content_key
from stages.parts.engines.completions import compact, usage_of
from stages.parts.engines.endpoint import in_one_line
from stages.parts.engines.http_client import (
    EngineClient,
    EngineError,
    EngineRefuses,
    EngineTimeout,
    RequestRefused,
    UnreadableAnswer,
    json_object,
)
from stages.parts.engines.rate_limit import backoff_s
from stages.parts.run.answer_store import KEY_LENGTH, AnswerStore
from stages.parts.run.progress import Progress

MOST_REQUESTS, MOST_BYTES = 50_000, 100 * 2**20  # in one batch: OpenAI allows 50,000 and 200 MB
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 60.0
RETRIES = 8  # of each call, by the openai package: with its pauses about half a minute
LOST_POLLS = 60  # in a row, each so many attempts: more than an hour
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
ENDED = ("completed", "failed", "expired", "cancelled")
SHOWN = 3  # reasons for requests without an answer

logger = logging.getLogger(__name__)


def line_of(key: str, body: Mapping[str, Any]) -> str:
    """Return a request as a line of a batch's file."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def name_of(found: Any) -> str:
    """Return the id of a file or batch; raises TypeError if it has none (`errors` makes a line of it)."""
    if not isinstance(found.id, str) or not found.id:
        raise TypeError
    return found.id


class Batches:
    """Jobs at one endpoint, whose answers go to the store of `caching`. `jobs` is the other store."""

    def __init__(self, client: EngineClient, caching: CachingClient, jobs: AnswerStore) -> None:
        assert caching.store is not None
        self.client = client
        self.caching = caching
        self.answers, self.budget = caching.store, caching.budget
        self.jobs = jobs
        timeout_s = client.session.timeout.total  # of a call, or of each piece of a file
        self.api = AsyncOpenAI(api_key=client.key, base_url=client.api_base, timeout=timeout_s, max_retries=RETRIES)

    async def complete_all(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Store the missing answers to requests that allow as many tokens each, in batches as large as limits and
        budget allow; leaves out what a batch fails to answer. Raises EngineError, and BudgetExceeded."""
        async with self.api:
            await self.finish_jobs()
            await self.send_missing(bodies)

    async def finish_jobs(self) -> None:
        """Finish the jobs that earlier runs left open."""
        for key, job in self.jobs.records():
            if not job["done"]:
                await self.finish({**job, "key": key})

    async def send_missing(self, bodies: Iterable[dict[str, Any]]) -> None:
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
        """Run a batch from its file to its end; adds its answers to the budget."""
        lines = "".join(line_of(key, body) for key, body in wanted.items()).encode()
        async with self.errors():
            file = name_of(
                await self.api.files.create(purpose="batch", file=("requests.jsonl", lines, "application/jsonl"))
            )
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
        """Start a noted job if it has not started, wait for its end, and store its answers."""
        if not job.get("batch"):
            job = {**job, "batch": await self.start(job)}
            self.note(job)
        start = time.monotonic()
        batch = await self.ended(job)
        if batch.status == "failed":
            self.note({**job, "done": True})
            raise EngineRefuses(f"the endpoint refuses the batch: {json.dumps(batch.to_dict().get('errors'))[:300]}")
        answered: set[str] = set()
        reasons = Counter[str]()
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            with tempfile.TemporaryFile() as lines:
                await self.download(file, lines)
                for line in lines:
                    if reason := self.keep(line, job, time.monotonic() - start, answered):
                        reasons[reason] += 1
        self.note({**job, "done": True})
        if missing := job["rows"] - len(answered):
            shown = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(SHOWN))
            logger.warning(
                "%s answered %d of %d requests (status %s%s); the other %d are sent one by one, at the full price",
                job["batch"],
                len(answered),
                job["rows"],
                batch.status,
                f": {shown}" if shown else "",
                missing,
            )

    async def start(self, job: dict[str, Any]) -> str:
        """Start a job's batch and return its name; raises EngineError.

        Each attempt looks for the batch first: a killed run, or an attempt without an answer, may have started it.
        """
        once = self.api.with_options(max_retries=0)  # the package would start a second one
        for attempt in range(RETRIES):
            try:
                async with self.errors():
                    async for batch in self.api.batches.list(limit=100):
                        if batch.input_file_id == job["file"]:
                            return name_of(batch)
                    return name_of(
                        await once.batches.create(
                            input_file_id=job["file"], endpoint="/v1/chat/completions", completion_window="24h"
                        )
                    )
            except (EngineRefuses, RequestRefused):
                raise
            except EngineError as error:
                last = error
                await asyncio.sleep(backoff_s(attempt))
        raise last

    async def ended(self, job: dict[str, Any]) -> Batch:
        """Return a job's batch when the vendor is done with it."""
        pause, lost = FIRST_POLL_S, 0
        with Progress(f"waiting for {job['batch']} ({job['rows']} rows)") as progress:
            while True:
                try:
                    async with self.errors():
                        batch = await self.api.batches.retrieve(job["batch"])
                        status = str(batch.status).lower()
                    # A status of the vendor's own, beside a file of answers, is an end.
                    if status in ENDED or (status not in RUNNING and batch.output_file_id):
                        return batch.model_copy(update={"status": status})
                    if status not in RUNNING:
                        raise EngineError(
                            f"the endpoint names no status of {job['batch']} that is known: {batch.status}"
                        )
                    lost = 0
                    progress.update(0, note=status)
                except (EngineRefuses, RequestRefused):
                    raise
                except EngineError:
                    lost += 1
                    if lost == LOST_POLLS:
                        raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_POLL_S)

    def keep(self, line: bytes, job: Mapping[str, Any], seconds: float, answered: set[str]) -> str | None:
        """Store the answer in a line of an output file, unless its request has one, and add its key to `answered`.

        Returns why there is none, or None. A line that is no answer to this batch changes nothing.
        """
        if not line.strip():
            return None
        try:
            found = json_object(line)
            key = found["custom_id"]
            bytes.fromhex(key)
            response = found.get("response") or {}
            answer = response.get("body")
        except (ValueError, KeyError, TypeError, AttributeError, UnreadableAnswer):
            return "a line that can't be read"
        if len(key) != KEY_LENGTH:
            return "a line of another batch"
        # The line's status is not read: some vendors leave it out, or send 201, or "200".
        if not isinstance(answer, dict) or not answer.get("choices"):
            failed = found.get("error") or (answer.get("error") if isinstance(answer, dict) else None) or answer
            return in_one_line(str(failed.get("message") if isinstance(failed, dict) else failed))
        if key in answered:
            return None
        answered.add(key)
        before = self.answers.get(key)
        if before and before.get("job") == job["file"]:
            return None  # of a run that was killed while it stored this file's answers
        more: dict[str, Any] = {"batch": True, "job": job["file"], "attempts": 1, "seconds": round(seconds, 3)}
        try:
            completion = compact(answer)
        except UnreadableAnswer as error:
            completion, more["raw"] = {"choices": [], "usage": usage_of(answer)}, answer
            answered.discard(key)
            reason: str | None = str(error)
        else:
            reason = None
        usage = completion["usage"]
        priced = usage["prompt_tokens"] and usage["completion_tokens"]  # else when it is counted, with an estimate
        more["dollars"] = self.budget.cost(usage, batch=True) if priced else None
        self.caching.put(
            key, {"max_tokens": job["max_tokens"], "completion": completion, "at": int(time.time()), **more}
        )
        return reason

    def note(self, job: dict[str, Any]) -> None:
        self.jobs.put(job["key"], {name: value for name, value in job.items() if name != "key"})

    async def download(self, file: str, into: IO[bytes]) -> None:
        """Write a whole file, however large, ready to be read; starts anew when it breaks off."""
        for attempt in range(RETRIES):
            into.seek(0)
            into.truncate()
            try:
                async with self.errors(), self.api.files.with_streaming_response.content(file) as response:
                    async for chunk in response.iter_bytes():
                        into.write(chunk)
                break
            except EngineError as error:
                if isinstance(error, EngineRefuses | RequestRefused) or attempt + 1 == RETRIES:
                    raise
        into.seek(0)

    @asynccontextmanager
    async def errors(self) -> AsyncIterator[None]:
        """Raise EngineError for what the openai package raises, after its retries."""
        try:
            yield
        except APIStatusError as error:
            raise self.client.failure(
                error.status_code, error.response.headers, error.response.text, str(error.request.url)
            ) from None
        except APITimeoutError:
            raise EngineTimeout("the engine did not answer in time") from None
        except APIConnectionError as error:
            raise EngineError(f"the engine failed: {in_one_line(str(error.__cause__ or error))}") from None
        except httpx.HTTPError as error:  # while a file is read
            raise EngineError(f"the engine failed: {in_one_line(f'{type(error).__name__}: {error}')}") from None
        except (OpenAIError, ValueError, AttributeError, TypeError):  # the package takes what is no JSON for text
            raise EngineError("the endpoint's answer is not one of the batch API") from None

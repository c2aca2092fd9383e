"""A served student's answers to many rows, asked the way the service asks it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stages.parts.engines.client import EngineClient, EngineError, QueryRefused, engine_client
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.requests import NO_READING, ProgramRequests, Reading
from stages.parts.run.errors import UserError
from stages.parts.run.params import Style
from stages.parts.run.progress import Progress

REASONING_TOKENS = 256
PATIENCE_S = 600  # for one answer: it may wait for all others in flight


@dataclass(frozen=True)
class Scores:
    """A program's answers to labelled rows, in their order; `accuracy` in [0, 1], `seconds` for all of them."""

    accuracy: float
    readings: list[Reading]
    seconds: float

    @property
    def predicted(self) -> list[str]:
        return [reading.label for reading in self.readings]

    @property
    def probabilities(self) -> list[dict[str, float]]:
        return [reading.probabilities for reading in self.readings]


def most_tokens(style: Style, labels: Sequence[str], base: Path) -> int:
    """How many tokens an answer may have: the longest label's in the student's own tokens, and room for the reasoning before it."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    longest = max(len(tokenizer.encode(label, add_special_tokens=False).ids) for label in labels)
    return longest if style == "direct" else longest + REASONING_TOKENS


async def ask(client: EngineClient, requests: ProgramRequests, text: str) -> Reading:
    """One text's reading; NO_READING for a text with more tokens than the model takes."""
    try:
        return requests.read(await client.complete(requests.body(text)))
    except QueryRefused:
        return NO_READING


async def ask_all(served: ServedModel, requests: ProgramRequests, texts: Sequence[str], at_once: int) -> list[Reading]:
    """The readings of all texts in order, `at_once` in flight."""
    found: list[Reading] = [NO_READING] * len(texts)
    waiting = iter(enumerate(texts))
    async with engine_client(served, PATIENCE_S) as client:
        with Progress(f"asking {requests.model}", len(texts)) as progress:

            async def work() -> None:
                for number, text in waiting:
                    found[number] = await ask(client, requests, text)
                    progress.update()

            async with asyncio.TaskGroup() as workers:
                for _ in range(min(at_once, len(texts))):
                    workers.create_task(work())
    return found


def score(served: ServedModel, requests: ProgramRequests, rows: Sequence[Any], at_once: int) -> Scores:
    """Score a program on rows with `text` and `label`; whatever is no label is wrong. Raises UserError where the engine fails."""
    started = time.monotonic()
    try:
        readings = asyncio.run(ask_all(served, requests, [row["text"] for row in rows], at_once))
    except* EngineError as errors:
        raise UserError(f"{requests.model} could not be scored: {errors.exceptions[0]}; the engine's log is in .cache/logs") from None
    right = sum(reading.label == row["label"] for reading, row in zip(readings, rows, strict=True))
    return Scores(right / len(rows), readings, time.monotonic() - started)


def latency(served: ServedModel, requests: ProgramRequests, texts: Sequence[str]) -> list[float]:
    """Seconds for each of the texts, one at a time."""

    async def one_by_one() -> list[float]:
        seconds = []
        async with engine_client(served, PATIENCE_S) as client:
            for text in texts:
                started = time.perf_counter()
                await ask(client, requests, text)
                seconds.append(time.perf_counter() - started)
        return seconds

    return asyncio.run(one_by_one())

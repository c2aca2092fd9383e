"""A served student's answers to many rows, asked the way the service asks it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.completions import prompt_ids
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.engines.requests import NO_ANSWER, NO_PREDICTION, TRIAL, Failure, Prediction, ProgramRequests
from stages.parts.run.errors import UserError
from stages.parts.run.params import Style
from stages.parts.run.progress import Progress
from stages.parts.students.chat_template import continued_ids
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.prompt import StudentFormat

REASONING_TOKENS = 256
PATIENCE_S = 600  # for one answer: it may wait for all others in flight


@dataclass(frozen=True)
class Scores:
    """A program's answers to labelled rows, in their order; `accuracy` in [0, 1], `seconds` for all of them."""

    accuracy: float
    readings: list[Prediction]
    seconds: float

    @property
    def predicted(self) -> list[str]:
        return [reading.label for reading in self.readings]

    @property
    def probabilities(self) -> list[dict[str, float]]:
        return [reading.probabilities for reading in self.readings]


def max_tokens(style: Style, labels: Sequence[str], base: Path) -> int:
    """Return how many tokens an answer may have: a label, whatever tokens spell it, its end, and room for the reasoning
    before it.

    A student may spell a label in other tokens than the tokenizer's, down to one a byte. The room for that is free: an
    engine stops at the answer's end, which is one token. If each label is one token, that token would double an answer,
    so it is cut off: then a label that is spelled otherwise is `unknown` (none of 1,301 odd queries, NOTES.md).
    """
    answers = [f" {label}" for label in labels]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    one_token = all(len(tokenizer.encode(answer, add_special_tokens=False).ids) == 1 for answer in answers)
    longest = 1 if one_token else max(len(answer.encode()) for answer in answers) + 1
    return longest if style == "direct" else longest + REASONING_TOKENS


async def ask(client: CachingClient, requests: ProgramRequests, text: str) -> Prediction:
    """Return one text's prediction; NO_PREDICTION for one that the engine refuses, as it does with too many tokens."""
    try:
        return requests.read(await client.complete(requests.body(text)))
    except EngineError as error:
        if Failure.of(error).reason == NO_ANSWER:
            raise
        return NO_PREDICTION


async def ask_all(
    served: ServedModel, requests: ProgramRequests, texts: Sequence[str], at_once: int
) -> list[Prediction]:
    """The readings of all texts in order, `at_once` in flight."""
    found: list[Prediction] = []
    with Progress(f"asking {requests.model}", len(texts)) as progress:

        def take(_: str, reading: Prediction) -> None:
            found.append(reading)
            progress.update()

        async with engine_client(served, PATIENCE_S) as client:
            caching = CachingClient(client, RateLimit(at_once))
            await in_order(lambda text: ask(caching, requests, text), texts, at_once, take)
    return found


def score(served: ServedModel, requests: ProgramRequests, rows: Sequence[Any], at_once: int) -> Scores:
    """Score a program on rows with `text` and `label`; whatever is no label is wrong, and so is any answer to a row
    without a label.

    Raises UserError where the engine fails.
    """
    started = time.monotonic()
    at_once *= served.copies
    try:
        readings = asyncio.run(ask_all(served, requests, [row["text"] for row in rows], at_once))
    except ExceptionGroup as group:
        error = group.exceptions[0]
        if not isinstance(error, EngineError):
            raise
        raise UserError(f"{requests.model} could not be scored: {error}; the engine's log is in .cache/logs") from None
    right = sum(reading.label == row.get("label") for reading, row in zip(readings, rows, strict=True))
    return Scores(right / len(rows), readings, time.monotonic() - started)


def trial_tokens(program: IntentClassifier, base: Path) -> list[int]:
    """Return the trial query's prompt as token ids, as training makes them with the base's tokenizer."""
    wanted = predictor(program)
    messages = StudentFormat().format(wanted.signature, wanted.demos, {"query": TRIAL})
    return continued_ids(AutoTokenizer.from_pretrained(base), messages)


def check_tokens(served: ServedModel, requests: ProgramRequests, base: Path) -> None:
    """Raise UserError unless an engine makes the same tokens of a prompt as training does. If it does not report them,
    their number is compared.
    """

    async def trial() -> dict[str, Any]:
        async with engine_client(served, PATIENCE_S) as client:
            return await client.complete(requests.trial())

    expected, completion = trial_tokens(requests.program, base), asyncio.run(trial())
    found = prompt_ids(completion)
    if found != expected if found else completion["usage"]["prompt_tokens"] != len(expected):
        raise UserError(
            f"{requests.model} is served with other tokens than it was trained with: its engine makes "
            f"{completion['usage']['prompt_tokens']} tokens of a prompt of {len(expected)}, or other ones; take the "
            "engine's version of the lock, or another student"
        )


def latency(served: ServedModel, requests: ProgramRequests, texts: Sequence[str]) -> list[float]:
    """Seconds for each of the texts, one at a time."""

    async def one_by_one() -> list[float]:
        seconds = []
        async with engine_client(served, PATIENCE_S) as client:
            caching = CachingClient(client, RateLimit(1))
            for text in texts:
                started = time.perf_counter()
                await ask(caching, requests, text)
                seconds.append(time.perf_counter() - started)
        return seconds

    return asyncio.run(one_by_one())

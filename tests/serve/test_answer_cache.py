"""Shared predictions: which queries reach the engine, what is kept, and what a waiting request that gives up does."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from serve.answer_cache import AnswerCache
from stages.parts.engines.http_client import EngineError
from stages.parts.students.prediction import CalibratedPrediction


def prediction(label: str) -> CalibratedPrediction:
    return CalibratedPrediction(label, 0.5, abstained=None, runners_up=[], reasoning=None, model="m")


class Engine:
    """Records its queries, and answers once it may."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.may_answer = asyncio.Event()
        self.fails = False

    async def predict(self, query: str) -> CalibratedPrediction:
        self.queries.append(query)
        await self.may_answer.wait()
        if self.fails:
            raise EngineError("down")
        return prediction(query)


def with_engine(test: Callable[[Engine], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Engine())

    asyncio.run(main())


async def together(cache: AnswerCache, engine: Engine, *queries: str) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(cache.get(query, partial(engine.predict, query))) for query in queries]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_equal_queries_reach_the_engine_once():
    async def test(engine):
        cache = AnswerCache("pair", 10)
        tasks = await together(cache, engine, "a", "a", "b", "a")
        engine.may_answer.set()
        found = await asyncio.gather(*tasks)
        assert engine.queries == ["a", "b"]
        assert [(found_one.label, source) for found_one, source in found] == [
            ("a", "engine"),
            ("a", "in_flight"),
            ("b", "engine"),
            ("a", "in_flight"),
        ]
        assert (await cache.get("a", partial(engine.predict, "a")))[1] == "cache" and not cache.pending
        assert not any(key == b"a" or key == b"b" for key in cache.kept)

    with_engine(test)


def test_the_least_recently_used_answer_goes_first():
    async def test(engine):
        engine.may_answer.set()
        cache = AnswerCache("pair", 2)
        for query in ("a", "b", "a", "c", "a", "b"):
            await cache.get(query, partial(engine.predict, query))
        assert engine.queries == ["a", "b", "c", "b"] and len(cache.kept) == 2

    with_engine(test)


def test_size_0_keeps_nothing():
    async def test(engine):
        engine.may_answer.set()
        cache = AnswerCache("pair", 0)
        assert [(await cache.get("a", partial(engine.predict, "a")))[1] for _ in range(2)] == ["engine", "engine"]
        assert engine.queries == ["a", "a"] and not cache.kept

    with_engine(test)


def test_a_failure_is_shared_but_not_kept():
    async def test(engine):
        cache, engine.fails = AnswerCache("pair", 10), True
        tasks = await together(cache, engine, "a", "a")
        engine.may_answer.set()
        assert all(isinstance(error, EngineError) for error in await asyncio.gather(*tasks, return_exceptions=True))
        assert not cache.pending and not cache.kept
        engine.fails = False
        assert (await cache.get("a", partial(engine.predict, "a")))[1] == "engine"

    with_engine(test)


def test_a_request_that_gives_up_leaves_the_others_their_prediction():
    async def test(engine):
        cache = AnswerCache("pair", 10)
        first, second = await together(cache, engine, "a", "a")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        engine.may_answer.set()
        assert (await second)[0].label == "a"

    with_engine(test)


def test_when_all_give_up_the_query_is_cancelled_and_the_next_starts_anew():
    async def test(engine):
        cache = AnswerCache("pair", 10)
        (only,) = await together(cache, engine, "a")
        only.cancel()
        with pytest.raises(asyncio.CancelledError):
            await only
        assert not cache.pending
        engine.may_answer.set()
        assert (await cache.get("a", partial(engine.predict, "a")))[1] == "engine" and engine.queries == ["a", "a"]

    with_engine(test)

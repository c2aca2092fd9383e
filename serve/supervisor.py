"""Keeps an engine running: starts it, says when it is ready, starts it again when it dies."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve.engine_client import EngineError
from stages.parts.errors import UserError
from stages.parts.vllm_server import Engine

logger = logging.getLogger("serve")

WATCH_EVERY_S = 0.2
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

Check = Callable[[], Awaitable[None]]


class Supervisor:
    """Readiness of an engine. `check` sends a real query through; `ready` is true from its success to the engine's end.

    With an `engine` of its own, the supervisor starts it, and starts it again with growing pauses when it ends. Without one, it watches an
    engine that runs elsewhere.
    """

    def __init__(self, engine: Engine | None, check: Check) -> None:
        self.engine = engine
        self.check = check
        self.ready = False
        self.was_ready = asyncio.Event()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises UserError or EngineError where the engine was never ready at all."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self.live()
                pause = FIRST_PAUSE_S
            except (UserError, EngineError) as error:
                if not self.was_ready.is_set():
                    raise
                logger.error("the engine is not up: %s", error)
            finally:
                self.ready = False
            logger.error("the engine is gone; next try in %.0f s", pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def live(self) -> None:
        """One life of the engine, from start to end."""
        if self.engine:
            self.engine.stop()  # what a dead engine left behind: its workers hold memory
            process = self.engine.start()  # here, not in a thread of the pool: with its thread the engine would end
            await asyncio.to_thread(self.engine.wait_until_up)
            await self.check()
            self.now_ready()
            while process.poll() is None:
                await asyncio.sleep(WATCH_EVERY_S)
        else:
            await self.check()
            self.now_ready()
            while True:
                await asyncio.sleep(1)
                await self.check()

    def now_ready(self) -> None:
        self.ready = True
        self.was_ready.set()
        logger.info("the engine is ready")

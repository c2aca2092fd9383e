"""Keeps an engine running: starts it, knows when it is ready, starts it again when it dies."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from stages.parts.engines.engine import Engine
from stages.parts.engines.errors import EngineError, EngineRefuses
from stages.parts.engines.process import EngineProcess
from stages.parts.run.errors import UserError

logger = logging.getLogger("serve")

WATCH_EVERY_S = 0.2
CHECK_EVERY_S = 1.0  # of an engine that runs elsewhere
FAILED_CHECKS = 3  # in a row, before such an engine counts as gone: a single one may be a dropped connection
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# an engine that was ready for so long is started again after the first pause, however many it took before
STEADY_S = 60.0

Check = Callable[[], Awaitable[None]]


class Supervisor:
    """Watches over an engine. `check` sends a real query; `ready` is true from its success to the engine's end.

    An engine of our own is started, and started again with growing pauses when it ends. One that runs elsewhere is
    checked every second. A `patient` supervisor waits for one that is not up yet.
    """

    def __init__(self, engine: Engine, check: Check, patient: bool = False) -> None:
        self.engine = engine
        self.check = check
        self.patient = patient
        self.ready = False
        self.ready_since = 0.0  # by the monotonic clock
        self.was_ready = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled. Raises UserError or EngineError if the engine was never ready at all; a patient
        supervisor raises only EngineRefuses.
        """
        pause = FIRST_PAUSE_S
        while True:
            try:
                await (self.run_process(self.engine) if isinstance(self.engine, EngineProcess) else self.watch())
            except (UserError, EngineError, OSError) as error:
                if not self.was_ready.is_set() and (not self.patient or isinstance(error, EngineRefuses)):
                    raise
                logger.error("the engine is gone: %s", error)
            if self.ready and time.monotonic() - self.ready_since > STEADY_S:
                pause = FIRST_PAUSE_S
            self.ready = False
            logger.error("next try in %.0f s", pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def run_process(self, engine: EngineProcess) -> None:
        """Run the engine once, from start to end; raises EngineError at its end."""
        await asyncio.to_thread(engine.stop)  # what a dead engine left behind: its workers hold memory
        process = engine.start()  # here, not in a thread of the pool: with its thread the engine would end
        await asyncio.to_thread(engine.wait_until_up)
        await self.check()
        self.mark_ready()
        while process.poll() is None:
            await asyncio.sleep(WATCH_EVERY_S)
        raise EngineError(f"it ended with code {process.returncode}; its log is {engine.log}")

    async def watch(self) -> None:
        """Check an engine that runs elsewhere; raises EngineError once it fails several checks in a row."""
        await self.check()
        self.mark_ready()
        failed = 0
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                await self.check()
                failed = 0
            except EngineError:
                failed += 1
                if failed == FAILED_CHECKS:
                    raise

    def stop(self) -> None:
        """Stop an engine of our own."""
        if isinstance(self.engine, EngineProcess):
            self.engine.stop()

    def mark_ready(self) -> None:
        self.ready = True
        self.ready_since = time.monotonic()
        self.was_ready.set()
        logger.info("the engine is ready")

"""An asker on a thread of its own, for callers that are not asynchronous, and for several at once: what DSPy's
optimisers run.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from stages.parts.engines.caching_client import CachingClient, ChatClient

Result = TypeVar("Result")


@dataclass(frozen=True)
class ClientThread:
    """The asker, and the loop that it lives on."""

    asker: CachingClient
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for what runs on the asker's loop. From any thread but its own."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


@contextmanager
def client_thread(
    connect: Callable[[], AbstractAsyncContextManager[ChatClient]], make: Callable[[ChatClient], CachingClient]
) -> Iterator[ClientThread]:
    """A connected asker until the block ends; what is still being asked then is cancelled."""
    up: Future[ClientThread] = Future()
    over = asyncio.Event()

    async def live() -> None:
        async with connect() as client:
            up.set_result(ClientThread(make(client), asyncio.get_running_loop()))
            await over.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)  # while the client is still open

    def body() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(live())
        except BaseException as error:
            if up.done():
                raise
            up.set_exception(error)

    thread = threading.Thread(target=body, name="asker", daemon=True)
    thread.start()
    running = up.result()
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(over.set)
        thread.join()

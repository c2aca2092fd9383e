"""DSPy language models on our engines: a served student for the optimiser, and a cached teacher for prompt tuning.

DSPy is synchronous and calls from several threads; `client_thread` runs our asynchronous client for it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import dspy
import uvloop
from dspy.clients.engines.lm15_engine import LM15Engine
from dspy.lm15 import Message, Request, Response, RouterConfig, TextPart, Usage

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.caching_client import CachingClient, ChatClient, was_cut
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.http_client import EngineError, QueryRefused, RequestRefused
from stages.parts.task.label_probabilities import alternatives
from stages.parts.task.program import IntentClassifier, using
from stages.parts.task.prompt import StudentFormat, answer_form

RETRIES = 5  # with DSPy's exponential back-off, about a minute: enough for a rate limit or an engine's hiccup

Returned = TypeVar("Returned")


class OptionsEngine:
    """DSPy's own client with request keys that only our engines know. Given to dspy.LM directly they would reroute each
    call through litellm, at four times the processor time (6.8 ms against 1.5 ms a call)."""

    def __init__(self, served: ServedModel, options: Mapping[str, Any], whole_at_limit: bool) -> None:
        self.options = dict(options)
        self.whole_at_limit = whole_at_limit
        self.engine = LM15Engine(RouterConfig(api_keys={"vllm": served.key}, base_urls={"vllm": served.api_base}))

    def complete(self, request: Request) -> Response:
        extensions = {**(request.config.extensions or {}), **self.options}
        response = self.engine.complete(replace(request, config=replace(request.config, extensions=extensions)))
        if self.whole_at_limit:
            # a label that fills its last token is whole: DSPy would warn of each
            response = replace(response, finish_reason="stop")
        return response

    def __deepcopy__(self, memo: dict[int, object]) -> "OptionsEngine":
        return self  # DSPy copies LMs freely; connections are shared


@contextmanager
def using_student(served: ServedModel, name: str, program: IntentClassifier, max_tokens: int) -> Iterator[None]:
    """Run programs like `program` on a served student, at temperature 0 and with the chosen tokens' log-probabilities.
    Not cached: another request is cheap."""
    form = answer_form(program.labels, program.style)
    student = dspy.LM(
        f"hosted_vllm/{served.names[name]}",
        engine=OptionsEngine(served, served.kind.answer_options(form), whole_at_limit=bool(form.choices)),
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=True,
        top_logprobs=alternatives(len(program.labels), served.kind.max_alternatives),
        num_retries=RETRIES,
        cache=False,
    )
    with using(student, StudentFormat()):
        yield


@dataclass(frozen=True)
class ClientThread:
    """A client, and the event loop of the thread it lives on."""

    client: CachingClient
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        """Run a coroutine on the client's loop and return its result; from any thread but the client's own."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


@contextmanager
def client_thread(
    connect: Callable[[], AbstractAsyncContextManager[ChatClient]], make: Callable[[ChatClient], CachingClient]
) -> Iterator[ClientThread]:
    """Run a client on a thread of its own until the block ends; requests in flight then are cancelled."""
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

    thread = threading.Thread(target=body, name="client", daemon=True)
    thread.start()
    running = up.result()
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(over.set)
        thread.join()


class CachedDspyEngine:
    """A DSPy engine that sends DSPy's messages with `options`, the request's other keys, whatever DSPy would send.

    DSPy takes an exception for a wrong answer and goes on. So what concerns all requests (a budget, a key, an engine
    that is down) is kept in `failed`, and every later call ends with it at once; whoever runs an optimiser looks at it
    afterwards.
    """

    def __init__(self, thread: ClientThread, options: Mapping[str, Any], answered: Callable[[], None]) -> None:
        self.thread = thread
        self.options = dict(options)
        self.answered = answered
        self.failed: Exception | None = None

    def complete(self, request: Request) -> Response:
        if self.failed:
            raise self.failed
        system = [{"role": "system", "content": request.system}] if request.system else []
        messages = [*system, *({"role": message.role, "content": message.text} for message in request.messages)]
        try:
            completion = self.thread.run(self.thread.client.complete({"messages": messages, **self.options}))
        except (QueryRefused, RequestRefused):
            raise
        except (EngineError, BudgetExceeded) as error:
            self.failed = error
            raise
        self.answered()
        usage = completion["usage"]
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(completion["choices"][0]["message"]["content"])]),
            finish_reason="length" if was_cut(completion) else "stop",
            usage=Usage(
                input_tokens=usage["prompt_tokens"],
                output_tokens=usage["completion_tokens"],
                total_tokens=usage["prompt_tokens"] + usage["completion_tokens"],
            ),
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "CachedDspyEngine":
        return self  # DSPy copies LMs freely


def cached_lm(engine: CachedDspyEngine) -> dspy.LM:
    """Return a DSPy language model on an engine that retries, stores answers, and names the model itself."""
    return dspy.LM("openai/cached", engine=engine, cache=False, num_retries=0)

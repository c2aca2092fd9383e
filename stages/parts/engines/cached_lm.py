"""What DSPy's optimisers ask, asked by our own asker: in its pace, kept in its log, counted by its meter and held to
its budget.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.caching_client import was_cut
from stages.parts.engines.client_thread import ClientThread
from stages.parts.engines.http_client import EngineError, QueryRefused, RequestRefused


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
            completion = self.thread.run(self.thread.asker.complete({"messages": messages, **self.options}))
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
    """A DSPy language model on an engine that retries and keeps answers itself, and knows which model it asks."""
    return dspy.LM("openai/asked", engine=engine, cache=False, num_retries=0)

"""Why a query has no completion, by what the failure concerns.

EngineError          no answer: the engine is down, or failed; a retry may help
├── EngineTimeout    no answer within the time limit
├── EngineBusy       too many requests at the moment
├── UnreadableAnswer an answer that was paid, in a form that can't be read
├── QueryRefused     this query has too many tokens
├── RequestRefused   this request's content, or a parameter that all requests share
└── EngineRefuses    every request: the key, the model's name, or no credit
"""

from collections.abc import Mapping
from typing import Any


class EngineError(Exception):
    """The engine gave no answer: it is down, or failed. A retry may help."""


class EngineTimeout(EngineError):
    """No answer within the time limit."""


class EngineBusy(EngineError):
    """Too many requests for it at the moment. `retry_after_s`: when it wants the next one, if it names a time."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnreadableAnswer(EngineError):
    """An answer came, and was paid, in a form that can't be read. `answer` is the JSON object that came."""

    def __init__(self, message: str, answer: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.answer = answer


class QueryRefused(EngineError):
    """The engine won't take this query: it has too many tokens."""


class RequestRefused(EngineError):
    """The engine finds fault with this request: its content, or a parameter that all requests share."""


class EngineRefuses(EngineError):
    """The engine would refuse every request: the key, the model's name, or no credit."""

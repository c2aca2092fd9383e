"""The profile's teacher, ready to be asked: served by an engine of our own, behind an endpoint, or the linear one in
this process.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.parts.engines.budget import Budget, Price
from stages.parts.engines.caching_client import ChatClient
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.engine import EndpointKind, Precision, ServedModel
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.hub import snapshot
from stages.parts.engines.process import KINDS, prepare, running
from stages.parts.run.errors import UserError
from stages.parts.run.machine import gpu_memory
from stages.parts.run.params import HostedTeacherSettings, Params, Runtime, ServedTeacherSettings
from stages.parts.run.paths import cache
from stages.parts.teachers.cost import known_price
from stages.parts.teachers.hosted import KEY_NAME, hosted
from stages.parts.teachers.questions import Questions


@dataclass(frozen=True)
class Teacher:
    """Whom to ask: `connect` opens a client, `name` is the model's in requests, `log` where its answers are kept (None:
    they cost nothing and are not kept), `price` None where it is not known, `batch` whether the vendor's batch API is
    used, `votes` how often it is asked."""

    name: str
    kind: EndpointKind
    connect: Callable[[], AbstractAsyncContextManager[ChatClient]]
    max_tokens: int
    log: Path | None = None
    price: Price | None = None
    options: dict[str, Any] = field(default_factory=dict)
    batch: bool = False
    votes: int = 1

    @property
    def without_price(self) -> str:
        """What to do where the price is not known: engines of one's own have none."""
        return (
            "set teacher.price in its profile, or " if isinstance(self.kind, HostedEndpoint) else ""
        ) + "use runtime.budget_tokens"

    def budget(self, runtime: Runtime) -> Budget:
        """What counts its answers and holds them to the budget; raises UserError for a budget in dollars where no price
        is known.
        """
        if runtime.budget_usd and not self.price:
            raise UserError(f"runtime.budget_usd needs a price, and {self.name}'s is not known: {self.without_price}")
        return Budget(self.price, runtime.budget_usd, runtime.budget_tokens)


@contextmanager
def teacher_of(params: Params, questions: Questions) -> Iterator[Teacher]:
    """Whoever answers the questions, for as long as the block lasts; raises UserError where it can't be reached or
    started.
    """
    settings, timeout_s = params.teacher, params.runtime.timeout_s
    if isinstance(settings, ServedTeacherSettings):
        gpu_memory()
        weights = cache() / "hub" / settings.revision
        snapshot(settings.model, settings.revision, weights)
        # Says what a hash of 140 GB of weights would, and in which precision they answer.
        name = "@".join(filter(None, (settings.model, settings.revision, settings.quantization)))
        precision = Precision(settings.quantization, settings.kv_cache_dtype)
        length = settings.max_model_len
        kind = KINDS[settings.kind]
        engine = prepare(
            kind, weights, {}, params.runtime, on_gpus=True, name=name, max_model_len=length, precision=precision
        )
        with running(engine) as served:
            yield Teacher(
                name,
                served.kind,
                connecting(served, timeout_s),
                settings.max_tokens,
                answers_of(name),
                votes=settings.votes,
            )
    elif isinstance(settings, HostedTeacherSettings):
        served = hosted(settings)
        name = served.names["base"]
        log, price, connect = answers_of(name), known_price(settings), connecting(served, timeout_s)
        yield Teacher(
            name,
            served.kind,
            connect,
            settings.max_tokens,
            log,
            price,
            settings.options,
            settings.batch,
            settings.votes,
        )
    else:
        from stages.parts.teachers.linear_client import linear_client  # takes four seconds to import

        client = linear_client(questions, params.seed)

        @asynccontextmanager
        async def in_process() -> AsyncIterator[ChatClient]:
            yield client

        yield Teacher("linear", HostedEndpoint(KEY_NAME), in_process, max_tokens=400, price=Price(0, 0))


def connecting(served: ServedModel, timeout_s: float) -> Callable[[], AbstractAsyncContextManager[ChatClient]]:
    return lambda: engine_client(served, timeout_s)


def answers_of(model: str) -> Path:
    """The log of a model's answers: one a model, so that runs with different ones don't wait for each other."""
    readable = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in model)[-60:]
    return cache() / "answers" / f"{readable}-{hashlib.sha256(model.encode()).hexdigest()[:8]}.jsonl"
